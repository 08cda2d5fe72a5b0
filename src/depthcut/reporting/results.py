"""What a run's folder holds, read in one go."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from depthcut.errors import RecordError
from depthcut.records import (
    Average,
    Bench,
    Comparison,
    Difference,
    Evaluation,
    HealRecord,
    ModelEvaluation,
    ModelFacts,
    Plan,
    Record,
    RepairRecord,
    Score,
    Search,
    SliceRecord,
    SpeedRatio,
    Survey,
    Sweep,
    TaskResults,
    read_record,
)

PLACES = {
    "survey": "survey.json",
    "plan": "plan.json",
    "slice": "pruned/depthcut.json",
    "repair": "repaired/depthcut.json",
    "heal": "healed/depthcut.json",
    "evaluation": "evaluation.json",
    "search": "search.json",
    "sweep": "sweep.json",
    "bench": "bench.json",
}
R = TypeVar("R", bound=Record)
M = TypeVar("M", Score, Difference, Average)


@dataclass(frozen=True)
class Link:
    """A model of a run: the one before the cut, or what a stage made of the one before it."""

    name: str
    """As a run names it: original, pruned, repaired or healed."""
    state: str
    """In words: before, cut, repaired or healed."""
    record: SliceRecord | RepairRecord | HealRecord | None
    """Of the stage; None: there is no record, or no stage made it."""
    model: ModelFacts | None
    judged: ModelEvaluation | None
    """None: it was not evaluated."""


@dataclass(frozen=True)
class Results:
    """The records of one run; None: that stage did not run. At least one is there."""

    folder: Path
    survey: Survey | None
    plan: Plan | None
    slice: SliceRecord | None
    repair: RepairRecord | None
    heal: HealRecord | None
    evaluation: Evaluation | None
    search: Search | None
    sweep: Sweep | None
    bench: Bench | None = None

    @property
    def original(self) -> ModelFacts | None:
        """The model before the cut."""
        if self.plan:
            return self.plan.model
        for record in (self.survey, self.search, self.sweep):
            if record:
                return record.model
        for judged in (self.evaluation, self.bench):
            if judged:
                return judged.models[0].model
        return None

    @cached_property
    def chain(self) -> tuple[Link, ...]:
        """The model before the cut, and what each stage made of it: recorded, or only judged."""
        first = self.evaluation.models[0] if self.evaluation else None
        links = [Link("original", "before", None, self.original, first)]
        made = (
            ("pruned", "cut", self.slice),
            ("repaired", "repaired", self.repair),
            ("healed", "healed", self.heal),
        )
        for name, state, record in made:
            model = record.result if record else None
            judged = self._judged(model, name)
            if record or judged:
                links.append(Link(name, state, record, model, judged))
        return tuple(links)

    @property
    def judged(self) -> tuple[tuple[Link, ModelEvaluation], ...]:
        """The models of the chain that were evaluated."""
        return tuple((each, each.judged) for each in self.chain if each.judged)

    @property
    def model_folder(self) -> Path | None:
        """Where the last model of the run lies."""
        made = [each.name for each in self.chain if each.record]
        return (self.folder / made[-1]).resolve() if made else None

    @property
    def speed_ratio(self) -> SpeedRatio | None:
        """How fast the run's last model is against the first, one sequence (or few) at a time.

        If it was not timed, the one before it: all that are as deep are as fast.
        """
        others = self.bench.models[1:] if self.bench else ()
        for link in reversed(self.chain[1:]):
            digest = link.model.digest if link.model else None
            same = [each.name for each in others if each.model.digest == digest]
            same += [each.name for each in others if each.name == link.name]
            if same and self.bench:
                return self.bench.ratio(same[0])
        return None

    def comparison(self, judged: ModelEvaluation) -> Comparison | None:
        """How a model stands against the reference."""
        if self.evaluation is None:
            return None
        return next(
            (each for each in self.evaluation.comparisons if each.name == judged.name), None
        )

    def _judged(self, facts: ModelFacts | None, name: str) -> ModelEvaluation | None:
        """By digest where the record is there, else by the name that a run gives it."""
        others = self.evaluation.models[1:] if self.evaluation else ()
        for each in others:
            if facts is not None and each.model.digest == facts.digest:
                return each
        return next((each for each in others if each.name == name), None)


def read_results(folder: Path) -> Results:
    """The records in a run's folder.

    Raises:
        RecordError: None of them is there, or one is broken.
    """
    plan = _read(folder, "plan", Plan)
    sliced = _read(folder, "slice", SliceRecord)
    repaired = _read(folder, "repair", RepairRecord)
    cut = sliced or repaired
    evaluation = _read(folder, "evaluation", Evaluation)
    results = Results(
        folder=folder,
        survey=_read(folder, "survey", Survey),
        plan=plan or (cut.plan if cut else None),
        slice=sliced,
        repair=repaired,
        heal=_read(folder, "heal", HealRecord),
        evaluation=with_short_names(evaluation) if evaluation else None,
        search=_read(folder, "search", Search),
        sweep=_read(folder, "sweep", Sweep),
        bench=_bench(_read(folder, "bench", Bench)),
    )
    if results.evaluation and not results.evaluation.models:
        raise RecordError(f"{folder / PLACES['evaluation']} judges no model: evaluate one")
    if results.bench and not results.bench.models:
        raise RecordError(f"{folder / PLACES['bench']} times no model: bench one")
    if not any(getattr(results, name) for name in PLACES):
        if not folder.is_dir():
            raise RecordError(f"{folder} is no folder: give the one that holds the records")
        looked_for = ", ".join(PLACES.values())
        raise RecordError(
            f"nothing to report in {folder}: looked for {looked_for}; "
            "give the folder of a run, or the one that holds what depthcut evaluate or bench wrote"
        )
    return results


def with_short_names(evaluation: Evaluation) -> Evaluation:
    """Models named by a path get its last part as name, where that tells them apart."""
    new = _short_names([each.name for each in evaluation.models])
    return msgspec.structs.replace(
        evaluation,
        models=tuple(
            msgspec.structs.replace(each, name=new[each.name]) for each in evaluation.models
        ),
        comparisons=tuple(
            msgspec.structs.replace(each, name=new.get(each.name, each.name))
            for each in evaluation.comparisons
        ),
        tasks=_renamed(evaluation.tasks, new) if evaluation.tasks else None,
    )


def _renamed(tasks: TaskResults, new: dict[str, str]) -> TaskResults:
    def named(records: tuple[M, ...]) -> tuple[M, ...]:
        return tuple(
            msgspec.structs.replace(each, model=new.get(each.model, each.model)) for each in records
        )

    return msgspec.structs.replace(
        tasks,
        scores=named(tasks.scores),
        differences=named(tasks.differences),
        averages=named(tasks.averages),
        seconds={new.get(name, name): taken for name, taken in tasks.seconds.items()},
    )


def _short_names(names: list[str]) -> dict[str, str]:
    """From each name to the one to show: as it is, where the last parts of paths do not differ."""
    short = [Path(name).name if name.startswith(("/", ".", "~")) else name for name in names]
    clear = len(set(short)) == len(names) and all(short)
    return dict(zip(names, short if clear else names, strict=True))


def _bench(bench: Bench | None) -> Bench | None:
    """With short names, as an evaluation has them."""
    if bench is None:
        return None
    new = _short_names([each.name for each in bench.models])
    return msgspec.structs.replace(
        bench,
        models=tuple(msgspec.structs.replace(each, name=new[each.name]) for each in bench.models),
        ratios=tuple(
            msgspec.structs.replace(each, name=new.get(each.name, each.name))
            for each in bench.ratios
        ),
    )


def _read(folder: Path, name: str, kind: type[R]) -> R | None:
    path = folder / PLACES[name]
    return read_record(path, kind) if path.exists() else None
