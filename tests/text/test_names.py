from pathlib import Path

import pytest

from depthcut.errors import SettingsError
from depthcut.settings import SurveySettings
from depthcut.text.names import in_words, named_texts


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("wiki.txt", "wiki.txt", 1),
        ("wiki.txt:2", "wiki.txt", 2),
        ("wiki.txt:0.5", "wiki.txt", 0.5),
        ("wiki.txt:.5", "wiki.txt", 0.5),
        ("wiki.txt:1e-3", "wiki.txt", 0.001),
        ("builtin:3", "builtin", 3),
        ("-:3", "-", 3),
        ("owner/data:2", "owner/data", 2),
        ("owner/data", "owner/data", 1),
        (r"C:\texts\wiki.txt", r"C:\texts\wiki.txt", 1),
        (r"C:\texts\wiki.txt:2", r"C:\texts\wiki.txt", 2),
        ("a:2:3", "a:2", 3),
        ("wiki.txt:two", "wiki.txt:two", 1),
        ("wiki.txt:", "wiki.txt:", 1),
        (":2", ":2", 1),
    ],
)
def test_a_number_behind_the_last_colon_is_a_weight(text: str, name: str, weight: float) -> None:
    assert named_texts(text) == ((name, (), weight),)


@pytest.mark.parametrize(
    ("text", "name", "columns", "weight"),
    [
        ("chat.jsonl[answer]", "chat.jsonl", ("answer",), 1),
        ("chat.jsonl[question,answer]:2", "chat.jsonl", ("question", "answer"), 2),
        ("owner/data[ question, answer ]", "owner/data", ("question", "answer"), 1),
        ("a[0].jsonl", "a[0].jsonl", (), 1),
        ("a.jsonl[]", "a.jsonl[]", (), 1),
    ],
)
def test_names_in_brackets_are_columns(
    text: str, name: str, columns: tuple[str, ...], weight: float
) -> None:
    (found,) = named_texts(text)
    assert found == (name, columns, weight)
    assert named_texts(found.without_weight) == ((name, columns, 1),)


def test_what_is_there_under_the_whole_name_is_meant_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").mkdir()
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "c[d]").mkdir()
    found = [(each.name, each.weight) for each in named_texts(("a:2", "a:2:3", "b.txt:2", "c[d]"))]
    assert found == [("a:2", 1), ("a:2", 3), ("b.txt", 2), ("c[d]", 1)]


@pytest.mark.parametrize("text", ["a.txt:0", "a.txt:-1", "a.txt:1e999", "a.txt:-0.0"])
def test_a_weight_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="above 0 such as 2"):
        named_texts(("b.txt", text))


@pytest.mark.parametrize(
    ("texts", "says"),
    [((), "no text"), ("", "names no text"), (("a.txt", " "), "names no text"),
     (("-:2", "a.txt", "-"), "only once")],
)  # fmt: skip
def test_no_text_and_standard_input_twice_are_refused(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        named_texts(texts)


def test_a_name_longer_than_any_file_s_is_no_file() -> None:
    assert named_texts("word " * 2000 + ":2")[0].weight == 2


def test_settings_that_mean_the_same_are_the_same() -> None:
    several = SurveySettings(text=["a.txt:2", "b.txt"])  # type: ignore[arg-type]  # as people do
    assert several == SurveySettings(text=("a.txt:2", "b.txt"))
    assert SurveySettings(text=("a.txt",)) == SurveySettings(text="a.txt")
    assert in_words(several.text) == "a.txt:2 + b.txt"
    assert in_words("a.txt") == "a.txt"
