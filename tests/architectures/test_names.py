"""Names of tensors and modules: which layer, and what it is called after the cut."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.architectures.configs import cut_config
from depthcut.architectures.fields import Cut
from depthcut.architectures.names import LayerNames, ModuleNames
from depthcut.architectures.table import ARCHITECTURES
from depthcut.errors import ArchitectureError

STACKS = sorted({stack for entry in ARCHITECTURES.values() for stack in entry.stacks})
TAILS = st.from_regex(r"[a-z_]{1,8}(\.[a-z0-9_]{1,8}){0,3}", fullmatch=True)


@given(stack=st.sampled_from(STACKS), old=st.integers(0, 999), new=st.integers(0, 999), tail=TAILS)
def test_renumbering_changes_the_layer_and_nothing_else(
    stack: str, old: int, new: int, tail: str
) -> None:
    names = LayerNames((stack,))
    for path in filter(None, (stack, stack.partition(".")[2])):  # the causal LM, the bare decoder
        name = f"{path}.{old}.{tail}"
        assert (names.layer(name), names.tail(name)) == (old, tail)
        assert names.renumber(name, new) == f"{path}.{new}.{tail}"
        assert names.renumber(names.renumber(name, new), old) == name


@given(
    stack=st.sampled_from(STACKS),
    layers=st.integers(1, 40),
    data=st.data(),
    tails=st.lists(TAILS, min_size=1, max_size=4, unique=True),
)
def test_a_cut_gives_every_kept_tensor_its_own_name(
    stack: str, layers: int, data: st.DataObject, tails: list[str]
) -> None:
    kept = data.draw(st.sets(st.integers(0, layers - 1), min_size=1).map(sorted))
    names = LayerNames((stack,))
    renamed = {
        names.renumber(f"{stack}.{old}.{tail}", new)
        for new, old in enumerate(kept)
        for tail in tails
    }
    assert renamed == {f"{stack}.{new}.{tail}" for new in range(len(kept)) for tail in tails}


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers",
        "model.layers.3",
        "model.layers.x.weight",
        "model.layers.03.weight",
        "model.layers.-1.weight",
        "encoder.model.layers.3.weight",
        "model.layers2.3.weight",
        "model_layers.3.weight",
    ],
)
def test_other_names_belong_to_no_layer_and_stay(name: str) -> None:
    names = LayerNames(("model.layers",))
    assert names.layer(name) is None
    assert names.renumber(name, 1) == name


def test_module_names_in_a_config_follow_the_layers() -> None:
    before = {
        "modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "layers.5.self_attn"],
        "ignore": ["re:.*lm_head", "model.layers.3"],
        "exact": {"model.layers.0.mlp": {"bits": 4}, "model.layers.4.mlp": {"bits": 8}},
        "bits": 4,
    }
    after = ModuleNames(("model.layers",), Cut(6, (0, 3, 5))).renumbered(before)
    assert after == {
        "modules_to_not_convert": ["lm_head", "layers.2.self_attn"],
        "ignore": ["re:.*lm_head", "model.layers.1"],
        "exact": {"model.layers.0.mlp": {"bits": 4}},
        "bits": 4,
    }


@pytest.mark.parametrize(
    "pattern",
    [
        r"model\.layers\.[9-0]\.mlp",
        r"model\.layers\.4..*mlp",
        r"re:.*layers\.3\.mlp|.*layers\.4\.mlp",
        r"re:model\.layers\.3(_proj)?\.mlp",
        rf"re:model\.layers\.{'(0*)*' * 70}7\.mlp",
        f"model.layers.{'3' * 5000}.mlp",
        r"+:.*\.3\..*\.2\..*gate",
        "model.layers.{0,1}.mlp",
        "transformer.layers.3.mlp",
        "model.layers.17.mlp",
    ],
)
def test_patterns_that_number_layers_are_refused(pattern: str) -> None:
    config = {
        "model_type": "llama",
        "num_hidden_layers": 6,
        "quantization_config": {"ignore": [pattern]},
    }
    with pytest.raises(ArchitectureError, match="names layers by number"):
        cut_config(config, [0, 1])


@pytest.mark.parametrize("text", ["layers.*.mlp", "multilayers.3d", "GPT with 12 layers. 3 heads"])
def test_other_text_is_left_alone(text: str) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 6, "note": text}
    assert cut_config(config, [0, 1])["note"] == text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"re:model\.layers\.3\..*", [r"re:model\.layers\.(1|2)\..*"]),
        ("model.layers.3.mlp", ["model.layers.1.mlp", "model.layers.2.mlp"]),
        ("model.layers.[0-3].mlp", [f"model.layers.{layer}.mlp" for layer in (0, 1, 2)]),
        ("model.layers.5*", ["model.layers.3.*"]),
        ("re:.*lm_head|.*layers.1.mlp", ["re:.*lm_head|.*layers.(?!).mlp"]),
        (r"re:(?!.*layers\.1\.).*mlp", [r"re:(?!.*layers\.(?!)\.).*mlp"]),
        (r".*\.experts\.3\..*", [r".*\.experts\.3\..*"]),
        ("4.57.1", ["4.57.1"]),
        (r"-:.*\.layers\.0\.mlp.*", [r"-:.*\.layers\.0\.mlp.*"]),
        ("re:.*layers.(0|3|4).mlp", ["re:.*layers.(0|1|2).mlp"]),
        ("re:.*layers.(?:1|4).mlp", []),
        (r"model\.layers\.4\.mlp", []),
        (r"model\.layers\.\d+\.mlp", [r"model\.layers\.\d+\.mlp"]),
        (r"model\.layers\.[0-9]+\.mlp", [r"model\.layers\.[0-9]+\.mlp"]),
        ("vision_tower.encoder.layers.3.mlp", ["vision_tower.encoder.layers.3.mlp"]),
    ],
)
def test_patterns_with_numbers_follow_the_layers(pattern: str, expected: list[str]) -> None:
    names = ModuleNames(("model.layers",), Cut(6, (0, 3, 3, 5)))
    assert names.renumbered([pattern]) == expected


def test_a_single_name_of_a_removed_layer_becomes_nothing() -> None:
    names = ModuleNames(("model.layers",), Cut(6, (0, 3)))
    assert names.renumbered({"a": "model.layers.1.mlp", "b": "model.layers.3.mlp"}) == {
        "a": None,
        "b": "model.layers.1.mlp",
    }


STACK = "model.layers"
TAILS_OF_LAYERS = ["self_attn.q_proj", "mlp.gate", "mlp.experts.2.gate_proj", "mlp.experts.13.w1"]
KEPT = {
    "ascending": (0, 1, 2, 5, *range(12, 24)),
    "few": (3, 20, 21),
    "moved and repeated": (13, 2, 2, 1, 20, *range(13)),
}
EXPRESSIONS = [
    r"re:model\.layers\.2\..*gate.*",
    r"re:.*layers.2.*",
    r"re:.*layers.[0-3].*gate.*",
    r"re:.*\.layers\.([0-9]|1[0-7])\.mlp.*",
    r"re:.*\.layers\.(?:1|2|20)\.self_attn\.q_proj",
    r"re:.*layers\.1",
    r"re:model\.layers\.\d\..*",
    r"re:model\.layers\.[^.]\.mlp",
    r"re:model\.layers\.\w+\.mlp\.gate",
    r"re:model\.layers\.[0-9]*\.mlp\.gate",
    r"re:model\.layers\.1\d\..*",
    r"re:model\.layers\.(\d+)\.mlp\.gate",
    r"re:(?!.*layers\.(0|1|13)\.).*gate",
    r"re:.*layers\.(0|1)\.mlp\.gate$|lm_head",
    r"+:.*\.2\..*gate.*",
    r"-:.*\.13\..*",
    r".*\.(1|2|22)\..*",
    r"-:.*gate.*",
    r"^model\.layers\.13\.mlp",
]


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_matches_a_module_exactly_if_it_did_before(
    expression: str, kept: tuple[int, ...]
) -> None:
    # Read as compressed-tensors and GPTQModel do: from the start of the name, not to its end.
    def matched(texts: list[str], name: str) -> bool:
        return any(re.match(re.sub("^(re:|[-+]:)", "", text), name) for text in texts)

    texts = ModuleNames((STACK,), Cut(24, kept)).renumbered([expression])
    assert isinstance(texts, list)
    for new, old in enumerate(kept):
        for tail in TAILS_OF_LAYERS:
            before = matched([expression], f"{STACK}.{old}.{tail}")
            assert matched(texts, f"{STACK}.{new}.{tail}") == before, (texts, old, new, tail)
    assert matched(texts, "lm_head") == matched([expression], "lm_head")


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("wildcard", ["model.layers.1*", "*layers.2.mlp*", "model.layers.13.*gate"])
def test_a_wildcard_matches_a_module_exactly_if_it_did_before(
    wildcard: str, kept: tuple[int, ...]
) -> None:
    texts = ModuleNames((STACK,), Cut(24, kept)).renumbered([wildcard])
    assert isinstance(texts, list)
    for new, old in enumerate(kept):
        for tail in TAILS_OF_LAYERS:
            name = f"{STACK}.{new}.{tail}"
            before = fnmatchcase(f"{STACK}.{old}.{tail}", wildcard)
            assert any(fnmatchcase(name, text) for text in texts) == before, (texts, old, new, tail)


def test_what_may_be_a_wildcard_or_an_expression_is_refused_where_they_differ() -> None:
    names = ModuleNames((STACK,), Cut(24, (0, 2)))
    assert names.renumbered(["model.layers.3.*"]) == []
    with pytest.raises(ArchitectureError, match="names layers by number"):
        names.renumbered(["model.layers.2.*"])  # as an expression also 20 to 23


@pytest.mark.parametrize(
    "name", ["model.layers.6.eh_proj", "model.layers.6*", r"re:.*layers\.6\..*"]
)
def test_names_of_layers_that_only_predict_further_tokens_go(name: str) -> None:
    # The lists of quantised DeepSeek and GLM checkpoints name the layer behind the stack.
    names = ModuleNames(("model.layers",), Cut(6, (0, 1), extra=1))
    assert names.renumbered([name, "lm_head"]) == ["lm_head"]
