import gzip
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from depthcut.errors import SettingsError, SourceError, TextError
from depthcut.settings import TextSettings
from depthcut.text.documents import Text, TextSource, open_text

TEXTS = ["first document", "zweites Dokument: äöü €\n", 'third, with "quotes", commas\nand lines']
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello ü"}]


def source(text: str | Path | list[str], **settings: object) -> TextSource:
    if isinstance(text, list):
        return opened(documents=text, **settings).sources[0]
    return opened(text=str(text), **settings).sources[0]


def opened(*, documents: list[str] | None = None, **settings: object) -> Text:
    return open_text(TextSettings(**settings), documents)  # type: ignore[arg-type]  # by name


def documents(text: str | Path | list[str], **settings: object) -> list[object]:
    return list(source(text, **settings).documents())


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: Path) -> None:
    lines = ["number,text"]
    lines += [f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(lines) + "\n")


def write_parquet(path: Path) -> None:
    table = pyarrow.table({"number": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, path, row_group_size=1)


TABLES: dict[str, Callable[[Path], None]] = {
    ".jsonl": lambda path: write_jsonl(path, [{"n": 1, "text": text} for text in TEXTS]),
    ".csv": write_csv,
    ".parquet": write_parquet,
}
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", TABLES)
def test_tables_give_one_document_a_row(tmp_path: Path, suffix: str, compression: str) -> None:
    plain = tmp_path / f"plain{suffix}"
    TABLES[suffix](plain)
    path = tmp_path / f"data{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](plain.read_bytes()))
    assert documents(path) == TEXTS


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".TXT"])
def test_plain_files_are_one_document(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"a{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression]("\n".join(TEXTS).encode()))
    assert documents(path) == ["\n".join(TEXTS)]


def test_a_large_plain_file_comes_in_pieces_that_end_at_lines(tmp_path: Path) -> None:
    text = "\n".join(f"line {number} é" for number in range(200_000))
    (tmp_path / "large.txt").write_text(text)
    pieces = documents(tmp_path / "large.txt")
    assert len(pieces) > 1
    assert "".join(map(str, pieces)) == text
    assert all(str(piece).endswith("\n") for piece in pieces[:-1])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert documents(tmp_path / "bom.txt") == ["hello"]


def test_builtin_is_python_s_own_prose_in_order() -> None:
    from pydoc_data.topics import topics

    assert documents("builtin") == [topics[key] for key in sorted(topics)]
    assert source("builtin").name == "builtin"


def test_a_list_of_strings_is_a_source_and_borders_enter_its_digest() -> None:
    assert documents(["a", "b"]) == ["a", "b"]
    assert source(["ab", "c"]).digest != source(["a", "bc"]).digest
    assert source(["ab", "c"]).digest == source(["ab", "c"]).digest


def test_standard_input_can_be_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "standard input é".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    found = source("-")
    assert list(found.documents()) == list(found.documents()) == [content.decode()]
    assert found.digest == hashlib.sha256(content).hexdigest()


def test_a_folder_is_read_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "image.png").write_bytes(b"\xff")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    assert documents(tmp_path) == ["first", "second"]


def test_a_file_s_digest_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert source(tmp_path / "a.txt").digest == hashlib.sha256(b"hello").hexdigest()


