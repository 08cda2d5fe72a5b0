"""States of models larger than memory: every batch through one layer, then through the next.

The model is built without weights. Each layer's are read while the layer before it works, so that
those of two are there at most; what leaves a layer is kept until the next one takes it.

Masks, rotary embeddings and the arguments of each layer are the model's own: it runs with one
layer on. That this gives what the whole model gives is proved on the way: a probe runs through
all layers in the model's own order, and what enters and leaves each must be the same, bit by bit.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, DepthcutError, SettingsError
from depthcut.launched import launched
from depthcut.model.devices import choose_device, choose_dtype
from depthcut.model.kept_states import KeptStates
from depthcut.model.layer_weights import LayerWeights
from depthcut.model.loading import LoadedModel, load_tokenizer
from depthcut.model.memory import (
    forget_peak,
    give_back_freed,
    keep_few_kernels,
    peak_bytes,
    resident_bytes,
)
from depthcut.model.quiet import quiet_transformers
from depthcut.model.some_layers import RunSomeLayers, running_some_layers
from depthcut.model.sources import locate
from depthcut.settings import LoadSettings
from depthcut.text.sequences import Batch

_PROBE_TOKENS = 16
"""Of the first sequence: what is proved on."""

ReadStates = Callable[[int], tuple[Tensor, ...]]
"""From the number of a batch to its states at all depths."""
Passing = Callable[[int, nn.Module], object]
"""Told each layer once, while its weights are there."""


@dataclass(frozen=True)
class StreamedModel:
    """A model whose layers are read one by one."""

    loaded: LoadedModel
    """Without weights: for what is known of the model, and to run a layer while it is there."""
    weights: LayerWeights
    checkpoint: Checkpoint


def open_streamed(source: str | Path, settings: LoadSettings) -> StreamedModel:
    """A model from any source, its weights left where they are.

    Raises:
        SourceError: The model cannot be found or fetched.
        CheckpointError: The folder is broken, or its tensors are not those of its config.
        ArchitectureError: The layers cannot be told, or share weights.
        SettingsError: 4-bit, quantised weights, several devices or processes: they do not stream.
    """
    device = choose_device(settings.device)
    if device is None or launched().count > 1 or settings.load_in_4bit:
        raise SettingsError(
            "--stream reads weights as they are, for one device and one process: leave out "
            f"{'--load-in-4bit' if settings.load_in_4bit else '--device map and accelerate launch'}"
        )
    keep_few_kernels()
    folder = locate(source, settings)
    checkpoint = open_checkpoint(folder)
    facts = model_facts(checkpoint, source=str(source))
    stored = getattr(torch, facts.dtype, None)
    quantised = "quantization_config" in {**checkpoint.config, **checkpoint.decoder_config}
    if quantised or not isinstance(stored, torch.dtype) or not stored.is_floating_point:
        raise SettingsError(
            f"{folder} is quantised, and --stream reads weights as they are: leave it out, or "
            "survey the model that this one was made of"
        )
    model = _without_weights(folder, settings, choose_dtype(settings.dtype, stored, device))
    _move_buffers(model, device)
    tokenizer = load_tokenizer(folder, settings)
    loaded = LoadedModel(model, tokenizer, facts, folder, runs_on=device)
    weights = LayerWeights(model, loaded.layers, loaded.backbone, checkpoint, device)
    return StreamedModel(loaded, weights, checkpoint)


@contextlib.contextmanager
def streaming_states(
    streamed: StreamedModel,
    batches: Sequence[Batch],
    memory_bytes: int,
    *,
    advance: Callable[[int, int], object] = lambda layer, number: None,
    passing: Passing = lambda layer, module: None,
) -> Iterator[ReadStates]:
    """A context in which the states of all batches are kept; all layers run as it is entered.

    What is read is L + 1 tensors of shape (batch, length, hidden), as `states.reading_states`
    gives them, on the model's device.

    Args:
        streamed: The model.
        batches: What it reads.
        memory_bytes: Of states that are kept in memory; the others go to a temporary file.
        advance: Told the layer and the batch that it has read.
        passing: See `Passing`.

    Raises:
        ArchitectureError: The layers do not run once each in their order, or pass more to each
            other than the residual stream.
        CheckpointError: A weight file is damaged, or was changed.
    """
    kept, depths = KeptStates(memory_bytes, apart=True), range(len(streamed.loaded.layers) + 1)
    device = streamed.loaded.device
    with torch.inference_mode():
        _run_layers(streamed, batches, kept, advance, passing)
        yield lambda number: tuple(kept.get((depth, number), device) for depth in depths)


@contextlib.contextmanager
def streaming_layers(streamed: StreamedModel) -> Iterator[RunSomeLayers]:
    """A context in which layers run whose weights were put there by `streamed.weights.enter`.

    That they do alone what they do among the others is proved on a few tokens first.

    Raises:
        ArchitectureError: The layers do not run once each in their order, or pass more to each
            other than the residual stream.
        CheckpointError: A weight file is damaged, or was changed.
    """
    loaded, weights = streamed.loaded, streamed.weights
    with running_some_layers(loaded, tried=False) as run, weights.there():
        proof = _Proof(loaded, run, torch.arange(_PROBE_TOKENS)[None])

        def at(layer: int, state: Tensor) -> None:
            proof.in_order(layer)
            weights.enter(layer)
            proof.through(layer, state)

        proof.end(run(proof.ids, range(len(loaded.layers)), head=False, observe=at))
        yield run
    streamed.checkpoint.refuse_changed()


def _run_layers(
    streamed: StreamedModel,
    batches: Sequence[Batch],
    kept: KeptStates,
    advance: Callable[[int, int], object],
    passing: Passing,
) -> None:
    """Keep every state by its depth and the number of its batch."""
    loaded, weights = streamed.loaded, streamed.weights
    with running_some_layers(loaded, tried=False) as run, weights.there():
        proof = _Proof(loaded, run, _probe(batches[0]))

        def keep_first(number: int) -> Callable[[int, Tensor], object]:
            return lambda _, state: kept.put((0, number), state)

        def at(layer: int, state: Tensor) -> None:
            """The probe has come to a layer: every batch goes through it."""
            proof.in_order(layer)
            passing(layer, weights.enter(layer))
            proof.through(layer, state)
            for number, batch in enumerate(batches):
                entering = kept.get((layer, number), loaded.device) if layer else None
                observe = None if layer else keep_first(number)
                left = run(batch.ids, [layer], entering=entering, head=False, observe=observe)
                kept.put((layer + 1, number), left)
                give_back_freed()  # else holes between what is alive add up to many batches
                advance(layer, number)

        proof.end(run(proof.ids, range(len(loaded.layers)), head=False, observe=at))
    streamed.checkpoint.refuse_changed()


class LayerMemory(NamedTuple):
    """What a layer took of the process's memory, in bytes beyond what the process had."""

    entering: int
    """Most of it while the weights were put in."""
    there: int
    """With the weights of the layer and of the next."""
    sequence: int
    """Most of it beyond that, while a sequence ran."""

    def running(self, sequences: int) -> int:
        """Most of it with so many sequences in a batch."""
        return max(self.entering, self.there + sequences * self.sequence)


