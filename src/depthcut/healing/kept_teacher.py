"""A teacher's likeliest tokens at each place of a text, worked out once and kept in a file."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from depthcut.errors import OutputError, SettingsError
from depthcut.files import sole_writer
from depthcut.healing.lessons import Rows
from depthcut.healing.losses import TopPredictions, loss_weights
from depthcut.healing.teachers import Untouched, refuse_other_vocabulary
from depthcut.launched import launched
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import all_ranks
from depthcut.model.sources import cache_folder
from depthcut.progress import progress
from depthcut.records import inputs_digest
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import padded

_PROBABILITIES = np.dtype(np.uint16)
_STEPS = 2048
"""Of minus log-probability, to the nat: at most a quarter of a thousandth is lost down to -32."""


class KeptTeacher:
    """Reads what was kept: for each sequence k log-probabilities a token, and k ids a token."""

    def __init__(self, path: Path, lengths: Sequence[int], k: int, vocabulary: int) -> None:
        """Open the file of sequences of these lengths, in order."""
        self._file = np.memmap(path, dtype=np.uint8, mode="r")
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._k, self._ids = k, ids_dtype(vocabulary)

    def predictions(
        self, batch: Mapping[str, Tensor], rows: Tensor
    ) -> "tuple[TopPredictions, tuple[Tensor, ...]]":
        found = []
        for number, counting in zip(batch["number"].tolist(), rows.cpu(), strict=True):
            log_probs, ids = self._of(number)
            places = counting.nonzero().flatten().numpy()
            found.append((ids[places], log_probs[places]))
        ids, log_probs = (np.concatenate(each) for each in zip(*found, strict=True))
        return (
            TopPredictions(
                torch.from_numpy(ids.astype(np.int64)).to(rows.device),
                torch.from_numpy(log_probs.astype(np.float32) / -_STEPS).to(rows.device),
            ),
            (),
        )

    def _of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = self._starts[number], self._starts[number + 1]
        each = self._k * (_PROBABILITIES.itemsize + self._ids.itemsize)
        content = self._file[start * each : stop * each]
        split = (stop - start) * self._k * _PROBABILITIES.itemsize
        shape = (stop - start, self._k)
        return (
            content[:split].view(_PROBABILITIES).reshape(shape),
            content[split:].view(self._ids).reshape(shape),
        )


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
    """The teacher's likeliest tokens for all sequences, from the cache or worked out now.

    The file has `teacher_top_k` times four bytes (six of a vocabulary above 65,536) for a token:
    at 64, 256 MB for a million tokens. What was worked out before a kill is not worked out again.

    Raises:
        SettingsError: A loss that asks for the teacher's states, more tokens than there are, or a
            teacher of another vocabulary than the student's.
        OutputError: The cache cannot be written.
    """
    sequences = (*rows.trained, *rows.held_out)
    vocabulary = int(student.model.config.get_text_config().vocab_size)
    k = settings.teacher_top_k
    if "hidden" in loss_weights(settings):
        raise SettingsError(
            "--teacher-top-k keeps predictions, not states: leave it out, or hidden out of --loss"
        )
    if k > vocabulary:
        raise SettingsError(f"--teacher-top-k {k}: the vocabulary has {vocabulary:,} tokens")
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
    each = k * (_PROBABILITIES.itemsize + ids_dtype(vocabulary).itemsize)
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
                for log_probs, ids in _top(teacher, some, k):
                    file.write(_coded(log_probs).tobytes())
                    file.write(ids.astype(ids_dtype(vocabulary)).tobytes())
                file.flush()
                os.fsync(file.fileno())
                advance(sum(len(ids) for ids in some))
        partly.rename(path)
    except OSError as error:
        raise OutputError(
            f"cannot keep the teacher's predictions in {path.parent}: {error.strerror}; let "
            "DEPTHCUT_CACHE name a larger place, or leave --teacher-top-k out"
        ) from error


def _refuse_size(path: Path, needed_bytes: int) -> None:
    if needed_bytes > (room := shutil.disk_usage(path.parent).free):
        raise OutputError(
            f"the teacher's predictions take {needed_bytes / 1e9:.1f} GB, and {room / 1e9:.1f} GB "
            f"are free in {path.parent}: let DEPTHCUT_CACHE name a larger place, give a smaller "
            "--teacher-top-k or fewer --tokens, or leave --teacher-top-k out"
        )


def _coded(log_probs: "np.ndarray") -> "np.ndarray":
    steps = np.rint(-_STEPS * log_probs)
    coded: np.ndarray = np.minimum(steps, np.iinfo(_PROBABILITIES).max).astype(_PROBABILITIES)
    return coded


def _top(
    teacher: LoadedModel, sequences: Sequence[Tensor], k: int
) -> "list[tuple[np.ndarray, np.ndarray]]":
    batch = padded(sequences)
    with torch.no_grad():
        logits = teacher.model.train(False)(
            input_ids=batch.ids.to(teacher.device),
            attention_mask=batch.mask.long().to(teacher.device),
            use_cache=False,
        ).logits
        found = []
        for row, ids in zip(logits, sequences, strict=True):
            top = torch.log_softmax(row[: len(ids)].float(), dim=-1).topk(k, dim=-1)
            found.append((top.values.cpu().numpy(), top.indices.cpu().numpy()))
    return found
