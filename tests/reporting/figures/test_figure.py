"""Figures render offline, and their CSV holds the records' numbers unrounded."""

import csv
import io
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from depthcut.reporting.figures import theme
from depthcut.reporting.figures.blocks import best_of_size
from depthcut.reporting.figures.figure import Figure, inlined, write_figure
from depthcut.reporting.figures.results import healing_loss, quality_and_speed
from depthcut.reporting.figures.survey import survey_figures
from depthcut.settings import PlanSettings
from tests.reporting.run_for_tests import Run, make_run
from tests.reporting.short_rows import short_rows


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(layers=12)


def figures_of(run: Run) -> dict[str, Figure]:
    assert run.survey
    assert run.evaluation
    figures = [*survey_figures(run.survey, run.plan), quality_and_speed(run.evaluation, run.bench)]
    if run.heal:
        figures.append(healing_loss(run.heal))
    return {figure.name: figure for figure in figures}


def numbers(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv())))


def test_a_figure_is_written_as_svg_png_and_csv(run: Run, tmp_path: Path) -> None:
    svg = write_figure(figures_of(run)["norms"], tmp_path, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "norms.csv",
        "norms.png",
        "norms.svg",
    ]
    png = (tmp_path / "norms.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width = float(ET.fromstring(svg).attrib["width"])
    assert int.from_bytes(png[16:20], "big") == pytest.approx(2 * width, abs=1)


def test_there_is_a_figure_for_everything_measured(run: Run) -> None:
    assert list(figures_of(run)) == [
        "heat-map",
        "best-blocks",
        "block-influence",
        "relative-magnitude",
        "norms",
        "quality-and-speed",
        "healing-loss",
    ]


def test_the_heat_map_has_every_block_as_surveyed(run: Run) -> None:
    assert run.survey
    scores = run.survey.find("angular", "all")
    rows = numbers(figures_of(run)["heat-map"])
    assert len(rows) == 12 * 13 // 2
    for row in rows:
        start, size = int(row["start"]), int(row["size"])
        assert int(row["stop"]) == start + size
        assert float(row["score"]) == scores.mean[start][size - 1]
        assert float(row["stderr"]) == scores.stderr[start][size - 1]


def test_the_best_block_of_each_size_is_the_lowest(run: Run) -> None:
    assert run.survey
    rows = numbers(figures_of(run)["best-blocks"])
    for tokens in ("last", "all"):
        scores = run.survey.find("angular", tokens)
        mine = [row for row in rows if row["tokens"] == tokens]
        assert [int(row["size"]) for row in mine] == list(range(1, 12))
        for row in mine:
            size = int(row["size"])
            of_size = [line[size - 1] for line in scores.mean if len(line) >= size]
            assert float(row["score"]) == min(of_size)
            assert of_size[int(row["start"])] == min(of_size)
            assert best_of_size(scores, size) == int(row["start"])


def test_layer_scores_and_norms_are_the_records(run: Run) -> None:
    assert run.survey
    figures = figures_of(run)
    for criterion in ("block-influence", "relative-magnitude"):
        for row in numbers(figures[criterion]):
            scores = next(
                each
                for each in run.survey.scores
                if (each.criterion, each.tokens) == (criterion, row["tokens"])
            )
            assert float(row["score"]) == scores.mean[int(row["layer"])][0]
    assert [float(row["norm"]) for row in numbers(figures["norms"])] == list(run.survey.norms)


def test_quality_and_loss_are_the_records(run: Run) -> None:
    assert run.evaluation
    assert run.heal
    figures = figures_of(run)
    rows = numbers(figures["quality-and-speed"])
    shown = {(row["model"], row["measure"]): float(row["value"]) for row in rows}
    for each in run.evaluation.models:
        assert shown[each.name, "perplexity"] == each.perplexity.value
    for timed in run.bench.models if run.bench else ():
        median = timed.timings[0].decode.median
        assert shown[timed.name, "decode, tokens per second"] == median
    losses: dict[str, list[tuple[int, float]]] = {}
    for row in numbers(figures["healing-loss"]):
        losses.setdefault(row["text"], []).append((int(row["step"]), float(row["loss"])))
    assert losses == {
        "training": list(run.heal.losses),
        "held out": [(each.step, each.loss) for each in run.heal.judgements],
    }


@pytest.mark.parametrize("layers", [2, 4, 30, 80])
def test_every_figure_renders_for_shallow_and_deep_models(layers: int) -> None:
    run = make_run(layers, PlanSettings(drop=1), heal=False, speed=False, sequences=2)
    for figure in figures_of(run).values():
        svg = figure.svg()
        ET.fromstring(svg)
        assert "NaN" not in svg
        assert "undefined" not in svg


@pytest.mark.parametrize(("first", "largest"), [(0, 15), (0, 4), (0, 1), (1, 30)])
def test_blocks_without_a_score_leave_a_gap(first: int, largest: int) -> None:
    run = make_run(30, PlanSettings(drop=7))
    assert run.survey
    survey = short_rows(run.survey, first=first, largest=largest)
    heat_map, best, *_ = survey_figures(survey, run.plan)
    rows = numbers(heat_map)
    assert len(rows) == sum(min(30 - start, largest) for start in range(first, 30))
    sizes = {int(row["size"]) for row in numbers(best)}
    assert sizes == set(range(1, min(largest, 29) + 1))
    for figure in (heat_map, best):
        svg = figure.svg()
        assert "NaN" not in svg
        assert (theme.light("removed") in svg) == (largest >= 7)
    assert "angular" in survey._repr_html_()


def test_the_removed_block_is_marked(run: Run) -> None:
    removed = theme.light("removed")
    assert run.survey
    for marked, unmarked in zip(
        survey_figures(run.survey, run.plan), survey_figures(run.survey, None), strict=True
    ):
        assert removed in marked.svg()
        assert removed not in unmarked.svg()


def test_an_inlined_chart_keeps_its_marks_and_loses_its_weight(run: Run) -> None:
    figure = figures_of(run)["heat-map"]
    svg = figure.svg()
    small = inlined(svg, 'a "title"')
    tree = ET.fromstring(small)
    assert tree.attrib["role"] == "img"
    assert tree.attrib["aria-label"] == 'a "title"'
    assert len(small) < 0.7 * len(svg)
    tips = [mark.attrib["data-tip"] for mark in tree.iter() if "data-tip" in mark.attrib]
    assert len(tips) == 12 * 13 // 2
    assert "#ffffff" not in small


def test_every_colour_of_a_chart_has_a_rule_that_darkens_it(run: Run) -> None:
    rules = theme.chart_rules()
    for figure in figures_of(run).values():
        for mark in ET.fromstring(inlined(figure.svg(), "")).iter():
            for attribute in ("fill", "stroke"):
                colour = mark.attrib.get(attribute, "none")
                if colour not in ("none", "transparent"):
                    assert f'[{attribute}="{colour}"]' in rules, (figure.name, colour)


def test_text_colours_have_contrast_in_light_and_dark() -> None:
    for text, ground in itertools.product(("ink", "muted", "removed", "kept"), ("paper", "panel")):
        for mode in (0, 1):
            pair = (theme.COLOURS[text][mode], theme.COLOURS[ground][mode])
            assert contrast(*pair) >= 4.5, (text, ground, mode)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
