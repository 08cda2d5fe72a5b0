"""Tokens per second of several models, measured in turn."""

import inspect
import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel
from depthcut.model.positions import learned_positions
from depthcut.progress import progress
from depthcut.records import Speed
from depthcut.settings import EvaluateSettings


@dataclass(frozen=True)
class SpeedMeasure:
    """Speed of one model, and on a GPU what its weights and its run need there at most."""

    prefill: Speed
    decode: Speed
    peak_device_bytes: int | None


def measure_speed(
    models: Mapping[str, LoadedModel], settings: EvaluateSettings
) -> dict[str, SpeedMeasure]:
    """Prefill and decode speed at batch size 1, all models loaded.

    One uncounted round warms up; then in each round every model takes its turn (A B C, A B C,
    …), so that what slows the machine for a while slows all of them. The prompt is random
    tokens, the same for all; decoding goes on from it with the key-value cache, one token a step.

    Raises:
        SettingsError: Prompt and decoded tokens exceed the positions a model has learned.
    """
    refuse_too_long(models, settings)
    steps = settings.prefill_tokens, settings.decode_tokens
    prefills: dict[str, list[float]] = {name: [] for name in models}
    decodes: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int] = {}
    prompt = random_prompt(models, settings.prefill_tokens)
    total = len(models) * (settings.rounds + 1)
    with progress("evaluate: speed", total, unit="runs") as advance:
        for turn in range(settings.rounds + 1):
            for name, loaded in models.items():
                before = _start_peak(loaded)
                seconds = run_once(loaded, prompt, settings.decode_tokens)
                if before is not None:
                    peaks[name] = max(peaks.get(name, 0), _peak(loaded) - before)
                if turn:
                    prefills[name].append(steps[0] / seconds[0])
                    decodes[name].append(steps[1] / seconds[1])
                advance(1, f"{name}: {steps[1] / seconds[1]:.1f} tokens/s decoding")
    return {
        name: SpeedMeasure(
            prefill=summarise(prefills[name]),
            decode=summarise(decodes[name]),
            peak_device_bytes=_weight_bytes(loaded) + peaks[name] if name in peaks else None,
        )
        for name, loaded in models.items()
    }


def refuse_too_long(models: Mapping[str, LoadedModel], settings: EvaluateSettings) -> None:
    """Raise SettingsError where the timed run needs more positions than a model has learned."""
    needed = settings.prefill_tokens + settings.decode_tokens
    for name, loaded in models.items():
        limit = learned_positions(loaded)
        if limit is not None and needed > limit:
            raise SettingsError(
                f"{needed} tokens are timed (--prefill-tokens and --decode-tokens), but {name} has "
                f"{limit} positions: lower them, or leave speed out with --rounds 0"
            )


def random_prompt(models: Mapping[str, LoadedModel], tokens: int) -> Tensor:
    """Random tokens that every vocabulary has, shape (1, tokens), the same each time."""
    vocabulary = min(_vocabulary_size(loaded) for loaded in models.values())
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (1, tokens), generator=generator)


def _vocabulary_size(loaded: LoadedModel) -> int:
    """How many tokens the input embedding knows."""
    return int(loaded.model.get_input_embeddings().weight.shape[0])


def run_once(loaded: LoadedModel, prompt: Tensor, decode_tokens: int) -> tuple[float, float]:
    """Seconds that the prefill of the prompt and the decoding after it take."""
    ids = prompt.to(loaded.device)
    last = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(loaded) else {}
    with torch.inference_mode():
        _wait(loaded)
        started = time.perf_counter()
        output = loaded.model(input_ids=ids, use_cache=True, **last)
        token = output.logits[:, -1:].argmax(-1)
        _wait(loaded)
        prefilled = time.perf_counter()
        for _ in range(decode_tokens):
            output = loaded.model(input_ids=token, use_cache=True, **_cache(loaded, output))
            token = output.logits[:, -1:].argmax(-1)
        _wait(loaded)
        return prefilled - started, time.perf_counter() - prefilled


def summarise(rates: list[float]) -> Speed:
    """Median and quartiles (linear between the sorted rates) of the rounds."""
    low, median, high = (
        statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    )
    return Speed(median=median, low=low, high=high, rounds=tuple(rates))


def _cache(loaded: LoadedModel, output: ModelOutput) -> dict[str, object]:
    """transformers 5 renames the argument on its way."""
    name = "cache" if "cache" in _parameters(loaded) else "past_key_values"
    return {name: output[name] if name in output else output["past_key_values"]}


def _parameters(loaded: LoadedModel) -> Collection[str]:
    return inspect.signature(loaded.model.forward).parameters


def _wait(loaded: LoadedModel) -> None:
    if loaded.device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
    elif loaded.device.type == "mps":
        torch.mps.synchronize()


def _gpus(loaded: LoadedModel) -> set[torch.device]:
    places = {parameter.device for parameter in loaded.model.parameters()}
    return {place for place in places if place.type == "cuda"}


def _start_peak(loaded: LoadedModel) -> int | None:
    for place in (gpus := _gpus(loaded)):
        torch.cuda.reset_peak_memory_stats(place)
    return sum(torch.cuda.memory_allocated(place) for place in gpus) if gpus else None


def _peak(loaded: LoadedModel) -> int:
    return sum(torch.cuda.max_memory_allocated(place) for place in _gpus(loaded))


def _weight_bytes(loaded: LoadedModel) -> int:
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors if t.device.type == "cuda")
