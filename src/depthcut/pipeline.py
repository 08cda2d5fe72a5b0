"""A recipe as straight lines: survey, search, plan, slice, repair, heal, evaluate, bench, report.

All in one folder:

    recipe.yaml  survey.json  search.json  plan.json  pruned/  repaired/  healed/
    evaluation.json  bench.json  report.html  plots/

The checkpoints are a chain: each next one is nearer to the model before the cut.

A stage whose record is there and was made from the same inputs (digests and settings) is
skipped, so the same command goes on where a killed one stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from depthcut import api
from depthcut.errors import OutputError, PlanError, SettingsError
from depthcut.files import discard, sole_writer, write_file
from depthcut.recipes import write_recipe
from depthcut.records import (
    Bench,
    Evaluation,
    HealRecord,
    ModelFacts,
    Plan,
    RepairRecord,
    Search,
    SliceRecord,
    Survey,
    read_record,
)
from depthcut.settings import HealSettings, PlanSettings, Recipe, RepairSettings, TextSettings
from depthcut.text.names import STANDARD_INPUT, in_words, named_texts

RECIPE = "recipe.yaml"
RECORD_IN_CHECKPOINT = "depthcut.json"

R = TypeVar("R", Survey, Search, Plan, SliceRecord, RepairRecord, HealRecord, Evaluation, Bench)


class Run(NamedTuple):
    """What a finished run holds."""

    folder: Path
    model: Path
    """The smaller checkpoint, as the last stage left it: healed/, repaired/ or pruned/."""
    plan: Plan
    evaluation: Evaluation
    report: Path
    bench: Bench | None = None
    """None: the recipe measures no speed."""


Announce = Callable[[str], object]


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    announce: Announce = lambda line: None,
) -> Run:
    """Run all stages of a recipe into the folder `out`, going on where an earlier run stopped.

    Args:
        recipe: What to do; see `Recipe`.
        out: The run's folder.
        overwrite: Replace results that were made from other inputs.
        announce: Told one line when a stage begins or is skipped.

    Raises:
        OutputError: `out` holds something else, results of other inputs, or another run.
        DepthcutError: What a stage raises.
    """
    from depthcut.benching.inputs import refuse_in_a_run

    folder = Path(out)
    if recipe.bench is not None:
        refuse_in_a_run(recipe.bench)
    with sole_writer(folder):
        _claim(folder, recipe)
        stages = _Stages(recipe, folder, overwrite=overwrite, announce=announce)
        stages.refuse_impossible()
        plan = stages.plan()
        pruned = stages.slice(plan)
        repaired = stages.repair(plan)
        healed = stages.heal(repaired or pruned)
        made = [each for each in (pruned, repaired, healed) if each]
        evaluation = stages.evaluate(made)
        bench = stages.bench(made[-1])
        write_file(folder / RECIPE, write_recipe(recipe), overwrite=True)
        announce("report")
        return Run(folder, made[-1], plan, evaluation, api.report(folder), bench)


class _Stages:
    """The stages of one run; each returns its record or folder, made now or found."""

    def __init__(
        self, recipe: Recipe, folder: Path, *, overwrite: bool, announce: Announce
    ) -> None:
        self.recipe, self.folder = recipe, folder
        self.overwrite, self.announce = overwrite, announce
        self.model = api.facts(recipe.model, load=recipe.load)

    def refuse_impossible(self) -> None:
        """Tell of what cannot be done before hours are spent."""
        if self.recipe.repair is not None:
            self._refuse_repair(self.recipe.repair)
        if self.recipe.heal is not None:
            from depthcut.healing.inputs import check
            from depthcut.healing.losses.table import loss_weights

            check(self.recipe.heal)
            loss_weights(self.recipe.heal)
            self._teacher_digest(self.recipe.heal)
            self._text_digest(self.recipe.heal)
        if self.recipe.evaluate.tokens:
            self._text_digest(self.recipe.evaluate)
        if self.recipe.evaluate.tasks and not (self.folder / "evaluation.json").exists():
            from depthcut.evaluation.evaluate import refuse_unanswerable

            refuse_unanswerable(self.recipe.evaluate)

    def _refuse_repair(self, settings: RepairSettings) -> None:
        from depthcut.repairing.methods import find_method

        find_method(settings.method)
        if self.recipe.search and self.recipe.search.granularity == "sublayer":
            raise PlanError(
                "a search for parts of layers and a repair: only whole layers that went can be "
                "made up for; leave repair out, or search by --granularity layer"
            )
        if self.recipe.load.load_in_4bit:
            raise SettingsError(
                "load_in_4bit and a repair: quantised weights cannot be repaired; leave one of "
                "them out (heal by qlora takes a 4-bit base of its own)"
            )
        self._text_digest(settings)

    def plan(self) -> Plan:
        from depthcut.planning import plan_inputs
        from depthcut.searching.inputs import refuse_unsearched

        path, settings = self.folder / "plan.json", self.recipe.plan
        if self.recipe.search is not None:
            refuse_unsearched(self.recipe.search, settings, self.model.layers)
        if settings.remove is not None:
            source: Survey | Search | ModelFacts = self.model
            inputs = plan_inputs(settings, self.model.digest)
        else:
            survey, search = self._survey(), self._search()
            source = search or survey
            inputs = plan_inputs(settings, source.origin.inputs)
        plan = self._found(path, Plan, inputs) or self._made(
            f"plan: {_budget_in_words(settings)}",
            lambda: api.plan(source, settings, load=self.recipe.load, out=path),
        )
        if self.recipe.repair is not None:
            from depthcut.repairing.inputs import refuse_plan

            refuse_plan(plan)
        return plan

    def _survey(self) -> Survey:
        from depthcut.surveying.inputs import refuse_unmeasured, survey_inputs

        path, settings = self.folder / "survey.json", self.recipe.survey
        if self.recipe.search is None:
            refuse_unmeasured(settings, self.recipe.plan)
        inputs = survey_inputs(
            self.model.digest, self._text_digest(settings), settings, self.recipe.load
        )
        return self._found(path, Survey, inputs) or self._made(
            f"survey: {self.recipe.model} on {in_words(settings.text)}",
            lambda: api.survey(self.recipe.model, settings, load=self.recipe.load, out=path),
        )

    def _search(self) -> Search | None:
        from depthcut.searching.inputs import discard_other_journal, search_inputs

        path, settings = self.folder / "search.json", self.recipe.search
        if settings is None:
            self._unwanted(path, Search)
            return None
        inputs = search_inputs(
            self.model.digest, self._text_digest(settings), settings, self.recipe.load
        )
        if (record := self._found(path, Search, inputs)) is not None:
            return record
        if self.overwrite:
            discard_other_journal(Path(f"{path}.journal"), inputs)
        return self._made(
            f"search: {settings.method} on {in_words(settings.text)}",
            lambda: api.search(self.recipe.model, settings, load=self.recipe.load, out=path),
        )

    def slice(self, plan: Plan) -> Path:
        from depthcut.slicing import slice_inputs

        path = self.folder / "pruned"
        if not self._found(path, SliceRecord, slice_inputs(plan)):
            self._made(
                f"slice: the model {plan.change}",
                lambda: api.slice(
                    self.recipe.model, plan, path, zero=bool(plan.zeroed), load=self.recipe.load
                ),
            )
        return path

    def repair(self, plan: Plan) -> Path | None:
        from depthcut.repairing.inputs import repair_inputs

        path, settings = self.folder / "repaired", self.recipe.repair
        if settings is None:
            self._unwanted(path, RepairRecord)
            return None
        inputs = repair_inputs(
            plan, self.model.digest, self._text_digest(settings), settings, self.recipe.load
        )
        if not self._found(path, RepairRecord, inputs):
            self._made(
                f"repair: {settings.method} on {in_words(settings.text)}",
                lambda: api.repair(self.recipe.model, plan, path, settings, load=self.recipe.load),
            )
        return path

    def heal(self, cut: Path) -> Path | None:
        from depthcut.healing.inputs import heal_inputs

        path, settings = self.folder / "healed", self.recipe.heal
        if settings is None:
            self._unwanted(path, HealRecord)
            return None
        inputs = heal_inputs(
            api.facts(cut).digest,
            self._text_digest(settings),
            settings,
            self.recipe.load,
            self._teacher_digest(settings),
        )
        if not self._found(path, HealRecord, inputs):
            if self.overwrite:
                from depthcut.healing.training.checkpoints import discard_other_training

                discard_other_training(path, inputs)
            self._made(
                f"heal: {settings.method}, {settings.steps} steps on {in_words(settings.text)}",
                lambda: api.heal(
                    cut, path, settings, load=self.recipe.load, announce=self.announce
                ),
            )
        return path

    def _teacher_digest(self, settings: HealSettings) -> str:
        if settings.teacher is None:
            return ""
        return (
            self.model.digest
            if settings.teacher == "parent"
            else api.facts(settings.teacher).digest
        )

    def evaluate(self, made: list[Path]) -> Evaluation:
        from depthcut.evaluation.inputs import evaluation_inputs

        path, settings = self.folder / "evaluation.json", self.recipe.evaluate
        models = self._models(made)
        read = self._text_digest(settings) if settings.tokens else ""
        inputs = evaluation_inputs(self._digests(made), read, settings, self.recipe.load)
        on = ([in_words(settings.text)] if read else []) + list(settings.tasks)
        return self._found(path, Evaluation, inputs) or self._made(
            f"evaluate: {', '.join(models)} on {', '.join(on) or 'prompts'}",
            lambda: api.evaluate(models, settings, load=self.recipe.load, out=path),
        )

    def bench(self, last: Path) -> Bench | None:
        """The speed of the original and of the last: of all that are as deep it is the same."""
        from depthcut.benching.inputs import bench_inputs

        path, settings = self.folder / "bench.json", self.recipe.bench
        if settings is None:
            self._unwanted(path, Bench)
            return None
        inputs = bench_inputs(self._digests([last]), settings, self.recipe.load)
        models = self._models([last])
        return self._found(path, Bench, inputs) or self._made(
            f"bench: {', '.join(models)} in {settings.engine}",
            lambda: api.bench(models, settings, load=self.recipe.load, out=path),
        )

    def _models(self, made: list[Path]) -> dict[str, str | Path]:
        return {"original": self.recipe.model} | {each.name: each for each in made}

    def _digests(self, made: list[Path]) -> list[str]:
        return [self.model.digest, *(api.facts(each).digest for each in made)]

    def _text_digest(self, settings: TextSettings) -> str:
        from depthcut.text.documents import open_text

        if any(each.name == STANDARD_INPUT for each in named_texts(settings.text)):
            raise SettingsError(
                "a run reads its text more than once: save standard input to a file"
            )
        return open_text(settings).digest

    def _found(self, path: Path, kind: type[R], inputs: str) -> R | None:
        """The finished result at `path` if it was made from `inputs`; else the place is free."""
        if not path.exists():
            return None
        record = read_record(path / RECORD_IN_CHECKPOINT if path.is_dir() else path, kind)
        if record.origin.inputs == inputs:
            self.announce(f"{path.name} is there already")
            return record
        if not self.overwrite:
            raise OutputError(
                f"{path} was made from other inputs or settings: choose another --out, "
                "or replace it with --overwrite"
            )
        discard(path)
        return None

    def _unwanted(self, path: Path, kind: type[R]) -> None:
        """Let no result of a stage that the recipe leaves out lie there, for the report to show."""
        self._found(path, kind, inputs="")

    def _made(self, title: str, make: Callable[[], R]) -> R:
        self.announce(title)
        return make()


def _claim(folder: Path, recipe: Recipe) -> None:
    """Mark the folder as a run's by the recipe in it; refuse a folder of something else."""
    path = folder / RECIPE
    if path.exists():
        return
    if others := [each.name for each in folder.iterdir() if not each.name.startswith(".")]:
        raise OutputError(
            f"{folder} is not the folder of a run (it holds {others[0]} but no {RECIPE}): "
            "choose another --out"
        )
    write_file(path, write_recipe(recipe))


def _budget_in_words(settings: PlanSettings) -> str:
    for name in ("drop", "keep", "params", "remove"):
        if (value := getattr(settings, name)) is not None:
            return f"{name} {value}"
    return "no budget"
