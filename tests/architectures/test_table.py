"""The table of architectures, and configs cut as data."""

import copy
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoConfig

from depthcut.architectures.configs import cut_config, find_architecture, hidden_size, layer_count
from depthcut.architectures.table import ARCHITECTURES
from depthcut.errors import ArchitectureError, CheckpointError, PlanError
from tests.tiny import TINY_TYPES

LLAMA = {"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 8}
QWEN3_MOE = {**LLAMA, "model_type": "qwen3_moe"}
KEPT = st.sets(st.integers(0, 11), min_size=1).map(sorted)


@pytest.mark.parametrize("model_type", TINY_TYPES)
@settings(max_examples=20)
@given(kept=st.sets(st.integers(0, 5), min_size=1).map(sorted))
def test_a_cut_config_is_valid_and_says_what_each_kept_layer_is(
    model_type: str, kept: list[int]
) -> None:
    config = {**TINY_TYPES[model_type], "num_hidden_layers": 6, "model_type": model_type}
    before = dict(config)
    cut = cut_config(config, kept)
    assert config == before, "the given config was changed"
    whole, left = AutoConfig.for_model(**config), AutoConfig.for_model(**cut)
    assert left.num_hidden_layers == len(kept) == layer_count(cut, ARCHITECTURES[model_type])
    if types := getattr(whole, "layer_types", None):
        assert left.layer_types == [types[layer] for layer in kept]
    if model_type == "qwen3_moe":
        assert [sparse(cut, layer) for layer in range(len(kept))] == [
            sparse(config, layer) for layer in kept
        ]


def sparse(config: dict, layer: int) -> bool:
    """As the model's code decides it."""
    dense = config.get("mlp_only_layers") or []
    return layer not in dense and (layer + 1) % config.get("decoder_sparse_step", 1) == 0


@given(kept=KEPT, period=st.integers(1, 5), dense=st.sets(st.integers(0, 11)).map(sorted))
def test_any_layout_of_experts_can_be_cut(kept: list[int], period: int, dense: list[int]) -> None:
    config = {
        **QWEN3_MOE,
        "num_hidden_layers": 12,
        "decoder_sparse_step": period,
        "mlp_only_layers": dense,
    }
    cut = cut_config(config, kept)
    assert [sparse(cut, layer) for layer in range(len(kept))] == [
        sparse(config, layer) for layer in kept
    ]


def test_cutting_nothing_changes_nothing() -> None:
    for model_type, fields in TINY_TYPES.items():
        config = {**fields, "num_hidden_layers": 6, "model_type": model_type}
        cut = cut_config(config, range(6))
        changed = {key for key in cut if cut[key] != config.get(key)}
        assert not changed, model_type


@pytest.mark.parametrize("kept", [[], [6], [-1, 0]])
def test_kept_layers_must_be_in_range(kept: list[int]) -> None:
    with pytest.raises(PlanError, match="must be at least one, out of 0–5"):
        cut_config(LLAMA, kept)


def test_a_pattern_that_the_cut_respects_stays_as_it_is() -> None:
    config = {"model_type": "gemma3_text", "num_hidden_layers": 12, "hidden_size": 8}
    assert cut_config(config, [*range(6)]) == {**config, "num_hidden_layers": 6}
    config["sliding_window_pattern"] = 3
    assert cut_config(config, [*range(3), *range(6, 12)]) == {**config, "num_hidden_layers": 9}


def test_a_pattern_that_no_longer_holds_becomes_a_list() -> None:
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window_pattern": 3}
    assert cut_config(config, [0, 2, 3]) == {
        "model_type": "gemma3_text",
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }


def test_a_list_of_another_length_is_refused() -> None:
    config = {"model_type": "qwen3", "num_hidden_layers": 6, "layer_types": ["full_attention"] * 5}
    with pytest.raises(ArchitectureError, match=r"layer_types must be a list of 6 .*found 5"):
        cut_config(config, [0])


def test_an_unknown_list_as_long_as_the_stack_is_refused() -> None:
    # It may speak of the layers; guessing either way could load a wrong model without a word.
    with pytest.raises(ArchitectureError, match="list 'rope_thetas' has as many entries"):
        cut_config({**LLAMA, "rope_thetas": [1.0] * 6}, [0, 1])


def test_lists_that_are_not_about_layers_are_carried() -> None:
    config = {**LLAMA, "eos_token_id": [1, 2, 3, 4, 5, 6], "other": [1, 2]}
    assert cut_config(config, [0, 1]) == {**config, "num_hidden_layers": 2}


def test_settings_by_layer_follow_their_layers() -> None:
    config = {**LLAMA, "per_layer_config": {"1": {"head_dim": 1}, "4": {"head_dim": 4}}}
    assert cut_config(config, [0, 3, 4])["per_layer_config"] == {"2": {"head_dim": 4}}
    with pytest.raises(ArchitectureError, match="keys are layers"):
        cut_config({**LLAMA, "per_layer_config": {"x": {}}}, [0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_sparse_step", 0, "decoder_sparse_step must be a positive number"),
        ("decoder_sparse_step", "2", "decoder_sparse_step must be a whole number"),
        ("mlp_only_layers", [1.5], "mlp_only_layers must be a list of layers"),
        ("max_window_layers", "28", "max_window_layers must be a whole number"),
    ],
)
def test_fields_of_the_wrong_kind_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        cut_config({**QWEN3_MOE, key: value}, [0])


@pytest.mark.parametrize("period", [0, "3", -1])
def test_patterns_of_the_wrong_kind_are_refused(period: object) -> None:
    config = {"model_type": "gemma3_text", "num_hidden_layers": 6}
    with pytest.raises(
        ArchitectureError, match=r"sliding_window_pattern must be a (positive|whole) number"
    ):
        cut_config({**config, "sliding_window_pattern": period}, [0])


def test_the_nearest_block_that_works_is_named() -> None:
    config = {"model_type": "gpt2", "n_layer": 6, "scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(ArchitectureError, match=r"removal that works: layer 5$"):
        cut_config(config, [0, 2, 3, 4, 5])
    assert cut_config(config, [0, 1])["n_layer"] == 2


def test_both_names_of_the_layer_count_are_cut() -> None:
    config = {"model_type": "gpt2", "n_layer": 6, "num_hidden_layers": 6, "n_embd": 8}
    assert cut_config(config, [0, 1]) == {**config, "n_layer": 2, "num_hidden_layers": 2}
    assert hidden_size(config, ARCHITECTURES["gpt2"]) == 8
    with pytest.raises(CheckpointError, match="found n_layer 6, num_hidden_layers 5"):
        layer_count({**config, "num_hidden_layers": 5}, ARCHITECTURES["gpt2"])


@pytest.mark.parametrize("count", ["6", 0, -1, 6.0, True, []])
def test_a_layer_count_must_be_a_positive_number(count: object) -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers as one positive number"):
        layer_count({"num_hidden_layers": count}, ARCHITECTURES["llama"])


def test_a_layer_count_that_the_config_leaves_to_its_class_is_written_out() -> None:
    # The text config of LLaVA's checkpoints on the hub names little more than its model_type.
    config = {"model_type": "llama"}
    assert layer_count(config, ARCHITECTURES["llama"]) is None
    assert cut_config(config, [0, 2], layers=3) == {**config, "num_hidden_layers": 2}
    with pytest.raises(CheckpointError, match="found nothing"):
        cut_config(config, [0, 2])


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_config_without_model_type_is_refused(config: dict) -> None:
    with pytest.raises(ArchitectureError, match="has no model_type"):
        find_architecture(config)


def test_an_unknown_model_type_without_a_stack_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"'lama' is not .*did you mean llama.*0 numbered"):
        find_architecture({"model_type": "lama", "num_hidden_layers": 2})


def test_offers_of_a_period_are_such_as_the_class_takes() -> None:
    # JambaConfig refuses an offset that is not below its period.
    for kept in itertools.combinations(range(16), 3):
        config = {"model_type": "jamba", "num_hidden_layers": 16, "num_experts": 1}
        try:
            cut = cut_config(config, kept)
        except ArchitectureError:
            continue
        left = AutoConfig.for_model(**cut)
        whole = AutoConfig.for_model(**config)
        assert left.layers_block_type == [whole.layers_block_type[layer] for layer in kept]


LISTS = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers"),
    *("indexer_types", "activation_sparsity_pattern", "layer_rope_theta"),
)


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) & set(CONFIG_MAPPING)))
def test_lists_that_a_sparse_config_leaves_to_its_class_are_cut(model_type: str) -> None:
    """As on the hub: a config that says little more than how many layers there are."""
    entry = ARCHITECTURES[model_type]
    layers = 54 if model_type == "zamba2" else 12
    part = {entry.count[0]: layers}
    config = {"model_type": model_type, **({entry.decoder: part} if entry.decoder else part)}
    whole = lists_of(config, entry.decoder, layers)
    for kept in ([*range(3), *range(5, layers)], [*range(1, layers)], [*range(layers - 2)]):
        try:
            cut = cut_config(config, kept)
        except ArchitectureError:
            continue
        left = lists_of(cut, entry.decoder, len(kept))
        assert left.keys() >= whole.keys()
        for key, values in whole.items():
            expected = [values[layer] for layer in kept]
            if key == "layer_rope_theta":  # the models ask only whether there is one
                expected, left[key] = [*map(bool, expected)], [*map(bool, left[key])]
            assert left[key] == expected, key


