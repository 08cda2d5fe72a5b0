"""The survey against the bare backbone forward over the same batches, in turn.

    python benchmarks/survey.py [--quick] [--model smollm2] [--threads 2]
    python benchmarks/survey.py --shape 32,4096,14336 [--tokens 32768] [--context 2048]

With --shape, on a random bfloat16 Llama of so many layers, width and MLP width (the tokens are
random too). Prints the median of the ratios over interleaved rounds (target: at most 1.03);
keeps the last result in benchmarks/results/survey.json, or survey-SHAPE.json.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import results
from depthcut.model.loading import LoadedModel, from_memory, in_eval_mode, load
from depthcut.records import TextFacts
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying.survey import choose_batch_size, survey_model
from depthcut.text.documents import open_text
from depthcut.text.sequences import Sequences, read_sequences

TARGET = 1.03
VOCABULARY = 32000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 rounds, not 24")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shape", help="layers,hidden,intermediate of a random Llama")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=512)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rounds = 4 if asked.quick else 24
    loading = LoadSettings()
    settings = SurveySettings(tokens=asked.tokens, context=asked.context)
    if asked.shape:
        loaded = random_llama(*map(int, asked.shape.split(",")))
        sequences = random_sequences(settings)
    else:
        loaded = load(asked.model, loading)
        if loaded.tokenizer is None:
            parser.error(f"{asked.model} has no tokenizer")
        sequences = read_sequences(open_text(settings), settings, loaded.tokenizer)
    batch_size = choose_batch_size(loaded, settings, settings.context)
    forwards, surveys = [], []
    survey_seconds(loaded, sequences, settings, loading)  # warms up both
    for number in range(rounds):
        if number % 2:  # each goes first in every other round
            surveys.append(survey_seconds(loaded, sequences, settings, loading))
        forwards.append(forward_seconds(loaded, sequences, batch_size))
        if not number % 2:
            surveys.append(survey_seconds(loaded, sequences, settings, loading))
    row: dict[str, object] = {
        "model": asked.shape or asked.model,
        "device": str(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokens": sequences.facts.tokens,
        "context": settings.context,
        "batch_size": batch_size,
        "rounds": rounds,
        "target_ratio": TARGET,
    }
    for clock in ("wall", "processor"):
        before = [getattr(each, clock) for each in forwards]
        after = [getattr(each, clock) for each in surveys]
        ratios = [each / other for each, other in zip(after, before, strict=True)]
        row[f"{clock}_forward_median_seconds"] = round(statistics.median(before), 3)
        row[f"{clock}_survey_median_seconds"] = round(statistics.median(after), 3)
        row[f"{clock}_ratio_median"] = round(statistics.median(ratios), 3)
        row[f"{clock}_ratio_least"] = round(min(ratios), 3)
        row[f"{clock}_ratio_most"] = round(max(ratios), 3)
    for name, value in row.items():
        print(f"{name:<34}{value}")
    results.keep(f"survey-{asked.shape.replace(',', '-')}" if asked.shape else "survey", row)


def random_llama(layers: int, hidden: int, intermediate: int) -> LoadedModel:
    """Heads of 128, a quarter of them for keys; on the GPU where there is one."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        max_position_embeddings=1 << 14,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return from_memory(model.eval(), None, name="random")


def random_sequences(settings: SurveySettings) -> Sequences:
    count = settings.tokens // settings.context
    ids = torch.randint(VOCABULARY, (count, settings.context), generator=torch.manual_seed(0))
    facts = TextFacts(source="random", digest="", sequences=count, tokens=ids.numel())
    return Sequences(facts, tuple(ids), (0,) * count)


class Seconds(NamedTuple):
    wall: float
    processor: float
    """Of all threads: what a busy machine leaves comparable (on a CPU)."""


def forward_seconds(loaded: LoadedModel, sequences: Sequences, batch_size: int) -> Seconds:
    """The backbone alone: no head, no cache, no hooks."""

    def run() -> None:
        with in_eval_mode(loaded.model):
            for batch in sequences.batches(batch_size):
                loaded.backbone(input_ids=batch.ids.to(loaded.device), use_cache=False)

    return timed(run, loaded)


def survey_seconds(
    loaded: LoadedModel, sequences: Sequences, settings: SurveySettings, loading: LoadSettings
) -> Seconds:
    """All of it: progress bar and record included."""
    with contextlib.redirect_stderr(io.StringIO()):
        return timed(lambda: survey_model(loaded, sequences, settings, loading), loaded)


def timed(run: Callable[[], object], loaded: LoadedModel) -> Seconds:
    began = time.perf_counter(), time.process_time()
    run()
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return Seconds(time.perf_counter() - began[0], time.process_time() - began[1])


if __name__ == "__main__":
    main()
