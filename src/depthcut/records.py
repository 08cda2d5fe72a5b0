"""What passes between the stages: each a frozen struct, one JSON file, readable by a person.

Blocks are half open, counted from 0: [12, 19) removes layers 12 to 18. Depth l is what
enters layer l; depth L leaves the last layer, before the final norm.
"""

import hashlib
import os
import platform
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import msgspec

from depthcut.errors import RecordError, nearest
from depthcut.files import write_file
from depthcut.frames import Row, data_frame, html_table
from depthcut.settings import (
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    PlanSettings,
    Settings,
    SurveySettings,
    Tokens,
)

if TYPE_CHECKING:
    from pandas import DataFrame

Block = tuple[int, int]
"""Consecutive layers [start, stop), counted from 0."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, keyword-only, unknown keys refused."""


class Origin(Record, frozen=True, kw_only=True):
    """Where a record came from: enough to make it again."""

    inputs: str
    """Digest of everything the result depends on (settings, model, text): see `inputs_digest`."""
    seconds: float
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    machine: str

    @classmethod
    def since(cls, started: float, *, inputs: str) -> Self:
        """The origin of what was begun at `time.monotonic()` = `started` and is done now."""
        return cls(
            inputs=inputs,
            seconds=round(time.monotonic() - started, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        )


class ModelFacts(Record, frozen=True, kw_only=True):
    """What a checkpoint says of itself, read from its config and headers."""

    source: str
    """As the user named it."""
    digest: str
    """Of the config, the tensor headers and the first bytes of each tensor."""
    model_type: str
    layers: int
    hidden_size: int
    dtype: str
    """Of most of the weights."""
    layer_parameters: tuple[int, ...]
    """Parameters of each layer, in order."""
    other_parameters: int
    """Embeddings, head, final norm; tied weights counted once."""
    weight_bytes: int

    @property
    def parameters(self) -> int:
        return sum(self.layer_parameters) + self.other_parameters


class TextFacts(Record, frozen=True, kw_only=True):
    """Which text was read."""

    source: str
    digest: str
    """SHA-256 of the source's bytes (local) or of its name and commit (hub)."""
    sequences: int
    tokens: int
    """Tokens that counted, padding not among them."""


class Estimate(Record, frozen=True, kw_only=True):
    """A mean and its standard error."""

    value: float
    stderr: float


class Scores(Record, frozen=True, kw_only=True):
    """One criterion, at the last or at all tokens: a score for each block, low = redundant."""

    criterion: str
    tokens: Tokens
    scope: Literal["block", "layer"]
    """block: every block [start, start + size); layer: single layers only, whose scores add up."""
    paper: str
    mean: tuple[tuple[float, ...], ...]
    """mean[start][size - 1]; a criterion of scope layer has one entry for each start."""
    stderr: tuple[tuple[float, ...], ...]
    """Standard error of the mean over sequences, same shape."""
    per_sequence: bytes
    """float32, little endian, (sequences, entries of mean in reading order): for paired errors."""


class Survey(Record, frozen=True, kw_only=True):
    """How redundant the layers of a model are on a text."""

    kind: Literal["survey"] = "survey"
    origin: Origin
    model: ModelFacts
    text: TextFacts
    settings: SurveySettings
    load: LoadSettings
    norms: tuple[float, ...]
    """Mean Euclidean norm of the residual stream at each depth 0..L, over all tokens."""
    scores: tuple[Scores, ...]

    def find(self, criterion: str, tokens: Tokens) -> Scores:
        """The scores of one criterion.

        Raises:
            RecordError: The survey has none of that name.
        """
        for scores in self.scores:
            if (scores.criterion, scores.tokens) == (criterion, tokens):
                return scores
        known = sorted({scores.criterion for scores in self.scores})
        raise RecordError(
            f"no criterion {criterion!r} for tokens {tokens!r} in the survey"
            f"{nearest(criterion, known)}; it has {', '.join(known)}"
        )

    def to_frame(self) -> "DataFrame":
        """One row for each criterion and block [start, stop); needs pandas."""
        rows = [
            (each.criterion, each.tokens, start, start + size, score, stderr)
            for each in self.scores
            for start, row in enumerate(each.mean)
            for size, (score, stderr) in enumerate(
                zip(row, each.stderr[start], strict=True), start=1
            )
        ]
        return data_frame(("criterion", "tokens", "start", "stop", "score", "stderr"), rows)

    def _repr_html_(self) -> str:
        rows: list[Row] = []
        for each in self.scores:
            sizes = (1, 2, 4, 8, 16, 32) if each.scope == "block" else (1,)
            for size in (size for size in sizes if size < self.model.layers):
                starts = [start for start, row in enumerate(each.mean) if len(row) >= size]
                best = min(starts, key=lambda start: each.mean[start][size - 1])
                score, stderr = each.mean[best][size - 1], each.stderr[best][size - 1]
                words = layers_in_words([(best, best + size)])
                rows.append((each.criterion, each.tokens, words, score, stderr))
        caption = (
            f"Survey of {self.model.source}: the most redundant of {self.model.layers} layers "
            f"on {self.text.tokens:,} tokens of {self.text.source}"
        )
        return html_table(caption, ("criterion", "tokens", "block", "score", "± stderr"), rows)


class Alternative(Record, frozen=True, kw_only=True):
    """Another choice of as many layers."""

    removed: tuple[Block, ...]
    score: float
    difference: Estimate
    """Its score minus the plan's, paired over sequences."""


class LayerSlice(Record, frozen=True, kw_only=True):
    """Consecutive layers [start, stop) of a model, taken in this order."""

    start: int
    stop: int
    model: str | None = None
    """Whose layers; None: the plan's own model."""


class Plan(Record, frozen=True, kw_only=True):
    """Which layers of a model make up the new one, in order, and why."""

    kind: Literal["plan"] = "plan"
    origin: Origin
    model: ModelFacts
    settings: PlanSettings
    survey: str | None
    """`inputs` of the survey that it came from; None: chosen by hand."""
    slices: tuple[LayerSlice, ...]
    """What the new model is made of. Layers that no slice names are removed."""
    score: float | None
    alternatives: tuple[Alternative, ...]
    """The runners-up, best first."""
    warnings: tuple[str, ...]

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The source layer of each new layer; ascending unless the plan rearranges."""
        return tuple(layer for each in self.slices for layer in range(each.start, each.stop))

    @property
    def removed(self) -> tuple[Block, ...]:
        """The fewest blocks of all layers that no slice names."""
        kept = set(self.kept_layers)
        return merged(layer for layer in range(self.model.layers) if layer not in kept)

    @property
    def removed_layers(self) -> tuple[int, ...]:
        return tuple(layer for start, stop in self.removed for layer in range(start, stop))

    @property
    def rearranges(self) -> bool:
        """Whether layers are repeated or change their order."""
        kept = self.kept_layers
        return any(second <= first for first, second in pairwise(kept))

    @property
    def words(self) -> str:
        """What goes, for people: "layers 12–18 (7 layers)"."""
        return layers_in_words(self.removed)

    @property
    def change(self) -> str:
        """What becomes of the stack: "without layers 12–18 (7 layers)"."""
        if not self.rearranges:
            return f"without {self.words}"
        return f"as {layers_in_words([(each.start, each.stop) for each in self.slices])}"

    def to_frame(self) -> "DataFrame":
        """One row for the choice and each runner-up, best first; needs pandas."""
        return data_frame(("layers", "score", "difference", "stderr"), self._choices())

    def _repr_html_(self) -> str:
        caption = f"Plan for {self.model.source}: {self.model.layers} layers {self.change}"
        columns = ("removes", "score", "difference to the plan", "± stderr")
        return html_table(". ".join((caption, *self.warnings)), columns, self._choices())

    def _choices(self) -> list[Row]:
        return [
            (self.words, self.score, None, None),
            *(
                (layers_in_words(each.removed), each.score, *_value_and_error(each.difference))
                for each in self.alternatives
            ),
        ]


class SliceRecord(Record, frozen=True, kw_only=True):
    """Lies in a sliced checkpoint as depthcut.json: the plan that made it."""

    kind: Literal["slice"] = "slice"
    origin: Origin
    plan: Plan
    result: ModelFacts


class Verification(Record, frozen=True, kw_only=True):
    """What was proved of a sliced checkpoint; nothing differed."""

    kind: Literal["verification"] = "verification"
    origin: Origin
    """Its seconds are those of the comparison, without those of loading."""
    folder: str
    parent: ModelFacts
    result: ModelFacts
    tensors: int
    tensor_bytes: int
    """Compared, all of them."""
    config_values: int
    """Values of config.json that are what the parent's become by the cut."""
    companions: int
    """Files beside the weights that are the parent's."""
    loads: bool = False
    """Whether transformers builds the model without missing or unexpected tensors, and each
    layer as it was in the parent."""


class LayerGroup(Record, frozen=True, kw_only=True):
    """Neighbouring layers of the same tensors."""

    start: int
    stop: int
    tensors: int
    """Of each layer."""
    parameters: int
    """Of each layer."""
    size_bytes: int
    """Of each layer."""
    modules: tuple[str, ...]
    """What a layer is made of, at the top."""


class FieldValues(Record, frozen=True, kw_only=True):
    """What a config says of the layers, in one field."""

    keys: tuple[str, ...]
    runs: tuple[tuple[int, int, str], ...]
    """Layers [start, stop) and the value that they have."""


class Refusal(Record, frozen=True, kw_only=True):
    """Layers that cannot be removed one by one, and why."""

    layers: tuple[Block, ...]
    reason: str
    """Of the first of them."""


class Inspection(Record, frozen=True, kw_only=True):
    """What depthcut sees in a model without reading weights."""

    kind: Literal["inspection"] = "inspection"
    model: ModelFacts
    form: Literal["safetensors", "GGUF"]
    files: int
    assumed: tuple[str, ...]
    """What was derived of a model type that the table lacks, in sentences."""
    stacks: tuple[str, ...]
    """Where the layers lie in the names of tensors."""
    layers: tuple[LayerGroup, ...]
    other_tensors: int
    other_bytes: int
    fields: tuple[FieldValues, ...]
    refusals: tuple[Refusal, ...]
    head: Literal["own", "tied", "none"]
    """Whether the head has a tensor of its own; tied: it shares the embeddings'."""
    dtypes: tuple[tuple[str, int], ...]
    """By the bytes that they take, most first."""
    quantization: str | None
    """Method, as the config names it."""
    prediction_layers: int
    """Behind the stack, for further tokens."""
    sliced: tuple[str, ...]
    """Tensors outside the stack with a part for each layer."""
    code: tuple[str, ...]
    """Python files that the config asks for."""


class HealRecord(Record, frozen=True, kw_only=True):
    """Lies in a healed checkpoint as depthcut.json."""

    kind: Literal["heal"] = "heal"
    origin: Origin
    model: ModelFacts
    """What was trained."""
    text: TextFacts
    settings: HealSettings
    load: LoadSettings
    trained_parameters: int
    trained_tokens: int
    losses: tuple[tuple[int, float], ...]
    """(step, mean next-token loss in nats since the last entry)."""
    result: ModelFacts


class Speed(Record, frozen=True, kw_only=True):
    """Tokens per second over interleaved rounds."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""
    rounds: tuple[float, ...]


class ModelEvaluation(Record, frozen=True, kw_only=True):
    """One model, judged."""

    name: str
    model: ModelFacts
    loss: Estimate
    """Nats per predicted token, standard error over sequences."""
    perplexity: Estimate
    bits_per_byte: Estimate
    prefill: Speed | None
    decode: Speed | None
    peak_memory_bytes: int | None
    """Of this model alone, loaded and run once: what it adds to a fresh process (CPU), or its
    weights and what the run allocates beside them (GPU)."""
    generations: tuple[str, ...]
    """One for each prompt, greedy."""


class Comparison(Record, frozen=True, kw_only=True):
    """One model against the first, on the same tokens."""

    name: str
    loss_difference: Estimate
    """Nats per token, paired over sequences; positive: worse than the first."""
    agreement: Estimate
    """Share of tokens where both predict the same next token."""
    kl_divergence: Estimate
    """KL(first ‖ this) of the next-token distributions, nats per token."""


class Evaluation(Record, frozen=True, kw_only=True):
    """Several models judged on the same text; the first is the reference."""

    kind: Literal["evaluation"] = "evaluation"
    origin: Origin
    text: TextFacts
    settings: EvaluateSettings
    load: LoadSettings
    prompts: tuple[str, ...]
    models: tuple[ModelEvaluation, ...]
    comparisons: tuple[Comparison, ...]
    """For the second model and those after it."""

    def to_frame(self) -> "DataFrame":
        """One row for each model; needs pandas."""
        return data_frame(_EVALUATION_COLUMNS, self._judgements())

    def _repr_html_(self) -> str:
        caption = f"Evaluation on {self.text.tokens:,} tokens of {self.text.source}"
        return html_table(caption, _EVALUATION_COLUMNS, self._judgements())

    def _judgements(self) -> list[Row]:
        compared = {each.name: each for each in self.comparisons}
        rows: list[Row] = []
        for each in self.models:
            against = compared.get(each.name)
            rows.append(
                (
                    each.name,
                    each.model.layers,
                    each.model.parameters,
                    *_value_and_error(each.perplexity),
                    each.bits_per_byte.value,
                    *_value_and_error(against.loss_difference if against else None),
                    against.agreement.value if against else None,
                    against.kl_divergence.value if against else None,
                    each.prefill.median if each.prefill else None,
                    each.decode.median if each.decode else None,
                )
            )
        return rows


_EVALUATION_COLUMNS = (
    "model",
    "layers",
    "parameters",
    "perplexity",
    "perplexity stderr",
    "bits per byte",
    "loss difference",
    "loss difference stderr",
    "agreement",
    "KL divergence",
    "prefill tokens/s",
    "decode tokens/s",
)


def _value_and_error(estimate: Estimate | None) -> tuple[float | None, float | None]:
    return (estimate.value, estimate.stderr) if estimate else (None, None)


def merged(layers: Iterable[int]) -> tuple[Block, ...]:
    """Layers as the fewest blocks [start, stop), ascending."""
    blocks: list[Block] = []
    for layer in sorted(set(layers)):
        if blocks and blocks[-1][1] == layer:
            blocks[-1] = (blocks[-1][0], layer + 1)
        else:
            blocks.append((layer, layer + 1))
    return tuple(blocks)


def slices_without(removed: Sequence[Block], layers: int) -> tuple[LayerSlice, ...]:
    """What is left of `layers` layers once the blocks are gone."""
    gone = {layer for start, stop in removed for layer in range(start, stop)}
    kept = merged(layer for layer in range(layers) if layer not in gone)
    return tuple(LayerSlice(start=start, stop=stop) for start, stop in kept)


def layers_in_words(blocks: Sequence[Block]) -> str:
    """Blocks for people, both ends included: "layers 3–5 and 12 (4 layers)"."""
    spans = [str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in blocks]
    count = sum(stop - start for start, stop in blocks)
    if not count:
        return "no layer (0 layers)"
    names = " and ".join(filter(None, [", ".join(spans[:-1]), *spans[-1:]]))
    return f"layer {names} (1 layer)" if count == 1 else f"layers {names} ({count} layers)"


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """The record in a JSON file.

    Raises:
        RecordError: No such file, not JSON, not this kind of record, or from another version.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise RecordError(f"no file {path}: expected a {kind.__name__.lower()} record") from error
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        name, why = kind.__name__.lower(), " ".join(str(error).split())
        raise RecordError(f"{path} is not a {name} of this depthcut: {why}") from error


def write_record(record: Record, path: Path, *, overwrite: bool = False) -> None:
    """Write a record as indented JSON; whole or not at all.

    Raises:
        OutputError: The file exists and `overwrite` is off, or the place cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(record), indent=1)
    write_file(path, content + b"\n", overwrite=overwrite)


def inputs_digest(*parts: str | Settings | Record | Sequence[str]) -> str:
    """SHA-256 (hex, first 32 digits) over strings, settings and records, in order."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("depthcut", "torch", "transformers", "tokenizers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
