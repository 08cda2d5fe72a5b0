import logging
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from depthcut.errors import CheckpointError, SettingsError, TextError
from depthcut.evaluation.quality import judge
from depthcut.model.loading import from_memory
from depthcut.text.sequences import Sequences
from tests.evaluation.models_for_tests import changed, mixed, sequences_of, tiny
from tests.tiny import build_tiny

LENGTHS = (40, 7, 23, 40, 2, 31)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_loss_agrees_with_each_sequence_alone_in_float64(tmp_path: Path, model_type: str) -> None:
    loaded = tiny(tmp_path, model_type=model_type)
    sequences = sequences_of(LENGTHS)
    oracle = build_tiny(model_type).double()
    total = 0.0
    with torch.no_grad():
        for ids in sequences.sequences:
            scores = oracle(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            total -= scores.gather(1, ids[1:, None]).sum().item()
    tokens = sum(LENGTHS) - len(LENGTHS)
    found = judge({"a": loaded}, sequences, batch_size=4)[0]["a"]
    assert found.loss.value == pytest.approx(total / tokens, rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert found.bits_per_byte.value == pytest.approx(total / math.log(2) / tokens, rel=1e-5)


def test_divergence_and_agreement_agree_with_each_sequence_alone(tmp_path: Path) -> None:
    models = {"a": tiny(tmp_path), "b": tiny(tmp_path, noise=0.02)}
    sequences = sequences_of(LENGTHS)
    divergence, agreement, difference = 0.0, 0, 0.0
    with torch.no_grad():
        for ids in sequences.sequences:
            p, q = (
                each.model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
                for each in models.values()
            )
            divergence += (p.exp() * (p - q)).sum().item()
            agreement += int((p.argmax(-1) == q.argmax(-1)).sum())
            difference += (p - q).gather(1, ids[1:, None]).sum().item()
    tokens = sum(LENGTHS) - len(LENGTHS)
    _, (found,) = judge(models, sequences, batch_size=3)
    assert found.name == "b"
    assert found.kl_divergence.value == pytest.approx(divergence / tokens, rel=1e-4)
    assert found.kl_divergence.value > 0.01
    assert found.agreement.value == pytest.approx(agreement / tokens)
    assert found.loss_difference.value == pytest.approx(difference / tokens, abs=1e-5)


def test_a_model_equals_itself_exactly(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    _, (found,) = judge({"a": model, "b": model}, sequences_of(LENGTHS), batch_size=2)
    for estimate in (found.loss_difference, found.kl_divergence):
        assert (estimate.value, estimate.stderr) == (0.0, 0.0)
    assert (found.agreement.value, found.agreement.stderr) == (1.0, 0.0)


def test_padding_and_batch_size_do_not_count(tmp_path: Path) -> None:
    models = {"a": tiny(tmp_path), "b": tiny(tmp_path, noise=0.02)}
    one_by_one = judge(models, sequences_of(LENGTHS), batch_size=1)
    all_at_once = judge(models, sequences_of(LENGTHS), batch_size=6)
    default = judge(models, sequences_of(LENGTHS), batch_size=None)
    for found in (all_at_once, default):
        for name in models:
            expected = one_by_one[0][name].loss
            assert found[0][name].loss.value == pytest.approx(expected.value, rel=1e-6)
            assert found[0][name].loss.stderr == pytest.approx(expected.stderr, rel=1e-4)
        kl = one_by_one[1][0].kl_divergence
        assert found[1][0].kl_divergence.value == pytest.approx(kl.value, rel=1e-4)


def test_each_of_several_texts_is_judged_as_if_it_were_alone(tmp_path: Path) -> None:
    models = {"a": tiny(tmp_path), "b": tiny(tmp_path, noise=0.02)}
    sequences = mixed(LENGTHS, (0, 1, 0, 1, 0, 1))
    qualities, _ = judge(models, sequences, batch_size=4)
    for part, name in enumerate(("first.txt", "second.txt")):
        alone, (beside,) = judge(models, only(sequences, part), batch_size=4)
        for model, quality in qualities.items():
            found = quality.texts[part]
            assert found.source == name
            for field in ("loss", "perplexity", "bits_per_byte"):
                expected = getattr(alone[model], field)
                assert getattr(found, field).value == pytest.approx(expected.value, rel=1e-5)
                assert getattr(found, field).stderr == pytest.approx(expected.stderr, rel=1e-4)
        for field in ("loss_difference", "agreement", "kl_divergence"):
            assert getattr(qualities["a"].texts[part], field) is None
            found, expected = getattr(qualities["b"].texts[part], field), getattr(beside, field)
            assert found.value == pytest.approx(expected.value, rel=1e-4)
            assert found.stderr == pytest.approx(expected.stderr, rel=1e-3)


def test_all_texts_together_are_the_mean_of_each_weighted_by_its_tokens(tmp_path: Path) -> None:
    models = {"a": tiny(tmp_path), "b": tiny(tmp_path, noise=0.02)}
    order = (1, 1, 0, 1, 0, 0)
    qualities, (beside,) = judge(models, mixed(LENGTHS, order), batch_size=4)
    tokens = [
        sum(length - 1 for length, part in zip(LENGTHS, order, strict=True) if part == which)
        for which in (0, 1)
    ]
    texts = qualities["b"].texts
    assert texts[0].loss.value != pytest.approx(texts[1].loss.value, rel=1e-3)
    for whole, field in (
        (qualities["b"].loss, "loss"),
        (qualities["b"].bits_per_byte, "bits_per_byte"),
        (beside.loss_difference, "loss_difference"),
        (beside.agreement, "agreement"),
        (beside.kl_divergence, "kl_divergence"),
    ):
        weighted = sum(
            getattr(text, field).value * count for text, count in zip(texts, tokens, strict=True)
        )
        assert whole.value == pytest.approx(weighted / sum(tokens), rel=1e-9)


def test_one_text_is_not_judged_twice(tmp_path: Path) -> None:
    found, _ = judge({"a": tiny(tmp_path)}, mixed((9, 9), (0, 0), texts=1), batch_size=2)
    assert found["a"].texts == ()


def test_a_text_of_which_one_sequence_was_read_is_not_judged_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found, _ = judge({"a": tiny(tmp_path)}, mixed((9, 9, 9), (0, 1, 0)), batch_size=2)
    assert [each.source for each in found["a"].texts] == ["first.txt"]
    assert "second.txt is not judged by itself: 1 of its sequences" in caplog.text


def only(sequences: Sequences, part: int) -> Sequences:
    """Those of one of several texts, as a text of their own."""
    of = sequences.facts.part_of_sequences
    own = [place for place, each in enumerate(of) if each == part]
    return replace(
        sequences,
        facts=msgspec.structs.replace(sequences.facts, sequences=len(own), parts=(), order=b""),
        sequences=tuple(sequences.sequences[place] for place in own),
        text_bytes=tuple(sequences.text_bytes[place] for place in own),
    )


def test_other_vocabularies_cannot_be_paired(tmp_path: Path) -> None:
    small = from_memory(build_tiny("llama", vocab_size=260), None, name="small")
    with pytest.raises(SettingsError, match="vocabularies of 260 and 264"):
        judge({"a": tiny(tmp_path), "b": small}, sequences_of(LENGTHS), batch_size=1)


def test_other_tokenizers_cannot_be_paired(tmp_path: Path) -> None:
    models = {"a": tiny(tmp_path), "b": tiny(tmp_path)}
    tokenizer = models["b"].tokenizer
    assert tokenizer is not None
    tokenizer.add_tokens(["tokens"])
    with pytest.raises(SettingsError, match="different tokenizers"):
        judge(models, sequences_of(LENGTHS), batch_size=1)


def test_a_loss_that_is_no_number_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    broken = tiny(tmp_path)
    changed(broken.model, math.inf)
    with pytest.raises(CheckpointError, match="not a finite number"):
        judge({"a": broken}, sequences_of(LENGTHS), batch_size=1)


def test_one_sequence_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="at least 2"):
        judge({"a": tiny(tmp_path)}, sequences_of([9]), batch_size=1)
