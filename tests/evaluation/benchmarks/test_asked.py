"""What --tasks names, and what the answers to it are kept by."""

from pathlib import Path

import pytest

from depthcut.errors import SettingsError
from depthcut.evaluation.benchmarks.asked import asked_tasks, definitions_digest
from depthcut.settings import EvaluateSettings


@pytest.mark.parametrize("tasks", [("",), (" , ",)])
def test_no_name_at_all_is_refused(tasks: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="names no task: expected names such as arc_easy"):
        asked_tasks(EvaluateSettings(tasks=tasks))


def test_no_tasks_are_asked_for_where_the_option_is_left_out() -> None:
    assert asked_tasks(EvaluateSettings()) == ()


def test_answers_to_a_task_named_by_its_file_depend_on_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine\ndoc_to_text: one")
    for name in (str(file), f"{file}:3"):
        settings = EvaluateSettings(tasks=(name,))
        before = definitions_digest(settings)
        assert definitions_digest(settings) == before
        file.write_text(file.read_text() + ", another")
        assert definitions_digest(settings) != before
