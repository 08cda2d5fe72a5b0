"""Models that were judged beside each other, with no run behind them: headline and story."""

from collections.abc import Sequence

from depthcut.records import Average, Evaluation, ModelEvaluation
from depthcut.reporting.benchmarks.scores import PERCENT, judge
from depthcut.reporting.benchmarks.story import average_sentence
from depthcut.reporting.results import Results
from depthcut.reporting.words import amount, change, estimates, ratio, sentence


def ladder(results: Results) -> Evaluation | None:
    """The evaluation, where it is all there is (beside speed) and judges several models."""
    others = (results.plan, results.survey, results.search, results.sweep)
    evaluation = results.evaluation
    if evaluation is None or len(evaluation.models) < 2 or any(others):
        return None
    return evaluation


def ladder_outcome(evaluation: Evaluation) -> str:
    """What was judged: "6 models of 20 to 30 layers on 11 benchmarks"."""
    layers = sorted(each.model.layers for each in evaluation.models)
    of = f"{layers[0]} to {layers[-1]}" if layers[0] < layers[-1] else f"{layers[0]}"
    on = f" on {_benchmarks(len(evaluation.tasks.chief))}" if evaluation.tasks else ""
    return f"{len(evaluation.models)} models of {of} layers{on}"


def ladder_facts(
    results: Results, evaluation: Evaluation
) -> list[tuple[str, tuple[str, ...], str]]:
    """Label, values of the first and of the smallest model, and a note."""
    first, least = evaluation.models[0], smallest(evaluation)
    pair = (first, least) if first is not least else (first,)
    layers, parameters = first.model.layers, first.model.parameters
    found = [
        (
            "Layers",
            tuple(str(each.model.layers) for each in pair),
            change(layers, least.model.layers) if pair[1:] else "",
        ),
        (
            "Parameters",
            tuple(amount(each.model.parameters) for each in pair),
            change(parameters, least.model.parameters) if pair[1:] else "",
        ),
    ]
    names = ", ".join(each.name for each in pair)
    averages = [each for each in (_average(evaluation, one.name) for one in pair) if each]
    if len(averages) == len(pair):
        label = f"Average of {_benchmarks(len(averages[0].tasks))}, %"
        found.append((label, tuple(PERCENT.shown(each.value) for each in averages), names))
    perplexities = [each.perplexity for each in pair if each.perplexity]
    if len(perplexities) == len(pair):
        found.append(("Perplexity", estimates(perplexities), names))
    if alike := not_told_apart(evaluation):
        note = f"{alike.name}: its average does not differ significantly"
        found.append(("Not told apart down to", (f"{alike.model.layers} layers",), note))
    if results.bench and (decode := _decode(results, least)):
        found.append(("Decode speed", (decode,), f"{least.name}, against {first.name}"))
    return found


def ladder_story(evaluation: Evaluation) -> list[str]:
    """How far down the models hold, in sentences; empty where there is no average."""
    tasks = evaluation.tasks
    first = evaluation.models[0]
    average = _average(evaluation, first.name)
    if tasks is None or average is None:
        return []
    found = [
        f"{len(evaluation.models)} models answered {_questions(evaluation):,} questions of "
        f"{_benchmarks(len(tasks.chief))}.",
        average_sentence(average, first.name, ""),
    ]
    alike = not_told_apart(evaluation)
    if alike and (near := _average(evaluation, alike.name)) and near.difference:
        found.append(
            f"The smallest that does not differ significantly from it is {alike.name} with "
            f"{alike.model.layers} layers ({PERCENT.step_words(near.difference)})."
        )
    worse = [each for each in evaluation.models[1:] if _kind(evaluation, each) == "worse"]
    if worse:
        largest = max(worse, key=lambda each: each.model.parameters)
        far = _average(evaluation, largest.name)
        by = PERCENT.step_words(far.difference).lstrip("−") if far and far.difference else ""
        found.append(
            f"The largest that is significantly worse is {largest.name} with "
            f"{largest.model.layers} layers, by {by}."
        )
    return [sentence(each) for each in found]


def smallest(evaluation: Evaluation) -> ModelEvaluation:
    """By parameters; the last of several."""
    return min(reversed(evaluation.models), key=lambda each: each.model.parameters)


def not_told_apart(evaluation: Evaluation) -> ModelEvaluation | None:
    """The smallest whose average does not differ significantly from the first one's."""
    alike = [each for each in evaluation.models[1:] if _kind(evaluation, each) == "same"]
    return min(alike, key=lambda each: each.model.parameters) if alike else None


def chain_average(
    evaluation: Evaluation, chain: Sequence[ModelEvaluation]
) -> tuple[Average, ...] | None:
    """The averages of these models; None where one lacks it."""
    found = [_average(evaluation, each.name) for each in chain]
    known = tuple(each for each in found if each)
    return known if known and len(known) == len(found) else None


def _kind(evaluation: Evaluation, model: ModelEvaluation) -> str:
    average = _average(evaluation, model.name)
    if average is None or average.difference is None:
        return ""
    return judge(average.difference, average.p_value)


def _average(evaluation: Evaluation, name: str) -> Average | None:
    return evaluation.tasks.average(name) if evaluation.tasks else None


def _decode(results: Results, model: ModelEvaluation) -> str:
    bench = results.bench
    if bench is None:
        return ""
    same = [each for each in bench.models[1:] if each.model.digest == model.model.digest]
    won = bench.ratio(same[0].name) if same else None
    found = ratio(won.decode) if won else None
    return found.text if found else ""


def _questions(evaluation: Evaluation) -> int:
    return sum(task.items for task in evaluation.tasks.chief) if evaluation.tasks else 0


def _benchmarks(count: int) -> str:
    return f"{count} benchmark{'s' * (count != 1)}"
