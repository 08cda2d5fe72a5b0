"""The weights of a checkpoint, one layer at a time: read ahead by a thread, put in, taken out.

Files are read, not mapped: what is resident is what was allocated here, in buffers that every
layer uses again. Which tensor of the checkpoint makes which weight is transformers' own knowledge.
"""

import contextlib
import copy
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Buffer

from depthcut.checkpoint.folder import Checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import ArchitectureError, CheckpointError, SettingsError
from depthcut.model.quiet import quiet_transformers

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_ALIGNED_BYTES = 64
"""Where a tensor may begin: what kernels like."""
_ROW_TABLE_BYTES = 1 << 20
"""A smaller embedding is loaded whole."""


@dataclass(frozen=True)
class _Source:
    """A tensor of the checkpoint and what becomes of it."""

    entry: TensorEntry
    target: str
    """The parameter or buffer that it goes into, alone or with others."""
    converted: bool
    """Whether it is put together with others, or split, on the way."""


class LayerWeights:
    """Puts the weights of one layer after the other into a model on the meta device."""

    def __init__(
        self,
        model: PreTrainedModel,
        layers: nn.ModuleList,
        backbone: nn.Module,
        checkpoint: Checkpoint,
        device: torch.device,
    ) -> None:
        """Find what belongs where. Reads nothing.

        Args:
            model: Its parameters on the meta device, in the dtype to compute in; its buffers real.
            layers: Its decoder layers.
            backbone: What is run. Weights outside of it stay where they are.
            checkpoint: What it is to be loaded from.
            device: Where the weights go.

        Raises:
            ArchitectureError: Layers share weights, or their tensors are of an unknown dtype.
            SettingsError: transformers is of a version whose loader is another.
        """
        self._model, self._checkpoint, self._device = model, checkpoint, device
        self._loader = _Loader(model, device)
        path = self._path = _path(model, layers)
        inside = self._inside = f"{_path(model, backbone)}." if backbone is not model else ""
        of_layers: list[list[_Source]] = [[] for _ in layers]
        self._outer: list[_Source] = []
        for source in self._loader.sources(checkpoint):
            if source.entry.dtype not in _DTYPES:
                raise ArchitectureError(
                    f"{checkpoint.folder}: {source.entry.name} is {source.entry.dtype}, quantised: "
                    "it cannot be streamed; stream the model that it was made of"
                )
            if source.target.startswith(f"{path}."):
                number = source.target.removeprefix(f"{path}.").partition(".")[0]
                of_layers[int(number)].append(source)
            elif source.target.startswith(inside):
                self._outer.append(source)
        self._sources = of_layers
        self._empty = [_tensors_of(layer) for layer in layers]
        _refuse_shared(checkpoint.folder, layers)
        self._layers = layers
        self._rows = self._row_table()
        self._files: dict[Path, int] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: Future[dict[str, Tensor]] | None = None
        self._ahead_layer: int | None = None
        self._buffers: list[Tensor] = []
        self._casts: Tensor | None = None
        self._there: int | None = None

    @property
    def outer_bytes(self) -> int:
        """Of what is there throughout: the backbone without its layers, on the device."""
        return sum(self._loader.loaded_bytes(each) for each in self._outer)

    @property
    def streaming_bytes(self) -> int:
        """In the memory of the process while layers come and go, at most."""
        raw = self._raw_bytes
        if self._in_place:
            return 2 * raw + self._converted_bytes
        on_host = self._device.type == "cpu"
        return raw + (self._cast_bytes + self._converted_bytes if on_host else 0)

    @property
    def largest_bytes(self) -> int:
        """The largest weight: kernels may copy it into an order of their own."""
        return max(max(self._weights_of(some).values(), default=0) for some in self._sources)

    @contextlib.contextmanager
    def there(self) -> Iterator[None]:
        """A context in which the backbone's weights outside its layers are there.

        Raises:
            CheckpointError: A file cannot be read, or lacks tensors.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            before = _tensors_of(self._model)
            stack.callback(_restore, before)
            if self._rows is not None:
                stack.enter_context(self._rows.looked_up(self._read_rows))
            whole = {each.entry.name: self._read_alone(each) for each in self._outer}
            self._loader.put(whole)
            self._refuse(
                [
                    name
                    for name in self._lacking(self._inside)
                    if not name.startswith(f"{self._path}.") and name not in self._loader.tied
                ]
            )
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="depthcut-weights")
            yield

    def enter(self, layer: int) -> nn.Module:
        """Put in a layer's weights, in place of those of the last one; then read on.

        Raises:
            CheckpointError: A file cannot be read, or lacks tensors of the layer.
        """
        self.leave()
        ahead, self._ahead = self._ahead, None
        raw = ahead.result() if ahead is not None else self._read(layer)
        if ahead is not None and layer != self._ahead_layer:
            raw = self._read(layer)
        self._loader.put(raw if self._in_place else self._cast(layer, raw))
        self._there = layer
        lacking = self._lacking(f"{self._path}.{layer}.")
        if any(name in self._loader.tied for name in lacking):
            raise _shared(self._checkpoint.folder, f"layer {layer} takes {lacking[0]} from another")
        self._refuse(lacking)
        if layer + 1 < len(self._layers) and self._pool is not None:
            self._ahead, self._ahead_layer = self._pool.submit(self._read, layer + 1), layer + 1
        return self._layers[layer]

    def settle(self) -> None:
        """Wait until the next layer has been read."""
        if self._ahead is not None:
            self._ahead.result()

    def leave(self) -> None:
        """Take out the weights of the layer that is there."""
        if self._there is not None:
            _restore(self._empty[self._there])
            self._there = None

    def _lacking(self, prefix: str) -> list[str]:
        return [
            name
            for name, weight in self._model.named_parameters()
            if weight.is_meta and name.startswith(prefix)
        ]

    def _refuse(self, lacking: Sequence[str]) -> None:
        if lacking:
            raise CheckpointError(
                f"{self._checkpoint.folder} lacks {len(lacking)} tensors of its model, such as "
                f"{lacking[0]}: get the whole checkpoint"
            )

    def _close(self) -> None:
        self.leave()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._ahead = None
        self._buffers.clear()
        self._casts = None
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    @property
    def _in_place(self) -> bool:
        """Whether weights are what was read, without a copy."""
        sources = (each for some in self._sources for each in some)
        return self._device.type == "cpu" and all(map(self._loader.keeps_dtype, sources))

    @property
    def _raw_bytes(self) -> int:
        return max(_end(each.entry.size_bytes for each in some) for some in self._sources)

    @property
    def _cast_bytes(self) -> int:
        return max(_end(map(self._loader.loaded_bytes, some)) for some in self._sources)

    @property
    def _converted_bytes(self) -> int:
        """Of a layer's weights that are put together anew, and of the steps on the way to one."""
        found = 0
        for some in self._sources:
            made = self._weights_of([each for each in some if each.converted])
            found = max(found, sum(made.values()) + max(made.values(), default=0))
        return found

    def _weights_of(self, sources: Sequence[_Source]) -> dict[str, int]:
        """The bytes of each weight that these make; where they make several, all in the first."""
        found: dict[str, int] = {}
        for each in sources:
            found[each.target] = found.get(each.target, 0) + self._loader.loaded_bytes(each)
        return found

    def _read(self, layer: int) -> dict[str, Tensor]:
        """A layer's tensors as they lie in the checkpoint, in a buffer that is used again."""
        if not self._buffers:
            count = 2 if self._in_place else 1
            size = self._raw_bytes
            # Filled, so that they are resident from the start: what is measured is what will be.
            self._buffers = [torch.zeros(size, dtype=torch.uint8).fill_(1) for _ in range(count)]
        buffer = self._buffers[layer % len(self._buffers)]
        found, at = {}, 0
        for source in self._sources[layer]:
            entry = source.entry
            part = buffer[at : at + entry.size_bytes]
            self._read_into(part, entry, entry.start)
            found[entry.name] = part.view(_DTYPES[entry.dtype]).view(entry.shape)
            at = _aligned(at + entry.size_bytes)
        return found

    def _cast(self, layer: int, raw: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """In the dtype to compute in, so that what was read may be overwritten."""
        if self._device.type != "cpu":
            return raw  # the loader's copies to the device are such
        if self._casts is None:
            self._casts = torch.empty(self._cast_bytes, dtype=torch.uint8)
        found, at = {}, 0
        for source in self._sources[layer]:
            own, dtype = raw[source.entry.name], self._loader.dtype(source)
            size = own.numel() * dtype.itemsize
            found[source.entry.name] = self._casts[at : at + size].view(dtype).view(own.shape)
            found[source.entry.name].copy_(own)
            at = _aligned(at + size)
        return found

    def _read_alone(self, source: _Source) -> Tensor:
        entry = source.entry
        content = torch.empty(entry.size_bytes, dtype=torch.uint8)
        self._read_into(content, entry, entry.start)
        return content.view(_DTYPES[entry.dtype]).view(entry.shape)

    def _read_rows(self, entry: TensorEntry, rows: Sequence[int]) -> Tensor:
        width = entry.size_bytes // entry.shape[0]
        content = torch.empty(len(rows), width, dtype=torch.uint8)
        for place, row in enumerate(rows):
            self._read_into(content[place], entry, entry.start + row * width)
        return content.view(_DTYPES[entry.dtype])

    def _read_into(self, content: Tensor, entry: TensorEntry, start: int) -> None:
        view, done = memoryview(cast(Buffer, content.numpy())), 0
        try:
            if entry.file not in self._files:
                self._files[entry.file] = os.open(entry.file, os.O_RDONLY)
            while done < len(view):
                count = os.preadv(self._files[entry.file], [view[done:]], start + done)
                if not count:
                    raise CheckpointError(f"{entry.file} ends within {entry.name}")
                done += count
        except OSError as error:
            raise CheckpointError(f"cannot read {entry.file}: {error.strerror}") from error

    def _row_table(self) -> "_RowTable | None":
        """The input embeddings, if they can be read row by row; they are then not loaded."""
        module = self._model.get_input_embeddings()
        if not isinstance(module, nn.Embedding):
            return None
        name = f"{_path(self._model, module)}.weight"
        found = [each for each in self._outer if each.target == name]
        if len(found) != 1:
            return None
        entry, plain = found[0].entry, not found[0].converted
        if not plain or entry.shape != module.weight.shape or entry.size_bytes < _ROW_TABLE_BYTES:
            return None
        self._outer.remove(found[0])
        return _RowTable(module, entry, self._loader.dtype(found[0]), self._device)


class _RowTable:
    """An embedding of which only the rows of a batch are ever there."""

    def __init__(
        self, module: nn.Embedding, entry: TensorEntry, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._module, self._entry, self._dtype, self._device = module, entry, dtype, device

    @contextlib.contextmanager
    def looked_up(self, read: Any) -> Iterator[None]:
        """A context in which the module finds its rows by `read(entry, rows)`."""
        empty, padding = self._module.weight, self._module.padding_idx
        # Some models ask it for its device: one number, seen as all.
        one = torch.zeros(1, 1, dtype=empty.dtype, device=self._device)
        seen = nn.Parameter(one.expand(empty.shape), requires_grad=False)
        self._module.weight = seen

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
            used, places = torch.unique(args[0], return_inverse=True)
            rows = read(self._entry, used.tolist()).to(self._device, self._dtype)
            self._module.weight = nn.Parameter(rows, requires_grad=False)
            self._module.padding_idx = None  # another row now; it counts for gradients only
            return (places, *args[1:])

        def after(*_: object) -> None:
            self._module.weight, self._module.padding_idx = seen, padding

        hooks = (
            self._module.register_forward_pre_hook(before),
            self._module.register_forward_hook(after, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._module.weight, self._module.padding_idx = empty, padding


class _Loader:
    """transformers' own way from tensors of a checkpoint to weights, for some of them at a time."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        try:
            from transformers import core_model_loading as loading
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.modeling_utils import LoadStateDictConfig

            load: Any = loading.convert_and_load_state_dict_in_model
            # Of 5.0 and others it had each of these by itself.
            known = "load_config" in inspect.signature(load).parameters
            own: Any = model
            dtype = model.dtype
            plan = own._get_dtype_plan(dtype)
            mapping: Any = get_model_conversion_mapping(model)
            self._config: Any = LoadStateDictConfig(
                dtype=dtype, dtype_plan=plan, weight_mapping=mapping, device_map={"": device}
            )
        except (ImportError, AttributeError, TypeError):
            known = False
        if not known:
            raise SettingsError(
                f"transformers {transformers.__version__} loads weights in another way than "
                "depthcut streams them: update both"
            )
        self._model: Any = model
        self._load = load
        self._rename: Any = loading.rename_source_key
        self._renamings = [each for each in mapping if isinstance(each, loading.WeightRenaming)]
        self._converters = [each for each in mapping if isinstance(each, loading.WeightConverter)]
        self._targets = dict(model.state_dict())
        self.tied = frozenset(self._model.all_tied_weights_keys)
        """Weights that are taken from another place."""

    def sources(self, checkpoint: Checkpoint) -> Iterator[_Source]:
        """All tensors that the model has a place for."""
        prefix = self._model.base_model_prefix
        for name, entry in checkpoint.tensors.items():
            target, pattern = self._rename(
                name, self._renamings, self._converters, prefix, self._targets
            )
            if target not in self._targets and name in self._targets:
                target, pattern = self._rename(name, [], [], prefix, self._targets)
            if target in self._targets:
                yield _Source(entry, target, pattern is not None)

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors, named as in the checkpoint, into the model.

        Raises:
            CheckpointError: One does not fit.
        """
        try:
            with quiet_transformers():
                report, _ = self._load(self._model, dict(tensors), copy.copy(self._config))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:400]
            raise CheckpointError(
                f"transformers cannot load {next(iter(tensors))}: {reason}"
            ) from error
        wrong = [*(name for name, *_ in report.mismatched_keys), *report.conversion_errors]
        if wrong:
            raise CheckpointError(
                f"{wrong[0]} does not fit its model: get config and weights that belong together"
            )

    def dtype(self, source: _Source) -> torch.dtype:
        """What a tensor is before it is put in: as it is stored where the loader casts it."""
        stored = _DTYPES[source.entry.dtype]
        wanted: torch.dtype = self._targets[source.target].dtype
        planned = bool(self._config.dtype_plan)
        return stored if planned or not stored.is_floating_point else wanted

    def keeps_dtype(self, source: _Source) -> bool:
        return self.dtype(source) == _DTYPES[source.entry.dtype]

    def loaded_bytes(self, source: _Source) -> int:
        wanted: torch.dtype = self._targets[source.target].dtype
        return source.entry.elements * wanted.itemsize


_Places = list[tuple[nn.Module, str, Tensor]]
"""Parameters and buffers: the module, the name there, and what stands there."""


def _tensors_of(module: nn.Module) -> _Places:
    return [
        (each, name, tensor)
        for each in module.modules()
        for tensors in (each._parameters, each._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def _restore(places: _Places) -> None:
    for module, name, tensor in places:
        into: Any = module._parameters if name in module._parameters else module._buffers
        into[name] = tensor


def _refuse_shared(folder: Path, layers: nn.ModuleList) -> None:
    """Refuse layers that hold the same module or weight: it would come and go with each."""
    seen: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for each in layer.parameters():
            if seen.setdefault(id(each), index) != index:
                raise _shared(folder, f"layers {seen[id(each)]} and {index} share weights")


def _shared(folder: Path, what: str) -> ArchitectureError:
    return ArchitectureError(f"{folder}: {what}: they cannot be streamed one by one")


def _path(model: nn.Module, module: nn.Module) -> str:
    names: Iterator[str] = (name for name, each in model.named_modules() if each is module)
    return next(names)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _end(sizes: Any) -> int:
    """Where tensors of these sizes end, one after the other in a buffer."""
    return sum(map(_aligned, sizes))
