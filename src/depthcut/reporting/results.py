"""What a run's folder holds, read in one go."""

from dataclasses import dataclass
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
    "heal": "healed/depthcut.json",
    "evaluation": "evaluation.json",
    "search": "search.json",
    "sweep": "sweep.json",
    "bench": "bench.json",
}
R = TypeVar("R", bound=Record)
M = TypeVar("M", Score, Difference, Average)


@dataclass(frozen=True)
class Results:
    """The records of one run; None: that stage did not run. At least one is there."""

    folder: Path
    survey: Survey | None
    plan: Plan | None
    slice: SliceRecord | None
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

    @property
    def model_folder(self) -> Path | None:
        """Where the last model of the run lies: healed, else pruned."""
        for record, place in ((self.heal, "healed"), (self.slice, "pruned")):
            if record:
                return (self.folder / place).resolve()
        return None

    @property
    def before(self) -> ModelEvaluation | None:
        """The reference of the evaluation."""
        return self.evaluation.models[0] if self.evaluation else None

    @property
    def cut(self) -> ModelEvaluation | None:
        """The evaluation of the pruned model."""
        result = self.slice.result if self.slice else None
        return self._judged(result, "pruned")

    @property
    def healed(self) -> ModelEvaluation | None:
        """The evaluation of the healed model."""
        return self._judged(self.heal.result, "healed") if self.heal else None

    @property
    def speed_ratio(self) -> SpeedRatio | None:
        """How fast the run's last model is against the first, one sequence (or few) at a time."""
        if self.bench is None:
            return None
        last = self.heal.result if self.heal else self.slice.result if self.slice else None
        others = self.bench.models[1:]
        named = "healed" if self.heal else "pruned"
        same = [each for each in others if last is not None and each.model.digest == last.digest]
        found = next(iter([*same, *(each for each in others if each.name == named)]), None)
        return self.bench.ratio(found.name) if found else None

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
    evaluation = _read(folder, "evaluation", Evaluation)
    results = Results(
        folder=folder,
        survey=_read(folder, "survey", Survey),
        plan=plan or (sliced.plan if sliced else None),
        slice=sliced,
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
