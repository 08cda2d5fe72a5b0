"""The model card of a repaired checkpoint."""

from pathlib import Path

import yaml

from depthcut.checkpoint.card import kept_front, text_cell
from depthcut.records import RepairRecord, error_words, layers_in_words


def repair_card(record: RepairRecord, parent: Path | None, *, name: str) -> str:
    """The README.md of a repaired checkpoint.

    Args:
        record: What was done.
        parent: The folder that was cut, whose front matter is kept; None: it has none.
        name: Title of the card.
    """
    tags = ("depthcut", "pruned", "repaired")
    front = kept_front(parent / "README.md" if parent else None, tags=tags)
    header = yaml.safe_dump(front, allow_unicode=True, sort_keys=False)
    rows = {
        "parent": f"`{record.parent.source}` (digest `{record.parent.digest}`)",
        "layers": f"{record.parent.layers} {record.plan.change}",
        "text": text_cell(record.text),
        "repair": _how(record),
        **{
            f"instead of {layers_in_words([(block.start, block.stop)])}": (
                f"{', '.join(f'`{tensor}`' for tensor in block.tensors)}; "
                f"{error_words(record.settings)} on held-out text from {block.error_before:.4f} to "
                f"{block.error_after:.4f}"
                + "".join(
                    f", behind layer {step.layer} from {step.error_before:.4f} to "
                    f"{step.error_after:.4f}"
                    for step in block.behind
                )
            )
            for block in record.blocks
        },
        "this model's digest": f"`{record.result.digest}`",
        "made with": f"depthcut {record.origin.versions.get('depthcut', '')}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""\
---
{header}---

# {name}

`{record.parent.source}` {record.plan.change}: {record.result.layers} layers, \
{record.result.parameters:,} parameters. All
weights are the parent's but those of the table, which were found so that the states behind each cut
come near those of the parent. Nothing was trained.

## Provenance

| | |
|---|---|
{table}

`plan.json` holds the choice of layers, `depthcut.json` the whole record.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
```
"""


def _how(record: RepairRecord) -> str:
    method = record.settings.method
    if record.fitted_tokens:
        return f"{method}, {record.fitted_tokens:,} tokens, in closed form"
    strengths = (f"{step.strength:g}" for block in record.blocks for step in block.steps)
    return f"{method}, differences of the removed layers times {', '.join(strengths)}"
