"""A folder is read with whatever it holds, and refused in one line when it holds nothing."""

from pathlib import Path

import msgspec
import pytest

from depthcut.errors import RecordError
from depthcut.records import write_record
from depthcut.reporting.headline import headline_lines
from depthcut.reporting.results import read_results
from tests.reporting.run_for_tests import (
    make_bench,
    make_evaluation,
    make_facts,
    make_run,
    on_two_texts,
)


def test_an_empty_folder_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"survey\.json, plan\.json, pruned/depthcut\.json"):
        read_results(tmp_path)


def test_a_missing_folder_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="typo is no folder: give the one that holds the records"):
        read_results(tmp_path / "typo")


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"kind": "survey"}')
    with pytest.raises(RecordError, match=r"plan\.json is not a plan: it is a survey; give a plan"):
        read_results(tmp_path)


def test_an_evaluation_of_no_model_is_refused(tmp_path: Path) -> None:
    write_record(make_evaluation([("original", make_facts(4), 3.0)]), tmp_path / "evaluation.json")
    path = tmp_path / "evaluation.json"
    text = path.read_text()
    at = text.index('"models"')
    path.write_text(text[:at] + '"models": [], "comparisons": []}')
    with pytest.raises(RecordError, match="judges no model"):
        read_results(tmp_path)


def test_models_are_known_by_their_digest_whatever_their_name(tmp_path: Path) -> None:
    run = make_run(layers=6)
    assert run.slice
    assert run.heal
    assert run.repair
    others = (("B", run.heal.result), ("C", run.slice.result), ("D", run.repair.result))
    models = [("A", make_facts(6), 3.0), *((name, facts, 3.1) for name, facts in others)]
    results = read_results(run._replace(evaluation=make_evaluation(models)).write(tmp_path))
    assert [(link.name, model.name) for link, model in results.judged] == [
        ("original", "A"), ("pruned", "C"), ("repaired", "D"), ("healed", "B"),
    ]  # fmt: skip


def test_a_stage_that_did_not_run_is_not_in_the_chain(tmp_path: Path) -> None:
    results = read_results(make_run(6, repair=False).write(tmp_path))
    assert [link.state for link in results.chain] == ["before", "cut", "healed"]
    assert results.model_folder == tmp_path / "healed"
    alone = make_run(6)._replace(slice=None, heal=None, evaluation=None, plan=None)
    results = read_results(alone.write(tmp_path / "repaired alone"))
    assert [link.name for link in results.chain] == ["original", "repaired"]
    assert results.plan is not None


def test_models_named_by_a_path_are_shown_by_its_last_part(tmp_path: Path) -> None:
    facts = make_facts(4)
    models = [("a/hub-model", facts, 3.0), ("/some/where/pruned", facts, 3.1)]
    write_record(make_evaluation(models), tmp_path / "evaluation.json")
    evaluation = read_results(tmp_path).evaluation
    assert evaluation
    assert [each.name for each in evaluation.models] == ["a/hub-model", "pruned"]
    assert [each.name for each in evaluation.comparisons] == ["pruned"]


def test_paths_that_end_alike_keep_their_whole_names(tmp_path: Path) -> None:
    names = ["/one/pruned", "/two/pruned"]
    models = [(name, make_facts(4), 3.0) for name in names]
    write_record(make_evaluation(models), tmp_path / "evaluation.json")
    evaluation = read_results(tmp_path).evaluation
    assert evaluation
    assert [each.name for each in evaluation.models] == names


def test_the_plan_of_a_sliced_folder_stands_in_for_plan_json(tmp_path: Path) -> None:
    run = make_run(layers=6)
    results = read_results(run._replace(plan=None).write(tmp_path))
    assert results.plan == run.plan


def test_the_headline_has_the_numbers_of_the_records(tmp_path: Path) -> None:
    run = make_run(layers=30)
    assert run.plan
    lines = headline_lines(read_results(run.write(tmp_path)))
    text = "\n".join(lines)
    assert lines[0] == f"smollm2: 30 → 23 layers, without {run.plan.words}"
    assert "134.5 M → 109.7 M  (−18 %)" in text
    assert "269.0 MB → 219.5 MB" in text
    assert "28.8 ± 0.9 → 77.5 ± 2.4 → 49.4 ± 1.5 → 40.9 ± 1.3" in text
    assert "  loss back: 45.5 ± 1.4 %, 64.6 ± 1.3 %" in text
    assert "1.30×" in text
    assert "pruned: significantly worse by 0.990 ± 0.012 nats per token than original" in text
    assert all(len(line) < 120 for line in lines)


def test_the_headline_tells_several_texts_apart(tmp_path: Path) -> None:
    run = make_run(layers=6)
    assert run.evaluation
    evaluation = on_two_texts(run.evaluation)
    lines = headline_lines(read_results(run._replace(evaluation=evaluation).write(tmp_path)))
    said = "significantly worse by 0.525 ± 0.017 nats per token than original"
    assert f"  healed on c4.jsonl: {said}" in lines


@pytest.mark.parametrize("kept", ["survey", "plan", "slice", "repair", "heal", "evaluation"])
def test_every_record_alone_has_a_headline(tmp_path: Path, kept: str) -> None:
    run = make_run(layers=4)
    alone = run._replace(**{name: None for name in run._fields if name != kept})
    assert headline_lines(read_results(alone.write(tmp_path)))


def test_a_speed_is_that_of_the_run_s_last_model_whatever_its_name(tmp_path: Path) -> None:
    run = make_run(layers=6)
    assert run.slice
    assert run.heal
    models = [("A", make_facts(6)), ("/some/B", run.heal.result), ("C", run.slice.result)]
    results = read_results(run._replace(bench=make_bench(models)).write(tmp_path))
    assert results.bench
    assert [each.name for each in results.bench.models] == ["A", "B", "C"]
    assert results.speed_ratio == results.bench.ratio("B")
    assert any("Decode speed" in line for line in headline_lines(results))
    models = [("A", make_facts(6)), ("of the cut", run.slice.result)]
    results = read_results(run._replace(bench=make_bench(models)).write(tmp_path / "cut"))
    assert results.speed_ratio == make_bench(models).ratio("of the cut")


def test_speeds_alone_are_a_result(tmp_path: Path) -> None:
    write_record(make_bench([("only", make_facts(4))]), tmp_path / "bench.json")
    results = read_results(tmp_path)
    assert results.speed_ratio is None
    assert headline_lines(results)[0] == "smollm2: timed alone"


def test_speeds_of_no_model_are_refused(tmp_path: Path) -> None:
    bench = make_bench([("only", make_facts(4))])
    empty = msgspec.structs.replace(bench, models=())
    write_record(empty, tmp_path / "bench.json")
    with pytest.raises(RecordError, match="times no model"):
        read_results(tmp_path)


def test_a_record_of_another_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"kind": "evaluation", "speed": 1}')
    with pytest.raises(RecordError, match=r"is not an evaluation of this .* make it again"):
        read_results(tmp_path)
