"""What a teacher predicts at each place of a text, worked out once and kept for some tokens."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depthcut.errors import OutputError, SettingsError
from depthcut.files import sole_writer
from depthcut.healing.losses.table import SomePredictions, loss_weights
from depthcut.healing.losses.teachers import Untouched, refuse_other_vocabulary
from depthcut.healing.rows import Rows
from depthcut.launched import launched
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import all_ranks
from depthcut.model.sources import cache_folder
from depthcut.progress import progress
from depthcut.records import inputs_digest
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import padded

_NATS = np.dtype(np.uint16)
_STEPS = 2048
"""To the nat, of minus the logarithm of a weight and of an entropy: at most a quarter of a
thousandth is lost, up to 32."""


class KeptTeacher:
    """Reads what was kept: of each sequence first k weights a token, then ids, then entropies."""

    def __init__(self, path: Path, lengths: Sequence[int], k: int, vocabulary: int) -> None:
        """Open the file of sequences of these lengths, in order."""
        self._file = np.memmap(path, dtype=np.uint8, mode="r")
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._k, self._vocabulary = k, vocabulary

    def predictions(
        self, batch: Mapping[str, Tensor], rows: Tensor
    ) -> "tuple[SomePredictions, tuple[Tensor, ...]]":
        found = []
        for number, counting in zip(batch["number"].tolist(), rows.cpu(), strict=True):
            places = counting.nonzero().flatten().numpy()
            found.append([part[places] for part in self._of(number)])
        weights, ids, entropy = (np.concatenate(each) for each in zip(*found, strict=True))

        def nats(coded: np.ndarray) -> Tensor:
            return torch.from_numpy(coded.astype(np.float32) / _STEPS).to(rows.device)

        kept = torch.from_numpy(ids.astype(np.int64)).to(rows.device)
        return SomePredictions(kept, -nats(weights), nats(entropy)), ()

    def _of(self, number: int) -> list[np.ndarray]:
        start, stop = self._starts[number], self._starts[number + 1]
        each = token_bytes(self._k, self._vocabulary)
        content, count = self._file[start * each : stop * each], int(stop - start)
        sizes = [count * self._k * _NATS.itemsize, count * each - count * _NATS.itemsize]
        weights, ids, entropy = np.split(content, sizes)
        shape = (count, self._k)
        return [
            weights.view(_NATS).reshape(shape),
            ids.view(ids_dtype(self._vocabulary)).reshape(shape),
            entropy.view(_NATS),
        ]


def token_bytes(k: int, vocabulary: int) -> int:
    """What is kept of a token."""
    return k * (_NATS.itemsize + ids_dtype(vocabulary).itemsize) + _NATS.itemsize


def ids_dtype(vocabulary: int) -> "np.dtype[np.unsignedinteger]":
    """The narrowest type for a token's number."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def kept_teacher(
    teacher: Untouched,
    rows: Rows,
    settings: HealSettings,
    *,
    load: LoadSettings,
    student: LoadedModel,
) -> KeptTeacher:
    """The teacher's predictions for all sequences, from the cache or worked out now.

    Of `teacher_kept` tokens at each place half are the likeliest, the others are drawn from the
    rest. The file has four bytes for each (six of a vocabulary above 65,536): with 64, 258 MB for a
    million tokens of text. What was worked out before a kill is not worked out again.

    Raises:
        SettingsError: A loss that asks for the teacher's states, more tokens than there are, or a
            teacher of another vocabulary than the student's.
        OutputError: The cache cannot be written.
    """
    sequences = (*rows.trained, *rows.held_out)
    vocabulary = int(student.model.config.get_text_config().vocab_size)
    k = settings.teacher_kept
    if "hidden" in loss_weights(settings):
        raise SettingsError(
            "--teacher-kept keeps predictions, not states: leave it out, or hidden out of --loss"
        )
    if k > vocabulary:
        raise SettingsError(f"--teacher-kept {k}: the vocabulary has {vocabulary:,} tokens")
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update(len(ids).to_bytes(8, "little") + ids.numpy().tobytes())
    told = [teacher.facts.digest, digest.hexdigest(), str(k), str(vocabulary)]
    key = inputs_digest("teacher", load, *told)
    folder = cache_folder() / "teachers"
    path = folder / key / "predictions"
    lengths = [len(each) for each in sequences]
    if launched().rank == 0 and not path.exists():
        with sole_writer(path.parent):
            loaded = teacher.load()
            refuse_other_vocabulary(student, loaded)
            _work_out(loaded, sequences, k, vocabulary, path)
    all_ranks().of_first(None)
    return KeptTeacher(path, lengths, k, vocabulary)