def measured_memory(streamed: StreamedModel, sequence: Tensor) -> list[LayerMemory]:
    """What layers take, measured: each kind runs on a sequence once.

    What a kind computes on its way (experts, scans of recurrent layers, scores of attention) is
    known to its kernels only.

    Args:
        streamed: The model.
        sequence: (length,) int64.

    Returns:
        One for each kind of layer; none where the system does not tell, or where the layers
        cannot run alone (what streams them says why).

    Raises:
        CheckpointError: A weight file is damaged.
    """
    loaded, weights, ids = streamed.loaded, streamed.weights, sequence[None]
    used, found = resident_bytes(), []
    with running_some_layers(loaded, tried=False) as run, weights.there():
        for layer in _kinds(loaded.layers):
            forget_peak()
            try:
                weights.enter(layer)
                run(ids[:, :_PROBE_TOKENS], [layer], head=False)  # what is made once is there
                weights.settle()
                entering, there = peak_bytes(), resident_bytes()
                forget_peak()
                run(ids, [layer], head=False)
            except (DepthcutError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
                return []
            running = peak_bytes()
            give_back_freed()
            if entering is None or running is None:
                return []
            found.append(LayerMemory(entering - used, there - used, max(0, running - there)))
    return found


def _kinds(layers: nn.ModuleList) -> list[int]:
    """The first layer of each kind: of the same modules, of the same sizes."""
    first: dict[object, int] = {}
    for index, layer in enumerate(layers):
        modules = tuple((name, type(each)) for name, each in layer.named_modules())
        shapes = tuple((name, each.shape) for name, each in layer.named_parameters())
        first.setdefault((modules, shapes), index)
    return list(first.values())


class _Proof:
    """That a layer alone does to a probe what it does among the others."""

    def __init__(self, loaded: LoadedModel, run: RunSomeLayers, ids: Tensor) -> None:
        self.ids = ids
        self._loaded, self._run = loaded, run
        self._passed = 0
        self._left: Tensor | None = None

    def in_order(self, layer: int) -> None:
        if layer != self._passed:
            raise self._not_each_once()
        self._passed += 1

    def through(self, layer: int, state: Tensor) -> None:
        """Take a probe's state at a layer, as the whole model has it."""
        self._compare(state)
        try:
            self._left = self._run(self.ids, [layer], entering=state, head=False)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            # The layer misses what one that did not run would have left for it.
            raise self._entangled() from error

    def end(self, state: Tensor) -> None:
        if self._passed != len(self._loaded.layers):
            raise self._not_each_once()
        self._compare(state)

    def _compare(self, state: Tensor) -> None:
        if self._left is not None and not _same(self._left, state):
            raise self._entangled()

    def _not_each_once(self) -> ArchitectureError:
        facts = self._loaded.facts
        return ArchitectureError(
            f"{facts.source} ({facts.model_type}) does not run each of its layers once, in their "
            "order: it cannot be streamed"
        )

    def _entangled(self) -> ArchitectureError:
        facts = self._loaded.facts
        return ArchitectureError(
            f"the layers of {facts.source} ({facts.model_type}) pass more to each other than the "
            "residual stream: it cannot be streamed"
        )


def _same(state: Tensor, other: Tensor) -> bool:
    """Bit by bit, but that one NaN is like another."""
    if state.shape != other.shape:
        return False
    return bool(((state == other) | (state.isnan() & other.isnan())).all())


def _probe(batch: Batch) -> Tensor:
    return batch.ids[:1, : min(_PROBE_TOKENS, int(batch.mask[0].sum()))]


def _without_weights(
    folder: Path, settings: LoadSettings, dtype: torch.dtype | None
) -> PreTrainedModel:
    """The model with its parameters on the meta device. Its buffers hold what they must."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers.initialization import no_init_weights, no_tie_weights

    trusted = settings.trust_remote_code
    auto: Any = AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        with (
            quiet_transformers(),
            no_init_weights(),
            no_tie_weights(),
            init_empty_weights(include_buffers=False),
        ):
            model: PreTrainedModel = auto.from_config(
                config, dtype=dtype, trust_remote_code=trusted
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"transformers cannot build {folder}: {reason}") from error
    cast(nn.Module, model).eval()
    return model


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
