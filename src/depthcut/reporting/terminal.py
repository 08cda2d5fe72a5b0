"""Records as tables for a terminal."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from depthcut.records import (
    Bench,
    Comparison,
    Estimate,
    Evaluation,
    HealRecord,
    Inspection,
    ModelEvaluation,
    OwnText,
    Plan,
    RepairRecord,
    Scores,
    Search,
    SliceRecord,
    Spread,
    Survey,
    Sweep,
    TextQuality,
    Verification,
    error_words,
    layers_in_words,
)
from depthcut.reporting.benchmarks.terminal import benchmark_tables
from depthcut.reporting.criteria_tables import choices, lowest
from depthcut.reporting.headline import headline_lines
from depthcut.reporting.results import read_results, with_short_names
from depthcut.reporting.sweep_tables import (
    STANDING_COLUMNS,
    Cell,
    cells_by_way,
    some_counts,
    standing_rows,
)
from depthcut.reporting.words import (
    ERRORS,
    amount,
    duration,
    estimate,
    ratio,
    score,
    seconds,
    short_source,
    size,
    span,
    speed,
    stability_in_words,
    stopping_in_words,
    verdict,
)

_OBJECTIVES = {"kl": "KL divergence in nats", "loss": "loss in nats"}
_QUALITY = ("perplexity", "bits/byte", "same next token", "KL", "loss against first")
_NO_TERMINAL = 160
"""Characters in a line of what is piped."""
_COLUMNS = 2
"""Of blocks with their scores, as fit a terminal."""
_COUNTS = 7
"""Numbers of layers, as fit a terminal."""


def show(content: RenderableType) -> None:
    """Print to stdout; a line of text is as it is and never broken, a table fits the terminal.

    Where there is none a table has room. No number is ever cut short.
    """
    line = isinstance(content, str)
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _NO_TERMINAL
    _fold(content)
    console.print(content, soft_wrap=line, markup=not line)


def _fold(content: object) -> None:
    """Let what is too wide for its column go on in the next line."""
    for each in content.renderables if isinstance(content, Group) else ():
        _fold(each)
    for column in content.columns if isinstance(content, Table) else ():
        column.overflow = "fold"


def survey_table(survey: Survey) -> RenderableType:
    """The best block of each size up to half of the layers; or what each of many criteria takes."""
    model, text = survey.model, survey.text
    head = (
        f"{model.source}: {model.layers} layers, {amount(model.parameters)} parameters; "
        f"{text.source}: {text.sequences:,} sequences, {text.tokens:,} tokens; "
        f"{duration(survey.origin.seconds)}"
    )
    if survey.stopping:
        head += f"\n{stopping_in_words(survey.stopping)}"
    blocks = [scores for scores in survey.scores if scores.scope == "block"]
    if not blocks or len(blocks) > _COLUMNS:
        found = choices(survey, largest=min(8, max(1, model.layers // 2)))
        table = Table(title="What goes, by number of layers", title_justify="left")
        table.add_column(found.columns[0], no_wrap=True)
        for name in found.columns[1:]:
            table.add_column(name)
        for row in found.rows:
            table.add_row(*row)
        return Group(escape(head), table)
    best = Table("removed", title="Most redundant block of each size", title_justify="left")
    for scores in blocks:
        best.add_column(_criterion(scores.criterion, scores.tokens))
    for count in range(1, max(2, model.layers // 2 + 1)):
        cells = [_best_block(scores, count) for scores in blocks]
        best.add_row(f"{count} layer{'s' * (count > 1)}", *cells)
    return Group(escape(head), best)


def search_table(search: Search) -> RenderableType:
    """The best choice of each number of layers, and what the search took."""
    model, text, cost = search.model, search.text, search.cost
    head = (
        f"{model.source}: {model.layers} layers; {text.source}: {text.sequences:,} sequences, "
        f"{text.tokens:,} tokens; {duration(cost.seconds)}, {cost.forwards:,.0f} forward passes"
    )
    table = Table("removed", "loss lost, nats ± error", "KL, nats ± error")
    for point in search.frontier:
        table.add_row(
            span(point.removed, point.zeroed),
            estimate(point.loss_difference, sign=True),
            estimate(point.kl_divergence),
        )
    if search.complete:
        return Group(escape(head), table)
    if not search.frontier:
        nothing = "stopped at its budget before any choice: raise --minutes or --evaluations"
        return Group(escape(head), f"[yellow]{nothing}[/yellow]")
    return Group(escape(head), table, "[yellow]stopped at its budget[/yellow]")


def own_text_line(record: OwnText) -> str:
    """What a model wrote, and how much of it was cut."""
    cuts = f", {record.cut:,} cut at {record.settings.new_tokens:,} tokens" if record.cut else ""
    return (
        f"{record.source}: {record.documents:,} texts of {record.model.source}{cuts}; "
        f"{record.tokens:,} tokens in {duration(record.origin.seconds)}"
    )


def sweep_tables(sweep: Sweep) -> RenderableType:
    """How the ways stand, and on each text the perplexity at some numbers of layers."""
    head = f"{sweep.model.source}: {sweep.model.layers} layers; chosen on {sweep.calibration}"
    standing = Table()
    for column in STANDING_COLUMNS:
        standing.add_column(column, no_wrap=column == "way")
    for cells in standing_rows(sweep):
        standing.add_row(*cells)
    shown = some_counts(sweep.counts, _COUNTS)
    at = [sweep.counts.index(count) for count in shown]
    parts: list[RenderableType] = [escape(head), standing]
    for judged in sweep.judged:
        text = escape(short_source(judged.name))
        parts.append(f"Perplexity on {text}, by number of removed layers:")
        table = Table("way")
        for count in (0, *shown):
            table.add_column(str(count), justify="right")
        untouched = score(judged.untouched.perplexity.value)
        for name, row in cells_by_way(sweep, judged).items():
            table.add_row(name, untouched, *(_perplexity(row[place]) for place in at))
        parts.append(table)
    return Group(*parts, "[bold]bold[/bold]: the best of its column; *: not told apart from it")


def _perplexity(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    shown = score(cell.said.perplexity.value)
    return f"[bold]{shown}[/bold]" if cell.best else f"{shown}*" if cell.tied else shown


def inspection_tables(record: Inspection) -> RenderableType:
    """What a model is made of, and what of it must stay."""
    model = record.model
    kinds = ", ".join(f"{dtype} {size(taken)}" for dtype, taken in record.dtypes)
    heads = {
        "own": "a head of its own",
        "tied": "the head shares the embeddings' weights",
        "none": "no head",
    }
    facts = [
        f"{record.form}, {record.files} file{'s' * (record.files > 1)}",
        f"quantised by {record.quantization}" if record.quantization else "",
        heads[record.head],
        f"{record.prediction_layers} layer(s) behind the stack predict further tokens"
        if record.prediction_layers
        else "",
        f"code of its own: {', '.join(record.code)}" if record.code else "",
    ]
    lines: list[RenderableType] = [
        f"{escape(model.source)}: {model.model_type}, {model.layers} layers of width "
        f"{model.hidden_size}, "
        f"{amount(model.parameters)} parameters, {size(model.weight_bytes)} ({kinds})",
        "; ".join(filter(None, facts)),
        *(f"[yellow]assumed:[/yellow] {escape(each)}" for each in record.assumed),
        _layers_table(record),
    ]
    if record.fields:
        table = Table("field", "says")
        for field in record.fields:
            table.add_row(escape("\n".join(field.keys)), escape(_runs(field.runs)))
        lines.append(table)
    for name in record.sliced:
        lines.append(f"{escape(name)} holds a part for each layer")
    for refusal in record.refusals:
        where = span(refusal.layers)
        lines.append(f"[yellow]cannot go alone:[/yellow] {where}: {escape(refusal.reason)}")
    if not record.refusals:
        lines.append("every single layer can go")
    return Group(*lines)


def _layers_table(record: Inspection) -> Table:
    stacks = escape(", ".join(record.stacks))
    table = Table(
        "layers", "tensors", "parameters", "bytes", "made of", title=stacks, title_justify="left"
    )
    for group in record.layers:
        table.add_row(
            _span(group.start, group.stop),
            str(group.tensors),
            amount(group.parameters),
            size(group.size_bytes),
            escape(" ".join(name for name in group.modules if "norm" not in name)),
        )
    table.add_row("others", str(record.other_tensors), "", size(record.other_bytes), "")
    return table


def _runs(runs: Sequence[tuple[int, int, str]]) -> str:
    if len(runs) == 1:
        return f"{runs[0][2]} everywhere"
    told = [run for run in runs if run[2] != "null"]
    return ", ".join(f"{_span(start, stop)}: {value}" for start, stop, value in told)


def _span(start: int, stop: int) -> str:
    return str(start) if stop - start == 1 else f"{start}–{stop - 1}"


def plan_table(plan: Plan) -> RenderableType:
    """What goes, the runners-up, and whether they differ by more than their error."""
    model, kept = plan.model, len(plan.kept_layers)
    left = model.other_parameters + sum(model.layer_parameters[i] for i in plan.kept_layers)
    lines: list[RenderableType] = [
        f"{escape(model.source)} {plan.change}: {model.layers} layers become {kept}, "
        f"{amount(model.parameters)} parameters become {amount(left)}"
    ]
    if plan.score is not None:
        by = (
            f"{plan.search.method} search, {_OBJECTIVES[plan.search.objective]}"
            if plan.search
            else _criterion(plan.settings.criterion, plan.settings.tokens)
        )
        lines.append(f"{by}: {score(plan.score)}")
    if plan.alternatives:
        table = Table("instead", "score", "difference ± error", "so it is")
        for other in plan.alternatives:
            table.add_row(
                other.words,
                score(other.score),
                estimate(other.difference, sign=True),
                _judged(other.difference),
            )
        lines.append(table)
    if plan.stability:
        lines.append(escape(stability_in_words(plan.stability)))
    lines += [f"[yellow]warning:[/yellow] {escape(warning)}" for warning in plan.warnings]
    return Group(*lines)


def slice_line(record: SliceRecord) -> str:
    """One line on a sliced checkpoint."""
    before, after = record.parent, record.result
    # An adapter, or another quantisation than the plan's, is not compared with the plan's model.
    same = (before.dtype, before.other_parameters) == (after.dtype, after.other_parameters)
    written = (
        f"{size(before.weight_bytes)} become {size(after.weight_bytes)}"
        if same
        else f"{size(after.weight_bytes)} written"
    )
    return (
        f"{record.plan.change}: {before.layers} layers become {after.layers}, {written} "
        f"({duration(record.origin.seconds)})"
    )


def verification_lines(record: Verification) -> str:
    """What was proved."""
    seconds = record.origin.seconds
    rate = f", {size(record.tensor_bytes / seconds)} a second" if seconds else ""
    zeroed = record.zeroed_tensors
    whose = (
        f"{zeroed:,} of them zero as the plan wants, every byte of the others the parent's"
        if zeroed
        else "every byte the parent's"
    )
    lines = [
        f"{record.folder} is what its plan makes of {record.parent.source}:",
        f"  {record.tensors:,} tensors, {size(record.tensor_bytes)}: {whose} "
        f"({duration(seconds)}{rate})",
        f"  {record.config_values:,} values of config.json, "
        f"{record.companions} file{'s' * (record.companions != 1)} beside it",
    ]
    if record.loads:
        lines.append(
            f"  transformers builds all {record.result.layers} layers as they were; no tensor is "
            "missing or left over that was not so in the parent"
        )
    return "\n".join(lines)


def repair_lines(record: RepairRecord) -> str:
    """What a repair made up for: a line, and one for each removed block."""
    lines = [
        f"{record.plan.change}: {record.parent.layers} layers become {record.result.layers}, made "
        f"up for by {record.settings.method}"
        + (f" from {record.fitted_tokens:,} tokens" if record.fitted_tokens else "")
        + f" ({duration(record.origin.seconds)})"
    ]
    for block in record.blocks:
        lines.append(
            f"  instead of {layers_in_words([(block.start, block.stop)])}: on held-out text "
            f"{error_words(record.settings)} is {block.error_after:.1%}, {block.error_before:.1%} "
            "by the cut alone"
        )
        for step in block.steps:
            said = {"condition": step.condition, "ridge": step.ridge, "strength": step.strength}
            numbers = ", ".join(f"{key} {its:.3g}" for key, its in said.items() if its is not None)
            lines.append(
                f"    {', '.join(step.tensors)}: from {step.error_before:.1%} to "
                f"{step.error_after:.1%} ({numbers})"
            )
    return "\n".join(lines)


def heal_line(record: HealRecord) -> str:
    """One line on a healed checkpoint."""
    steps = record.losses[-1][0]
    done = f"{steps} steps, {record.trained_tokens:,} tokens in {duration(record.training_seconds)}"
    if not record.judgements:
        (_, first), (_, last) = record.losses[0], record.losses[-1]
        return f"{done}: training loss {first:.3f} became {last:.3f} nats per token"
    first = record.judgements[0].next_token
    best = next(each for each in record.judgements if each.step == record.best_step)
    early = ", stopped early" if record.stopped_early else ""
    return (
        f"{done}{early}: on held-out text the loss went from {first:.3f} to {best.next_token:.3f} "
        f"nats per token (best after {record.best_step} steps)"
    )


def evaluation_tables(evaluation: Evaluation) -> RenderableType:
    """Quality against the first where a text was read; size and speed; benchmarks."""
    evaluation = with_short_names(evaluation)
    text = evaluation.text
    compared = {each.name: each for each in evaluation.comparisons}
    quality = Table("model", "layers", *_QUALITY)
    cost = Table("model", "parameters", "weights")
    for each in evaluation.models:
        other = compared.get(each.name)
        quality.add_row(escape(each.name), str(each.model.layers), *_quality_cells(each, other))
        cost.add_row(
            escape(each.name), amount(each.model.parameters), size(each.model.weight_bytes)
        )
    parts: list[RenderableType] = [cost]
    if text:
        head = f"{text.source}: {text.sequences:,} sequences, {text.tokens:,} tokens"
        apart = [_table_by_text(evaluation)] if evaluation.by_text else []
        parts = [escape(head), quality, *apart, *parts]
    if evaluation.tasks:
        parts.append(benchmark_tables(evaluation.tasks, [each.name for each in evaluation.models]))
    return Group(*parts)


def _table_by_text(evaluation: Evaluation) -> Table:
    """The same for each of several texts by itself."""
    table = Table("text", "model", *_QUALITY)
    for on_text in evaluation.by_text:
        table.add_section()
        for model, each in zip(evaluation.models, on_text, strict=True):
            text = short_source(each.source) if each is on_text[0] else ""
            table.add_row(escape(text), escape(model.name), *_quality_cells(each, each))
    return table


def _quality_cells(
    quality: ModelEvaluation | TextQuality, against: Comparison | TextQuality | None
) -> tuple[str, ...]:
    """In the order of `_QUALITY`."""
    agreement = against.agreement if against else None
    divergence = against.kl_divergence if against else None
    difference = against.loss_difference if against else None
    return (
        estimate(quality.perplexity) if quality.perplexity else "–",
        estimate(quality.bits_per_byte) if quality.bits_per_byte else "–",
        f"{agreement.value:.1%}" if agreement else "–",
        estimate(divergence) if divergence else "–",
        verdict(difference).text if difference else "the reference",
    )


def bench_table(bench: Bench) -> RenderableType:
    """One row a model and batch size: how fast, against the first and the ideal; and what memory.

    A ratio stands beside what it would be if time went by the bytes or the multiply-adds.
    """
    asked, rows = bench.settings, [(each, one) for each in bench.models for one in each.timings]
    where = bench.cpu if bench.device == "cpu" else bench.device
    threads = "" if bench.threads is None else f", {_count(bench.threads, 'thread')}"
    head = (
        f"{asked.engine} on {where}{threads}: {asked.prompt_tokens:,} tokens read, "
        f"{asked.new_tokens:,} written; median and middle half of {_count(asked.rounds, 'round')}"
    )
    sizes, against = len(asked.batch_sizes) > 1, ["×", "ideal"] if bench.ratios else []
    batch, in_all = (["batch"], ["all tok/s"]) if sizes else ([], [])
    times = Table(
        "model", *batch, "first token", "prefill tok/s", *against, "decode tok/s", *against, *in_all
    )
    memory = Table("model", *batch, "weights", "cache", "peak memory")
    for each, timing in rows:
        won = bench.ratio(each.name, timing.batch_size)
        nothing = ("–", "–") if bench.ratios else ()
        named = [escape(each.name), *([str(timing.batch_size)] if sizes else [])]
        times.add_row(
            *named,
            seconds(timing.first_token.median),
            " ".join(speed(timing.prefill)),
            *(_beside_ideal(won.first_token, won.ideal_prefill) if won else nothing),
            " ".join(speed(timing.decode)),
            *(_beside_ideal(won.decode, won.ideal_decode) if won else nothing),
            *([speed(timing.throughput)[0]] if sizes else []),
        )
        memory.add_row(
            *named,
            size(each.weight_bytes),
            "–" if timing.cache_bytes is None else size(timing.cache_bytes),
            "–" if each.peak_memory_bytes is None else size(each.peak_memory_bytes),
        )
    return Group(escape(head), times, memory, *map(escape, _energy_lines(bench)))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _beside_ideal(measured: Spread, ideal: float) -> tuple[str, str]:
    found = ratio(measured)
    return found.text if found else "–", f"{ideal:.2f}×"


def _energy_lines(bench: Bench) -> list[str]:
    return [
        f"{each.name}, batch {timing.batch_size}: {' '.join(speed(used.joules_per_token))} joules "
        f"a new token, by {used.meter}"
        for each in bench.models
        for timing in each.timings
        for used in timing.energy
    ]


def run_lines(folder: Path) -> str:
    """What a run came to."""
    return "\n".join(headline_lines(read_results(folder)))


def _criterion(name: str, tokens: str) -> str:
    return f"{name} at {'the last token' if tokens == 'last' else 'all tokens'}"


def _best_block(scores: Scores, count: int) -> str:
    blocks = lowest(scores, count)
    if not blocks:
        return "–"
    start, _ = blocks[0]
    found = Estimate(value=scores.mean[start][count - 1], stderr=scores.stderr[start][count - 1])
    return f"{span(blocks):<12} {estimate(found, decimals=4)}"


def _judged(difference: Estimate) -> str:
    clear = abs(difference.value) > ERRORS * difference.stderr
    return ("worse" if difference.value > 0 else "better") if clear else "not distinguishable"
