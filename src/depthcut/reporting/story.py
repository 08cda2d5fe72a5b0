"""The run in sentences: what was done, what it cost, how sure that is."""

from dataclasses import dataclass

from depthcut.records import Comparison, Plan, Survey
from depthcut.reporting.results import Results
from depthcut.reporting.survey_figures import CRITERIA, TOKENS
from depthcut.reporting.words import ERRORS, change, perplexity_factor, speed_ratio, verdict

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
    return [*_what_went(results), *_what_it_cost(results), *_what_it_won(results)]


def plan_story(results: Results) -> list[str]:
    """Why these layers, and how clear the choice was."""
    plan = results.plan
    if plan is None:
        return []
    if plan.settings.remove is not None:
        return [
            f"The layers were chosen by hand: {plan.words}."
            + ("" if plan.survey else " No survey was asked.")
        ]
    sentences = [f"{_sentence(plan.words)} went: {_chosen_by(plan)}."]
    if plan.settings.protect:
        sentences.append(f"Protected from removal: layers {plan.settings.protect}.")
    others = plan.alternatives
    close = [each for each in others if each.difference.value < ERRORS * each.difference.stderr]
    if others and close:
        count = f"{len(close)} of the {len(others)} runners-up"
        sentences.append(
            f"{count} cannot be told apart from it on this text: a longer text would decide better."
            if len(others) > 1
            else "The runner-up cannot be told apart from it on this text."
        )
    elif others and results.survey and results.survey.text.sequences > 1:
        sentences.append("Every runner-up scores clearly higher on this text.")
    return sentences


def runners_up(results: Results) -> list[RunnerUp]:
    """The plan's choice and the others, best first."""
    from depthcut.records import layers_in_words
    from depthcut.reporting.words import estimate

    plan = results.plan
    if plan is None or not plan.alternatives:
        return []
    rows = [RunnerUp(plan.words, plan.score, "–", "")]
    for each in plan.alternatives:
        value, error = each.difference.value, each.difference.stderr
        if abs(value) < ERRORS * error:
            judged = "not distinguishable"
        elif error == 0:
            judged = "error unknown"
        else:
            judged = "clearly higher" if value > 0 else "clearly lower"
        difference = estimate(each.difference, sign=True)
        rows.append(RunnerUp(layers_in_words(each.removed), each.score, difference, judged))
    return rows


def survey_story(survey: Survey) -> str:
    """What was read for the survey."""
    text = survey.text
    return (
        f"One pass over {text.tokens:,} tokens of {text.source} ({text.sequences:,} sequences) "
        "gives every block at once."
    )


def _what_went(results: Results) -> list[str]:
    plan = results.plan
    if plan is None:
        return []
    gone = sum(plan.model.layer_parameters[layer] for layer in plan.removed_layers)
    share = change(plan.model.parameters, plan.model.parameters - gone).lstrip("−")
    return [
        f"{_sentence(plan.words)} of {plan.model.layers} went, and with them {share} of the "
        "parameters."
    ]


def _what_it_cost(results: Results) -> list[str]:
    evaluation = results.evaluation
    if evaluation is None or not evaluation.comparisons:
        return []
    where = f"{evaluation.text.tokens:,} {HELD_OUT[evaluation.settings.part]}tokens"
    sentences = []
    if results.cut and (cut := results.comparison(results.cut)):
        sentences.append(f"On {where} of {evaluation.text.source} the cut model is {_cost(cut)}.")
    if results.healed and (healed := results.comparison(results.healed)):
        sentences.append(f"Healed, it is {_cost(healed)}.")
    return sentences


def _cost(comparison: Comparison) -> str:
    judged = verdict(comparison.loss_difference)
    if judged.kind in ("worse", "better"):
        return f"{judged.text} (its perplexity is {perplexity_factor(comparison)} the original's)"
    return judged.text


def _what_it_won(results: Results) -> list[str]:
    before, after = results.before, results.healed or results.cut
    if before is None or after is None:
        return []
    prefill = speed_ratio(before.prefill, after.prefill)
    decode = speed_ratio(before.decode, after.decode)
    if prefill is None or decode is None:
        return []
    return [
        f"It reads a prompt at {prefill.text} and writes at {decode.text} the original's speed."
    ]


def _chosen_by(plan: Plan) -> str:
    settings = plan.settings
    name = CRITERIA.get(settings.criterion, settings.criterion)
    where = f"the lowest {name} at the {TOKENS[settings.tokens]}".replace("the all", "all")
    if settings.criterion != "angular":
        return f"together they have {where}"
    if settings.blocks == 1:
        return f"of all blocks of that size it has {where}"
    return f"of all choices of up to {settings.blocks} blocks it has {where}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
