import msgspec
import pytest

from depthcut.records import OwnText
from depthcut.reporting import terminal
from depthcut.settings import LoadSettings, OwnTextSettings
from tests.reporting.run_for_tests import ORIGIN, make_facts, make_run

TEXT, MODEL = "chat.jsonl[question,answer] (60%) and [a].txt (40%)", "folder[1]/model"


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(6, source=MODEL)
    assert run.survey is not None
    assert run.plan is not None
    assert run.evaluation is not None
    shown = {
        "survey": (run.survey, terminal.survey_table),
        "evaluation": (run.evaluation, terminal.evaluation_tables),
    }
    for record, table in shown.values():
        text = msgspec.structs.replace(record.text, source=TEXT)
        terminal.show(table(msgspec.structs.replace(record, text=text)))  # type: ignore[operator]
        assert TEXT in capsys.readouterr().out.replace("\n", "")
    terminal.show(terminal.plan_table(run.plan))
    assert MODEL in capsys.readouterr().out
    terminal.show(f"next: depthcut survey {MODEL} --text {TEXT}")
    assert capsys.readouterr().out == f"next: depthcut survey {MODEL} --text {TEXT}\n"


@pytest.mark.parametrize(("cut", "says"), [(0, "smollm2; 1,234"), (3, "smollm2, 3 cut at 512 tok")])
def test_what_a_model_wrote_is_one_line(cut: int, says: str) -> None:
    record = OwnText(
        origin=ORIGIN,
        model=make_facts(6),
        settings=OwnTextSettings(),
        load=LoadSettings(),
        source="own.jsonl",
        digest="d",
        documents=10,
        tokens=1234,
        cut=cut,
    )
    line = terminal.own_text_line(record)
    assert line.startswith("own.jsonl: 10 texts of smollm2")
    assert says in line
    assert "\n" not in line
