"""What every way chooses: surveys and searches, made now or found from an earlier time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from depthcut.choosing import best_choices
from depthcut.errors import OutputError
from depthcut.files import discard
from depthcut.model.loading import LoadedModel
from depthcut.model.skipping import Work
from depthcut.records import (
    Block,
    Choice,
    Record,
    Search,
    Survey,
    Way,
    layer_set,
    read_record,
    write_record,
)
from depthcut.searching.inputs import discard_other_journal, search_inputs
from depthcut.searching.search import search_model
from depthcut.settings import (
    LoadSettings,
    SearchSettings,
    SurveySettings,
    SweepSettings,
    TextSettings,
)
from depthcut.surveying.criteria import CRITERIA, blocks_up_to, chosen
from depthcut.surveying.inputs import survey_inputs
from depthcut.surveying.survey import survey_model
from depthcut.sweeping.ways import AskedWay, ByCriterion, BySearch
from depthcut.text.sequences import Sequences

Announce = Callable[[str], object]
Read = Callable[[TextSettings], Sequences]
"""Reads the text that the ways choose by, in sequences as the settings say."""

R = TypeVar("R", Survey, Search)


@dataclass
class Chooser:
    """Has ways choose, one after the other."""

    loaded: LoadedModel
    read: Read
    digest: str
    """Of the text."""
    settings: SweepSettings
    load: LoadSettings
    counts: Sequence[int]
    folder: Path | None
    overwrite: bool
    announce: Announce

    def ways(self, asked: Sequence[AskedWay]) -> tuple[Way, ...]:
        """What the ways choose at every number of layers, and what it took, in order."""
        surveys = self._surveys([way for way in asked if isinstance(way, ByCriterion)])
        return tuple(
            _way_of_survey(way, *surveys[way.criterion], self.settings.protect, self.counts)
            if isinstance(way, ByCriterion)
            else _way_of_search(way, self._search(way), self.counts)
            for way in asked
        )

    def _surveys(self, asked: Iterable[ByCriterion]) -> dict[str, tuple[Survey, float]]:
        """By criterion its survey, and the forward passes that this took."""
        groups: dict[str, list[str]] = {}
        for way in asked:
            group = way.criterion if self.settings.time_each else way.group
            names = groups.setdefault(group, [])
            names += [way.criterion] if way.criterion not in names else []
        if not groups:
            return {}
        every = self._survey_settings(name for names in groups.values() for name in names)
        inputs = self._survey_inputs(every)
        path = None if self.folder is None else self.folder / "survey.json"
        there = path is not None and self._found(path, Survey, inputs) is not None
        made: dict[str, tuple[Survey, float]] = {}
        surveys = []
        for group, names in groups.items():
            survey = self._survey(group, names)
            surveys.append(survey)
            made |= dict.fromkeys(names, (survey, survey_forwards(survey, names, self.loaded)))
        if path is not None and not there:
            write_record(_together(surveys, every, inputs), path)
        return made

    def _survey(self, group: str, names: Iterable[str]) -> Survey:
        settings = self._survey_settings(names)
        return self._found_or_made(
            f"surveys/{group}.json",
            Survey,
            self._survey_inputs(settings),
            lambda: survey_model(self.loaded, self.read(settings), settings, self.load),
        )

    def _survey_settings(self, names: Iterable[str]) -> SurveySettings:
        criteria = chosen(names)
        costly = any(criterion.costly for criterion in criteria.values())
        return SurveySettings(
            **_text(self.settings),  # type: ignore[arg-type]
            criteria=tuple(criteria),
            largest_block=max(self.counts) if costly else None,
            batch_size=self.settings.batch_size,
        )

    def _survey_inputs(self, settings: SurveySettings) -> str:
        return survey_inputs(self.loaded.facts.digest, self.digest, settings, self.load)

    def _search(self, way: BySearch) -> Search:
        asked = self.settings
        text = {**_text(asked), "context": asked.search_context, "tokens": asked.search_tokens}
        settings = SearchSettings(
            **text,  # type: ignore[arg-type]
            method=way.method,
            drop=",".join(map(str, self.counts)),
            objective=way.objective,
            protect=asked.protect,
            batch_size=asked.batch_size,
            error_rate=asked.error_rate,
            minutes=asked.minutes,
            evaluations=asked.evaluations,
            seed=way.seed,
        )
        inputs = search_inputs(self.loaded.facts.digest, self.digest, settings, self.load)
        name = f"searches/{file_name(way.name)}.json"
        journal = None if self.folder is None else self.folder / f"{name}.journal"

        def make() -> Search:
            if journal is not None:
                journal.parent.mkdir(parents=True, exist_ok=True)
                if self.overwrite:
                    discard_other_journal(journal, inputs)
            return search_model(
                self.loaded, self.read(settings), settings, self.load, journal=journal
            )

        record = self._found_or_made(name, Search, inputs, make)
        if journal is not None:
            journal.unlink(missing_ok=True)
        return record

    def _found_or_made(self, name: str, kind: type[R], inputs: str, make: Callable[[], R]) -> R:
        path = None if self.folder is None else self.folder / name
        if path is not None and (record := self._found(path, kind, inputs)) is not None:
            self.announce(f"{name} is there already")
            return record
        self.announce(name.partition(".")[0].replace("/", ": "))
        record = make()
        if path is not None:
            write_record(record, path)
        return record

    def _found(self, path: Path, kind: type[R], inputs: str) -> R | None:
        return found(path, kind, inputs, overwrite=self.overwrite)


K = TypeVar("K", bound=Record)


def found(path: Path, kind: type[K], inputs: str, *, overwrite: bool) -> K | None:
    """The record at `path` if it was made from `inputs`; else None, and the place is free.

    Raises:
        OutputError: It was made from others, and `overwrite` is off.
    """
    if not path.exists():
        return None
    record = read_record(path, kind)
    if record.origin.inputs == inputs:  # type: ignore[attr-defined]  # all that are kept have one
        return record
    if not overwrite:
        raise OutputError(
            f"{path} was made from other inputs or settings: choose another --out, or replace it "
            "with --overwrite (what still holds is kept)"
        )
    discard(path)
    return None


def file_name(name: str) -> str:
    """A way's name as a file's."""
    return name.replace("/", "-").replace(":", "-")


def _together(surveys: Sequence[Survey], settings: SurveySettings, inputs: str) -> Survey:
    """All scores as one survey, for the report: the same text gave the same sequences."""
    first = surveys[0]
    seconds = round(sum(survey.origin.seconds for survey in surveys), 3)
    every = [scores for survey in surveys for scores in survey.scores]
    return msgspec.structs.replace(
        first,
        origin=msgspec.structs.replace(first.origin, inputs=inputs, seconds=seconds),
        settings=settings,
        scores=tuple(sorted(every, key=lambda each: settings.criteria.index(each.criterion))),
    )


def survey_forwards(survey: Survey, criteria: Iterable[str], loaded: LoadedModel) -> float:
    """What a survey took, in forward passes of the whole model over its text, head included.

    Every survey runs the layers once, without the head. Gradients take a forward pass and a
    backward one, which does twice its work. Losses take the whole model once, and for each block
    the layers behind it and the head.
    """
    layers = len(loaded.layers)
    needs = {CRITERIA[name].needs for name in criteria}
    forwards = Work(layers, 0).forwards(loaded, 1)
    if "gradients" in needs:
        forwards += 3
    if "losses" in needs:
        blocks = blocks_up_to(layers, survey.settings.largest_block or max(1, layers // 2))
        behind = sum(layers - stop for _, stop in blocks)
        forwards += 1 + Work(behind, len(blocks)).forwards(loaded, 1)
    return forwards


def _way_of_survey(
    way: ByCriterion, survey: Survey, forwards: float, protect: str | None, counts: Iterable[int]
) -> Way:
    seconds = survey.origin.seconds
    return Way(
        name=way.name,
        kind="criterion",
        paper=way.paper,
        tokens=survey.text.tokens,
        seconds=seconds,
        forwards=forwards,
        choices=tuple(
            Choice(removed=removed, seconds=seconds, forwards=forwards)
            for removed in _lowest(way, survey, protect, counts)
        ),
    )


def _lowest(
    way: ByCriterion, survey: Survey, protect: str | None, counts: Iterable[int]
) -> Iterator[tuple[Block, ...]]:
    """What `plan` would take at each number of layers; none where no such block is scored."""
    scores = survey.find(way.criterion, way.tokens)
    protected = frozenset(layer_set(protect or "", survey.model.layers))
    for count in counts:
        yield from best_choices(
            scores.mean, count, scope=scores.scope, protected=protected, blocks=way.blocks
        )


def _way_of_search(way: BySearch, search: Search, counts: Iterable[int]) -> Way:
    choices = []
    for point in search.frontier:
        cost = point.cost or search.cost
        choice = Choice(
            removed=point.removed,
            seconds=cost.seconds if way.looks else 0.0,
            forwards=cost.forwards if way.looks else 0.0,
        )
        choices += [choice] if choice.count in counts else []
    return Way(
        name=way.name,
        kind="search" if way.looks else "baseline",
        paper=way.paper,
        tokens=search.text.tokens,
        seconds=search.cost.seconds if way.looks else 0.0,
        forwards=search.cost.forwards if way.looks else 0.0,
        choices=tuple(choices),
    )


def _text(settings: SweepSettings) -> Mapping[str, object]:
    """What a sweep's settings say of the text, for the settings of a stage."""
    return {name: getattr(settings, name) for name in TextSettings.__struct_fields__}
