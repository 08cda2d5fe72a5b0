"""Continuations of prompts: greedy, through the chat template where there is one."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import StoppingCriteria, TextIteratorStreamer

from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.model.positions import learned_positions
from depthcut.progress import progress

_TOGETHER = 16
"""Prompts in one batch."""

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}
"""Said in full, because what is left out comes from the checkpoint's generation config."""


def generate(loaded: LoadedModel, prompt: str, *, new_tokens: int) -> Iterator[str]:
    """Pieces of the greedy continuation of a prompt, as they come.

    Closing the iterator early stops the model.

    Raises:
        SettingsError: The model has no tokenizer, or prompt and new tokens exceed the
            positions it has learned.
    """
    inputs = encode_prompt(loaded, prompt, new_tokens=new_tokens)
    streamer = TextIteratorStreamer(_tokenizer(loaded), skip_prompt=True, skip_special_tokens=True)
    stop = _Stop()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _continue(loaded, inputs, new_tokens, streamer=streamer, stopping_criteria=[stop])
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
                inputs = _padded(encoded[name][start : start + _TOGETHER])
                output = _continue(loaded, inputs, new_tokens)
                new = output[:, inputs["input_ids"].shape[1] :]
                found += _tokenizer(loaded).batch_decode(new, skip_special_tokens=True)
                advance(len(new), name)
            texts[name] = tuple(found)
    return texts


def _padded(encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several prompts as one batch, padded on the left."""
    longest = max(each["input_ids"].shape[1] for each in encoded)
    return {
        key: torch.cat(
            [functional.pad(each[key], (longest - each[key].shape[1], 0)) for each in encoded]
        )
        for key in ("input_ids", "attention_mask")
    }


def encode_prompt(loaded: LoadedModel, prompt: str, *, new_tokens: int) -> dict[str, Tensor]:
    """A prompt as the model wants it: a user's message where it has a chat template.

    Returns:
        input_ids and attention_mask, each of shape (1, tokens), on the model's device.

    Raises:
        SettingsError: As `generate`.
    """
    tokenizer = _tokenizer(loaded)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = tokenizer(prompt, return_tensors="pt")
    inputs = {key: encoded[key].to(loaded.device) for key in ("input_ids", "attention_mask")}
    needed, limit = inputs["input_ids"].shape[1] + new_tokens, learned_positions(loaded)
    if limit is not None and needed > limit:
        raise SettingsError(
            f"the prompt {prompt[:30]!r} and {new_tokens} new tokens need {needed} positions, the "
            f"model has {limit}: lower --new-tokens or give a shorter prompt"
        )
    return inputs


def _continue(
    loaded: LoadedModel, inputs: Mapping[str, Tensor], new_tokens: int, **options: Any
) -> Tensor:
    settings: Any = loaded.model.generation_config
    ends = getattr(settings, "eos_token_id", None)
    with in_eval_mode(loaded.model):
        run = cast(Callable[..., object], loaded.model.generate)
        output = run(
            **inputs,
            max_new_tokens=new_tokens,
            **GREEDY,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
            **options,
        )
    if not isinstance(output, Tensor):
        raise TypeError(f"generate gave {type(output).__name__}, expected a tensor")
    return output


def _tokenizer(loaded: LoadedModel) -> Any:
    if loaded.tokenizer is None:
        raise SettingsError(
            f"{loaded.facts.source} has no tokenizer: give one to generate text, or set "
            "new_tokens to 0"
        )
    return loaded.tokenizer


class _Stop(StoppingCriteria):
    asked = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)
