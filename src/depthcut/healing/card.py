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
    sequences = settings.batch_size * settings.accumulate
    first, last = record.losses[0][1], record.losses[-1][1]
    rows = {
        "parent": f"`{record.model.source}` (digest `{record.model.digest}`)",
        **_cut(parent),
        "text": text_cell(text),
        "training": f"{settings.steps} steps of {sequences} sequences, "
        f"{record.trained_tokens:,} tokens; learning rate {settings.learning_rate:g}, "
        f"seed {settings.seed}",
        "LoRA": f"rank {settings.rank}, alpha {settings.alpha:g} on all linear layers: "
        f"{record.trained_parameters:,} parameters, merged into the weights",
        "training loss": f"from {first:.3f} to {last:.3f} nats per token",
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


def _cut(parent: Path | None) -> dict[str, str]:
    """What the plan in the parent's folder says, as a row of the table."""
    if parent is None or not (parent / "plan.json").is_file():
        return {}
    try:
        plan = read_record(parent / "plan.json", Plan)
    except RecordError:
        return {}
    return {"cut before": f"`{plan.model.source}` ({plan.model.layers} layers) {plan.change}"}
