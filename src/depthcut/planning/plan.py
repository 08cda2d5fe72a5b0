"""Survey and budget, a search, a hand or a recipe to a plan, as a record. No torch.

The choice is exact (`choosing`): the best set of layers and the runners-up, for any number of
separate blocks at once.
"""

import math
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence

from depthcut.choosing import best_choices
from depthcut.errors import PlanError, SettingsError
from depthcut.mergekit import MergekitRecipe
from depthcut.planning.stability import stability
from depthcut.records import (
    PARTS,
    Alternative,
    Block,
    Estimate,
    LayerSlice,
    ModelFacts,
    Origin,
    Plan,
    Scores,
    Search,
    Sublayer,
    Survey,
    inputs_digest,
    layer_set,
    merged,
    slices_without,
    sublayers_of,
    unit_set,
    units_of,
)
from depthcut.settings import PlanSettings

BUDGETS = ("drop", "keep", "params", "remove")
"""The settings that say which layers go; one of them is given."""
RUNNERS_UP = 5
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def plan_from_survey(survey: Survey, settings: PlanSettings) -> Plan:
    """The best choice of layers by one criterion of a survey, with the runners-up.

    A criterion of attention or of the MLP alone chooses among these.

    With `settings.remove` the layers are the hand's, and the survey's best choices of as many
    layers stand beside them.

    Raises:
        SettingsError: Not exactly one budget, or one that cannot be read.
        PlanError: More layers than there are, none, or none allowed by the protected ones.
        RecordError: The survey lacks the criterion.
    """
    started = time.monotonic()
    _check_settings(settings)
    scores = survey.find(settings.criterion, settings.tokens)
    protected = _protected(settings, scores)
    if settings.remove is not None:
        choice = _scored_by_hand(settings, scores)
        # The same number of layers, as far as the criterion scores what can be compared.
        scored = _is_scored(scores, choice)
        ranked = _ranked(scores, layer_count(choice), protected, settings) if scored else []
    elif settings.params is not None:
        if scores.scope in PARTS:
            raise SettingsError(
                f"params {settings.params} and {scores.criterion}: zeros take as much room; say "
                "--drop or --keep"
            )
        ranked = _ranked_for_size(survey, scores, protected, settings)
        choice = ranked[0]
    else:
        ranked = _ranked(scores, budget(settings, survey.model.layers), protected, settings)
        choice = ranked[0]
    stable = (
        stability(
            scores, survey.text, choice, protected=frozenset(protected), blocks=settings.blocks
        )
        if settings.remove is None and scores.scope not in PARTS
        else None
    )
    removed, zeroed = _gone(scores, choice)
    return Plan(
        origin=Origin.since(started, inputs=plan_inputs(settings, survey.origin.inputs)),
        model=survey.model,
        settings=settings,
        survey=survey.origin.inputs,
        slices=slices_without(removed, survey.model.layers),
        zeroed=zeroed,
        stability=stable,
        score=_score(scores, choice) if _is_scored(scores, choice) else None,
        alternatives=tuple(
            Alternative(
                removed=_gone(scores, other)[0],
                zeroed=_gone(scores, other)[1],
                score=_score(scores, other),
                difference=paired_difference(scores, other, choice),
            )
            for other in ranked
            if other != choice
        ),
        warnings=(*_unscored(scores, choice), *_warnings(removed, survey.model.layers)),
    )


def plan_from_search(search: Search, settings: PlanSettings) -> Plan:
    """The best choice of so many layers that a search found.

    Raises:
        SettingsError: Another budget than drop, keep or params.
        PlanError: A number of layers that the search did not come to, or a protected layer that
            it took.
    """
    started = time.monotonic()
    _check_settings(settings)
    layers = search.model.layers
    if settings.remove is not None:
        raise SettingsError("remove and a search: name the model instead of the search")
    by_parts = search.settings.granularity == "sublayer"
    if settings.params is not None and by_parts:
        raise SettingsError(
            f"params {settings.params} and a search of attention and MLP: zeros take as much room; "
            "say --drop or --keep, which count these"
        )
    if settings.params is not None:
        choices = [point.removed for point in search.frontier]
        point = search.find(layer_count(_first_of_size(search.model, choices, settings.params)))
    else:
        point = search.find(budget(settings, 2 * layers if by_parts else layers))
    taken = set(units_of(point.removed, point.zeroed))
    if both := sorted(taken & set(unit_set(settings.protect or "", layers))):
        raise PlanError(
            f"protect {settings.protect}: the search took layer {both[0] // 2}, or a part of it; "
            "search with --protect"
        )
    score = point.kl_divergence if search.settings.objective == "kl" else point.loss
    return Plan(
        origin=Origin.since(started, inputs=plan_inputs(settings, search.origin.inputs)),
        model=search.model,
        settings=settings,
        survey=search.origin.inputs,
        search=search.settings,
        slices=slices_without(point.removed, layers),
        zeroed=point.zeroed,
        score=score.value,
        alternatives=point.runners_up,
        warnings=_warnings(point.removed, layers),
    )


