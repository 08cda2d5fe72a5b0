"""Slicing against cp of the bytes that remain, and against mergekit's passthrough.

    python benchmarks/slice.py [--quick] [--mergekit PATH] [--scratch FOLDER]

Makes two checkpoints of random bytes in the shapes of real models, removes a block in the middle
of each, and times in turn, round after round, each followed by a sync of the files it wrote:
cp of the sliced weights, slice_checkpoint (also linked: on btrfs or xfs, given by --scratch, it
clones blocks), the whole command `depthcut slice`, and `mergekit-yaml` with the same plan. Every
contestant is a process of its own, whose peak memory is read; the sources are in the page cache.
Prints medians and ratios to cp; keeps the last result in benchmarks/results/slice.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results
from depthcut.checkpoint.copying import ByteRange, write_ranges
from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.checkpoint.headers import encode_header
from depthcut.planning import plan_by_hand
from depthcut.records import write_record
from depthcut.settings import PlanSettings

Shapes = dict[str, tuple[int, ...]]
Sample = tuple[float, int]
"""Seconds, and peak memory in bytes."""

MODELS: dict[str, dict[str, int]] = {
    "SmolLM2-135M, one file": {
        **{"layers": 30, "hidden": 576, "inner": 1536, "heads": 9, "kv_heads": 3},
        **{"vocabulary": 49152, "tied": 1, "files": 1, "first": 12, "last": 18},
    },
    "2.5B Llama, ten files": {
        **{"layers": 32, "hidden": 2560, "inner": 6912, "heads": 20, "kv_heads": 4},
        **{"vocabulary": 32000, "tied": 0, "files": 10, "first": 20, "last": 27},
    },
}
IN_PROCESS = """
import pathlib, sys, time
from depthcut.records import Plan, read_record
from depthcut.slicing import slice_checkpoint
folder, plan, out = map(pathlib.Path, sys.argv[1:4])
began = time.perf_counter()
slice_checkpoint(folder, read_record(plan, Plan), out, link=bool(sys.argv[4:]))
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small model, 3 rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml", path=_beside_python()))
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    rows = {}
    print(f"{'':<28}{'median':>9}{'least':>9}{'most':>9}{'to cp':>8}{'memory':>10}")
    for name, model in list(MODELS.items())[: 1 if options.quick else None]:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            rows[name] = measure(Path(scratch), model, rounds=rounds, mergekit=options.mergekit)
        print_rows(name, rows[name])
    content = {"rounds": rounds, "load_average": round(os.getloadavg()[0], 2), "rows": rows}
    results.keep("slice", content)


def measure(
    scratch: Path, model: dict[str, int], *, rounds: int, mergekit: str | None
) -> dict[str, dict[str, float]]:
    folder, plan_file, pruned = scratch / "model", scratch / "plan.json", scratch / "pruned"
    make_checkpoint(folder, model)
    facts = model_facts(open_checkpoint(folder), source=str(folder))
    remove = f"{model['first']}-{model['last']}"
    write_record(plan_by_hand(facts, PlanSettings(remove=remove)), plan_file)
    recipe = scratch / "recipe.yaml"
    recipe.write_text(json.dumps(passthrough(folder, model)))
    python = sys.executable
    subprocess.run(
        [python, "-c", IN_PROCESS, folder, plan_file, pruned], check=True, capture_output=True
    )
    out = scratch / "out"
    commands: dict[str, list[str | Path]] = {
        "cp": ["cp", "-r", pruned, out],
        "slice_checkpoint": [python, "-c", IN_PROCESS, folder, plan_file, out],
        "slice_checkpoint, linked": [python, "-c", IN_PROCESS, folder, plan_file, out, "link"],
        "depthcut slice": [python, "-m", "depthcut", "slice", folder, plan_file, "--out", out],
    }
    if mergekit:
        commands["mergekit-yaml"] = [mergekit, recipe, out]
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            sample = run(command, out, timed_inside=name.startswith("slice_checkpoint"))
            if number:  # the first round warms the caches
                samples[name].append(sample)
            shutil.rmtree(out)
    base = statistics.median(seconds for seconds, _ in samples["cp"])
    remaining = sum(path.stat().st_size for path in pruned.glob("*.safetensors"))
    rows = {name: summary(each, base) for name, each in samples.items()}
    return {"bytes": {"before": facts.weight_bytes, "copied": remaining}, **rows}


