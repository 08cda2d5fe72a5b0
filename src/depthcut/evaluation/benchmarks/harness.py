"""lm-eval as a library: its tasks put to a model, with the numbers of its own command line."""

import contextlib
import copy
import logging
import math
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import lm_eval.api.model
import lm_eval.api.task
import lm_eval.models.huggingface
import numpy
import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.registry import METRIC_REGISTRY, get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor
from tqdm import tqdm

from depthcut.errors import CheckpointError, SettingsError, SourceError, nearest
from depthcut.evaluation.benchmarks.answers import Unit, digests
from depthcut.evaluation.benchmarks.asked import SETS, Asked, harness_version, task_folders
from depthcut.evaluation.benchmarks.data import Config, local_files, why_unread
from depthcut.evaluation.benchmarks.transcripts import answers_in
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import Ranks, all_ranks
from depthcut.progress import progress
from depthcut.settings import EvaluateSettings

_CHARACTERS_PER_TOKEN = 2
"""Fewer than the texts of tasks have, so that what fits is not overrated."""

_SEEDS = {"python": 0, "numpy": 1234, "torch": 1234}
"""Of lm-eval's command line; examples are drawn by the last."""

TaskDict = dict[str, Any]
"""What lm-eval makes of a name: tasks, and groups of them."""


class Harness:
    """lm-eval, with the tasks that settings speak of."""

    def __init__(self, settings: EvaluateSettings) -> None:
        self._settings = settings
        self._tasks: dict[Asked, TaskDict] = {}

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
                _refuse_unconfined(name, task)
                _refuse_leaking(name, task, asked)
                _refuse_too_many(name, task, asked)
                _refuse_unscored(name, task)
            self._tasks[asked] = tasks
        return self._tasks[asked]

    def answer(self, asked: Asked, loaded: LoadedModel, *, parts: Path) -> Unit:
        """Put the questions of a task or group to a model.

        Args:
            asked: Which.
            loaded: The model, in eval mode.
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
        _refuse_no_tokenizer(loaded)
        _refuse_no_template(loaded, settings)
        limit = asked.limit if settings.limit is None else settings.limit
        _set_shots(tasks, asked)
        _deal_out(tasks["tasks"], ranks)
        kept = Path(f"{parts}_rank{ranks.rank}.db")
        _discard_damaged(kept)
        with _quiet(), _seeded(loaded.device), _refusing(asked):
            results = evaluate(
                lm=CachingLM(_answerer(loaded, asked.words, settings, ranks), str(kept)),
                task_dict=tasks,
                samples=None if limit is None else _drawn(tasks["tasks"], limit, settings.seed),
                bootstrap_iters=0,  # the errors come from the items
                apply_chat_template=settings.chat_template,
                fewshot_as_multiturn=settings.chat_template,
                confirm_run_unsafe_code=True,  # in the sandbox, see _refuse_unconfined
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

    def _manager(self, name: str) -> TaskManager:
        """The index that knows a task: that of depthcut's own and the user's folders, or all."""
        folders = task_folders(self._settings)
        own = _indexed(folders, everything=False)
        if name in own.all_tasks:
            return own
        every = _indexed(folders, everything=True)
        if name not in every.all_tasks and not Path(name).is_file():
            _refuse_broken_files(self._settings.include)
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


def _refuse_broken_files(folders: Sequence[str]) -> None:
    """Name a file of the user's that lm-eval passes over in silence, since it cannot read it."""
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.yaml"))):
        try:
            load_yaml(path, resolve_func=False, recursive=False)
        except Exception as error:  # whatever YAML and lm-eval raise
            reason = " ".join(str(error).split())
            raise SourceError(f"{path} is no task file that lm-eval can read: {reason}") from error


def _refuse_unconfined(name: str, task: Any) -> None:
    metadata = task.config.metadata or {}
    if task.config.unsafe_code and not metadata.get("sandboxed"):
        raise SettingsError(
            f"{name} runs what the model wrote with nothing around it: take humaneval or mbpp, "
            "which run in a sandbox"
        )


def _refuse_leaking(name: str, task: Any, asked: Asked) -> None:
    """Refuse examples that would be drawn from the questions."""
    config = task.config
    others = (task.has_training_docs(), task.has_validation_docs(), config.fewshot_split)
    own = getattr(config.fewshot_config, "samples", None)
    if _shots(task, asked) and not any(others) and not own:
        raise SettingsError(
            f"{name} has no examples of its own here, and would show its questions as examples: "
            f"ask for {name}:0"
        )


def _refuse_unscored(name: str, task: Any) -> None:
    """Refuse metrics that would be left out with nothing said."""
    if task.config.process_results is not None:
        return  # it scores by itself
    for metric, score in getattr(task, "_metric_fn_list", {}).items():
        if score is None:
            raise SettingsError(
                f"{name} is scored by {metric!r}, which is no metric of lm-eval"
                f"{nearest(metric, METRIC_REGISTRY)} and none of the evaluate library that can be "
                "had here: mend metric_list in its file"
            )


