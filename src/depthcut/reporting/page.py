"""The report: one HTML file that needs no network and, in its essentials, no JavaScript."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.files import write_file
from depthcut.records import Survey, layers_in_words
from depthcut.reporting import (
    choosing_story,
    criteria_tables,
    headline,
    snippets,
    sweep_tables,
    words,
)
from depthcut.reporting.benchmarks.page import (
    benchmark_figures,
    benchmark_files,
    benchmark_section,
)
from depthcut.reporting.figures import theme
from depthcut.reporting.figures.figure import Figure, inlined, write_figure
from depthcut.reporting.figures.frontiers import search_figure, sweep_figures
from depthcut.reporting.figures.quality import quality_figures
from depthcut.reporting.figures.results import healing_loss, quality_and_speed
from depthcut.reporting.figures.stack import draw_stack
from depthcut.reporting.figures.survey import survey_figures
from depthcut.reporting.model_frontier import ModelFrontier, model_frontier
from depthcut.reporting.recovery import costs, measures, repaired_rows, solved_rows
from depthcut.reporting.results import Results, read_results
from depthcut.reporting.story import judgements, plan_story, runners_up, story

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
_ELSEWHERE = (
    "quality-and-speed",
    "healing-loss",
    "search-frontier",
    "benchmark-differences",
    "benchmark-above-chance",
    "quality-and-size",
    "quality-and-measured-speed",
)
"""Figures that stand in sections of their own, not in the survey's."""


def write_report(folder: Path, *, overwrite: bool = True) -> Path:
    """Write report.html and plots/ into a run's folder, from whichever records it holds.

    Each figure is also written to plots/ as NAME.svg, NAME.png and NAME.csv; benchmarks beside the
    page as tasks.csv, tasks.tex and a model card.

    Returns:
        The page.

    Raises:
        RecordError: The folder holds none of the records, or a broken one.
        OutputError: The place cannot be written, or exists and `overwrite` is off.
    """
    results = read_results(folder)
    figures = {
        figure.name: (figure, write_figure(figure, folder / "plots", overwrite=overwrite))
        for figure in _figures(results)
    }
    files = benchmark_files(results.evaluation)
    for name, content in files.items():
        write_file(folder / name, content.encode(), overwrite=overwrite)
    page = folder / "report.html"
    write_file(page, render(results, figures, tuple(files)).encode(), overwrite=overwrite)
    return page


def render(
    results: Results, figures: dict[str, tuple[Figure, str]], files: tuple[str, ...] = ()
) -> str:
    """The page's HTML; `figures` by name, each with its SVG. All text is escaped.

    `files` lie beside the page and hold its benchmarks.
    """
    from markupsafe import Markup

    script = "".join(
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.js", "tables.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    swept = [name for name in figures if name.startswith("frontier-")]
    surveyed = [name for name in figures if name not in (*_ELSEWHERE, *swept)]
    evaluation = results.evaluation
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            results=results,
            name=headline.model_name(results),
            became=headline.outcome(results),
            facts=headline.facts(results),
            story=story(results),
            plan_story=plan_story(results),
            runners_up=runners_up(results),
            judgements=judgements(results),
            stack=draw_stack(results.plan) if results.plan else None,
            figures=figures,
            surveyed=surveyed,
            swept=swept,
            choosing=choosing_story,
            plan_layers=words.numbers(results.plan.removed, results.plan.zeroed)
            if results.plan
            else "",
            standings=sweep_tables,
            stopping=_stopping(results.survey),
            criteria=_criteria(results),
            choices=criteria_tables.choices(results.survey) if results.survey else None,
            by_layer=criteria_tables.layer_table(results.survey) if results.survey else None,
            ranks=criteria_tables.rank_table(results.survey) if results.survey else None,
            benchmarks=benchmark_section(evaluation, evaluation.tasks)
            if evaluation and evaluation.tasks
            else None,
            files=files,
            frontier=_frontier(results),
            measures=measures(results),
            costs=costs(results),
            repaired_rows=repaired_rows(results),
            solved_rows=solved_rows(results),
            loading=snippets.loading(results),
            mergekit=snippets.mergekit(results),
            recipe=snippets.recipe(results),
            stages=snippets.stages(results),
            inline=lambda figure, svg: Markup(inlined(svg, figure.title)),
            style=Markup(_style()),
            script=Markup(script),
            script_digest=digest,
        )
    )


def _stopping(survey: Survey | None) -> str:
    return words.stopping_in_words(survey.stopping) if survey and survey.stopping else ""


def _figures(results: Results) -> list[Figure]:
    figures = survey_figures(results.survey, results.plan) if results.survey else []
    if results.search and results.search.frontier:
        figures.append(search_figure(results.search))
    if results.sweep:
        figures += sweep_figures(results.sweep)
    if (judged := quality_and_speed(results.evaluation, results.bench)).rows:
        figures.append(judged)
    figures += benchmark_figures(results.evaluation)
    if frontier := _frontier(results):
        figures += quality_figures(frontier)
    if results.heal and results.heal.losses:
        figures.append(healing_loss(results.heal))
    return figures


def _frontier(results: Results) -> ModelFrontier | None:
    """All models beside each other, where there are more than a run makes, or benchmarks."""
    evaluation = results.evaluation
    if evaluation is None or not (evaluation.tasks or len(evaluation.models) > len(results.judged)):
        return None
    return model_frontier(evaluation, results.bench)


def _criteria(results: Results) -> dict[str, str]:
    """What each criterion of the survey measures."""
    scores = results.survey.scores if results.survey else ()
    return {words.criterion(each.criterion): each.meaning for each in scores if each.meaning}


def _style() -> str:
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return (
        f":root{{{theme.variables()}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{theme.variables(dark=True)}}}}}"
        f"{theme.chart_rules()}\n{style}"
    )


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., object]] = {
        "amount": words.amount,
        "size": words.size,
        "duration": words.duration,
        "estimate": words.estimate,
        "score": words.score,
        "layers": layers_in_words,
        "percent": words.share,
        "seconds": words.seconds,
        "verdict": words.verdict,
        "speed": words.speed,
        "ratio": words.ratio,
        "sentence": words.sentence,
        "short_source": words.short_source,
        "tied": lambda text: text.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%"),
    }
    environment.filters.update(filters)
    return environment
