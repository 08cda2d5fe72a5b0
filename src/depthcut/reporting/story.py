"""The run in sentences: what was done, what it cost, how sure that is."""

from dataclasses import dataclass

from depthcut.records import Estimate, Plan, SpeedRatio, Survey, layers_in_words
from depthcut.reporting.benchmarks.story import average_sentence
from depthcut.reporting.ladder import ladder, ladder_story
from depthcut.reporting.recovery import on_text
from depthcut.reporting.results import Results
from depthcut.reporting.words import (
    ERRORS,
    at_tokens,
    change,
    criterion,
    estimate,
    perplexity_factor,
    ratio,
    sentence,
    share,
    short_source,
    span,
    stability_in_words,
    verdict,
)

HELD_OUT = {"held-out": "held-out ", "train": "", "all": ""}


@dataclass(frozen=True)
class RunnerUp:
    """A row of the table of choices; `verdict` is empty for the plan itself."""

    layers: str
    score: float | None
    difference: str
    verdict: str


def story(results: Results) -> list[str]:
    """The opening sentences."""
    if evaluation := ladder(results):
        return ladder_story(evaluation)
    return [
        *_what_went(results),
        *_what_it_cost(results),
        *_what_it_answers(results),
        *_what_it_won(results),
    ]


def plan_story(results: Results) -> list[str]:
    """Why these layers, and how clear the choice was."""
    plan = results.plan
    if plan is None:
        return []
    if plan.settings.remove is not None:
        return [
            f"The layers were chosen by hand: the model {plan.change}."
            + ("" if plan.survey else " No survey stands behind them.")
        ]
    sentences = [f"{sentence(plan.words)} went: {_chosen_by(plan, results.survey)}."]
    if plan.settings.protect:
        protected = plan.settings.protect
        layers = "layer" if protected.isdecimal() else "layers"
        sentences.append(f"Protected from removal: {layers} {protected}.")
    others = plan.alternatives
    close = [each for each in others if each.difference.value < ERRORS * each.difference.stderr]
    if close:
        which = "any" if len(close) == len(others) else str(len(close))
        count = f"{which} of the {len(others)} runners-up"
        sentences.append(
            f"This text cannot tell it from {count}, which lie within two standard errors; "
            "a longer text might."
        )
    elif others and results.survey and results.survey.text.sequences > 1:
        sentences.append("Every runner-up scores clearly higher on this text.")
    if plan.stability:
        sentences.append(stability_in_words(plan.stability))
    return sentences


def runners_up(results: Results) -> list[RunnerUp]:
    """The plan's choice and the others, best first."""
    plan = results.plan
    if plan is None or not plan.alternatives:
        return []
    rows = [RunnerUp(span(plan.removed, plan.zeroed), plan.score, "–", "")]
    for each in plan.alternatives:
        value, error = each.difference.value, each.difference.stderr
        if abs(value) < ERRORS * error:
            judged = "not distinguishable"
        elif error == 0:
            judged = "error unknown"
        else:
            judged = "clearly higher" if value > 0 else "clearly lower"
        difference = estimate(each.difference, sign=True)
        rows.append(RunnerUp(span(each.removed, each.zeroed), each.score, difference, judged))
    return rows


def judgements(results: Results) -> list[tuple[str, str]]:
    """Each model after the first: its name, and how it stands against the first."""
    if results.evaluation is None:
        return []
    first = results.evaluation.models[0]
    found = []
    for each in results.evaluation.comparisons:
        agreement = 100 * each.agreement.value
        sentences = [
            f"{sentence(_cost(each.loss_difference, first.name))}.",
            f"It predicts the same next token as {first.name} in {agreement:.0f} % of places.",
        ]
        timed = results.bench.ratio(each.name) if results.bench else None
        if won := _speed_words(timed):
            sentences.append(f"It {won} speed of {first.name}.")
        found.append((each.name, " ".join(sentences)))
    return found


