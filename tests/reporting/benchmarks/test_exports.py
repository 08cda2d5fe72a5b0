"""Benchmarks as files for papers and spreadsheets."""

import csv
import io
import re

import msgspec

from depthcut.reporting.benchmarks.exports import tasks_csv, tasks_tex
from tests.reporting.ladder_for_tests import make_ladder, make_tasks

LADDER = make_ladder((0, 1, 7))


def test_the_csv_holds_every_number() -> None:
    tasks = LADDER.tasks
    assert tasks
    found = list(csv.DictReader(io.StringIO(tasks_csv(LADDER, tasks))))
    assert len(found) == len(tasks.scores) + len(tasks.averages)
    values = {(each["model"], each["task"], each["metric"]): each for each in found}
    for score in tasks.scores:
        assert float(values[score.model, score.task, score.metric]["value"]) == score.value
    for difference in tasks.differences:
        row = next(
            each
            for each in found
            if (each["model"], each["task"], each["chief"])
            == (difference.model, difference.task, "True")
        )
        assert float(row["difference"]) == difference.difference.value
        assert float(row["difference_stderr"]) == difference.difference.stderr
        assert float(row["p"]) == difference.p_value
        assert int(row["lost"]) == difference.lost
    average = values["smollm2-minus-7", "average", "10 tasks"]
    expected = tasks.average("smollm2-minus-7")
    assert expected
    assert expected.difference
    assert float(average["difference"]) == expected.difference.value
    assert average["verdict"] == "worse"


def test_the_latex_table_has_models_down_and_tasks_across() -> None:
    assert LADDER.tasks
    text = tasks_tex(LADDER, LADDER.tasks)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 3
    assert {line.count("&") for line in body} == {12}  # eleven tasks and the average
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns
    assert columns[1] == "l" + 12 * "r"
    assert r"arc\_easy (\%)" in body[0]
    assert r"$55.8${\scriptsize\,$\pm$\,3.2}" in body[1]
    assert r"$55.8^\dagger${" in body[2]  # not significant
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1


def test_names_are_escaped_for_latex() -> None:
    name = "a_b & 50% {x} \\y\nz"
    tasks = make_tasks([(name, 0)])
    tasks = msgspec.structs.replace(
        tasks,
        tasks=(msgspec.structs.replace(tasks.tasks[0], name="p_q\n% r"),),
        averages=(),
    )
    only = msgspec.structs.replace(LADDER.models[0], name=name)
    evaluation = msgspec.structs.replace(LADDER, models=(only,), tasks=tasks)
    text = tasks_tex(evaluation, tasks)
    assert r"a\_b \& 50\% \{x\} \textbackslash{}y z & --" in text
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert "% p_q % r: acc_norm, 0-shot" in comments
