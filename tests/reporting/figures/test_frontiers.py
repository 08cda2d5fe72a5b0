"""Figures of frontiers render offline, with every way in their numbers."""

import csv
import io
import math

import msgspec
import pytest

from depthcut.records import Sweep
from depthcut.reporting.figures import theme
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.frontiers import search_figure, sweep_figures
from tests.reporting.sweeps_for_tests import TEXTS, WAYS, make_search, make_sweep


def numbers(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv())))


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return make_sweep(ways=(*WAYS, "random:1", "random:2", "cosine"))


def test_each_text_has_a_figure_of_perplexity_and_one_of_divergence(sweep: Sweep) -> None:
    figures = sweep_figures(sweep)
    assert [figure.name for figure in figures] == [
        "frontier-1-wikitext2-valid-txt-perplexity",
        "frontier-1-wikitext2-valid-txt-kl",
        "frontier-2-code-codealpaca-jsonl-instructio-perplexity",
        "frontier-2-code-codealpaca-jsonl-instructio-kl",
    ]
    assert figures[2].title == f"Perplexity on {TEXTS[1]}"


def test_perplexities_begin_at_the_untouched_model_and_have_paired_errors(sweep: Sweep) -> None:
    rows = numbers(sweep_figures(sweep)[0])
    assert len(rows) == len(sweep.ways) * 8
    judged = sweep.judged[0]
    assert float(rows[0]["value"]) == judged.untouched.perplexity.value
    choice = sweep.ways[0].choices[0]
    said = judged.find(choice.removed)
    assert float(rows[1]["value"]) == said.perplexity.value
    up = float(rows[1]["high"]) / float(rows[1]["value"])
    assert math.log(up) == pytest.approx(said.loss_difference.stderr)


def test_divergences_have_their_own_errors(sweep: Sweep) -> None:
    row = numbers(sweep_figures(sweep)[1])[0]
    found = sweep.judged[0].find(sweep.ways[0].choices[0].removed).kl_divergence
    assert float(row["value"]) == found.value
    assert float(row["high"]) == found.value + found.stderr


def test_the_leading_ways_have_colours_and_the_others_are_grey(sweep: Sweep) -> None:
    svg = sweep_figures(sweep)[0].svg()
    for light, _ in theme.SERIES:
        assert light in svg
    assert theme.light("muted") in svg
    assert "Grey: 2 others," in sweep_figures(sweep)[0].caption
    assert "greedy, without layer 0: " in svg
    assert len({pair[0] for pair in theme.SERIES} | {theme.light(n) for n in theme.COLOURS}) == (
        len(theme.SERIES) + len(theme.COLOURS)
    )


def test_the_page_has_a_variable_for_every_colour_of_a_line() -> None:
    for place, (light, dark) in enumerate(theme.SERIES):
        assert f"--series-{place}:{light};" in theme.variables()
        assert f"--series-{place}:{dark};" in theme.variables(dark=True)
        assert f'.chart [stroke="{light}"]{{stroke:var(--series-{place})}}' in theme.chart_rules()


def test_perplexities_beyond_all_bounds_do_not_hide_the_others(sweep: Sweep) -> None:
    judged = sweep.judged[0]
    worst = judged.judgements[-1]
    endless = msgspec.structs.replace(
        worst, perplexity=msgspec.structs.replace(worst.perplexity, value=1e300)
    )
    broken = msgspec.structs.replace(
        sweep,
        judged=(msgspec.structs.replace(judged, judgements=(*judged.judgements[:-1], endless)),),
    )
    assert "1e+300" not in sweep_figures(broken)[0].svg()


def test_a_search_is_drawn_with_its_choices() -> None:
    figure = search_figure(make_search())
    rows = numbers(figure)
    assert [row["removed"] for row in rows] == [str(count) for count in range(1, 8)]
    assert rows[1]["layers"] == "27–28"
    assert "layers 27–28: 0.1800 ± 0.0090" in figure.svg()


def test_a_single_number_of_layers_is_drawn_too() -> None:
    for figure in sweep_figures(make_sweep(6, counts=(2,), ways=("angular", "last"))):
        assert figure.svg().startswith("<svg")
