import json
from pathlib import Path

import pytest

from depthcut.settings import Texts, TextSettings
from depthcut.text import formats
from depthcut.text.documents import open_text
from depthcut.text.prompts import prompts_of

SYSTEM, USER, ANSWER = ({"role": role, "content": role} for role in ("system", "user", "assistant"))


def prompts(text: Texts, **settings: object) -> list[object]:
    chosen = TextSettings(text=text, **settings)  # type: ignore[arg-type]  # by name
    return list(prompts_of(open_text(chosen)))


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_each_line_of_a_plain_file_is_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 50)
    lines = [f"What is the number {number} good for?" for number in range(100)]
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n  ".join(lines) + "\r\n\n")
    assert prompts(str(path)) == lines


def test_each_row_of_a_table_is_a_prompt(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"q": "Why?\nSay.", "a": "So."}, {"q": " ", "a": "x"}]
    assert prompts(write_jsonl(tmp_path / "a.jsonl", rows), columns=("q",)) == ["Why?\nSay."]


def test_a_chat_is_a_prompt_up_to_its_last_answer(tmp_path: Path) -> None:
    chats = [
        [SYSTEM, USER, ANSWER],
        [USER, ANSWER, USER, ANSWER, ANSWER],
        [SYSTEM, USER],
        [ANSWER],
        [],
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": chat} for chat in chats])
    assert prompts(path) == [[SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER]]


def test_a_question_with_its_answer_is_a_prompt_without_it(tmp_path: Path) -> None:
    row: dict[str, object] = {"instruction": "Which?", "input": "Of these.", "output": "None."}
    assert prompts(write_jsonl(tmp_path / "a.jsonl", [row])) == ["Which?\n\nOf these."]


def test_several_texts_give_prompts_in_proportion(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 6)
    found = prompts((f"{tmp_path / 'a.txt'}:2", str(tmp_path / "b.txt")))
    assert found == ["a", "b", "a"] * 3 + ["b"] * 3
