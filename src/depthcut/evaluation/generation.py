"""Continuations of prompts: greedy, through the chat template where there is one."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from depthcut.model.continuations import (
    GREEDY,
    continued,
    encode_prompt,
    padded_on_the_left,
    tokenizer_of,
)
from depthcut.model.loading import LoadedModel
from depthcut.progress import progress

_TOGETHER = 16
"""Prompts in one batch."""


def generate(loaded: LoadedModel, prompt: str, *, new_tokens: int) -> Iterator[str]:
    """Pieces of the greedy continuation of a prompt, as they come.

    Closing the iterator early stops the model.

    Raises:
        SettingsError: The model has no tokenizer, or prompt and new tokens exceed the
            positions it has learned.
    """
    inputs = encode_prompt(loaded, prompt, new_tokens=new_tokens)
    streamer = TextIteratorStreamer(
        tokenizer_of(loaded), skip_prompt=True, skip_special_tokens=True
    )
    stop = _Stop()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            continued(
                loaded,
                inputs,
                GREEDY,
                new_tokens=new_tokens,
                streamer=streamer,
                stopping_criteria=[stop],
            )
        except BaseException as failure:
            failures.append(failure)
            streamer.on_finalized_text("", stream_end=True)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.asked = True
        worker.join()
    if failures:
        raise failures[0]


def generate_all(
    models: Mapping[str, LoadedModel], prompts: Sequence[str], *, new_tokens: int
) -> dict[str, tuple[str, ...]]:
    """Each model's greedy continuation of every prompt, in order.

    Prompts go through the model together, padded on the left: one by one, a small model would
    spend its time between the tokens.

    Raises:
        SettingsError: As `generate`.
    """
    encoded = {
        name: [encode_prompt(loaded, prompt, new_tokens=new_tokens) for prompt in prompts]
        for name, loaded in models.items()
    }
    texts: dict[str, tuple[str, ...]] = {}
    total = len(models) * len(prompts)
    with progress("evaluate: generations", total, unit="prompts") as advance:
        for name, loaded in models.items():
            found: list[str] = []
            for start in range(0, len(prompts), _TOGETHER):
                inputs = padded_on_the_left(encoded[name][start : start + _TOGETHER])
                output = continued(loaded, inputs, GREEDY, new_tokens=new_tokens)
                new = output[:, inputs["input_ids"].shape[1] :]
                found += tokenizer_of(loaded).batch_decode(new, skip_special_tokens=True)
                advance(len(new), name)
            texts[name] = tuple(found)
    return texts


class _Stop(StoppingCriteria):
    asked = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)