def test_a_folder_s_digest_follows_names_and_bytes_but_not_its_place(tmp_path: Path) -> None:
    digests = []
    for place, name, content in [
        ("one", "a.txt", "x"),
        ("two", "a.txt", "x"),
        ("three", "b.txt", "x"),
        ("four", "a.txt", "y"),
    ]:
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(content)
        digests.append(source(tmp_path / place).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_chosen_columns_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": "Why?", "a": "So."}, {"q": "How?", "a": None}])
    assert documents(tmp_path / "a.jsonl", columns=("q", "a")) == ["Why?\n\nSo.", "How?"]


def test_content_and_messages_are_found_without_being_asked_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"content": "prose"}, {"messages": MESSAGES}])
    assert documents(tmp_path / "a.jsonl") == ["prose", MESSAGES]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "Which?", "input": "Of these.", "output": "None."}, "Which?\n\nOf these."),
        ({"instruction": "Which?", "input": "", "output": "None."}, "Which?"),
        ({"instruction": "Which?", "category": "open", "output": "None."}, "Which?"),
        (
            {"response": "None.", "context": "Of these.", "instruction": "Which?"},
            "Which?\n\nOf these.",
        ),
        ({"prompt": "Which?", "completion": "None."}, "Which?"),
        ({"response": "None.", "prompt": "Which?", "input": "x"}, "Which?"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_questions_with_answers_are_chats_without_being_asked_for(
    tmp_path: Path, row: dict[str, object], asked: str, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, [row])
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path.write_text(
            "\n".join(",".join(f'"{each}"' for each in line) for line in (row, row.values()))
        )
    (chat,) = documents(path)
    assert chat == [{"role": "user", "content": asked}, {"role": "assistant", "content": "None."}]


def test_a_text_column_comes_before_a_question_and_an_answer(tmp_path: Path) -> None:
    row: dict[str, object] = {"instruction": "Which?", "output": "None.", "text": "All of it."}
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert documents(tmp_path / "a.jsonl") == ["All of it."]
    asked = documents(tmp_path / "a.jsonl", columns=("instruction", "output"))
    assert asked == ["Which?\n\nNone."]


def test_a_question_without_an_answer_stays_one_and_an_empty_row_is_no_document(
    tmp_path: Path,
) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "Which?", "output": ""},
        {"instruction": "", "input": None, "output": ""},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert documents(tmp_path / "a.jsonl") == [[{"role": "user", "content": "Which?"}], ""]


def test_chats_in_parquet_are_messages(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"messages": [MESSAGES]}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet") == [MESSAGES]


@pytest.mark.parametrize("suffix", TABLES)
def test_a_missing_column_names_those_there_are_and_the_nearest(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    TABLES[suffix](path)
    with pytest.raises(
        TextError, match=r"no column 'texts' \(did you mean text\?\); it has n.*text"
    ):
        documents(path, columns=("texts",))


def test_no_usual_column_names_those_there_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "answer": "y"}])
    with pytest.raises(
        TextError, match=r"instruction and output.*; choose with --columns from prompt, answer"
    ):
        documents(tmp_path / "a.jsonl")


def test_columns_of_a_plain_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TextError, match="has no columns"):
        documents(tmp_path / "a.txt", columns=("text",))


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "content", "position"),
    [
        ("a.txt", b"ok \xff\xfe", 3),
        ("a.txt", b"x" * (1 << 20) + b"ab\xe2\x28", (1 << 20) + 2),
        ("a.txt", b"x" * ((1 << 20) - 1) + b"\xe2\x28\xa1", (1 << 20) - 1),
        ("a.md", b"cut \xe2\x82", 4),
        ("a.jsonl", b'{"text": "\xe9"}\n', 10),
        ("a.csv", b"text\nf\xfcr\n", 6),
    ],
)
def test_what_is_not_utf8_is_refused_with_file_and_byte(
    tmp_path: Path, name: str, content: bytes, position: int, bom: bytes
) -> None:
    (tmp_path / name).write_bytes(bom + content)
    with pytest.raises(TextError, match=f"{name}: not UTF-8 at byte {position + len(bom)}:"):
        documents(tmp_path / name)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ok"}\n{"text": \n')
    with pytest.raises(TextError, match=r"a\.jsonl, line 2: not JSON"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "row",
    ['["a"]', '{"text": 3}', '{"messages": [{"from": "x"}]}', '{"prompt": "x", "response": 3}'],
)
def test_rows_that_are_no_text_are_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(TextError, match=r"a\.jsonl, line 1.*expected"):
        documents(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.gz", "a.txt.zst", "a.parquet.gz"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not at all what it says")
    with pytest.raises(TextError, match=name):
        documents(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_cut_off_compression_is_refused(tmp_path: Path, name: str) -> None:
    content = COMPRESSIONS[Path(name).suffix](str(list(range(9999))).encode())
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(TextError, match=f"{name}: broken compression"):
        documents(tmp_path / name)


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SourceError, match=r"\.parquet.*did you mean \.jsonl"):
        source(tmp_path / "a.json")


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "wiki.train.txt").write_text("x")
    with pytest.raises(SourceError, match=r"did you mean wiki\.train\.txt"):
        source(tmp_path / "wiki.trian.txt")
    with pytest.raises(SourceError, match="did you mean builtin"):
        source("buildin")


