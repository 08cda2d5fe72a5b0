"""`depthcut evaluate` against lm-eval's own command line: the same items, and what each takes.

    python benchmarks/harness.py DATA [--quick] [--model FOLDER]

DATA is a folder with the benchmarks' files, see docs/evaluate.md. Both commands run on the same
tasks, model and batch, in turn, each as a process of its own and depthcut with an empty cache.
Every item's scores are compared; keeps the last result in benchmarks/results/harness.json.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results
from depthcut.evaluation.benchmarks.asked import TASK_FILES
from depthcut.model.sources import locate
from depthcut.settings import LoadSettings

COMPARED = {
    "arc_easy": 100,
    "boolq": 50,
    "winogrande": 100,
    "lambada_openai": 100,
    "c4": 20,
    "gsm8k": 4,
}
"""Tasks of every kind, and how many questions of each. One a command: lm-eval mixes the requests
of several tasks in its batches, and in bfloat16 a likelihood depends a little on its batch."""

TIMED = (("arc_easy", "boolq", "winogrande", "lambada_openai"), 100)
"""Tasks of one command, and questions of each."""

COMMANDS = ("lm_eval", "depthcut")

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, help="a checkpoint folder instead of smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the items, one round")
    options = parser.parse_args()
    model = options.model or locate("smollm2", LoadSettings())
    scale = 10 if options.quick else 1
    compared = differing = 0
    values: dict[str, object] = {}
    for name, questions in COMPARED.items():
        group, took = ((name,), max(2, questions // scale)), dict.fromkeys(COMMANDS, 0.0)
        ours, theirs = _both(model, options.data, group, took)
        counts = _compared(ours, theirs)
        compared, differing = compared + counts[0], differing + counts[1]
        values |= theirs["results"]
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(1 if options.quick else options.rounds):
        took = dict.fromkeys(COMMANDS, 0.0)
        _both(model, options.data, (TIMED[0], TIMED[1] // scale), took)
        for name, each in took.items():
            seconds[name].append(round(each, 1))
    ratios = [a / b for a, b in zip(seconds["depthcut"], seconds["lm_eval"], strict=True)]
    print(f"items compared {compared}, with another score {differing}")
    print(f"seconds {seconds}; depthcut / lm_eval {statistics.median(ratios):.3f}")
    kept = {"items": compared, "differing": differing, "seconds": seconds, "ratios": ratios}
    results.keep("harness", {"model": model.name, **kept, "lm_eval": values})
    sys.exit(differing > 0)


def _both(
    model: Path, data: Path, group: tuple[tuple[str, ...], int], took: dict[str, float]
) -> tuple[dict[tuple[str, int], dict[str, float]], dict]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours, drawn = _depthcut(model, data, group, folder, took)
        return ours, _lm_eval(model, data, drawn, folder, took)


def _depthcut(
    model: Path,
    data: Path,
    group: tuple[tuple[str, ...], int],
    folder: Path,
    took: dict[str, float],
) -> tuple[dict[tuple[str, int], dict[str, float]], dict[str, list[int]]]:
    (names, limit), out = group, folder / "evaluation.json"
    environment = os.environ | {"DEPTHCUT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "depthcut", "evaluate", str(model), "--data", str(data)]
    command += ["--tasks", ",".join(names), "--tokens", "0", "--new-tokens", "0", "--json"]
    command += ["--batch-size", str(BATCH), "--limit", str(limit), "--out", str(out)]
    took["depthcut"] += _timed(command, environment, folder)
    found: dict[tuple[str, int], dict[str, float]] = {}
    drawn: dict[str, list[int]] = {}
    with gzip.open(folder / "evaluation.samples.jsonl.gz", "rt") as lines:
        for line in lines:
            sample = json.loads(line)
            (given,) = sample["models"].values()
            found[sample["task"], sample["item"]] = given["scores"]
            drawn.setdefault(sample["task"], []).append(sample["item"])
    return found, drawn


def _lm_eval(
    model: Path,
    data: Path,
    drawn: dict[str, list[int]],
    folder: Path,
    took: dict[str, float],
) -> dict:
    command = [str(Path(sys.executable).with_name("lm_eval")), "--model", "hf"]
    command += ["--model_args", f"pretrained={model},dtype=auto", "--device", "cpu"]
    command += ["--include_path", str(TASK_FILES), "--tasks", ",".join(drawn)]
    command += ["--batch_size", str(BATCH), "--samples", json.dumps(drawn), "--log_samples"]
    command += ["--output_path", str(folder / "lm_eval")]
    took["lm_eval"] += _timed(command, dict(os.environ), data)
    (path,) = (folder / "lm_eval").rglob("results_*.json")
    found = json.loads(path.read_text())
    found["samples"] = {
        name: [json.loads(line) for line in next(path.parent.glob(f"samples_{name}_*")).open()]
        for name in drawn
    }
    return found


def _timed(command: list[str], environment: dict[str, str], folder: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return time.perf_counter() - began


def _compared(ours: dict, theirs: dict) -> tuple[int, int]:
    differing = compared = 0
    for task, samples in theirs["samples"].items():
        filters = {sample["filter"] for sample in samples}
        for sample in samples:
            scores = ours[task, sample["doc_id"]]
            for metric in sample["metrics"]:
                name = metric if len(filters) == 1 else f"{metric}/{sample['filter']}"
                if isinstance(sample[metric], int | float):
                    compared += 1
                    if scores[name] != sample[metric]:
                        differing += 1
                        print(f"{task} {sample['doc_id']} {name}: {scores[name]}, {sample[metric]}")
    return compared, differing


if __name__ == "__main__":
    main()
