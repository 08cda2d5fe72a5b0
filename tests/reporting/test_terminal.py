import msgspec
import pytest
from rich.console import Group
from rich.table import Table

from depthcut.records import Energy, OwnText
from depthcut.reporting import terminal
from depthcut.settings import LoadSettings, OwnTextSettings
from tests.reporting.run_for_tests import (
    ORIGIN,
    make_bench,
    make_facts,
    make_run,
    make_spread,
    on_two_texts,
)

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


def test_each_of_several_texts_has_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(6)
    assert run.evaluation is not None
    terminal.show(terminal.evaluation_tables(on_two_texts(run.evaluation)))
    lines = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    (start,) = (row for row, cells in enumerate(lines) if cells[:1] == ["support.txt"])
    assert lines[start][:3] == ["support.txt", "original", "28.8 ± 1.3"]
    assert lines[start][-1] == "the reference"
    assert lines[start + 3][:3] == ["", "healed", "34.3 ± 1.5"]
    assert lines[start + 3][-1] == "significantly worse by 0.175 ± 0.017 nats per token"
    assert lines[start + 5][:3] == ["c4.jsonl", "original", "28.8 ± 1.3"]
    terminal.show(terminal.evaluation_tables(run.evaluation))
    assert "text" not in capsys.readouterr().out


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


def test_speeds_are_shown_beside_the_ideal(capsys: pytest.CaptureFixture[str]) -> None:
    models = [("original", make_facts(30)), ("pruned", make_facts(24, source="pruned"))]
    terminal.show(terminal.bench_table(make_bench(models)))
    shown = capsys.readouterr().out
    assert "transformers on A processor at 2.50GHz, 2 threads: 512 tokens read" in shown
    row = next(line for line in shown.splitlines() if "pruned" in line)
    assert "1.25×" in row  # measured
    assert "1.28×" in row  # the ideal of a prefill
    assert "1.19×" in row  # the ideal of decoding
    assert "batch" not in shown


def test_a_model_alone_is_shown_without_ratios_and_batches_in_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = make_bench([("original", make_facts(30))], batch_sizes=(1, 8))
    joules = Energy(meter="CPU (RAPL)", joules_per_token=make_spread(0.5))
    timings = tuple(msgspec.structs.replace(t, energy=(joules,)) for t in bench.models[0].timings)
    model = msgspec.structs.replace(bench.models[0], timings=timings, peak_memory_bytes=None)
    terminal.show(terminal.bench_table(msgspec.structs.replace(bench, models=(model,))))
    shown = capsys.readouterr().out
    assert "ideal" not in shown
    assert "all tok/s" in shown
    assert shown.count("original") == 2 + 2 + 2
    assert "original, batch 8: 0.500 0.495–0.505 joules a new token, by CPU (RAPL)" in shown


def test_no_number_is_cut_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("model", "prefill tok/s", "quartiles")
    table.add_row("original", "4,194", "4,194–4,195")
    terminal.show(Group("before", table))
    assert "4,194–4,195" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "24")
    terminal.show(Group("before", table))
    assert "…" not in capsys.readouterr().out
