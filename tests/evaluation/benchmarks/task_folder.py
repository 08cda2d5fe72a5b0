"""Tasks of every kind that lm-eval has, invented, as files in a folder."""

import json
from pathlib import Path

TASKS = ("colours", "who", "endings", "pages", "sums")
"""Multiple choice, choices before one ending, one likelihood, rolling likelihood, free text."""

_MEAN = "aggregation: mean, higher_is_better: true"
_YAML = {
    "colours": f"""
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{right}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, {_MEAN}}}, {{metric: acc_norm, {_MEAN}}}]
""",
    "who": f"""
output_type: multiple_choice
doc_to_text: !function parts.right
doc_to_target: "{{{{ending}}}}"
doc_to_choice: "{{{{beginnings}}}}"
metric_list: [{{metric: acc, {_MEAN}}}]
""",
    "endings": f"""
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{choices[right]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, {_MEAN}}}
""",
    "pages": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{ending}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
""",
    "sums": f"""
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[right]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, {_MEAN}}}]
""",
}
_GROUP = """
group: pair
task: [first, second]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 2}
"""
_PARTS = """
def right(doc):
    return doc["right"]
"""


def write_tasks(folder: Path, *, items: int = 12) -> Path:
    """The folder with the task files; their data lies in it too."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_item(number)) + "\n" for number in range(items))
    (folder / "items.jsonl").write_text(lines)
    (folder / "dev.jsonl").write_text(lines)
    (folder / "parts.py").write_text(_PARTS)
    for name, kind in _YAML.items():
        (folder / f"{name}.yaml").write_text(_head(name, folder) + kind)
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(_head(name, folder) + _YAML["colours"])
    (folder / "pair.yaml").write_text(_GROUP)
    return folder


def _head(name: str, folder: Path) -> str:
    return f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder / "items.jsonl"}", dev: "{folder / "dev.jsonl"}"}}}}
test_split: test
{"fewshot_split: dev" if name in ("colours", "endings") else ""}
metadata: {{version: 1.5}}
"""


def _item(number: int) -> dict[str, object]:
    colours = ["red", "dark green", "blue", "a yellow one"]
    return {
        "question": f"Which colour has number {number}?",
        "choices": colours[: 3 + number % 2],
        "right": number % 3,
        "beginnings": [f"Number {number} is {each}, and it" for each in colours[:3]],
        "ending": f"shines {'very ' * (number % 4)}bright.",
    }
