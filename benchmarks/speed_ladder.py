"""Speed of SmolLM2 with fewer and fewer layers, in transformers and in llama.cpp, beside the ideal.

    python benchmarks/speed_ladder.py [--quick] [--engine transformers llama.cpp] [--threads 2]

Cuts the model to 27, 23 and 20 layers, as a folder (bfloat16) for transformers and as a GGUF file
(Q4_1, the embedded model's own) for llama.cpp; in each engine all take turns with the untouched
one. Prints tokens per second of prefill and decode, the ratio to the untouched (median of the
rounds' ratios and their quartiles) and the ideal, and how much of the ideal's gain came; keeps the
last result in benchmarks/results/speed_ladder.json. For the numbers in docs, on a calm machine.
"""

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import results
from depthcut import api
from depthcut.records import Bench, Spread
from depthcut.settings import BenchSettings, EngineName, LoadSettings, PlanSettings

MODEL = "smollm2"
LADDER = {27: "13-14,17", 23: "12-18", 20: "4-5,12-18,26"}
"""What goes, by the number of layers that stay: the best choices that a search found."""
ENGINES: tuple[EngineName, ...] = ("transformers", "llama.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short prompts, 3 rounds")
    parser.add_argument("--engine", nargs="+", default=ENGINES, choices=get_args(EngineName))
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    if asked.quick:
        asked.prompt_tokens, asked.new_tokens, asked.rounds = 64, 16, 3
    rows: list[dict[str, object]] = []
    about: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for engine in asked.engine:
            settings = BenchSettings(
                engine=engine,
                prompt_tokens=asked.prompt_tokens,
                new_tokens=asked.new_tokens,
                batch_sizes=tuple(asked.batch_sizes),
                rounds=asked.rounds,
                threads=None if engine == "vllm" else asked.threads,
            )
            dtype = "auto" if engine == "llama.cpp" else asked.dtype
            load = LoadSettings(device=asked.device, dtype=dtype)
            record = api.bench(ladder(Path(scratch), engine), settings, load=load)
            about[engine] = {
                "versions": record.versions,
                "device": record.device if record.device != "cpu" else record.cpu,
                "threads": record.threads,
                "weights": record.models[0].model.dtype,
            }
            for row in rows_of(engine, record):
                rows.append(row)
                print(line_of(row), flush=True)
    results.keep(
        "speed_ladder",
        {
            "model": MODEL,
            "prompt_tokens": asked.prompt_tokens,
            "new_tokens": asked.new_tokens,
            "rounds": asked.rounds,
            "engines": about,
            "rows": rows,
        },
    )


def ladder(scratch: Path, engine: EngineName) -> dict[str, str | Path]:
    """The untouched model and its cuts, by the number of their layers."""
    found: dict[str, str | Path] = {"30": MODEL}
    for layers, removed in LADDER.items():
        plan = api.plan(MODEL, PlanSettings(remove=removed))
        out = scratch / (f"{layers}.gguf" if engine == "llama.cpp" else str(layers))
        if not out.exists():
            api.slice(MODEL, plan, out)
        found[str(layers)] = out
    return found


def rows_of(engine: EngineName, record: Bench) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for model in record.models:
        for timing in model.timings:
            row: dict[str, object] = {
                "engine": engine,
                "layers": model.model.layers,
                "removed": LADDER.get(model.model.layers, ""),
                "batch_size": timing.batch_size,
                "first_token_seconds": round(timing.first_token.median, 4),
                "prefill_tokens_per_second": round(timing.prefill.median, 1),
                "decode_tokens_per_second": round(timing.decode.median, 1),
                "weight_bytes": model.weight_bytes,
                "cache_bytes": timing.cache_bytes,
                "peak_memory_bytes": model.peak_memory_bytes,
            }
            if won := record.ratio(model.name, timing.batch_size):
                row |= beside("prefill", won.first_token, won.ideal_prefill)
                row |= beside("decode", won.decode, won.ideal_decode)
            rows.append(row)
    return rows


def beside(name: str, ratio: Spread, ideal: float) -> dict[str, object]:
    return {
        f"{name}_ratio": round(ratio.median, 3),
        f"{name}_ratio_quartiles": [round(ratio.low, 3), round(ratio.high, 3)],
        f"{name}_ideal": round(ideal, 3),
        f"{name}_share_of_the_ideal_gain": round((ratio.median - 1) / (ideal - 1), 2),
    }


def line_of(row: dict[str, object]) -> str:
    parts = [
        f"{row['engine']:<13}{row['layers']} layers, batch {row['batch_size']}",
    ]
    for name in ("prefill", "decode"):
        text = f"{name} {row[f'{name}_tokens_per_second']:>7} tok/s"
        if f"{name}_ratio" in row:
            low, high = row[f"{name}_ratio_quartiles"]  # type: ignore[misc]  # a pair
            text += f" {row[f'{name}_ratio']:.3f}× ({low}–{high}), ideal {row[f'{name}_ideal']}×"
        parts.append(text)
    return " | ".join(parts)


if __name__ == "__main__":
    main()