def _work_out(
    teacher: LoadedModel, sequences: Sequence[Tensor], k: int, vocabulary: int, path: Path
) -> None:
    each = token_bytes(k, vocabulary)
    partly = path.with_name("partly")
    _refuse_size(path, sum(len(ids) for ids in sequences) * each)
    there = partly.stat().st_size if partly.exists() else 0
    done = 0
    while done < len(sequences) and there >= len(sequences[done]) * each:
        there -= len(sequences[done]) * each
        done += 1
    begun = sum(len(ids) for ids in sequences[:done])
    longest = max(len(ids) for ids in sequences)
    size = fitting_batch_size(teacher, longest, bytes_per_token=8 * vocabulary, most=8)
    try:
        with (
            partly.open("ab") as file,
            progress("teacher", sum(len(ids) for ids in sequences)) as advance,
        ):
            file.truncate(begun * each)
            advance(begun)
            for start in range(done, len(sequences), size):
                some = sequences[start : start + size]
                for ids, weights, entropy in _some(teacher, some, k, start):
                    file.write(_coded(weights).tobytes())
                    file.write(ids.numpy().astype(ids_dtype(vocabulary)).tobytes())
                    file.write(_coded(-entropy).tobytes())
                file.flush()
                os.fsync(file.fileno())
                advance(sum(len(ids) for ids in some))
        partly.rename(path)
    except OSError as error:
        raise OutputError(
            f"cannot keep the teacher's predictions in {path.parent}: {error.strerror}; let "
            "DEPTHCUT_CACHE name a larger place, or leave --teacher-kept out"
        ) from error


def _refuse_size(path: Path, needed_bytes: int) -> None:
    if needed_bytes > (room := shutil.disk_usage(path.parent).free):
        raise OutputError(
            f"the teacher's predictions take {needed_bytes / 1e9:.1f} GB, and {room / 1e9:.1f} GB "
            f"are free in {path.parent}: let DEPTHCUT_CACHE name a larger place, give a smaller "
            "--teacher-kept or fewer --tokens, or leave --teacher-kept out"
        )


def _coded(log_weights: Tensor) -> np.ndarray:
    steps = np.rint(-_STEPS * log_weights.numpy())
    coded: np.ndarray = np.minimum(steps, np.iinfo(_NATS).max).astype(_NATS)
    return coded


def _some(
    teacher: LoadedModel, sequences: Sequence[Tensor], k: int, first: int
) -> Iterator[SomePredictions]:
    """Of each sequence, drawn by a generator of its own: `first` is the number of the first one."""
    batch = padded(sequences)
    with torch.no_grad():
        logits = teacher.model.train(False)(
            input_ids=batch.ids.to(teacher.device),
            attention_mask=batch.mask.long().to(teacher.device),
            use_cache=False,
        ).logits
        for number, (row, ids) in enumerate(zip(logits, sequences, strict=True), start=first):
            generator = torch.Generator(row.device).manual_seed(number)
            kept = some_of(row[: len(ids)], k, generator)
            yield SomePredictions(*(each.cpu() for each in kept))


def some_of(logits: Tensor, k: int, generator: torch.Generator) -> SomePredictions:
    """Predictions on k tokens that stand for those on all.

    The likeliest half by their own probabilities; the others are drawn from the rest by theirs,
    with replacement, and share its probability equally.

    Args:
        logits: (tokens, vocabulary).
        k: At most the vocabulary; equal to it, all stand for themselves.
        generator: On the same device.
    """
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(dim=-1)
    count = k if k == logits.shape[-1] else max(1, k // 2)
    top = log_probs.topk(count, dim=-1)
    if count == k:
        return SomePredictions(top.indices, top.values, entropy)
    rest = probs.scatter(1, top.indices, 0)
    mass = rest.sum(dim=1, keepdim=True).clamp(min=1e-12)
    # Where rounding leaves nothing, any token will do: it stands for nothing.
    drawn = torch.multinomial(
        torch.where(mass > 1e-12, rest, 1), k - count, replacement=True, generator=generator
    )
    share = (mass / (k - count)).log().expand(-1, k - count)
    return SomePredictions(
        torch.cat([top.indices, drawn], dim=1), torch.cat([top.values, share], dim=1), entropy
    )
