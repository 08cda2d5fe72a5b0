"""The model card of a sliced checkpoint: the parent's front matter and where the cut came from."""

import json
import re
from pathlib import Path

from depthcut.records import ModelFacts, Plan, TextFacts

_KEPT_KEYS = (
    "license",
    "license_name",
    "license_link",
    "language",
    "library_name",
    "pipeline_tag",
    "datasets",
    "inference",
    "base_model",
)
"""What the parent's front matter says that is still true; its results are not."""

_LONGEST_FRONT = 1 << 18
"""Characters: longer front matter is not read."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def slice_card(
    folder: Path, plan: Plan, parent: ModelFacts, result: ModelFacts, *, name: str, version: str
) -> str:
    """The README.md of a sliced checkpoint.

    Args:
        folder: What was sliced; its README.md is read where there is one.
        plan: What was removed, and why.
        parent: What `folder` holds.
        result: What is left.
        name: Title of the card.
        version: Of depthcut.
    """
    kept = kept_front(folder / "README.md", tags=("depthcut", "pruned"))
    if _is_hub_name(parent.source):
        kept["base_model"] = parent.source  # a local folder's: the one that it came from
    header = "".join(  # JSON is YAML
        f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in kept.items()
    )
    return f"---\n{header}---\n\n{_body(plan, parent, result, name=name, version=version)}"


def _body(plan: Plan, before: ModelFacts, result: ModelFacts, *, name: str, version: str) -> str:
    share = 1 - result.parameters / before.parameters if before.parameters else 0.0
    other = "" if before.digest == plan.model.digest else " --other-model"
    than = "fewer" if share >= 0 else "more"
    again = f"plan.json{' --zero' if plan.zeroed else ''}{other}"
    return f"""\
# {name}

`{before.source}` ({before.layers} layers, counted from 0) {plan.change}:
{result.layers} layers and {result.parameters:,} parameters, {abs(share):.1%} {than}. The
weights are the parent's, bit for bit; nothing was trained after the cut.
{_zeros(plan)}
## Provenance

| | |
|---|---|
| parent | `{before.source}` (digest `{before.digest}`) |
| layers | {before.layers} {plan.change} |
| chosen by | {_chosen_by(plan)} |
| this model's digest | `{result.digest}` |
| made with | depthcut {version} |

`plan.json` holds the choice with its runners-up, `depthcut.json` the whole record.

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME")
tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")
```

## Make it again

```
depthcut slice {before.source} {again} --out NEW_FOLDER
```
"""


def _zeros(plan: Plan) -> str:
    if not plan.zeroed:
        return ""
    return f"""
The last projections of these are set to zero, so that they add nothing: {plan.zeroed_words}.
They take the room and the time that they took before.
"""


def _chosen_by(plan: Plan) -> str:
    if plan.survey is None:
        return "hand"
    score = "" if plan.score is None else f", score {plan.score:.6g} (low: redundant)"
    if plan.search is not None:
        found = "KL divergence" if plan.search.objective == "kl" else "loss"
        return f"{plan.search.method} search for the least {found}{score}; search `{plan.survey}`"
    where = "the last token" if plan.settings.tokens == "last" else "all tokens"
    return f"{plan.settings.criterion} at {where} of each sequence{score}; survey `{plan.survey}`"


def kept_front(card: Path | None, *, tags: tuple[str, ...]) -> dict[str, object]:
    """What a parent's model card says in its front matter that holds for a child, and `tags`.

    Args:
        card: The parent's README.md; it may be missing.
        tags: Added to the parent's own.
    """
    # What is no file may never end.
    front = _parent_front(card) if card is not None and card.is_file() else {}
    kept: dict[str, object] = {key: front[key] for key in _KEPT_KEYS if key in front}
    kept.setdefault("library_name", "transformers")
    kept.setdefault("pipeline_tag", "text-generation")
    own = front.get("tags")
    own = [tag for tag in own if isinstance(tag, str)] if isinstance(own, list) else []
    kept["tags"] = list(dict.fromkeys([*own, *tags]))
    return kept


def text_cell(text: TextFacts) -> str:
    """The texts with their digests, as a cell of a card's table."""
    shares = (f", {part.tokens / text.tokens:.0%}" for part in text.parts)
    if len(text.parts) > 1:
        return "; ".join(
            f"`{part.source}` (digest `{part.digest}`{share})"
            for part, share in zip(text.parts, shares, strict=True)
        )
    return f"`{text.source}` (digest `{text.digest}`)"


def _is_hub_name(source: str) -> bool:
    return _HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def _parent_front(card: Path) -> dict[str, object]:
    """The YAML between the first two lines of dashes; {} where there is none to be read."""
    try:
        with card.open(encoding="utf-8") as stream:
            text = stream.read(_LONGEST_FRONT)
    except (OSError, ValueError):
        return {}
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    if match is None:
        return {}
    import yaml  # takes as long to import as a small checkpoint to slice

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(match[1])):
            return {}  # a few lines of references make gigabytes
        front = json.loads(json.dumps(yaml.safe_load(match[1]), default=str))
        json.dumps(front, ensure_ascii=False).encode()
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError):
        return {}  # the parser's own ways to stumble over tags and numbers
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}
