"""Repairs against each other and against a forward pass: what they bring back, and what they cost.

    python benchmarks/repair.py --text wiki_train.txt --judge wiki_valid.txt c4.jsonl [--quick]

Cuts the model once and repairs it by every method on the same text, each in a process of its own;
one more only runs the backbone over that text. Prints perplexity on each text that judges, the
share of the lost log-perplexity that came back, wall and processor seconds and their ratio to the
bare pass (target: at most 1.5), and what each process took in memory at most. Keeps the last
result in benchmarks/results/repair.json.
"""

import argparse
import contextlib
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from msgspec.structs import replace

import results
from depthcut import api
from depthcut.model.loading import in_eval_mode, load
from depthcut.records import Plan
from depthcut.repairing.methods import METHODS
from depthcut.settings import EvaluateSettings, LoadSettings, PlanSettings, RepairSettings
from depthcut.text.documents import open_text
from depthcut.text.sequences import read_sequences

T = TypeVar("T")
TARGET = 1.5
BATCH_TOKENS = 1024
"""Of a repair on a CPU, and so of the bare pass."""


class Cost(NamedTuple):
    wall_seconds: float
    processor_seconds: float
    """Of all threads: what a busy machine leaves comparable (on a CPU)."""
    peak_bytes: int
    """Of the whole process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, and refit")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--remove", default="12-18")
    parser.add_argument("--text", nargs="+", default=["builtin"])
    parser.add_argument("--judge", nargs="+", default=[])
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--judge-tokens", type=int, default=16384)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    plan = api.plan(asked.model, PlanSettings(remove=asked.remove))
    settings = RepairSettings(
        text=tuple(asked.text),
        tokens=asked.tokens // 4 if asked.quick else asked.tokens,
        context=asked.context,
    )
    if asked.only:
        what, out = asked.only
        print(json.dumps(measured(what, asked.model, plan, settings, Path(out))._asdict()))
        return
    with tempfile.TemporaryDirectory() as folder:
        methods = ["refit"] if asked.quick else asked.methods.split(",")
        compare(asked, plan, settings, methods, Path(folder))


def compare(
    asked: argparse.Namespace,
    plan: Plan,
    settings: RepairSettings,
    methods: Sequence[str],
    folder: Path,
) -> None:
    made = {"untouched": asked.model, "cut": str(folder / "cut")}
    quietly(lambda: api.slice(asked.model, plan, folder / "cut"))
    rows: dict[str, dict[str, object]] = {name: {} for name in (*made, *methods)}
    bare = cost_of("bare", folder / "none")
    for method in methods:
        made[method] = str(folder / method)
        cost = cost_of(method, folder / method)
        rows[method] = {
            **cost._asdict(),
            "wall_ratio": round(cost.wall_seconds / bare.wall_seconds, 2),
            "processor_ratio": round(cost.processor_seconds / bare.processor_seconds, 2),
        }
        print(method, rows[method], file=sys.stderr)
    for text in asked.judge:
        judging = EvaluateSettings(
            text=text, tokens=asked.judge_tokens, context=asked.context, new_tokens=0
        )
        record = quietly(lambda judging=judging: api.evaluate(made, judging))
        found = {each.name: each.perplexity for each in record.models}
        losses = {name: math.log(each.value) for name, each in found.items() if each}
        lost = losses["cut"] - losses["untouched"]
        for name, loss in losses.items():
            rows[name][f"perplexity {Path(text).name}"] = round(math.exp(loss), 2)
            rows[name][f"back {Path(text).name}"] = round((losses["cut"] - loss) / lost, 3)
    for name, row in rows.items():
        print(f"{name:<14}", "  ".join(f"{key} {value}" for key, value in row.items()))
    total = {
        "model": asked.model,
        "removed": asked.remove,
        "text": [Path(text).name for text in asked.text],
        "tokens": settings.tokens,
        "context": settings.context,
        "judge_tokens": asked.judge_tokens,
        "threads": asked.threads,
        "target_ratio": TARGET,
        **{f"bare_{key}": value for key, value in bare._asdict().items()},
    }
    for key, value in total.items():
        print(f"{key:<24}{value}")
    if not asked.quick:
        results.keep("repair", {**total, "rows": rows})


def cost_of(what: str, out: Path) -> Cost:
    """What a new process measures."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", what, str(out)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Cost(**json.loads(told.splitlines()[-1]))


def measured(what: str, model: str, plan: Plan, settings: RepairSettings, out: Path) -> Cost:
    """A repair, or the bare backbone over its text: no head, no cache, no hooks."""
    loaded = load(model, LoadSettings())  # imports are not counted
    assert loaded.tokenizer is not None
    if what == "bare":
        sequences = read_sequences(open_text(settings), settings, loaded.tokenizer)
        size = max(1, BATCH_TOKENS // settings.context)

        def run() -> None:
            with in_eval_mode(loaded.model):
                for batch in sequences.batches(size):
                    loaded.backbone(input_ids=batch.ids.to(loaded.device), use_cache=False)

    else:
        its, loaded = replace(settings, method=what), None

        def run() -> None:
            api.repair(model, plan, out, its, force=True)

    began = time.perf_counter(), time.process_time()
    quietly(run)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    return Cost(*(round(each, 1) for each in took), peak_bytes())


def peak_bytes() -> int:
    """Of this process. Linux counts the parent's too into what getrusage tells."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quietly(run: Callable[[], T]) -> T:
    with contextlib.redirect_stderr(io.StringIO()):
        return run()


if __name__ == "__main__":
    main()