def plan_by_hand(model: ModelFacts, settings: PlanSettings) -> Plan:
    """A plan of the layers that `settings.remove` names, without a survey.

    Raises:
        SettingsError: Another budget is given, or none.
        PlanError: Layers out of range, none, all, or protected ones.
    """
    started = time.monotonic()
    _check_settings(settings)
    if settings.remove is None:
        raise SettingsError(
            "a model alone does not say which layers to spare: survey or search it first (depthcut "
            "survey, depthcut search) and plan from that, or name the layers: --remove 12-18,22"
        )
    removed, zeroed = by_hand(settings, model.layers)
    return Plan(
        origin=Origin.since(started, inputs=plan_inputs(settings, model.digest)),
        model=model,
        settings=settings,
        survey=None,
        slices=slices_without(removed, model.layers),
        zeroed=zeroed,
        score=None,
        alternatives=(),
        warnings=_warnings(removed, model.layers),
    )


def plan_by_mergekit(model: ModelFacts, recipe: MergekitRecipe, settings: PlanSettings) -> Plan:
    """A plan of the layers that a mergekit recipe puts together, in any order, with repeats.

    Args:
        model: The model whose layers they are; the recipe may know it by another name.
        recipe: Slices of one model.
        settings: Of the other ways to plan: it must name none.

    Raises:
        SettingsError: A budget is given too, or the recipe wants another dtype.
        PlanError: Layers of several models, layers out of range, or nothing would change.
    """
    started = time.monotonic()
    if given := [name for name in BUDGETS if getattr(settings, name) is not None]:
        raise SettingsError(f"{given[0]} and a mergekit recipe: give one of them")
    names = sorted({each.model or model.source for each in recipe.slices})
    if len(names) > 1:
        raise PlanError(
            f"the recipe takes layers of {len(names)} models ({', '.join(names)}): only one "
            "model's layers can be arranged; leave the others out"
        )
    if others := [dtype for dtype in recipe.dtypes if dtype != model.dtype]:
        raise SettingsError(
            f"the recipe wants {others[0]}, {model.source} is {model.dtype}: layers are copied as "
            "they are; leave the dtype out, and convert the model first if you need it"
        )
    slices = tuple(LayerSlice(start=each.start, stop=each.stop) for each in recipe.slices)
    for each in slices:
        if each.stop > model.layers:
            raise PlanError(
                f"the recipe takes layers [{each.start}, {each.stop}): {model.source} has "
                f"{model.layers}, numbered 0 to {model.layers - 1}"
            )
    kept = [layer for each in slices for layer in range(each.start, each.stop)]
    if kept == list(range(model.layers)):
        raise PlanError(f"the recipe keeps all {model.layers} layers as they are: nothing to plan")
    removed = merged(set(range(model.layers)) - set(kept))
    same = names == [model.source]
    taken = () if same else (f"the recipe's {names[0]} was taken to be {model.source}",)
    return Plan(
        origin=Origin.since(
            started, inputs=inputs_digest("plan by mergekit", model.digest, *slices)
        ),
        model=model,
        settings=settings,
        survey=None,
        slices=slices,
        score=None,
        alternatives=(),
        warnings=(*taken, *recipe.notes, *_warnings(removed, model.layers)),
    )


def plan_inputs(settings: PlanSettings, source: str) -> str:
    """Digest of what a plan depends on: `source` is the survey's inputs or the model's digest."""
    return inputs_digest("plan", settings, source)


def layer_count(blocks: Iterable[Block]) -> int:
    """How many layers the blocks hold."""
    return sum(stop - start for start, stop in blocks)


