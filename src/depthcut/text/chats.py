"""A chat as its model reads it: through the chat template, and where in it the assistant speaks."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

from transformers import PreTrainedTokenizerBase

from depthcut.errors import TextError
from depthcut.text.rows import Message

Span = tuple[int, int]
"""Where something begins and ends in a text, in characters."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class RenderedChat(NamedTuple):
    """A chat as text."""

    text: str
    answers: tuple[Span, ...] = ()
    """What the assistant says, with the tokens that end its turns; only if asked for."""


def rendered(
    messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, answers: bool = False
) -> RenderedChat:
    """A chat through the model's template.

    Answers are what the template itself marks as generated; without such marks, what a message of
    the assistant adds behind the template's prompt for it.

    Raises:
        TextError: No template, one that refuses the chat, or answers that cannot be told from the
            rest of it.
    """
    text = _render(messages, tokenizer)
    if not answers:
        return RenderedChat(text)
    if not tokenizer.is_fast:
        raise TextError(
            f"{type(tokenizer).__name__} does not say where in the text its tokens are, so the "
            "answers of a chat cannot be found: train on all of it, without --answers-only"
        )
    if _MARKED.search(tokenizer.get_chat_template()):
        return RenderedChat(text, _marked(messages, tokenizer))
    return RenderedChat(text, _added(messages, text, tokenizer))


def _render(messages: list[Message], tokenizer: PreTrainedTokenizerBase, **how: Any) -> str:
    if not tokenizer.chat_template:
        raise TextError(
            "the text holds chats, and the model has no chat template: choose a plain text "
            "column with --columns, or a chat model"
        )
    chat = cast(list[dict[str, str]], messages)
    try:
        return cast(str, tokenizer.apply_chat_template(chat, **{"tokenize": False, **how}))
    except Exception as error:  # templates raise whatever their author chose
        raise TextError(f"the model's chat template refuses a chat of the text: {error}") from error


def _marked(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[Span, ...]:
    found = cast(
        dict[str, Sequence[Any]],
        _render(
            messages,
            tokenizer,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        ),
    )
    tokens = zip(found["assistant_masks"], found["offset_mapping"], strict=True)
    runs = [
        [span for _, span in run] for said, run in groupby(tokens, key=lambda each: each[0]) if said
    ]
    return tuple((run[0][0], run[-1][1]) for run in runs)


def _added(
    messages: list[Message], text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[Span, ...]:
    ends_turn = tuple(
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    )
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise TextError(_unclear(1, "nothing is asked before it"))
        before = _render(messages[:turn], tokenizer, add_generation_prompt=True)
        until = text
        if turn + 1 < len(messages):
            until = _render(messages[: turn + 1], tokenizer)
            if not text.startswith(until):  # some templates end a text with the end token
                until = until.removesuffix(str(tokenizer.eos_token or ""))
        if not (text.startswith(until) and until.startswith(before)):
            raise TextError(
                _unclear(turn + 1, "the model's chat template changes what comes before or after")
            )
        said = until.rstrip()
        spans.append((len(before), len(said if said.endswith(ends_turn) else until)))
    return tuple(spans)


def _unclear(turn: int, why: str) -> str:
    return (
        f"where message {turn} of a chat, the assistant's, begins and ends is not clear: {why}. "
        "Train on all of the chats, without --answers-only, or give the model a chat template "
        "with {% generation %} marks"
    )
