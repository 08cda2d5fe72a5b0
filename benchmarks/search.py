"""One greedy step by the searches' evaluator against a plain loop of whole passes, in turn.

    python benchmarks/search.py [--quick] [--model smollm2] [--threads 2]

The loop deletes each layer in turn, runs the whole model over the text and takes the divergence
from the untouched model's kept logits as the textbook has it; "plain with our maths" is the same
loop with the evaluator's code for the divergence, so that only the shared passes are between them
(SmolLM2's head is a fifth of it, and runs for every candidate either way). Prints medians over the
rounds, the ratios of the times (target: at least 1.8 without giving up any candidate) and whether
all choose the same layer; keeps the last result in benchmarks/results/search.json.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import results
from depthcut.model.loading import LoadedModel, in_eval_mode, load
from depthcut.model.skipping import skipping
from depthcut.predictions import losses_and_divergences, reference_of, token_divergences
from depthcut.searching.journal import Journal
from depthcut.searching.trials import Trials
from depthcut.settings import LoadSettings, SearchSettings
from depthcut.text.documents import open_text
from depthcut.text.sequences import Batch, Sequences, read_sequences

TARGET = 1.8
Compare = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Kept logits to what gives the divergences of others from them, (tokens,)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, half of the text")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--context", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rounds, share = (1, 2) if asked.quick else (3, 1)
    loaded = load(asked.model, LoadSettings())
    if loaded.tokenizer is None:
        parser.error(f"{asked.model} has no tokenizer")
    settings = SearchSettings(tokens=asked.tokens // share, context=asked.context)
    sequences = read_sequences(open_text(settings), settings, loaded.tokenizer)
    with skipping(loaded, sequences) as skipper:
        batches = tuple(skipper.batches)
    ways: dict[str, Callable[[], Step]] = {
        "plain": lambda: plain_step(loaded, batches, textbook),
        "plain_with_our_maths": lambda: plain_step(loaded, batches, ours),
        "shared": lambda: shared_step(loaded, sequences, error_rate=0),
        "stopped": lambda: shared_step(loaded, sequences, error_rate=0.05),
    }
    steps: dict[str, list[Step]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:  # each goes first in its turn
            steps[name].append(timed(ways[name], loaded))
            print(name, steps[name][-1], flush=True)
    layers = len(loaded.layers)
    row: dict[str, object] = {
        "model": asked.model,
        "device": str(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "sequences": sequences.facts.sequences,
        "tokens": sequences.facts.tokens,
        "rounds": rounds,
        "target_ratio": TARGET,
        "layer_passes_over_theory": round(
            steps["shared"][0].passes / (layers * (layers - 1) / 2 + layers), 3
        ),
        "same_choice": len({step.chosen for some in steps.values() for step in some}) == 1,
    }
    for clock in ("wall", "processor"):
        times = {name: [getattr(step, clock) for step in some] for name, some in steps.items()}
        for name, own in times.items():
            row[f"{clock}_{name}_median_seconds"] = round(statistics.median(own), 2)
        for loop, name in itertools.product(list(times)[:2], list(times)[2:]):
            ratios = [one / other for one, other in zip(times[loop], times[name], strict=True)]
            row[f"{clock}_{name}_faster_than_{loop}_median"] = round(statistics.median(ratios), 2)
    for name, value in row.items():
        print(f"{name:<58}{value}")
    results.keep("search", row)


class Step(NamedTuple):
    """One greedy step."""

    chosen: int
    passes: float
    """Of each sequence through a layer."""
    wall: float = 0.0
    processor: float = 0.0
    """Of all threads: what a busy machine leaves comparable (on a CPU)."""


def timed(step: Callable[[], Step], loaded: LoadedModel) -> Step:
    began = time.perf_counter(), time.process_time()
    found = step()
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    wall, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    return found._replace(wall=round(wall, 2), processor=round(processor, 2))


def shared_step(loaded: LoadedModel, sequences: Sequences, *, error_rate: float) -> Step:
    """As a search makes it, the untouched model's pass included."""
    with skipping(loaded, sequences) as skipper:
        trials = Trials(skipper, Journal(None, ""), error_rate=error_rate)
        (chosen,) = trials.best([(layer,) for layer in range(len(loaded.layers))])
        return Step(chosen, skipper.work.layers / trials.sequences)


def plain_step(loaded: LoadedModel, batches: tuple[Batch, ...], compare: Compare) -> Step:
    """Each layer taken out of the model, and the whole of what is left run."""
    layers, model = list(loaded.layers), loaded.model
    name = next(name for name, module in model.named_modules() if module is loaded.layers)
    found = {}
    with in_eval_mode(model):
        compared = [compare(predicting(model, batch)) for batch in batches]
        for candidate in range(len(layers)):
            left = [layer for place, layer in enumerate(layers) if place != candidate]
            model.set_submodule(name, nn.ModuleList(left))
            model.config.num_hidden_layers = len(left)
            means = [
                divergences_of(predicting(model, batch)).cpu().double().mean()
                for batch, divergences_of in zip(batches, compared, strict=True)
            ]
            weights = torch.tensor([len(batch.ids) for batch in batches], dtype=torch.float64)
            found[candidate] = (torch.stack(means) * weights).sum().item()
    model.set_submodule(name, loaded.layers)
    model.config.num_hidden_layers = len(layers)
    passes = len(layers) + len(layers) * (len(layers) - 1)
    return Step(min(found, key=lambda layer: found[layer]), passes)


def textbook(reference: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: token_divergences(reference, logits)[0]


def ours(reference: Tensor) -> Callable[[Tensor], Tensor]:
    kept = reference_of(reference)
    nowhere = torch.zeros(len(reference), dtype=torch.int64, device=reference.device)
    return lambda logits: losses_and_divergences(logits, nowhere, kept)[1]


def predicting(model: nn.Module, batch: Batch) -> Tensor:
    """Logits of all positions but the last, (tokens, vocabulary)."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=batch.ids.to(device), use_cache=False).logits
    return logits[:, :-1].flatten(0, 1)


if __name__ == "__main__":
    main()