def budget(settings: PlanSettings, layers: int) -> int:
    """How many of `layers` layers `drop` or `keep` asks to remove; a share is rounded down.

    Raises:
        SettingsError: Neither a number nor a share.
        PlanError: None or all of the layers.
    """
    if settings.keep is not None:
        count = layers - settings.keep
        asked = f"keep {settings.keep}"
    else:
        asked = f"drop {settings.drop}"
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", str(settings.drop))
        if match is None or (not match[2] and "." in match[1]):
            raise SettingsError(f"{asked}: write a number of layers (7) or a share (25%)")
        count = int(layers * float(match[1]) / 100 + 1e-9) if match[2] else int(match[1])
    _check_count(count, layers, asked)
    return count


def paired_difference(scores: Scores, first: Sequence[Block], second: Sequence[Block]) -> Estimate:
    """Score of `first` minus score of `second`, with the standard error over the same sequences."""
    samples = array("f", scores.per_sequence)
    width = sum(len(row) for row in scores.mean)
    columns_first, columns_second = _columns(scores, first), _columns(scores, second)
    differences = [
        math.fsum(samples[row + column] for column in columns_first)
        - math.fsum(samples[row + column] for column in columns_second)
        for row in range(0, len(samples), width)
    ]
    value = _score(scores, first) - _score(scores, second)
    count = len(differences)
    if count < 2:
        return Estimate(value=value, stderr=0.0)
    mean = math.fsum(differences) / count
    variance = math.fsum((each - mean) ** 2 for each in differences) / (count - 1)
    return Estimate(value=value, stderr=math.sqrt(variance / count))


def _ranked(
    scores: Scores, count: int, protected: Sequence[int], settings: PlanSettings
) -> list[tuple[Block, ...]]:
    layers = len(scores.mean)
    found = best_choices(
        scores.mean,
        count,
        scope=scores.scope,
        protected=frozenset(protected),
        blocks=settings.blocks,
        most=RUNNERS_UP + 1,
    )
    if not found and not protected:
        raise PlanError(
            f"no choice of {count} of {layers} layers in at most {settings.blocks} block(s): "
            f"{_what_is_scored(scores)}; survey with a higher --largest-block, allow more "
            "--blocks, or drop fewer"
        )
    if not found:
        raise PlanError(
            f"no choice of {count} of {layers} layers in at most {settings.blocks} block(s) "
            f"leaves the protected layers {settings.protect}: protect fewer, drop fewer, "
            "or allow more --blocks"
        )
    return found


def _ranked_for_size(
    survey: Survey, scores: Scores, protected: Sequence[int], settings: PlanSettings
) -> list[tuple[Block, ...]]:
    rankings: dict[tuple[Block, ...], list[tuple[Block, ...]]] = {}

    def choices() -> Iterator[tuple[Block, ...]]:  # no more than it takes: a criterion may end
        for count in range(1, survey.model.layers):
            ranked = _ranked(scores, count, protected, settings)
            rankings[ranked[0]] = ranked
            yield ranked[0]

    return rankings[_first_of_size(survey.model, choices(), settings.params or "")]


def _first_of_size(
    model: ModelFacts, choices: Iterable[tuple[Block, ...]], params: str
) -> tuple[Block, ...]:
    """The first choice that leaves at most so many parameters."""
    target, sizes = _parameters(params), model.layer_parameters
    for choice in choices:
        gone = sum(sizes[layer] for block in choice for layer in range(*block))
        if model.parameters - gone <= target:
            return choice
    least = model.other_parameters + min(sizes)
    raise PlanError(
        f"params {params}: one layer and the embeddings alone have {least:,} parameters; "
        "ask for more, or for more removed layers"
    )


def _score(scores: Scores, blocks: Sequence[Block]) -> float:
    return math.fsum(scores.mean[start][size - 1] for start, size in _entries(scores, blocks))


def _is_scored(scores: Scores, blocks: Sequence[Block]) -> bool:
    return all(size <= len(scores.mean[start]) for start, size in _entries(scores, blocks))


def _what_is_scored(scores: Scores) -> str:
    largest = max(len(row) for row in scores.mean)
    return f"{scores.criterion} scores blocks of up to {largest} layers"


