"""The model card of a healed checkpoint."""

from pathlib import Path

import yaml

from depthcut.checkpoint.card import kept_front, text_cell
from depthcut.errors import RecordError
from depthcut.records import HealRecord, Plan, read_record


def heal_card(record: HealRecord, parent: Path | None, *, name: str) -> str:
    """The README.md of a healed checkpoint.

    Args:
        record: What was done.
        parent: The folder that was healed, whose front matter and plan are told; None: a model
            in memory.
        name: Title of the card.
    """
    front = kept_front(parent / "README.md" if parent else None, tags=("depthcut", "healed"))
    header = yaml.safe_dump(front, allow_unicode=True, sort_keys=False)
    settings, text = record.settings, record.text
    rows = {
        "parent": f"`{record.model.source}` (digest `{record.model.digest}`)",
        **_cut(parent),
        "text": text_cell(text),
        "training": f"{record.losses[-1][0]} steps of {settings.batch_size} sequences, "
        f"{record.trained_tokens:,} tokens; seed {settings.seed}",
        "trained": f"{_TRAINED[settings.method]}: {record.trained_parameters:,} parameters",
        **_teacher(record),
        **_told(record),
        "this model's digest": f"`{record.result.digest}`",
        "made with": f"depthcut {record.origin.versions.get('depthcut', '')}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""\
---
{header}---

# {name}

`{record.model.source}`, trained further: {record.result.layers} layers, \
{record.result.parameters:,} parameters.

## Provenance

| | |
|---|---|
{table}

`depthcut.json` holds the whole record.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
```
"""


_TRAINED = {
    "lora": "low-rank matrices (LoRA), merged into the weights",
    "qlora": "low-rank matrices on a 4-bit base (QLoRA), merged into the unquantised weights",
    "full": "all weights",
    "partial": "the weights of some layers",
}


def _teacher(record: HealRecord) -> dict[str, str]:
    if record.teacher is None:
        return {}
    source, digest = record.teacher.source, record.teacher.digest
    return {"teacher": f"`{source}` (digest `{digest}`), loss {record.settings.loss or 'kl'}"}


def _told(record: HealRecord) -> dict[str, str]:
    """What the loss became: on held-out text where some was."""
    if record.judgements:
        first = record.judgements[0]
        best = next(each for each in record.judgements if each.step == record.best_step)
        return {
            "loss on held-out text": f"from {first.next_token:.3f} to {best.next_token:.3f} nats "
            f"per token (step {record.best_step})"
        }
    (_, before), (_, after) = record.losses[0], record.losses[-1]
    return {"training loss": f"from {before:.3f} to {after:.3f} nats per token"}


def _cut(parent: Path | None) -> dict[str, str]:
    """What the plan in the parent's folder says, as a row of the table."""
    if parent is None or not (parent / "plan.json").is_file():
        return {}
    try:
        plan = read_record(parent / "plan.json", Plan)
    except RecordError:
        return {}
    return {"cut before": f"`{plan.model.source}` ({plan.model.layers} layers) {plan.change}"}
