"""A sweep as CSV and Markdown."""

import csv
import io

import pytest

from depthcut.reporting.sweep_exports import sweep_csv, sweep_markdown
from tests.reporting.sweeps_for_tests import TEXTS, WAYS, make_sweep


def test_the_csv_has_every_number_unrounded() -> None:
    sweep = make_sweep()
    rows = list(csv.DictReader(io.StringIO(sweep_csv(sweep))))
    assert len(rows) == len(TEXTS) * len(WAYS) * 7
    wanted = {"text": TEXTS[1], "way": "angular", "removed": "3"}
    row = next(row for row in rows if wanted.items() <= row.items())
    choice = sweep.way("angular").find(3)
    assert choice
    said = sweep.judged[1].find(choice.removed)
    assert float(row["perplexity"]) == said.perplexity.value
    assert float(row["kl_stderr"]) == said.kl_divergence.stderr
    assert float(row["loss_difference_stderr"]) == said.loss_difference.stderr
    assert row["layers"] == "2, 4 and 6"


def test_the_same_as_a_frame() -> None:
    pytest.importorskip("pandas")
    frame = make_sweep().to_frame()
    assert set(frame["way"]) == set(WAYS)


def test_the_tables_mark_the_best_and_say_what_is_taken() -> None:
    text = sweep_markdown(make_sweep())
    assert "| greedy | 0.0 % | 0.0 % | 14 of 14 | 4 min 40 s | 280 |" in text
    assert f"## {TEXTS[0]}" in text
    lines = text.splitlines()
    perplexities = [line for line in lines if line.startswith("| greedy | **")]
    assert len(perplexities) == len(TEXTS)
    assert perplexities[0].count("**") == 14
    assert "| greedy | 0 | 0 and 2 | 0, 2 and 4 |" in text
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.count("|") in (7, 9) for line in tables)