def _what_went(results: Results) -> list[str]:
    plan = results.plan
    if plan is None:
        return []
    sentences = []
    if plan.removed:
        gone = sum(plan.model.layer_parameters[layer] for layer in plan.removed_layers)
        share = change(plan.model.parameters, plan.model.parameters - gone).lstrip("−")
        sentences.append(
            f"{sentence(layers_in_words(plan.removed))} of {plan.model.layers} went, and with them "
            f"{share} of the parameters."
        )
    if plan.zeroed:
        sentences.append(
            f"{sentence(plan.zeroed_words)} add nothing any more: their last projections are zero, "
            "which saves neither room nor time."
        )
    return sentences


def _what_it_cost(results: Results) -> list[str]:
    evaluation = results.evaluation
    if evaluation is None or evaluation.text is None or not evaluation.comparisons:
        return []
    where = f"{evaluation.text.tokens:,} {HELD_OUT[evaluation.settings.part]}tokens"
    measure = on_text(results)
    back = measure.back if measure else {}
    sentences: list[str] = []
    for link, model in results.judged[1:]:
        if (compared := results.comparison(model)) is None:
            continue
        cost = _cost(compared.loss_difference, "the original")
        share_back = f"{share(back[link.name])} of what the cut lost" if link.name in back else ""
        state = sentence(link.state)
        if not sentences:
            lead = f"On {where} of {evaluation.text.source} the {link.state} model is {cost}"
        elif share_back and link is not results.judged[-1][0]:
            lead = f"{state}, {share_back} is back"
        else:
            lead = f"{state}, it is {cost}" + (f"; {share_back} is back" if share_back else "")
        sentences.append(f"{lead}.")
        heal = results.heal if link.name == "healed" else None
        if heal and verdict(compared.loss_difference).kind == "better":
            sentences.append(
                f"Healing trained it on {heal.text.source}, and the original was not: "
                "this says nothing of what else it knew."
            )
    return sentences + _on_each_text(results)


def _on_each_text(results: Results) -> list[str]:
    """The last model of the run on each of several texts."""
    link, model = results.judged[-1]
    costs = [
        f"on {short_source(each.source)} alone {_cost(each.loss_difference, 'the original')}"
        for each in model.texts
        if each.loss_difference
    ]
    return [f"The {link.state} model is {'; '.join(costs)}."] if costs else []


def _what_it_answers(results: Results) -> list[str]:
    """The last model of the run on benchmarks."""
    tasks = results.evaluation.tasks if results.evaluation else None
    if tasks is None or len(results.judged) < 2:
        return []
    link, model = results.judged[-1]
    average = tasks.average(model.name)
    return [average_sentence(average, f"the {link.state} model", "the original")] if average else []


def _cost(difference: Estimate, first: str) -> str:
    judged = verdict(difference)
    if judged.kind in ("worse", "better"):
        by = judged.text.removeprefix(f"significantly {judged.kind} by ")
        factor = perplexity_factor(difference)
        return f"significantly {judged.kind}: {factor} the perplexity of {first}, {by}"
    return f"{judged.text}, against {first}"


def _what_it_won(results: Results) -> list[str]:
    won = _speed_words(results.speed_ratio)
    return [f"It {won} speed of the original."] if won else []


def _speed_words(won: SpeedRatio | None) -> str:
    prefill, decode = (ratio(won.first_token), ratio(won.decode)) if won else (None, None)
    if prefill is None or decode is None:
        return ""
    return f"reads at {prefill.text} and writes at {decode.text} the"


def _chosen_by(plan: Plan, survey: Survey | None) -> str:
    if plan.search is not None:
        found = "KL divergence" if plan.search.objective == "kl" else "loss"
        return f"a {plan.search.method} search found no other choice with less {found}"
    settings = plan.settings
    where = f"{criterion(settings.criterion)} {at_tokens(settings.tokens)}"
    every = survey.scores if survey else ()
    of_layers = {each.criterion for each in every if each.scope != "block"}
    if settings.criterion in of_layers or not every:
        return f"no other choice of as many layers has less {where}, summed"
    if settings.blocks == 1:
        return f"no other block of that size has a lower {where}"
    return f"no other choice of up to {settings.blocks} blocks has a lower {where}"
