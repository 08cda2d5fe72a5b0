"""The figures of a survey."""

from depthcut.records import Plan, Scores, Survey
from depthcut.reporting.figures.blocks import best_blocks, heat_map
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.layers import layer_scores, norms


def survey_figures(survey: Survey, plan: Plan | None) -> list[Figure]:
    """All blocks, the best of each size, single layers, norms; what the plan removes is marked."""
    removed = plan.removed if plan else ()
    figures = []
    if (scores := block_scores(survey, plan)) is not None:
        others = [
            each
            for each in survey.scores
            if each.criterion == scores.criterion and each.tokens != scores.tokens
        ]
        figures += [heat_map(scores, removed), best_blocks(scores, others, plan)]
    by_criterion: dict[str, list[Scores]] = {}
    for each in survey.scores:
        if each.scope != "block":
            by_criterion.setdefault(each.criterion, []).append(each)
    figures += [layer_scores(each, removed) for each in by_criterion.values()]
    return [*figures, norms(survey.norms, removed)]


def block_scores(survey: Survey, plan: Plan | None) -> Scores | None:
    """The block scores to show: those that the plan was made from, else the first."""
    blocks = [each for each in survey.scores if each.scope == "block"]
    wanted = (plan.settings.criterion, plan.settings.tokens) if plan else None
    for each in blocks:
        if (each.criterion, each.tokens) == wanted:
            return each
    return blocks[0] if blocks else None
