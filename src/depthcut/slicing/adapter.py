"""Cutting a PEFT adapter by the plan that its base is cut by."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from depthcut.architectures.fields import Cut
from depthcut.architectures.names import ModuleNames
from depthcut.checkpoint.adapter_configs import AdapterCut, cut_adapter_config
from depthcut.checkpoint.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    TUNERS,
    AdapterNames,
    check_width,
    find_names,
    is_adapter,
    is_tuned,
    module_of,
    open_adapter,
    refuse_uncuttable,
)
from depthcut.checkpoint.card import kept_front
from depthcut.checkpoint.companions import carry_companions, companions
from depthcut.checkpoint.copying import write_ranges
from depthcut.checkpoint.folder import Checkpoint
from depthcut.checkpoint.headers import encode_header
from depthcut.checkpoint.pieces import Piece
from depthcut.files import new_folder, refuse_existing
from depthcut.records import ModelFacts, Origin, Plan, SliceRecord, inputs_digest, write_record
from depthcut.slicing.checkpoint import PLAN_FILE, RECORD_FILE
from depthcut.slicing.layout import check_plan
from depthcut.slicing.zeroing import refuse_zeroed
from depthcut.version import __version__

__all__ = ["is_adapter", "slice_adapter"]


def slice_adapter(folder: Path, plan: Plan, out: Path, *, base: str | None = None) -> SliceRecord:
    """Write the adapter that fits what a plan makes of its base.

    The tensors of the layers that stay are the parent's, bit for bit. The plan's digest is the
    base's and cannot be checked against the adapter; depth and width are.

    Args:
        folder: A PEFT adapter. Further adapters in its subfolders are not carried.
        plan: Which layers make up the new base.
        out: The folder to be; it appears whole or not at all.
        base: The cut base, as PEFT shall find it. None: the new adapter names no base, so that
            nobody loads it on the uncut one by mistake; who loads it gives the base.

    Returns:
        The record that lies in `out`; its `result` counts the adapter's own parameters.

    Raises:
        CheckpointError: The folder is broken, or changed while it was read.
        ArchitectureError: A method or config that cannot be cut, or layers that cannot be found.
        PlanError: The adapter is for another model, or nothing of it would be left.
        OutputError: `out` exists, cannot be written, or the disk is full.
    """
    started = time.monotonic()
    refuse_existing(out)
    refuse_zeroed(plan, "an adapter")
    adapter = open_adapter(folder)
    check_plan(plan, plan.model, str(folder))
    names = find_names(adapter, plan.model)
    refuse_uncuttable(adapter, names, plan.model)
    check_width(adapter, names, plan.model)
    tuner = TUNERS[str(adapter.config["peft_type"])]
    tuned = (module_of(name, tuner) for name in adapter.tensors if is_tuned(name, tuner))
    cut = Cut(plan.model.layers, plan.kept_layers)
    config = cut_adapter_config(adapter.config, AdapterCut(names, cut, frozenset(tuned)))
    config |= {"base_model_name_or_path": base, "revision": None}
    pieces = list(_pieces(adapter, names, cut))
    with new_folder(out, needed_bytes=_needed_bytes(adapter, pieces)) as working:
        carry_companions(folder, {}, working, ModuleNames(names.stacks, cut))
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (working / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        head = encode_header(
            ((p.name, p.entry.dtype, p.shape, p.size_bytes) for p in pieces),
            {"format": "pt"} | adapter.shards[0].metadata,
        )
        ranges = chain.from_iterable(piece.ranges() for piece in pieces)
        write_ranges(working / ADAPTER_WEIGHTS, head, ranges, done=lambda _: None)
        adapter.refuse_changed()
        result = _facts(open_adapter(working), names, plan, source=str(out))
        card = _card(adapter, plan, result, base=base, name=out.name)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(plan, working / PLAN_FILE)
        inputs = inputs_digest("slice adapter", plan.origin.inputs, result.digest, str(base))
        origin = Origin.since(started, inputs=inputs)
        record = SliceRecord(origin=origin, plan=plan, parent=plan.model, result=result)
        write_record(record, working / RECORD_FILE)
    return record


def _pieces(adapter: Checkpoint, names: AdapterNames, cut: Cut) -> Iterable[Piece]:
    repeated = []
    for entry in adapter.shards[0].tensors:
        layer = names.layer(entry.name)
        if layer is None:
            yield Piece(entry.name, entry)
            continue
        new = (index for index, old in enumerate(cut.kept) if old == layer)
        copies = [Piece(names.renumber(entry.name, index), entry) for index in new]
        yield from copies[:1]
        repeated += copies[1:]
    yield from repeated


def _needed_bytes(adapter: Checkpoint, pieces: Iterable[Piece]) -> int:
    others = companions(adapter.folder, {})
    return (
        sum(piece.size_bytes + len(piece.name) + 256 for piece in pieces)
        + sum((adapter.folder / path).stat().st_size for path in others)
        + (1 << 20)
    )


def _facts(adapter: Checkpoint, names: AdapterNames, plan: Plan, *, source: str) -> ModelFacts:
    """What the new adapter adds to a base: its own parameters, layer by layer."""
    layers = len(plan.kept_layers)
    layer_parameters = [0] * layers
    sizes: Counter[str] = Counter()
    for entry in adapter.tensors.values():
        sizes[entry.dtype] += entry.size_bytes
        layer = names.layer(entry.name)
        if layer is not None:
            layer_parameters[layer] += entry.elements
    with (adapter.folder / ADAPTER_WEIGHTS).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(json.dumps(adapter.config, sort_keys=True).encode())
    total = sum(entry.elements for entry in adapter.tensors.values())
    dtype = sizes.most_common(1)[0][0] if sizes else "none"
    return ModelFacts(
        source=source,
        digest=digest.hexdigest(),
        model_type=plan.model.model_type,
        layers=layers,
        hidden_size=plan.model.hidden_size,
        dtype={"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(dtype, dtype.lower()),
        layer_parameters=tuple(layer_parameters),
        other_parameters=total - sum(layer_parameters),
        weight_bytes=adapter.weight_bytes,
    )


def _card(
    adapter: Checkpoint, plan: Plan, result: ModelFacts, *, base: str | None, name: str
) -> str:
    front = kept_front(adapter.folder / "README.md", tags=("depthcut", "pruned"))
    front["library_name"] = "peft"
    front.pop("base_model", None)  # the uncut one, which PEFT names in a tag too
    if isinstance(tags := front["tags"], list):
        front["tags"] = [tag for tag in tags if not str(tag).startswith("base_model:")]
    header = "".join(  # JSON is YAML
        f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in front.items()
    )
    before, former = plan.model, adapter.config.get("base_model_name_or_path")
    return f"""\
---
{header}---

# {name}

An adapter for `{before.source}` ({before.layers} layers, counted from 0) {plan.change}:
{result.layers} layers, {result.parameters:,} parameters of its own. What it changes in the
layers that stay is the parent's, bit for bit; nothing was trained after the cut.

## Provenance

| | |
|---|---|
| parent | an adapter of `{former or "a model that it does not name"}` |
| the plan's model | `{before.source}` (digest `{before.digest}`) |
| layers | {before.layers} {plan.change} |
| base to load it on | {f"`{base}`" if base else "the model that the same plan makes"} |
| made with | depthcut {__version__} |

On the uncut model it would change the wrong layers without an error. `plan.json` holds the plan,
`depthcut.json` the whole record.

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base or "THE_CUT_MODEL"}")
model = PeftModel.from_pretrained(base, "PATH_OR_NAME")
```
"""
