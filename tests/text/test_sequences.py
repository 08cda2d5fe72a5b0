from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from depthcut.errors import SettingsError, TextError
from depthcut.settings import TextSettings
from depthcut.text import formats
from depthcut.text import sequences as module
from depthcut.text.documents import Text, TextSource, open_text
from depthcut.text.formats import Document
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
