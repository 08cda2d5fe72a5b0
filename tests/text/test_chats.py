from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from depthcut.errors import TextError
from depthcut.text.chats import rendered
from depthcut.text.rows import Message
from tests.tiny import END, tiny_tokenizer

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{%- generation -%}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
ENDS_WITH_THE_END_TOKEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}"
    "{% endif %}"
)
ONLY_THE_LAST_TURN_THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if loop.last and message.role "
    "== 'assistant' %}<think></think>{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SPECIAL_TOKENS = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ASKS_WITH_A_THOUGHT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)


def chat(*contents: str, first: str = "user") -> list[Message]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path / "tokenizer")


def answers(messages: list[Message], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    text, spans = rendered(messages, tokenizer, answers=True)
    assert text == rendered(messages, tokenizer).text
    return [text[start:stop] for start, stop in spans]


@pytest.mark.parametrize("template", [None, MARKED])
def test_an_answer_is_what_the_assistant_says_with_the_token_that_ends_its_turn(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    system: Message = {"role": "system", "content": "user"}
    said = answers([system, *chat("Why?", "So é😀.", "How?", " So.\n", "Oh")], tokenizer)
    assert said == ["So é😀.<|im_end|>", " So.\n<|im_end|>"]
    assert answers(chat("Why?"), tokenizer) == []


def test_marks_are_preferred_as_they_need_no_unchanged_turns(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = MARKED.replace("{%- generation -%}", "{% generation %}{{ turn }}")
    assert answers(chat("Hi.", "Why?", first="assistant"), tokenizer) == ["Hi.<|im_end|>"]


def test_a_template_may_end_the_whole_text_with_the_end_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = ENDS_WITH_THE_END_TOKEN
    said = answers(chat("Why?", "So.", "How?", "Thus."), tokenizer)
    assert said == ["So.<|im_end|>", f"Thus.<|im_end|>\n{END}"]


def test_without_a_token_that_ends_it_an_answer_reaches_to_the_next_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = NO_SPECIAL_TOKENS
    assert answers(chat("Why?", "So.", "How?", "Thus."), tokenizer) == ["So.\n\n", "Thus.\n\n"]


@pytest.mark.parametrize("template", [ONLY_THE_LAST_TURN_THINKS, ASKS_WITH_A_THOUGHT])
def test_a_template_that_changes_turns_is_refused_only_where_answers_are_asked_for(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    tokenizer.chat_template = template
    messages = chat("Why?", "So.", "How?", "Thus.")
    assert "So." in rendered(messages, tokenizer).text
    with pytest.raises(TextError, match=r"message 2 of a chat.* changes .*without --answers-only"):
        rendered(messages, tokenizer, answers=True)


def test_one_answer_behind_a_thought_of_the_template_is_clear(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = ONLY_THE_LAST_TURN_THINKS
    assert answers(chat("Why?", "So."), tokenizer) == ["<think></think>So.<|im_end|>"]


def test_an_answer_to_nothing_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"message 1 of a chat.*nothing is asked before it"):
        rendered(chat("Hi.", "Why?", first="assistant"), tokenizer, answers=True)


def test_a_tokenizer_without_offsets_is_refused_only_where_answers_are_asked_for(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert rendered(chat("Why?", "So."), tokenizer).answers == ()
    with pytest.raises(TextError, match=r"does not say where .*: train on all of it, without"):
        rendered(chat("Why?", "So."), tokenizer, answers=True)