def lists_of(config: dict, decoder: str, layers: int) -> dict[str, list]:
    """The lists with an entry for each layer that the config class makes of a config."""
    try:
        made = CONFIG_MAPPING[config["model_type"]](**copy.deepcopy(config))
    except Exception:  # defaults that do not go together
        return {}
    part = getattr(made, decoder) if decoder else made
    found = {key: getattr(part, key, None) for key in LISTS}
    return {
        key: list(value)
        for key, value in found.items()
        if isinstance(value, list) and len(value) == layers
    }


def test_an_empty_list_is_as_good_as_none() -> None:
    # Llama 4's config.json holds "no_rope_layers": [].
    config = {"model_type": "llama4_text", "num_hidden_layers": 8, "no_rope_layers": []}
    assert cut_config(config, [0, 2, 3])["no_rope_layers"] == [1, 1, 0]


def test_a_count_of_dense_layers_is_lowered_beside_the_list() -> None:
    # Other readers of the checkpoint may know the number only.
    config = {"model_type": "deepseek_v32", "num_hidden_layers": 6, "first_k_dense_replace": 3}
    assert cut_config(config, [0, 2, 4, 5])["first_k_dense_replace"] == 2


def test_a_decoder_without_a_model_type_has_the_fields_of_its_class() -> None:
    config = {"model_type": "gemma3", "text_config": {"num_hidden_layers": 12}}
    types = cut_config(config, [*range(5), *range(6, 12)])["text_config"]["layer_types"]
    assert types.count("full_attention") == 1


def test_a_window_that_is_off_does_not_hinder_repeats() -> None:
    config = {"model_type": "qwen2", "num_hidden_layers": 24, "max_window_layers": 21}
    assert cut_config(config, [*range(24), *range(8, 24)])["num_hidden_layers"] == 40
