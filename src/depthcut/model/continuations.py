"""Continuations of prompts by transformers' `generate`: how they are encoded, chosen and padded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from depthcut.errors import SettingsError, TextError
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.model.positions import learned_positions

_PLAIN: Mapping[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Said in full, because what is left out comes from the checkpoint's generation config."""

GREEDY: Mapping[str, Any] = {
    **_PLAIN,
    "do_sample": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}
"""The likeliest token each time; min_p has no say in it, and transformers warns of it."""


def sampling(*, temperature: float, top_p: float) -> Mapping[str, Any]:
    """A token by chance: from the model's own distribution, as far as the two numbers are 1.

    The draw is by torch's global generator.
    """
    return {
        **_PLAIN,
        "do_sample": True,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": 0.0,
    }


def tokenizer_of(loaded: LoadedModel) -> Any:
    """The model's tokenizer.

    Raises:
        SettingsError: It has none.
    """
    if loaded.tokenizer is None:
        raise SettingsError(
            f"{loaded.facts.source} has no tokenizer: give one to generate text, or set "
            "new_tokens to 0"
        )
    return loaded.tokenizer


def end_tokens(loaded: LoadedModel) -> tuple[int, ...]:
    """The tokens that end a text; none: the model never ends one."""
    settings: Any = loaded.model.generation_config
    ends = getattr(settings, "eos_token_id", None)
    if ends is None and loaded.tokenizer is not None:
        ends = loaded.tokenizer.eos_token_id
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)


def encode_prompt(loaded: LoadedModel, prompt: str, *, new_tokens: int) -> dict[str, Tensor]:
    """A prompt as `encode`, if the model has positions for it and so many new tokens.

    Raises:
        SettingsError: Prompt and new tokens exceed the positions it has learned, or it has no
            tokenizer.
    """
    inputs = encode(loaded, prompt)
    needed, limit = inputs["input_ids"].shape[1] + new_tokens, learned_positions(loaded)
    if limit is not None and needed > limit:
        raise SettingsError(
            f"the prompt {prompt[:30]!r} and {new_tokens} new tokens need {needed} positions, the "
            f"model has {limit}: lower --new-tokens or give a shorter prompt"
        )
    return inputs


def encode(loaded: LoadedModel, prompt: str | Sequence[Mapping[str, object]]) -> dict[str, Tensor]:
    """A prompt as the model wants it: a user's message where it has a chat template.

    Args:
        loaded: The model, with its tokenizer.
        prompt: What a user says, or a whole chat up to the model's turn.

    Returns:
        input_ids and attention_mask, each of shape (1, tokens), on the model's device.

    Raises:
        SettingsError: The model has no tokenizer.
        TextError: A chat, and the model has no chat template or its template refuses it.
    """
    tokenizer = tokenizer_of(loaded)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        try:
            encoded = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        except Exception as error:  # templates raise whatever their author chose
            raise TextError(
                f"the chat template of {loaded.facts.source} refuses a prompt: {error}"
            ) from error
    elif isinstance(prompt, str):
        encoded = tokenizer(prompt, return_tensors="pt")
    else:
        raise TextError(
            f"the prompts are chats, and {loaded.facts.source} has no chat template: choose a "
            "plain text column with --columns, or a chat model"
        )
    return {key: encoded[key].to(loaded.device) for key in ("input_ids", "attention_mask")}


def padded_on_the_left(encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several prompts as one batch, so that what follows begins for all at the same place."""
    longest = max(each["input_ids"].shape[1] for each in encoded)
    return {
        key: torch.cat(
            [functional.pad(each[key], (longest - each[key].shape[1], 0)) for each in encoded]
        )
        for key in ("input_ids", "attention_mask")
    }


def continued(
    loaded: LoadedModel,
    inputs: Mapping[str, Tensor],
    choice: Mapping[str, Any],
    *,
    new_tokens: int,
    **options: Any,
) -> Tensor:
    """Prompts and what follows them, at most so many tokens.

    Args:
        loaded: The model.
        inputs: input_ids and attention_mask, each (batch, tokens), padded on the left.
        choice: How the next token is chosen: `GREEDY`, or from `sampling`.
        new_tokens: Tokens that are made, at most.
        options: Passed on to `generate`.

    Returns:
        (batch, tokens and new ones) int64: behind an end token more of them as padding.
    """
    ends = end_tokens(loaded)
    with in_eval_mode(loaded.model):
        run = cast(Callable[..., object], loaded.model.generate)
        output = run(
            **inputs,
            max_new_tokens=new_tokens,
            **choice,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else None,
            **options,
        )
    if not isinstance(output, Tensor):
        raise TypeError(f"generate gave {type(output).__name__}, expected a tensor")
    return output