def _unscored(scores: Scores, choice: Sequence[Block]) -> tuple[str, ...]:
    """A choice of the hand's may be beyond what the criterion scores."""
    if _is_scored(scores, choice):
        return ()
    return (f"has no score: {_what_is_scored(scores)}",)


def _columns(scores: Scores, blocks: Sequence[Block]) -> list[int]:
    starts = [0]
    for row in scores.mean:
        starts.append(starts[-1] + len(row))
    return [starts[start] + size - 1 for start, size in _entries(scores, blocks)]


def _entries(scores: Scores, blocks: Sequence[Block]) -> list[tuple[int, int]]:
    if scores.scope == "block":
        return [(start, stop - start) for start, stop in blocks]
    return [(layer, 1) for start, stop in blocks for layer in range(start, stop)]


def _check_settings(settings: PlanSettings) -> None:
    given = [name for name in BUDGETS if getattr(settings, name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        raise SettingsError(f"give exactly one of drop, keep, params and remove: {found}")
    if settings.blocks < 1:
        raise SettingsError(f"blocks {settings.blocks}: at least one block must be allowed")


def _check_count(count: int, layers: int, asked: str) -> None:
    if count < 1:
        raise PlanError(f"{asked}: removes none of the {layers} layers; ask for at least one")
    if count >= layers:
        raise PlanError(
            f"{asked}: removes {count} of {layers} layers; at least one must stay, "
            f"so drop at most {layers - 1}"
        )


def _gone(
    scores: Scores, choice: Sequence[Block]
) -> tuple[tuple[Block, ...], tuple[Sublayer, ...]]:
    """What goes where the scores choose these layers: the layers, or that part of each."""
    for part in PARTS:
        if scores.scope == part:
            layers = (layer for block in choice for layer in range(*block))
            return (), tuple(Sublayer(layer=layer, part=part) for layer in layers)
    return tuple(choice), ()


def _protected(settings: PlanSettings, scores: Scores) -> tuple[int, ...]:
    layers = len(scores.mean)
    for number, part in enumerate(PARTS):
        if scores.scope == part:
            units = unit_set(settings.protect or "", layers)
            return tuple(unit // 2 for unit in units if unit % 2 == number)
    return layer_set(settings.protect or "", layers)


def _scored_by_hand(settings: PlanSettings, scores: Scores) -> tuple[Block, ...]:
    """The layers that `remove` names, or whose part of the scores' scope it names alone."""
    removed, zeroed = by_hand(settings, len(scores.mean))
    layers = {each.layer for each in zeroed}
    if not zeroed and scores.scope not in PARTS:
        return removed
    if removed or {each.part for each in zeroed} != {scores.scope}:
        scored = scores.scope if scores.scope in PARTS else "whole layers"
        raise SettingsError(
            f"remove {settings.remove}: {settings.criterion} scores {scored}; name the model "
            "instead of the survey"
        )
    return merged(layers)


def by_hand(settings: PlanSettings, layers: int) -> tuple[tuple[Block, ...], tuple[Sublayer, ...]]:
    """The layers, and the parts of other layers, that `remove` names.

    Raises:
        SettingsError: Not a list of layers.
        PlanError: None or all of the layers, one that is not there, or a protected one.
    """
    asked = f"remove {settings.remove}"
    chosen = unit_set(settings.remove or "", layers)
    removed, zeroed = sublayers_of(chosen)
    if not zeroed or layer_count(removed) == layers:
        _check_count(layer_count(removed), layers, asked)
    if both := sorted(set(chosen) & set(unit_set(settings.protect or "", layers))):
        raise PlanError(
            f"{asked}: layer {both[0] // 2} is protected too; take it out of one of them"
        )
    return removed, zeroed


def _parameters(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMBT]?)\s*", text.upper())
    if match is None:
        raise SettingsError(f"params {text}: write a size such as 100M or 6.5B")
    return float(match[1]) * _UNITS[match[2]]


def _warnings(removed: Sequence[Block], layers: int) -> tuple[str, ...]:
    gone = {layer for block in removed for layer in range(*block)}
    found = []
    if early := sorted(gone & {0, 1}):
        names = " and ".join(map(str, early))
        found.append(f"removes layer {names} of the first two, which is known to hurt most models")
    if layers - 1 in gone:
        found.append(f"removes the last layer ({layers - 1}), which is known to hurt most models")
    return tuple(found)