def run(command: list[str | Path], out: Path, *, timed_inside: bool) -> Sample:
    """Run and sync. Peak memory is of the process alone: this parent is small and starts it."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=printed, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{errors.read()}")
        for path in out.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        printed.seek(0)
        inside = printed.read().strip().rpartition("\n")[2]
    peak_bytes = usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)
    return (float(inside) if timed_inside else seconds), peak_bytes


def summary(samples: list[Sample], base: float) -> dict[str, float]:
    times = [seconds for seconds, _ in samples]
    return {
        "median_seconds": round(statistics.median(times), 3),
        "least_seconds": round(min(times), 3),
        "most_seconds": round(max(times), 3),
        "ratio_to_cp": round(statistics.median(times) / base, 2),
        "peak_memory_bytes": max(peak for _, peak in samples),
    }


def print_rows(name: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"{name} ({rows['bytes']['copied'] / 1e6:,.0f} MB remain)")
    for contestant, row in rows.items():
        if contestant != "bytes":
            seconds = "".join(
                f"{row[f'{key}_seconds']:>7.2f} s" for key in ("median", "least", "most")
            )
            memory = f"{row['peak_memory_bytes'] / 1e6:>7,.0f} MB"
            print(f"  {contestant:<26}{seconds}{row['ratio_to_cp']:>8.2f}{memory}")


def make_checkpoint(folder: Path, model: dict[str, int]) -> None:
    """A Llama of random bytes, bfloat16, written without torch."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": model["hidden"],
        "intermediate_size": model["inner"],
        "num_attention_heads": model["heads"],
        "num_key_value_heads": model["kv_heads"],
        "num_hidden_layers": model["layers"],
        "vocab_size": model["vocabulary"],
        "tie_word_embeddings": bool(model["tied"]),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(shapes_of(model).items())
    count = model["files"]
    each = -(-len(tensors) // count)
    noise = folder.parent / "noise"
    with noise.open("wb") as file:
        for _ in range(256):  # piece by piece: this process must stay small
            file.write(os.urandom(1 << 20))
    weight_map = {}
    for number in range(count):
        part = tensors[number * each : (number + 1) * each]
        name = (
            f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            if count > 1
            else "model.safetensors"
        )
        sizes = {key: 2 * shape[0] * (shape[1] if shape[1:] else 1) for key, shape in part}
        head = encode_header(
            ((key, "BF16", shape, sizes[key]) for key, shape in part), {"format": "pt"}
        )
        ranges = [ByteRange(noise, 0, size_bytes) for size_bytes in sizes.values()]
        write_ranges(folder / name, head, ranges, done=lambda _: None)
        weight_map.update(dict.fromkeys(sizes, name))
    if count > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shapes_of(model: dict[str, int]) -> Shapes:
    """In the order in which save_pretrained writes: by name."""
    hidden, inner = model["hidden"], model["inner"]
    narrow = hidden // model["heads"] * model["kv_heads"]
    layer: Shapes = {
        "input_layernorm.weight": (hidden,),
        "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.k_proj.weight": (narrow, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "self_attn.q_proj.weight": (hidden, hidden),
        "self_attn.v_proj.weight": (narrow, hidden),
    }
    shapes: Shapes = {
        f"model.layers.{number}.{name}": shape
        for number in range(model["layers"])
        for name, shape in layer.items()
    }
    embeddings = (model["vocabulary"], hidden)
    shapes |= {"model.embed_tokens.weight": embeddings, "model.norm.weight": (hidden,)}
    if not model["tied"]:
        shapes["lm_head.weight"] = embeddings
    return dict(sorted(shapes.items()))


def passthrough(folder: Path, model: dict[str, int]) -> dict[str, object]:
    """The same removal as a mergekit recipe (half-open ranges; JSON is YAML)."""
    ranges = [[0, model["first"]], [model["last"] + 1, model["layers"]]]
    slices = [
        {"sources": [{"model": str(folder), "layer_range": layer_range}]} for layer_range in ranges
    ]
    return {"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}


def _beside_python() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


if __name__ == "__main__":
    main()