def _refuse_too_many(name: str, task: Any, asked: Asked) -> None:
    """Refuse more examples than there are: lm-eval would stop in the middle."""
    if not (shots := _shots(task, asked)) or not hasattr(task, "sampler"):
        return
    with_question = task.fewshot_cfg.split == task.config.test_split  # it is drawn, and left out
    most = len(task.sampler.df) - with_question
    if shots > most:
        raise SettingsError(f"{name} has {most} examples: ask for {name}:{most} or fewer")


class _Answerer(HFLM):  # type: ignore[misc]
    """lm-eval's own model of transformers, with depthcut's progress, batches and processes."""

    def __init__(
        self, loaded: LoadedModel, title: str, settings: EvaluateSettings, ranks: Ranks
    ) -> None:
        super().__init__(
            pretrained=loaded.model,
            tokenizer=copy.deepcopy(loaded.tokenizer),  # it may get a padding token
            batch_size=settings.batch_size or 1,
        )
        self._device = loaded.device
        self._rank, self._world_size = ranks.rank, ranks.count
        self._loaded, self._ranks = loaded, ranks
        self._title = f"evaluate: {title}"
        self._chosen, self._advance = settings.batch_size, _say_nothing

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Every answer is kept, and counted."""
        answerer = self

        class Counting:
            def add_partial(self, attr: str, req: Any, res: Any) -> None:
                answerer._refuse_no_number(res)
                cache_hook.add_partial(attr, req, res)
                answerer._advance(1)

        self.cache_hook = Counting()

    def _refuse_no_number(self, answer: Any) -> None:
        """Of choices that are all NaN the first would count as the model's answer."""
        likelihood = answer[0] if isinstance(answer, tuple | list) else answer
        if isinstance(likelihood, float) and math.isnan(likelihood):
            raise CheckpointError(
                f"a likelihood that {self._loaded.facts.source} gives is not a number: its weights "
                "are broken, or overflow in this type; try --dtype float32"
            )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        with self._counted(requests):
            return cast(list[tuple[float, bool]], super().loglikelihood(requests, True))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        with self._counted(requests):
            return cast(list[float], super().loglikelihood_rolling(requests, True))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        with self._counted(requests):
            return cast(list[str], super().generate_until(requests, True))

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._ranks.everywhere(tensor.cpu())).reshape(-1)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        said = self._ranks.everywhere(obj)
        return said if self.rank == dst else None

    def barrier(self) -> None:
        self._ranks.everywhere(None)

    @contextlib.contextmanager
    def _counted(self, requests: Sequence[Instance]) -> Iterator[None]:
        self.batch_size_per_gpu = self._chosen or self._fitting(requests)
        with progress(self._title, len(requests), unit="answers") as advance:
            self._advance = advance
            try:
                yield
            finally:
                self._advance = _say_nothing

    def _fitting(self, requests: Sequence[Instance]) -> int:
        """Requests of the longest kind that fit in memory at once, with their logits thrice."""
        texts = ("".join(map(str, request.args)) for request in requests)
        longest = max((len(text) for text in texts), default=1) // _CHARACTERS_PER_TOKEN + 1
        width = int(self._loaded.model.config.get_text_config().vocab_size)
        element = next(self._loaded.model.parameters()).element_size()
        return fitting_batch_size(
            self._loaded, min(longest, self.max_length), bytes_per_token=3 * width * element
        )


def _answerer(loaded: LoadedModel, title: str, settings: EvaluateSettings, ranks: Ranks) -> LM:
    if settings.backend == "transformers":
        return _Answerer(loaded, title, settings, ranks)
    try:
        import vllm  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "--backend vllm needs vLLM and a GPU: pip install vllm, or leave --backend out"
        ) from error
    if loaded.folder is None:
        raise SettingsError("--backend vllm reads a checkpoint folder: save the model first")
    return get_model("vllm")(
        pretrained=str(loaded.folder), batch_size=settings.batch_size or "auto"
    )


def _say_nothing(amount: float, note: str = "") -> None:
    pass


def _shots(task: Any, asked: Asked) -> int:
    """Examples as asked for, else as the task says; 0 in a task's file is never overruled."""
    own = task.config.num_fewshot
    return (own if own == 0 or asked.shots is None else asked.shots) or 0


def _set_shots(tasks: TaskDict, asked: Asked) -> None:
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=_shots(task, asked))
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


def _refuse_no_tokenizer(loaded: LoadedModel) -> None:
    if loaded.tokenizer is None:
        raise SettingsError(
            f"{loaded.facts.source} has no tokenizer, and questions are text: put the files of its "
            "tokenizer into its folder, or leave --tasks out"
        )


def _refuse_no_template(loaded: LoadedModel, settings: EvaluateSettings) -> None:
    if settings.chat_template and not getattr(loaded.tokenizer, "chat_template", None):
        raise SettingsError(
            f"{loaded.facts.source} has no chat template: leave --chat-template out, or put a "
            "chat_template.jinja into its folder"
        )


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
