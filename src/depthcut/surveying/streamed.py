"""Surveys of models larger than memory, within a limit that is met or refused beforehand."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from depthcut.errors import SettingsError
from depthcut.model.batching import activation_bytes, fitting_batch_size
from depthcut.model.memory import free_memory_bytes, resident_bytes
from depthcut.model.streaming import (
    LayerMemory,
    StreamedModel,
    measured_memory,
    streaming_states,
)
from depthcut.progress import progress
from depthcut.records import Survey
from depthcut.settings import LoadSettings, SurveySettings, size_bytes
from depthcut.surveying.criteria import Criterion, chosen, row_widths
from depthcut.surveying.linear_maps import sum_bytes
from depthcut.surveying.scores import Rows
from depthcut.surveying.survey import ReadStates, largest_block, survey_model
from depthcut.surveying.weights import weight_scores
from depthcut.text.sequences import Batch, Sequences

_UNSTREAMED: Mapping[str, str] = {
    "gradients": "gradients go through the whole model",
    "losses": "skipping each block runs the whole model",
    "full batches": "it looks behind the final norm",
    "part": "each layer runs twice for it",
}
"""By what a criterion needs: why it cannot be had from one layer at a time."""
_CPU_BATCH_TOKENS = 1024
_UNCOUNTED_BYTES = 64 << 20
"""Compiled kernels, pieces of states in float32, what an allocator keeps."""
_THREAD_BYTES = 4 << 20
_SUMMED_BYTES = 12 * (16 << 20)
"""Of a weight that is added up, piece by piece, in float32 and float64."""
_GPU_LIBRARY_BYTES = 1 << 30
"""Of libraries that a GPU's first matrix product brings into the process."""
_GRAM_BYTES = 64 << 20
"""Of products of all pairs of tokens that a criterion of whole sequences works on at once."""
_HOLES = 0.12
"""Of the limit that states are not kept in: what an allocator holds between what is alive."""
_STEP = 10_000_000
"""Of the memory that would do, as it is told."""


def survey_streamed(
    streamed: StreamedModel, sequences: Sequences, settings: SurveySettings, load: LoadSettings
) -> Survey:
    """The survey of a model that is read layer by layer; the same record as of one in memory.

    Raises:
        SettingsError: As `survey_model`; also a criterion that needs the whole model, a limit
            that cannot be met, or too little room for temporary files.
        ArchitectureError: The layers cannot be run one by one.
        CheckpointError: The weights are damaged.
    """
    source = _Streamed(streamed, sequences, settings)
    return survey_model(streamed.loaded, sequences, settings, load, source=source)


