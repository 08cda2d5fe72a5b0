"""A streamed survey of a checkpoint several times its memory, against the same in memory.

    python benchmarks/stream.py [--quick] [--memory 1GB] [--rounds 3] [--device cpu]
                                [--folder PLACE]

Writes a random bfloat16 Llama of 4 GB (--quick: 0.6 GB) shard by shard, then runs both as
commands of their own, in turn, each first in every other round, the files dropped from the page
cache before each. Prints the peak resident memory of each (the most of all rounds; target: below
--memory), the time of the streamed survey, its reading included, over that of the survey in
memory, its loading told apart (median over the rounds; target: at most 1.3), and how far the
scores are apart (target: 1e-6); keeps the last result in benchmarks/results/stream.json
(stream-DEVICE.json on another device than the CPU).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

import results
from depthcut.settings import size_bytes

RUN_AND_TELL = """
import atexit, sys
from pathlib import Path

def tell():
    lines = Path("/proc/self/status").read_text().splitlines()
    Path(sys.argv[1]).write_text(next(line.split()[1] for line in lines if "VmHWM" in line))

atexit.register(tell)
from depthcut.cli import main
main(sys.argv[2:])
"""
"""The command, which writes its peak in KiB. What wait4 tells of a child begins with what this
process took when it started it. A streamed survey lets the peak begin anew before it measures its
layers, so what it took until then is watched from here."""
_WATCHED_EVERY_SECONDS = 0.05
TARGET_RATIO = 1.3
TARGET_DIFFERENCE = 1e-6
VOCABULARY = 32000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 layers of width 1024, not kept")
    parser.add_argument("--memory", default="1GB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written for a while")
    asked = parser.parse_args()
    config = llama(12, 1024, 6144) if asked.quick else llama(40, 2048, 6144)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        folder = Path(place, "model")
        weight_bytes = write_checkpoint(folder, config)
        print(f"checkpoint of {weight_bytes / 1e9:.2f} GB")
        common = ["--tokens", str(asked.tokens), "--device", asked.device]
        options = {"streamed": [*common, "--stream", "--memory", asked.memory], "in_memory": common}
        runs: dict[str, list[Surveyed]] = {name: [] for name in options}
        for number in range(1 if asked.quick else asked.rounds):
            for name in sorted(options, reverse=number % 2 == 0):
                runs[name].append(survey(folder, *options[name]))
    difference = max(
        abs(one - other)
        for streamed, in_memory in zip(runs["streamed"], runs["in_memory"], strict=True)
        for scores, others in zip(streamed.scores, in_memory.scores, strict=True)
        for one, other in zip(scores, others, strict=True)
    )
    row: dict[str, object] = {
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "checkpoint_bytes": weight_bytes,
        "device": asked.device,
        "threads": torch.get_num_threads(),
        "tokens": asked.tokens,
        "rounds": len(runs["streamed"]),
        "memory": asked.memory,
        "memory_bytes": size_bytes(asked.memory, "memory"),
    }
    row |= {
        f"{name}_peak_bytes": max(run.peak_bytes for run in each) for name, each in runs.items()
    }
    for clock in ("survey", "wall", "processor"):
        seconds = {
            name: [float(getattr(run, f"{clock}_seconds")) for run in each]
            for name, each in runs.items()
        }
        ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
        row |= {
            f"{name}_{clock}_seconds": round(statistics.median(each), 1)
            for name, each in seconds.items()
        }
        row[f"{clock}_ratio"] = round(statistics.median(ratios), 3)
        row[f"{clock}_ratio_least"] = round(min(ratios), 3)
        row[f"{clock}_ratio_most"] = round(max(ratios), 3)
    row["target_ratio"] = TARGET_RATIO
    row["largest_score_difference"] = difference
    row["target_difference"] = TARGET_DIFFERENCE
    for name, value in row.items():
        print(f"{name:<28}{value}")
    if not asked.quick:
        results.keep("stream" if asked.device == "cpu" else f"stream-{asked.device}", row)


class Surveyed(NamedTuple):
    survey_seconds: float
    """What its record says: with reading the weights where they are streamed, else without."""
    wall_seconds: float
    """From the start of the process to its end."""
    processor_seconds: float
    """Of all its threads: what a busy machine leaves comparable."""
    peak_bytes: int
    """Most resident memory of the process."""
    scores: list[list[float]]


def survey(folder: Path, *options: str) -> Surveyed:
    drop_from_cache(folder)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "survey.json")
        peak = Path(place, "peak")
        command = ["survey", str(folder), *options, "--out", str(out)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_TELL, str(peak), *command], stdout=subprocess.DEVNULL
        )
        watched = 0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            watched = max(watched, resident_kib(process.pid))
            time.sleep(_WATCHED_EVERY_SECONDS)
        _, status, usage = ended
        wall = time.perf_counter() - began
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        peak_bytes = max(watched, int(peak.read_text())) * 1024
    scores = [[value for row in each["mean"] for value in row] for each in record["scores"]]
    seconds = record["origin"]["seconds"]
    processor = round(usage.ru_utime + usage.ru_stime, 3)
    return Surveyed(seconds, round(wall, 3), processor, peak_bytes, scores)


def resident_kib(process: int) -> int:
    """What a process takes now; 0: it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def drop_from_cache(folder: Path) -> None:
    """So that each run reads the disk; where the system does not know how, the cache stays."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def llama(layers: int, hidden: int, intermediate: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=1 << 14,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_checkpoint(folder: Path, config: LlamaConfig) -> int:
    """A checkpoint with random weights, a shard for four layers; returns the bytes of them."""
    folder.mkdir()
    config.save_pretrained(folder)
    write_tokenizer(folder)
    generator = torch.Generator().manual_seed(0)
    shards = [range(start, min(start + 4, config.num_hidden_layers))
              for start in range(0, config.num_hidden_layers, 4)]  # fmt: skip
    weight_map: dict[str, str] = {}
    total = 0
    for number, layers in enumerate(shards, start=1):
        tensors = {} if number > 1 else outside(config, generator)
        for layer in layers:
            tensors |= of_layer(config, layer, generator)
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(each.nbytes for each in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def outside(config: LlamaConfig, generator: torch.Generator) -> dict[str, Tensor]:
    width = config.hidden_size
    return {
        "model.embed_tokens.weight": random([VOCABULARY, width], generator),
        "model.norm.weight": torch.ones(width, dtype=torch.bfloat16),
        "lm_head.weight": random([VOCABULARY, width], generator),
    }


def of_layer(config: LlamaConfig, layer: int, generator: torch.Generator) -> dict[str, Tensor]:
    width, wide = config.hidden_size, config.intermediate_size
    keys = width * config.num_key_value_heads // config.num_attention_heads
    shapes = {
        "self_attn.q_proj": [width, width],
        "self_attn.k_proj": [keys, width],
        "self_attn.v_proj": [keys, width],
        "self_attn.o_proj": [width, width],
        "mlp.gate_proj": [wide, width],
        "mlp.up_proj": [wide, width],
        "mlp.down_proj": [width, wide],
    }
    tensors = {name: random(shape, generator) for name, shape in shapes.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[name] = torch.ones(width, dtype=torch.bfloat16)
    return {f"model.layers.{layer}.{name}.weight": each for name, each in tensors.items()}


def random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return (0.02 * torch.randn(*shape, generator=generator)).bfloat16()


def write_tokenizer(folder: Path) -> None:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        folder
    )


if __name__ == "__main__":
    main()
