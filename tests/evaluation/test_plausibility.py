import math
from pathlib import Path

import pytest
import torch

from depthcut.errors import CheckpointError, SettingsError
from depthcut.evaluation.generation import Generation, generate_all
from depthcut.evaluation.plausibility import losses_under, reference_perplexity
from depthcut.model.loading import LoadedModel, from_memory
from tests.evaluation.models_for_tests import tiny
from tests.tiny import build_tiny

PROMPTS = ((1, 2, 3), (4,), tuple(range(30)), (5, 6))
WRITTEN = ((7, 8), tuple(range(100, 140)), (9,), ())


def loss_by_hand(loaded: LoadedModel, prompt: tuple[int, ...], new: tuple[int, ...]) -> float:
    """Alone and one token after the other, each from all that stands before it."""
    total, ids = 0.0, [*prompt, *new]
    for place in range(len(prompt), len(ids)):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        total -= logits.double().log_softmax(-1)[ids[place]].item()
    return total


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mistral", "opt"])
def test_losses_are_those_of_each_generation_alone(model_type: str) -> None:
    loaded = from_memory(build_tiny(model_type), None)
    expected = [loss_by_hand(loaded, *each) for each in zip(PROMPTS, WRITTEN, strict=True)]
    for batch_size in (None, 1, 3):
        found = losses_under(loaded, PROMPTS, WRITTEN, batch_size=batch_size)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found[3] == 0


def test_perplexity_is_over_all_tokens_and_its_error_over_prompts() -> None:
    loaded = from_memory(build_tiny("llama"), None)
    generations = [
        Generation(text="", ids=new, prompt_ids=prompt, ended=True)
        for prompt, new in zip(PROMPTS, WRITTEN, strict=True)
    ]
    found = reference_perplexity(loaded, generations)
    losses = losses_under(loaded, PROMPTS, WRITTEN).tolist()[:3]
    sizes = [2, 40, 1]
    mean = sum(losses) / 43
    residuals = [loss - mean * size for loss, size in zip(losses, sizes, strict=True)]
    error = math.sqrt(3 / 2 * sum(each**2 for each in residuals)) / 43
    assert found is not None
    assert found.value == pytest.approx(math.exp(mean))
    assert found.stderr == pytest.approx(math.exp(mean) * error)


def test_a_models_own_text_is_the_most_plausible_to_it(tmp_path: Path) -> None:
    loaded, other = tiny(tmp_path), tiny(tmp_path, noise=0.3)
    written = generate_all({"own": loaded, "other": other}, ["One", "Two", "Three"], new_tokens=12)
    own, others = (reference_perplexity(loaded, written[name]) for name in ("own", "other"))
    assert own is not None
    assert others is not None
    assert 1 < own.value < others.value


def test_fewer_than_two_texts_have_no_perplexity() -> None:
    loaded = from_memory(build_tiny("llama"), None)
    empty = Generation(text="", ids=(), prompt_ids=(1,), ended=True)
    one = Generation(text="", ids=(1, 2), prompt_ids=(1,), ended=True)
    assert reference_perplexity(loaded, []) is None
    assert reference_perplexity(loaded, [empty, one, empty]) is None


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="an empty prompt"):
        losses_under(from_memory(build_tiny("llama"), None), [[1], []], [[2], [3]])


def test_what_is_longer_than_the_learned_positions_is_refused() -> None:
    loaded = from_memory(build_tiny("gpt2", max_position_embeddings=64), None)
    assert losses_under(loaded, [[1] * 32], [[2] * 32]).item() > 0
    with pytest.raises(SettingsError, match=r"have 65 tokens, .* has 64 positions"):
        losses_under(loaded, [[1] * 33], [[2] * 32])


def test_a_broken_model_is_named_instead_of_writing_nan() -> None:
    model = build_tiny("llama")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(math.nan)
    with pytest.raises(CheckpointError, match="not a finite number"):
        losses_under(from_memory(model, None), [[1]], [[2]])


def test_the_model_is_judged_by_in_evaluation_mode_and_left_as_it_was() -> None:
    model = build_tiny("gpt2", resid_pdrop=0.5)
    loaded = from_memory(model, None)
    expected = losses_under(loaded, PROMPTS, WRITTEN)
    model.train()
    assert losses_under(loaded, PROMPTS, WRITTEN).equal(expected)
    assert model.training