class _Streamed:
    """A model of which one layer is there at a time."""

    def __init__(
        self, streamed: StreamedModel, sequences: Sequences, settings: SurveySettings
    ) -> None:
        self._streamed, self._sequences, self._settings = streamed, sequences, settings
        self._criteria = chosen(settings.criteria)
        self._kept_bytes = 0
        self._measured: list[LayerMemory] = []
        self._weight_scores: dict[str, list[Tensor]] = {}

    def refuse(self, criteria: Mapping[str, Criterion]) -> None:
        for name, criterion in criteria.items():
            if reason := _UNSTREAMED.get(criterion.needs):
                raise SettingsError(
                    f"{name} cannot be measured with --stream, {reason}: leave it out of "
                    "--criteria, or survey the model in memory"
                )

    def batch_size(self, longest: int) -> int:
        asked = self._settings.batch_size
        if asked is not None and asked < 1:
            raise SettingsError(f"batch size {asked}: at least 1 is needed")
        size = asked or self._most(longest)
        used = resident_bytes()
        limit = self._limit_bytes(used)
        size, needed = self._fitting(size, longest, used, limit)
        # The estimate fits: now layers may run, which shows what it missed.
        sequence = max(self._sequences.sequences, key=len)
        self._measured = measured_memory(self._streamed, sequence)
        size, needed = self._fitting(size, longest, used, limit)
        self._kept_bytes = max(0, limit - needed - int(_HOLES * limit))
        self._refuse_full_disk()
        return size

    def _fitting(self, size: int, longest: int, used: int, limit: int) -> tuple[int, int]:
        """So many sequences in a batch, or as many less as fit; and what the process takes then."""
        needed = used + self._needed_bytes(size, longest)
        while self._settings.batch_size is None and size > 1 and needed > limit:
            size //= 2
            needed = used + self._needed_bytes(size, longest)
        if needed > limit:
            raise SettingsError(self._too_little(limit, needed, size, longest))
        return size, needed

    @contextlib.contextmanager
    def reading(self, batches: Sequence[Batch]) -> Iterator[ReadStates]:
        layers = self._streamed.loaded.layers
        tokens = [int(batch.mask.sum()) for batch in batches]
        self._weight_scores = {
            name: [] for name, each in self._criteria.items() if each.needs == "weights"
        }

        def passing(_: int, layer: torch.nn.Module) -> None:
            for name, score in weight_scores(layer, self._criteria).items():
                self._weight_scores[name].append(score)

        with contextlib.ExitStack() as stack:
            with progress("survey: layers", sum(tokens) * len(layers)) as advance:
                read = stack.enter_context(
                    streaming_states(
                        self._streamed,
                        batches,
                        self._kept_bytes,
                        advance=lambda layer, number: advance(
                            tokens[number], f"layer {layer + 1} of {len(layers)}"
                        ),
                        passing=passing,
                    )
                )
            yield read

    def weight_rows(self, sequences: int) -> Rows:
        return {
            (name, "all"): [torch.stack(scores)] * sequences
            for name, scores in self._weight_scores.items()
        }

    def _limit_bytes(self, used: int) -> int:
        """What the process may take, with what it takes already."""
        free = free_memory_bytes(torch.device("cpu"))
        if self._settings.memory is None:
            return used + free // 2
        return min(size_bytes(self._settings.memory, "memory"), used + free)

    def _most(self, longest: int) -> int:
        """Sequences in a batch, whatever the process may take: a power of two."""
        loaded = self._streamed.loaded
        if loaded.device.type == "cpu":
            return 1 << (max(1, _CPU_BATCH_TOKENS // longest).bit_length() - 1)
        # All depths are brought to the device to be compared.
        each = (len(loaded.layers) + 1) * loaded.facts.hidden_size * self._element_bytes
        return fitting_batch_size(loaded, longest, bytes_per_token=each)

    @property
    def _element_bytes(self) -> int:
        """Of a state."""
        return next(self._streamed.loaded.model.parameters()).element_size()

    def _needed_bytes(self, size: int, longest: int) -> int:
        """Beyond what the process takes already, with batches of so many sequences."""
        loaded, weights = self._streamed.loaded, self._streamed.weights
        layers, width = len(loaded.layers), loaded.facts.hidden_size
        tokens = size * longest
        states = tokens * width * self._element_bytes
        on_cpu = loaded.device.type == "cpu"
        running = weights.streaming_bytes + 3 * states
        if on_cpu:
            running += weights.largest_bytes + tokens * activation_bytes(loaded)
            running += self._attention_bytes(size, longest) + tokens * self._expert_bytes()
        if any(each.needs == "weights" for each in self._criteria.values()):
            running += min(_SUMMED_BYTES, 12 * weights.largest_bytes // self._element_bytes)
        scoring = (layers + 1) * states
        if any(each.needs == "sequence" for each in self._criteria.values()):
            scoring += 2 * (layers + 1) * longest * width * 8 + _GRAM_BYTES
        constant = weights.outer_bytes if on_cpu else _GPU_LIBRARY_BYTES
        constant += _THREAD_BYTES * torch.get_num_threads()
        measured = max((each.running(size) for each in self._measured), default=0) + 2 * states
        most = max(constant + running, constant + scoring, measured)
        return most + self._rows_bytes() + _UNCOUNTED_BYTES

    def _attention_bytes(self, size: int, longest: int) -> int:
        """Of scores of all pairs of tokens, where they are there at once."""
        config = self._streamed.loaded.model.config.get_text_config()
        if getattr(config, "_attn_implementation", "eager") != "eager":
            return 0
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        return 3 * size * heads * longest**2 * 4

    def _expert_bytes(self) -> int:
        """Of what a token's experts compute, beyond what a layer without experts does."""
        config = self._streamed.loaded.model.config.get_text_config()
        each = int(getattr(config, "num_experts_per_tok", None) or 0)
        wide = int(getattr(config, "moe_intermediate_size", None) or 0)
        return each * (4 * wide + 4 * self._streamed.loaded.facts.hidden_size) * self._element_bytes

    def _rows_bytes(self) -> int:
        """Of what the scores of all sequences take, and the sums that linear maps are made of."""
        loaded, settings = self._streamed.loaded, self._settings
        layers, largest = len(loaded.layers), largest_block(settings, loaded)
        entries = sum(
            sum(row_widths(each, layers, largest)) * len(each.tokens)
            for each in self._criteria.values()
        )
        maps = any(each.needs == "linear maps" for each in self._criteria.values())
        sums = sum_bytes(layers, largest, loaded.facts.hidden_size) if maps else 0
        return 3 * 8 * len(self._sequences.sequences) * entries + 2 * sums

    def _too_little(self, limit: int, needed: int, size: int, longest: int) -> str:
        # No process begins exactly as another, nor measures exactly the same.
        would_do = (int(1.02 * needed) // _STEP + 2) * _STEP / 1e9
        source, batch = self._streamed.loaded.facts.source, f"{size} × {longest} tokens"
        if self._settings.memory is None:
            return (
                f"a streamed survey of {source} takes {would_do:.2f} GB with batches of {batch}, "
                f"and may take {limit / 1e9:.2f} GB, half of what is free: give --memory "
                f"{would_do:.2f}GB, or lower --context"
            )
        return (
            f"a streamed survey of {source} takes {would_do:.2f} GB with batches of {batch}, "
            f"and there are {limit / 1e9:.2f} GB: give --memory {would_do:.2f}GB where that is "
            "free, or lower --context"
        )

    def _refuse_full_disk(self) -> None:
        loaded = self._streamed.loaded
        each = loaded.facts.hidden_size * self._element_bytes * (len(loaded.layers) + 1)
        states = sum(map(len, self._sequences.sequences)) * each
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if states - self._kept_bytes > free:
            raise SettingsError(
                f"the states of all layers take {(states - self._kept_bytes) / 1e9:.1f} GB of "
                f"temporary files, and {folder} has {free / 1e9:.1f} GB: set TMPDIR to a larger "
                "place, or read fewer --tokens"
            )
