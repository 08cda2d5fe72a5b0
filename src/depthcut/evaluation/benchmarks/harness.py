"""lm-eval as a library: its tasks put to a model, with the numbers of its own command line."""

import contextlib
import gc
import logging
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import numpy
import torch
from lm_eval import evaluate
from lm_eval.api.model import LM, CachingLM
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from depthcut.errors import SettingsError, SourceError, nearest
from depthcut.evaluation.benchmarks.answerers import InTransformers, in_vllm
from depthcut.evaluation.benchmarks.answers import Unit, digests
from depthcut.evaluation.benchmarks.asked import SETS, Asked, harness_version, task_folders
from depthcut.evaluation.benchmarks.data import Config, local_files, why_unread
from depthcut.evaluation.benchmarks.refusals import (
    refuse_broken_files,
    refuse_leaking,
    refuse_no_template,
    refuse_no_tokenizer,
    refuse_too_many,
    refuse_unconfined,
    refuse_unscored,
    shots_of,
)
from depthcut.evaluation.benchmarks.transcripts import answers_in
from depthcut.evaluation.candidates import Candidate
from depthcut.model.loading import in_eval_mode
from depthcut.model.ranks import Ranks, all_ranks
from depthcut.settings import EvaluateSettings, LoadSettings

_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234}
"""Of lm-eval's command line; examples are drawn by the last."""

TaskDict = dict[str, Any]
"""What lm-eval makes of a name: tasks, and groups of them."""


class Harness:
    """lm-eval, with the tasks that settings speak of."""

    def __init__(self, settings: EvaluateSettings, load: LoadSettings | None = None) -> None:
        self._settings, self._load = settings, load or LoadSettings()
        self._tasks: dict[Asked, TaskDict] = {}
        self._engine: tuple[Candidate, LM] | None = None

    def load(self, asked: Asked) -> TaskDict:
        """A task or group, with its data.

        Raises:
            SettingsError: lm-eval knows no such task, or not its metric.
            SourceError: Its file or data cannot be had.
        """
        if asked not in self._tasks:
            manager, folder = self._manager(asked.name), self._settings.data
            try:
                with _quiet(logging.CRITICAL), _seeded(), _in_folder(folder):
                    tasks = dict(manager.load([asked.name]))
            except Exception as error:  # whatever data sets raise: there are many kinds
                config = _config(asked.name, manager)
                raise SourceError(why_unread(asked.name, config, folder, error)) from error
            for name, task in tasks["tasks"].items():
                refuse_unconfined(name, task)
                refuse_leaking(name, task, asked)
                refuse_too_many(name, task, asked)
                refuse_unscored(name, task)
            self._tasks[asked] = tasks
        return self._tasks[asked]

    def answer(self, asked: Asked, candidate: Candidate, *, parts: Path) -> Unit:
        """Put the questions of a task or group to a model.

        Args:
            asked: Which.
            candidate: The model.
            parts: Where answers are kept on the way: those that are there are not asked for again.
                It is removed at the end.

        Raises:
            SettingsError: No such task, no tokenizer or chat template, or an engine that is not
                there.
            SourceError: The data cannot be had.
            CheckpointError: A likelihood is not a number.
        """
        started, settings, ranks = time.monotonic(), self._settings, all_ranks()
        tasks = self.load(asked)
        limit = asked.limit if settings.limit is None else settings.limit
        _set_shots(tasks, asked)
        _deal_out(tasks["tasks"], ranks)
        kept = Path(f"{parts}_rank{ranks.rank}.db")
        _discard_damaged(kept)
        with _quiet(), self._answering(candidate, asked) as answerer, _refusing(asked):
            results = evaluate(
                lm=CachingLM(answerer, str(kept)),
                task_dict=tasks,
                samples=None if limit is None else _drawn(tasks["tasks"], limit, settings.seed),
                bootstrap_iters=0,  # the errors come from the items
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
                confirm_run_unsafe_code=True,  # in the sandbox, see refusals.py
            )
        unit: Unit | None = None
        if results is not None:
            files = [
                file
                for task in tasks["tasks"].values()
                for file in local_files(task.config.to_dict(), settings.data)
            ]
            unit = Unit(
                harness=f"lm-eval {harness_version()}",
                answers=answers_in(cast(Mapping[str, Any], results), tasks, asked),
                files=digests(sorted(set(files))),
                seconds=round(time.monotonic() - started, 3),
            )
        answered = cast(Unit, ranks.of_first(unit))
        for path in parts.parent.glob(f"{parts.name}_rank*"):  # also of more processes, killed
            path.unlink(missing_ok=True)
        return answered

    @contextlib.contextmanager
    def _answering(self, candidate: Candidate, asked: Asked) -> Iterator[LM]:
        if self._settings.backend == "vllm":
            with _seeded():
                yield self._in_vllm(candidate)
            return
        loaded = candidate.loaded
        refuse_no_tokenizer(loaded)
        refuse_no_template(loaded, self._settings)
        with in_eval_mode(loaded.model), _seeded(loaded.device):
            yield InTransformers(loaded, asked.words, self._settings, all_ranks())

    def _in_vllm(self, candidate: Candidate) -> LM:
        """One engine, for one model after the other."""
        if self._engine is None or self._engine[0] is not candidate:
            self._engine = None
            gc.collect()
            self._engine = candidate, in_vllm(candidate.folder, self._settings, self._load)
        return self._engine[1]

    def _manager(self, name: str) -> TaskManager:
        """The index that knows a task: that of depthcut's own and the user's folders, or all."""
        folders = task_folders(self._settings)
        own = _indexed(folders, everything=False)
        if name in own.all_tasks:
            return own
        every = _indexed(folders, everything=True)
        if name not in every.all_tasks and not Path(name).is_file():
            refuse_broken_files(self._settings.include)
            raise SettingsError(
                f"lm-eval {harness_version()} knows no task {name!r}"
                f"{nearest(name, (*SETS, *every.all_tasks))}; `lm_eval ls tasks` prints all names, "
                "--include takes a folder of your own"
            )
        return every


