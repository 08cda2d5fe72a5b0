"""How well models predict a text: all of them on the same batches, so that they pair."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from depthcut.errors import CheckpointError, SettingsError
from depthcut.evaluation.estimates import bits_per_byte, perplexity, ratio_estimate
from depthcut.evaluation.judgements import Quality
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.predictions import CHUNK_BYTES, token_divergences, token_losses
from depthcut.progress import progress
from depthcut.records import Comparison, Estimate, TextFacts, TextQuality
from depthcut.text.sequences import Batch, Sequences

_log = logging.getLogger(__name__)

PROBE = "Naïve façade: 12,345 tokens\n\tdef f(x): return x ** 2  # 你好 🙂"
"""Tokenizers that split this alike, with vocabularies of one size, are taken as the same."""


@dataclass(frozen=True)
class _Sums:
    """Per sequence, float64 on the CPU: what its predicted tokens add up to."""

    loss: Tensor
    divergence: Tensor
    agreement: Tensor

    def of(self, places: Tensor) -> "_Sums":
        """Those of some sequences."""
        return _Sums(self.loss[places], self.divergence[places], self.agreement[places])


@dataclass(frozen=True)
class _Sizes:
    """Per sequence: its predicted tokens, and the bytes that these stand for."""

    tokens: Tensor
    text_bytes: Tensor

    def of(self, places: Tensor) -> "_Sizes":
        """Those of some sequences."""
        return _Sizes(self.tokens[places], self.text_bytes[places])

    @property
    def have_errors(self) -> bool:
        """Whether means over them have a spread: see `ratio_estimate`."""
        return all(int((each > 0).sum()) > 1 for each in (self.tokens, self.text_bytes))


def refuse_unpaired(models: Mapping[str, LoadedModel]) -> None:
    """Raise SettingsError where models cannot be compared token by token, see `why_unpaired`."""
    (first, reference), *others = models.items()
    for name, other in others:
        if reason := why_unpaired(reference, other):
            raise SettingsError(
                f"{name} and {first} have {reason}: they cannot be compared token by token; leave "
                "the text out with --tokens 0 and compare them on --tasks, or evaluate them in "
                "separate commands"
            )


def why_unpaired(reference: LoadedModel, other: LoadedModel) -> str:
    """In what two models' tokens differ; empty: the same tokens mean the same to both.

    That is vocabularies of one size, tokenizers that split a probe alike, and one number for each
    token that both have.
    """
    sizes = [vocabulary_size(loaded) for loaded in (other, reference)]
    if sizes[0] != sizes[1]:
        return f"vocabularies of {sizes[0]} and {sizes[1]} tokens"
    if reference.tokenizer is None or other.tokenizer is None:
        return ""
    numbers, others = reference.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    same = all(others.get(token, number) == number for token, number in numbers.items())
    return "" if same and _probe(reference) == _probe(other) else "different tokenizers"


def judge(
    models: Mapping[str, LoadedModel], sequences: Sequences, *, batch_size: int | None
) -> tuple[dict[str, Quality], tuple[Comparison, ...]]:
    """The quality of each model, and of each after the first beside the first.

    The loss is the mean over tokens in nats; padding and the first token of a sequence, which
    nothing predicts, do not count. Errors are over sequences, and the difference of losses is
    paired: taken within each sequence, so that what makes a text hard cancels. Of several texts
    each is judged by itself as well, from the same sums: all together are the mean of the texts,
    weighted by their tokens.

    Logits come as the model gives them (its softcapping and scales included); the softmax is
    taken in float32, a chunk of tokens at a time.

    Raises:
        CheckpointError: A model's loss is not a finite number.
        TextError: Fewer than two sequences.
        SettingsError: The models have different tokenizers or vocabularies.
    """
    refuse_unpaired(models)
    sums = _measure(models, sequences, batch_size or _batch_size(models, sequences))
    sizes = _Sizes(
        torch.tensor([max(0, len(ids) - 1) for ids in sequences.sequences]),
        torch.tensor(sequences.text_bytes),
    )
    texts = _texts(sequences.facts, sizes)
    first, *others = models
    qualities = {}
    for name in models:
        loss, in_bits = _loss(sums[name], sizes)
        qualities[name] = Quality(
            loss=loss,
            perplexity=perplexity(loss),
            bits_per_byte=in_bits,
            texts=tuple(
                _on_text(
                    source,
                    sums[name].of(own),
                    sums[first].of(own) if name != first else None,
                    sizes.of(own),
                )
                for source, own in texts
            ),
        )
    comparisons = tuple(
        Comparison(name=name, **_differences(sums[name], sums[first], sizes)) for name in others
    )
    return qualities, comparisons


def _texts(facts: TextFacts, sizes: _Sizes) -> list[tuple[str, Tensor]]:
    """Names of several texts, and which sequences are theirs, shape (sequences,) bool."""
    if len(facts.parts) < 2:
        return []
    of = torch.tensor(facts.part_of_sequences)
    found = []
    for number, part in enumerate(facts.parts):
        if sizes.of(of == number).have_errors:
            found.append((part.source, of == number))
        elif part.sequences:  # of which none was read, its reader has said so
            _log.warning(
                "%s is not judged by itself: %d of its sequences were read, and at least 2 are "
                "needed to know the error; give more --tokens, or a shorter --context",
                *(part.source, part.sequences),
            )
    return found


def _on_text(source: str, sums: _Sums, reference: _Sums | None, sizes: _Sizes) -> TextQuality:
    loss, in_bits = _loss(sums, sizes)
    found = TextQuality(
        source=source, loss=loss, perplexity=perplexity(loss), bits_per_byte=in_bits
    )
    return replace(found, **_differences(sums, reference, sizes)) if reference else found


def _loss(sums: _Sums, sizes: _Sizes) -> tuple[Estimate, Estimate]:
    """Nats per token, and bits per byte."""
    return ratio_estimate(sums.loss, sizes.tokens), bits_per_byte(sums.loss, sizes.text_bytes)


def _differences(sums: _Sums, reference: _Sums, sizes: _Sizes) -> dict[str, Estimate]:
    """What a `Comparison` and a `TextQuality` say of a model beside the first."""
    return {
        "loss_difference": ratio_estimate(sums.loss - reference.loss, sizes.tokens),
        "agreement": ratio_estimate(sums.agreement, sizes.tokens),
        "kl_divergence": ratio_estimate(sums.divergence, sizes.tokens),
    }


def _measure(
    models: Mapping[str, LoadedModel], sequences: Sequences, batch_size: int
) -> dict[str, _Sums]:
    zeros = torch.zeros(len(sequences.sequences), dtype=torch.float64)
    sums = {name: _Sums(zeros.clone(), zeros.clone(), zeros.clone()) for name in models}
    done, total = 0, sequences.facts.tokens * len(models)
    with progress("evaluate: loss", total) as advance, torch.inference_mode():
        for batch in sequences.batches(batch_size):
            rows = slice(done, done := done + len(batch.ids))
            reference: Tensor | None = None
            for name, loaded in models.items():
                logits = _logits(loaded, batch)
                _add(sums[name], rows, batch, logits, reference)
                reference = logits if reference is None else reference
                del logits
                note = f"{name}: {_running(sums[name], sequences, done):.3f} nats/token"
                advance(int(batch.mask.sum()), note)
    for name in models:
        if not sums[name].loss.isfinite().all():
            raise CheckpointError(
                f"the loss of {name} on this text is not a finite number: its weights are broken, "
                "or overflow in this type; try --dtype float32"
            )
    return sums


def _logits(loaded: LoadedModel, batch: Batch) -> Tensor:
    # No mask: padding stands on the right, where causal attention never looks back from; and a
    # mask beside a sliding window can leave a row with nothing to attend to, which gives NaN.
    output = loaded.model(input_ids=batch.ids.to(loaded.device), use_cache=False)
    logits: Tensor = output.logits
    return logits


def _add(sums: _Sums, rows: slice, batch: Batch, logits: Tensor, reference: Tensor | None) -> None:
    ids = batch.ids.to(logits.device)
    for row, (sequence, length) in enumerate(
        zip(range(rows.start, rows.stop), batch.mask.sum(1).tolist(), strict=True)
    ):
        if length < 2:
            continue
        places = slice(0, length - 1)  # right padding: the real tokens are a prefix
        losses = token_losses(logits[row, places], ids[row, 1:length])
        sums.loss[sequence] = losses.cpu().double().sum()
        if reference is not None:
            before = reference[row, places].to(logits.device)
            divergences, agreements = token_divergences(before, logits[row, places])
            sums.divergence[sequence] = divergences.cpu().double().sum()
            sums.agreement[sequence] = agreements.cpu().double().sum()


def _running(sums: _Sums, sequences: Sequences, done: int) -> float:
    tokens = sum(max(0, len(ids) - 1) for ids in sequences.sequences[:done])
    return sums.loss[:done].sum().item() / max(1, tokens)


def _batch_size(models: Mapping[str, LoadedModel], sequences: Sequences) -> int:
    context = max(len(ids) for ids in sequences.sequences)
    sizes = []
    for loaded in models.values():
        width = vocabulary_size(loaded) * next(loaded.model.parameters()).element_size()
        kept = 2 * width + 4 * CHUNK_BYTES // context  # two models' logits, softmax chunks
        sizes.append(fitting_batch_size(loaded, context, bytes_per_token=kept))
    return min(sizes)


def vocabulary_size(loaded: LoadedModel) -> int:
    """How many tokens the model has embeddings of, some of them unused perhaps."""
    return cast(nn.Embedding, loaded.model.get_input_embeddings()).num_embeddings


def _probe(loaded: LoadedModel) -> list[int]:
    if loaded.tokenizer is None:
        return []
    ids: list[int] = loaded.tokenizer.encode(PROBE)
    return ids
