"""How fast models are, and what memory and energy they take, measured in turn."""

from typing import TYPE_CHECKING, Literal

from depthcut.frames import Row, data_frame, html_table
from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts
from depthcut.settings import BenchSettings, LoadSettings

if TYPE_CHECKING:
    from pandas import DataFrame


class Spread(Record, frozen=True, kw_only=True):
    """A number that was measured in several rounds."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: tuple[float, ...]
    """All of them, in order; the models took turns within each."""


class Energy(Record, frozen=True, kw_only=True):
    """What one meter of the machine counted, the machine's idling included."""

    meter: str
    """CPU (RAPL) or GPU (NVML)."""
    joules_per_token: Spread
    """Over a whole run, for each new token of all sequences."""


class Timing(Record, frozen=True, kw_only=True):
    """One model at one batch size."""

    batch_size: int
    first_token: Spread
    """Seconds until every sequence has its first token: the prompts are read."""
    prefill: Spread
    """Prompt tokens per second, all sequences together."""
    decode: Spread
    """New tokens per second after the first, all sequences together."""
    throughput: Spread
    """New tokens per second of the whole run, reading the prompts included."""
    cache_bytes: int | None
    """Key-value cache (or whatever else the model keeps of what it read) at the end of a run, all
    sequences together; None: the engine does not tell."""
    energy: tuple[Energy, ...] = ()
    """Empty: the machine does not tell."""


class BenchedModel(Record, frozen=True, kw_only=True):
    """One model, timed."""

    name: str
    model: ModelFacts
    weight_bytes: int
    """As the engine holds them: in another dtype than the file's, they are not the file's."""
    read_bytes: int
    """Of these, what decoding one token reads: no table of embeddings of which it takes one row,
    and of experts only as many as a token visits."""
    peak_memory_bytes: int | None
    """Of this model alone, loaded and run once at the largest batch size: what it adds to a fresh
    process (CPU), or its weights and what the run allocates beside them (GPU)."""
    timings: tuple[Timing, ...]
    """One for each batch size."""


class SpeedRatio(Record, frozen=True, kw_only=True):
    """One model against the first: above 1 is faster. Paired, round by round."""

    name: str
    batch_size: int
    first_token: Spread
    """Seconds of the first model over seconds of this one."""
    decode: Spread
    throughput: Spread
    ideal_prefill: float
    """What time in proportion to multiply-adds would give; a prefill computes the head at one
    position only."""
    ideal_decode: float
    """What time in proportion to the weights' bytes that a token reads would give."""


class Bench(Record, frozen=True, kw_only=True):
    """Several models, timed in turn; the first is the reference."""

    kind: Literal["bench"] = "bench"
    origin: Origin
    settings: BenchSettings
    load: LoadSettings
    versions: dict[str, str]
    """Of the packages that the engine consists of."""
    cpu: str
    """Its model name."""
    device: str
    """What ran the models: cpu, or a GPU by its name."""
    threads: int | None
    """That the engine computed with; None: on a GPU."""
    models: tuple[BenchedModel, ...]
    ratios: tuple[SpeedRatio, ...]
    """For the second model and those after it, at each batch size."""

    def timing(self, name: str, batch_size: int | None = None) -> Timing | None:
        """Of a model, at a batch size; by default at the first."""
        wanted = self.settings.batch_sizes[0] if batch_size is None else batch_size
        found = next((each for each in self.models if each.name == name), None)
        timings = found.timings if found else ()
        return next((each for each in timings if each.batch_size == wanted), None)

    def ratio(self, name: str, batch_size: int | None = None) -> SpeedRatio | None:
        """Of a model against the first, at a batch size; by default at the first."""
        wanted = self.settings.batch_sizes[0] if batch_size is None else batch_size
        for each in self.ratios:
            if (each.name, each.batch_size) == (name, wanted):
                return each
        return None

    def to_frame(self) -> "DataFrame":
        """One row for each model and batch size; needs pandas."""
        return data_frame(_COLUMNS, self._rows())

    def _repr_html_(self) -> str:
        asked = self.settings
        caption = f"{asked.engine}: {asked.prompt_tokens:,} tokens read, {asked.new_tokens:,} new"
        return html_table(caption, _COLUMNS, self._rows())

    def _rows(self) -> list[Row]:
        rows: list[Row] = []
        for each in self.models:
            for timing in each.timings:
                ratio = self.ratio(each.name, timing.batch_size)
                rows.append(
                    (
                        each.name,
                        each.model.layers,
                        timing.batch_size,
                        timing.first_token.median,
                        timing.prefill.median,
                        ratio.first_token.median if ratio else None,
                        ratio.ideal_prefill if ratio else None,
                        timing.decode.median,
                        ratio.decode.median if ratio else None,
                        ratio.ideal_decode if ratio else None,
                        timing.throughput.median,
                        each.weight_bytes,
                        timing.cache_bytes,
                        each.peak_memory_bytes,
                    )
                )
        return rows


_COLUMNS = (
    "model",
    "layers",
    "batch size",
    "first token seconds",
    "prefill tokens/s",
    "prefill ratio",
    "prefill ideal",
    "decode tokens/s",
    "decode ratio",
    "decode ideal",
    "throughput tokens/s",
    "weight bytes",
    "cache bytes",
    "peak memory bytes",
)