@cache
def _indexed(folders: tuple[Path, ...], *, everything: bool) -> TaskManager:
    """lm-eval's index of the tasks in folders, or of these and all its own: that takes seconds."""
    with _quiet():
        paths = [str(each) for each in folders]
        return TaskManager(include_path=paths, include_defaults=everything)


def _config(name: str, manager: TaskManager) -> Config:
    """What the file of a task says, or of the first task of a group or tag."""
    entry = manager.task_index.get(name)
    if entry is None:
        return {}
    config: dict[str, Any] = dict(entry.cfg or {})
    members = config.get("task") if isinstance(config.get("task"), list) else sorted(entry.tags)
    if not members or (entry.cfg and "output_type" in config):
        return config
    first = members[0] if isinstance(members[0], dict) else {"task": members[0]}
    return {**_config(str(first.get("task", first.get("group", ""))), manager), **first}


def _discard_damaged(answered: Path) -> None:
    """Remove answers kept on the way that cannot be read, such as a power cut may leave."""
    if not answered.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(answered)) as file:
            whole = file.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.OperationalError:  # another command is writing it
        return
    except sqlite3.DatabaseError:
        whole = False
    if not whole:
        for path in answered.parent.glob(f"{answered.name}*"):  # its journal too
            path.unlink()


def _set_shots(tasks: TaskDict, asked: Asked) -> None:
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=shots_of(task, asked))
        task.set_fewshot_seed(seed=_SEEDS["torch"])


@contextlib.contextmanager
def _refusing(asked: Asked) -> Iterator[None]:
    """lm-eval asserts that a task can be put to a model, such as a long answer to a short context.

    Raises:
        SettingsError: It cannot.
    """
    try:
        yield
    except AssertionError as error:
        raise SettingsError(f"{asked.name} cannot be asked of this model: {error}") from error


def _deal_out(tasks: Mapping[str, Any], ranks: Ranks) -> None:
    """Let each process ask its part of what one alone would ask, with the same examples.

    lm-eval deals out the questions before it draws examples: each process then draws others.
    """

    def build(task: Any, **options: Any) -> None:
        type(task).build_all_requests(task, **{**options, "rank": 0, "world_size": 1})
        questions = 1 + max(each.doc_id for each in task.instances)
        if questions < ranks.count:
            raise SettingsError(
                f"{task.task_name}: {questions} questions for {ranks.count} processes; start "
                "fewer of them, or ask more"
            )
        task._instances = [each for each in task.instances if ranks.takes(each.doc_id)]

    for task in tasks.values():
        if ranks.count > 1:
            task.build_all_requests = partial(build, task)


@contextlib.contextmanager
def _seeded(device: torch.device | None = None) -> Iterator[None]:
    """lm-eval's own seeds, for tasks that draw; what was drawn before goes on as if it had not."""
    state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(_SEEDS["python"])
    numpy.random.seed(_SEEDS["numpy"])
    try:
        with torch.random.fork_rng([device] if device and device.type == "cuda" else []):
            torch.manual_seed(_SEEDS["torch"])
            yield
    finally:
        random.setstate(state)
        numpy.random.set_state(numpy_state)


def _drawn(tasks: Mapping[str, Any], limit: int, seed: int) -> dict[str, list[int]]:
    """Numbers of the questions that are put: a fair draw, the same for every model."""
    found = {}
    for name, task in tasks.items():
        generator, every = random.Random(f"{seed} {name}"), len(task.eval_docs)
        found[name] = sorted(generator.sample(range(every), min(limit, every)))
    return found


def _in_folder(folder: str | None) -> contextlib.AbstractContextManager[None]:
    """Where relative names of data files begin."""
    return contextlib.nullcontext() if folder is None else contextlib.chdir(folder)


def _no_bar(*args: Any, **options: Any) -> Any:
    return tqdm(*args, **{**options, "disable": True})


@contextlib.contextmanager
def _quiet(level: int = logging.ERROR) -> Iterator[None]:
    """lm-eval and what it calls without their bars and notices: depthcut shows its own."""
    import datasets

    names = ("lm_eval", "datasets", "huggingface_hub", "transformers")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    modules: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(level)
    for module in modules:
        module.tqdm = _no_bar
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        for module in modules:
            module.tqdm = tqdm
        if not bars:
            datasets.enable_progress_bars()
