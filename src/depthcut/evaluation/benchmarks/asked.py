"""Which tasks are asked for: names, examples before each question, and sets of tasks by one name.

Nothing here needs lm-eval: what was answered before is found without it.
"""

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from depthcut.errors import MissingExtraError, SettingsError, SourceError
from depthcut.records import inputs_digest
from depthcut.settings import EvaluateSettings, LoadSettings

TASK_FILES = Path(__file__).with_name("task_files")
"""Tasks that come with depthcut: their data lies in a folder."""

HUB_TASK_FILES = Path(__file__).with_name("hub_task_files")
"""The same with data of the hub, where lm-eval's own would run code that a model wrote, with
nothing around it."""

_FORM = "3"
"""Of what is kept of answers; another one when `answers.Unit` means something else."""


class Asked(NamedTuple):
    """A task, or a group or tag of tasks, of lm-eval."""

    name: str
    shots: int | None = None
    """Examples before each question; None: as many as the task says."""
    limit: int | None = None
    """Questions, at most; None: all, or what --limit says."""

    @property
    def words(self) -> str:
        return self.name if self.shots is None else f"{self.name}:{self.shots}"


SETS: dict[str, tuple[Asked, ...]] = {
    # Minutes on a CPU: a sample of four tasks that even small models do well.
    "quick": tuple(
        Asked(name, 0, 100) for name in ("arc_easy", "hellaswag", "piqa", "lambada_openai")
    ),
    # What papers on pruning show, without examples.
    "standard": tuple(
        Asked(name, 0)
        for name in (
            "arc_challenge",
            "arc_easy",
            "boolq",
            "hellaswag",
            "lambada_openai",
            "mmlu",
            "openbookqa",
            "piqa",
            "winogrande",
        )
    ),
    # arXiv:2403.17887: MMLU with five examples, BoolQ without, loss on C4.
    "paper": (Asked("mmlu", 5), Asked("boolq", 0), Asked("c4", 0, 1000)),
    # What breaks first: free text. The code is run, in a sandbox.
    "generation": (Asked("gsm8k", 5), Asked("humaneval", 0), Asked("mbpp", 3)),
    "multilingual": tuple(Asked(name, 0) for name in ("xcopa_id", "xcopa_it", "xcopa_zh")),
}


def asked_tasks(settings: EvaluateSettings) -> tuple[Asked, ...]:
    """What --tasks names, sets resolved, in order, each once.

    Raises:
        SettingsError: No name at all, no number of examples behind a colon, or a task with two of
            them.
        SourceError: A folder of --include or --data is not there.
        MissingExtraError: lm-eval is not installed.
    """
    found: dict[str, Asked] = {}
    for name in _names(settings):
        for each in _resolved(name):
            if (other := found.setdefault(each.name, each)) != each:
                raise SettingsError(
                    f"--tasks asks for {each.name} twice ({other.words} and {each.words}): "
                    "evaluate in two commands"
                )
    if settings.tasks and not found:
        raise SettingsError(
            f"--tasks names no task: expected names such as arc_easy, or a set ({', '.join(SETS)})"
        )
    for option, folder in (("include", each) for each in settings.include):
        _refuse_no_folder(option, folder)
    if settings.data is not None:
        _refuse_no_folder("data", settings.data)
    if settings.limit is not None and settings.limit < 2:
        raise SettingsError(f"--limit {settings.limit}: expected at least 2 questions of each task")
    if found:
        harness_version()
    return tuple(found.values())


def harness_version() -> str:
    """lm-eval's version.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return version("lm-eval")
    except PackageNotFoundError as error:
        raise MissingExtraError("lm-eval", "eval", "--tasks") from error


def answers_key(
    asked: Asked, model_digest: str, settings: EvaluateSettings, load: LoadSettings
) -> str:
    """Digest of all that a model's answers depend on, but for the data, see `Unit.holds`."""
    limit = asked.limit if settings.limit is None else settings.limit
    parts = [
        _FORM,
        harness_version(),
        version("transformers"),
        asked.words,
        "all" if limit is None else f"{limit} by {settings.seed}",
        str(settings.chat_template),
        settings.backend,
        definitions_digest(settings),
    ]
    return inputs_digest("answers", model_digest, load, parts)


def task_folders(settings: EvaluateSettings) -> tuple[Path, ...]:
    """Folders of task files beside lm-eval's own, a later one before an earlier one."""
    own = HUB_TASK_FILES if settings.data is None else TASK_FILES
    return (own, *(Path(each).resolve() for each in settings.include))


def definitions_digest(settings: EvaluateSettings) -> str:
    """What the task files say that are not lm-eval's own, and where their data lies."""
    digest = hashlib.sha256()
    every = [
        (folder, folder.rglob("*"))
        for folder in {TASK_FILES: None, **dict.fromkeys(task_folders(settings))}
    ]
    named = {Path(name.partition(":")[0]) for name in _names(settings)}  # --tasks my/task.yaml
    beside = {path.parent for path in named if path.is_file()}
    every += [(folder, folder.iterdir()) for folder in sorted(beside)]
    for folder, paths in every:
        for path in sorted(paths):
            if path.suffix in (".yaml", ".py") or path.name.endswith("_yaml"):
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    data = "" if settings.data is None else str(Path(settings.data).resolve())
    return digest.hexdigest() + data


def _names(settings: EvaluateSettings) -> Iterator[str]:
    for each in settings.tasks:
        yield from (name for name in re.split(r"[,\s]+", each) if name)


def _resolved(name: str) -> tuple[Asked, ...]:
    task, colon, shots = name.partition(":")
    if task in SETS:
        if colon:
            raise SettingsError(f"--tasks {name}: {task} says itself how many examples are shown")
        return SETS[task]
    if colon and not re.fullmatch(r"\d{1,3}", shots):
        raise SettingsError(
            f"--tasks {name}: behind the colon goes a number of examples, such as {task}:5"
        )
    return (Asked(task, int(shots) if colon else None),)


def _refuse_no_folder(option: str, folder: str) -> None:
    if not Path(folder).is_dir():
        raise SourceError(f"--{option} {folder}: no such folder")
