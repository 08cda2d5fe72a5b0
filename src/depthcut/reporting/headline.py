"""What a run came to, in a few numbers: the top of the page and the end of the command."""

from dataclasses import dataclass

from depthcut.reporting.benchmarks.scores import PERCENT
from depthcut.reporting.ladder import chain_average, ladder, ladder_facts, ladder_outcome
from depthcut.reporting.recovery import Measure, on_average, on_text
from depthcut.reporting.results import Results
from depthcut.reporting.words import (
    amount,
    change,
    estimates,
    ratio,
    share,
    short_source,
    size,
    verdict,
)


@dataclass(frozen=True)
class Fact:
    """One headline number."""

    label: str
    values: tuple[str, ...]
    """Before, after, and so on; one where there is nothing to compare."""
    note: str
    """The change, or what the spread is."""


def facts(results: Results) -> tuple[Fact, ...]:
    """The headline numbers that the records allow."""
    if evaluation := ladder(results):
        return tuple(Fact(*each) for each in ladder_facts(results, evaluation))
    return (*_sizes(results), *_quality(results), *_benchmarks(results), *_speeds(results))


def headline_lines(results: Results) -> tuple[str, ...]:
    """The headline as lines for a terminal."""
    lines = [f"{model_name(results)}: {outcome(results)}"]
    shown = facts(results)
    wide = max((len(fact.label) for fact in shown), default=0)
    for fact in shown:
        note, *more = fact.note.split("; ")
        note = f"  ({note})" if note else ""
        lines.append(f"  {fact.label.ljust(wide)}  {' → '.join(fact.values)}{note}")
        lines += [f"  {' ' * wide}  {each}" for each in more]
    lines += [f"  {name}: {text}" for name, text in judgements(results)]
    if results.plan:
        lines += [f"  warning: {warning}" for warning in results.plan.warnings]
    return tuple(lines)


def model_name(results: Results) -> str:
    """As the user named the model before the cut."""
    return results.original.source if results.original else "a model"


def outcome(results: Results) -> str:
    """What became of the model, or what is known of it."""
    if results.plan:
        kept = len(results.plan.kept_layers)
        return f"{results.plan.model.layers} → {kept} layers, {results.plan.change}"
    if results.sweep:
        return f"{len(results.sweep.ways)} ways of choosing among its layers"
    if results.search:
        return f"a search among its {results.search.model.layers} layers"
    if results.survey:
        return f"a survey of its {results.survey.model.layers} layers"
    if evaluation := ladder(results):
        return ladder_outcome(evaluation)
    done = "judged" if results.evaluation else "timed"
    record = results.evaluation or results.bench
    count = len(record.models) if record else 0
    return f"{done} alone" if count < 2 else f"{done} beside {count - 1} more"


def judgements(results: Results) -> list[tuple[str, str]]:
    """Model name and how it stands against the reference, in words; on several texts also how on
    each.
    """
    if results.evaluation is None:
        return []
    evaluation, first = results.evaluation, results.evaluation.models[0].name
    judged = [(each.name, verdict(each.loss_difference)) for each in evaluation.comparisons]
    judged += [
        (f"{model.name} on {short_source(each.source)}", verdict(each.loss_difference))
        for model in evaluation.models
        for each in model.texts
        if each.loss_difference
    ]
    return [
        (name, f"{each.text} {'than' if each.kind in ('worse', 'better') else 'against'} {first}")
        for name, each in judged
    ]


def _states(results: Results) -> str:
    states = [link.state for link, _ in results.judged]
    return ", ".join(states) if len(states) > 1 else "standard error"


def _quality(results: Results) -> list[Fact]:
    known = [model.perplexity for _, model in results.judged if model.perplexity]
    if not known:
        return []
    return [Fact("Perplexity", estimates(known), _states(results) + _back(on_text(results)))]


def _benchmarks(results: Results) -> list[Fact]:
    models = [model for _, model in results.judged]
    averages = chain_average(results.evaluation, models) if results.evaluation else None
    if averages is None:
        return []
    label = f"Average of {len(averages[0].tasks)} benchmarks, %"
    values = tuple(PERCENT.shown(each.value) for each in averages)
    return [Fact(label, values, _states(results) + _back(on_average(results)))]


def _back(measure: Measure | None) -> str:
    """What came back of what the cut lost (of perplexity its logarithm), state by state."""
    if measure is None or not measure.back:
        return ""
    return f"; loss back: {', '.join(share(each) for each in measure.back.values())}"


def _sizes(results: Results) -> list[Fact]:
    plan, original = results.plan, results.original
    if plan is None or original is None:
        if original is None:
            return []
        return [
            Fact("Layers", (str(original.layers),), ""),
            Fact("Parameters", (amount(original.parameters),), ""),
            Fact("Weights", (size(original.weight_bytes),), original.dtype),
        ]
    kept = len(plan.kept_layers)
    gone = sum(original.layer_parameters[layer] for layer in plan.removed_layers)
    left = original.parameters - gone
    made = results.slice.result if results.slice else None
    found = [
        Fact("Layers", (str(original.layers), str(kept)), change(original.layers, kept)),
        Fact(
            "Parameters",
            (amount(original.parameters), amount(left)),
            change(original.parameters, left),
        ),
    ]
    if made:
        before, after = original.weight_bytes, made.weight_bytes
        found.append(Fact("Weights", (size(before), size(after)), change(before, after)))
    return found


def _speeds(results: Results) -> list[Fact]:
    won = results.speed_ratio
    if won is None:
        return []
    measured = (("Prefill speed", ratio(won.first_token)), ("Decode speed", ratio(won.decode)))
    return [
        Fact(label, (each.text,), f"middle half of rounds {each.spread}")
        for label, each in measured
        if each is not None
    ]
