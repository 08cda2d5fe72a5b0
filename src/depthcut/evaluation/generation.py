"""Continuations of prompts: greedy, through the chat template where there is one."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from depthcut.model.continuations import (
    GREEDY,
    continued,
    encode_prompt,
    end_tokens,
    padded_on_the_left,
    tokenizer_of,
)
from depthcut.model.loading import LoadedModel
from depthcut.progress import progress

_TOGETHER = 16
"""Prompts in one batch."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote after one prompt."""

    text: str
    """Without special tokens."""
    ids: tuple[int, ...]
    """Its tokens, without the one that ends it; none where the model ended at once."""
    prompt_ids: tuple[int, ...]
    """What the model read: the prompt, in its chat template where there is one."""
    ended: bool
    """Whether the model ended it; else it was cut off."""


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
) -> dict[str, tuple[Generation, ...]]:
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
    written: dict[str, tuple[Generation, ...]] = {}
    total = len(models) * len(prompts)
    with progress("evaluate: generations", total, unit="prompts") as advance:
        for name, loaded in models.items():
            found: list[Generation] = []
            for start in range(0, len(prompts), _TOGETHER):
                batch = encoded[name][start : start + _TOGETHER]
                inputs = padded_on_the_left(batch)
                output = continued(loaded, inputs, GREEDY, new_tokens=new_tokens)
                new = output[:, inputs["input_ids"].shape[1] :].tolist()
                read = [each["input_ids"][0].tolist() for each in batch]
                found += [_generation(loaded, *each) for each in zip(read, new, strict=True)]
                advance(len(new), name)
            written[name] = tuple(found)
    return written


def _generation(loaded: LoadedModel, prompt_ids: list[int], new: list[int]) -> Generation:
    """What was made up to the first token that ends a text; behind it stands padding."""
    ends = end_tokens(loaded)
    length = next((place for place, token in enumerate(new) if token in ends), len(new))
    text = tokenizer_of(loaded).decode(new[:length], skip_special_tokens=True)
    return Generation(
        text=text, ids=tuple(new[:length]), prompt_ids=tuple(prompt_ids), ended=length < len(new)
    )


class _Stop(StoppingCriteria):
    asked = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)
