"""Records as tables for a terminal."""

from rich.console import Console, Group, RenderableType
from rich.table import Table

from depthcut.records import (
    Estimate,
    Evaluation,
    HealRecord,
    Plan,
    SliceRecord,
    Speed,
    Survey,
    layers_in_words,
)

CLEARLY = 2.0
"""Differences of at least so many standard errors are called more than their error."""


def show(content: RenderableType) -> None:
    """Print to stdout."""
    Console(highlight=False).print(content)


def survey_table(survey: Survey) -> RenderableType:
    """The best block of each size, by each criterion that scores blocks; scores of the layers."""
    model, text = survey.model, survey.text
    head = (
        f"{model.source}: {model.layers} layers, {size(model.parameters)} parameters; "
        f"{text.source}: {text.sequences:,} sequences, {text.tokens:,} tokens; "
        f"{survey.origin.seconds:.0f} s"
    )
    blocks = [scores for scores in survey.scores if scores.scope == "block"]
    best = Table("removed", title="Most redundant block of each size", title_justify="left")
    for scores in blocks:
        best.add_column(
            f"{scores.criterion}, {scores.tokens} token{'s' * (scores.tokens == 'all')}"
        )
    for count in range(1, model.layers):
        cells = []
        for scores in blocks:
            column = [row[count - 1] for row in scores.mean if len(row) >= count]
            start = column.index(min(column))
            estimate = Estimate(
                value=scores.mean[start][count - 1], stderr=scores.stderr[start][count - 1]
            )
            where = layers_in_words([(start, start + count)]).split(" (")[0]
            cells.append(f"{where:<13} {with_error(estimate)}")
        best.add_row(f"{count} layer{'s' * (count > 1)}", *cells)
    return Group(head, best)


def plan_table(plan: Plan) -> RenderableType:
    """What goes, the runners-up, and whether they differ by more than their error."""
    layers = plan.model.layers
    gone = sum(plan.model.layer_parameters[layer] for layer in plan.removed_layers)
    kept = len(plan.kept_layers)
    lines: list[RenderableType] = [
        f"[bold]{plan.words} go[/bold]: {layers} layers become {kept}, "
        f"{size(plan.model.parameters)} parameters become {size(plan.model.parameters - gone)}"
    ]
    if plan.score is not None:
        lines.append(
            f"{plan.settings.criterion} at {plan.settings.tokens} tokens: {plan.score:.4f}"
        )
    if plan.alternatives:
        table = Table("instead", "score", "difference ± error", "")
        for other in plan.alternatives:
            difference = other.difference
            clear = abs(difference.value) > CLEARLY * difference.stderr
            table.add_row(
                layers_in_words(other.removed),
                f"{other.score:.4f}",
                with_error(difference, sign=True),
                "clearly different" if clear else "not distinguishable",
            )
        lines.append(table)
    lines += [f"[yellow]warning:[/yellow] {warning}" for warning in plan.warnings]
    return Group(*lines)


def slice_line(record: SliceRecord) -> str:
    """One line on a sliced checkpoint."""
    before, after = record.plan.model, record.result
    return (
        f"{record.plan.words} removed: {before.layers} layers become {after.layers}, "
        f"{before.weight_bytes / 1e6:,.0f} MB become {after.weight_bytes / 1e6:,.0f} MB "
        f"({record.origin.seconds:.1f} s)"
    )


def heal_line(record: HealRecord) -> str:
    """One line on a healed checkpoint."""
    rate = record.trained_tokens / record.origin.seconds
    first, last = record.losses[0][1], record.losses[-1][1]
    return (
        f"{record.settings.steps} steps, {record.trained_tokens:,} tokens at {rate:,.0f} tokens/s: "
        f"training loss {first:.3f} became {last:.3f} nats per token"
    )


def evaluation_table(evaluation: Evaluation) -> RenderableType:
    """One row a model: size, quality against the first, speed."""
    text = evaluation.text
    table = Table(
        "model", "layers", "parameters", "perplexity", "bits/byte", "loss difference",
        "same top token", "KL", "prefill tok/s", "decode tok/s", "memory",
    )  # fmt: skip
    compared = {each.name: each for each in evaluation.comparisons}
    for each in evaluation.models:
        other = compared.get(each.name)
        memory = each.peak_memory_bytes
        table.add_row(
            each.name,
            str(each.model.layers),
            size(each.model.parameters),
            with_error(each.perplexity, digits=2),
            with_error(each.bits_per_byte),
            with_error(other.loss_difference, sign=True) if other else "",
            f"{other.agreement.value:.1%}" if other else "",
            with_error(other.kl_divergence) if other else "",
            speed(each.prefill),
            speed(each.decode),
            f"{memory / 1e6:,.0f} MB" if memory else "",
        )
    return Group(f"{text.source}: {text.sequences:,} sequences, {text.tokens:,} tokens", table)


def with_error(estimate: Estimate, *, digits: int = 4, sign: bool = False) -> str:
    """'value ± standard error'."""
    plus = "+" if sign else ""
    return f"{estimate.value:{plus}.{digits}f} ± {estimate.stderr:.{digits}f}"


def speed(measured: Speed | None) -> str:
    """'median (first–third quartile)' in tokens per second."""
    if measured is None:
        return ""
    return f"{measured.median:,.0f} ({measured.low:,.0f}–{measured.high:,.0f})"


def size(parameters: int) -> str:
    """134515008 as '134.5M'."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            return f"{parameters / scale:.1f}{unit}"
    return str(parameters)