def test_a_folder_without_text_and_an_empty_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="holds no text file"):
        source(tmp_path)
    with pytest.raises(TextError, match="empty"):
        source([])


def test_a_hub_data_set_without_network_is_one_line_of_advice() -> None:
    with pytest.raises(SourceError, match="cannot reach the hub for the data set") as caught:
        source("some-owner/some-data")
    assert "\n" not in str(caught.value)
    assert "--text builtin" in str(caught.value)


def test_several_texts_have_shares_and_a_digest_of_what_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    found = opened(text=(f"{a}:3", b))
    assert [each.name for each in found.sources] == [a, b]
    assert found.shares == (0.75, 0.25)
    assert opened(text=f"{a}:3").digest == source(a).digest
    digests = [
        opened(text=text).digest
        for text in [(f"{a}:6", f"{b}:2"), (a, b), (b, f"{a}:3"), (f"{a}:3", "builtin")]
    ]
    assert digests[0] == found.digest
    assert len({*digests, source(a).digest, source(b).digest}) == 6


def test_a_text_reads_its_own_columns_and_the_others_those_of_the_settings(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"q": "Why?", "a": "So.", "text": "prose"}]
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name, [*rows, {"q": name, "a": name, "text": name}])
    (tmp_path / "c.txt").write_text("plain")
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.txt"))

    def first(**settings: object) -> list[object]:
        return [next(source.documents()) for source in opened(**settings).sources]

    assert first(text=(f"{a}[q,a]:2", b, c)) == ["Why?\n\nSo.", "prose", "plain"]
    assert first(text=(f"{a}[q]", b), columns=("a",)) == ["Why?", "So."]
    assert first(text=(f"{a}[q]", f"{a}[a]")) == ["Why?", "So."]
    assert [each.name for each in opened(text=f"{a}[q,a]:2").sources] == [f"{a}[q,a]"]
    with pytest.raises(TextError, match=r"plain text and has no columns: .*chat\.jsonl\[question"):
        first(text=(a, c), columns=("a",))


def test_the_same_text_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    with pytest.raises(SettingsError, match=r"a\.txt and .*b\.txt are the same: name it once"):
        opened(text=(str(tmp_path / "a.txt"), str(tmp_path / "b.txt:2")))


@pytest.mark.parametrize("weight", ["two", "70%", ""])
def test_a_weight_that_is_no_number_is_told_from_a_missing_file(
    tmp_path: Path, weight: str
) -> None:
    (tmp_path / "wiki.txt").write_text("x")
    with pytest.raises(SourceError, match=r"there is wiki\.txt: behind its colon goes a weight"):
        source(tmp_path / f"wiki.txt:{weight}")
    with pytest.raises(SourceError, match=r"did you mean wiki\.txt\?"):
        source(tmp_path / "wkii.txt:2")


@pytest.mark.parametrize("between", [" ", ", ", ","])
def test_several_names_in_one_are_told_apart(tmp_path: Path, between: str) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    with pytest.raises(SourceError, match="given one by one, in a recipe as a list"):
        source(f"{tmp_path / 'a.txt'}:2{between}{tmp_path / 'b.txt'}:1")


def test_a_text_in_place_of_its_name_is_one_short_line_of_advice() -> None:
    with pytest.raises(SourceError, match="no text 'word word") as caught:
        source("word " * 500)
    assert len(str(caught.value)) < 250
