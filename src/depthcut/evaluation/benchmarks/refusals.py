"""Tasks that would be put, and models that would be asked, to no good: refused, and what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.registry import METRIC_REGISTRY
from lm_eval.tasks._yaml_loader import load_yaml

from depthcut.errors import SettingsError, SourceError, nearest
from depthcut.evaluation.benchmarks.asked import Asked
from depthcut.model.loading import LoadedModel
from depthcut.settings import EvaluateSettings


def refuse_broken_files(folders: Sequence[str]) -> None:
    """Name a file of the user's that lm-eval passes over in silence, since it cannot read it."""
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.yaml"))):
        try:
            load_yaml(path, resolve_func=False, recursive=False)
        except Exception as error:  # whatever YAML and lm-eval raise
            reason = " ".join(str(error).split())
            raise SourceError(f"{path} is no task file that lm-eval can read: {reason}") from error


def refuse_unconfined(name: str, task: Any) -> None:
    metadata = task.config.metadata or {}
    if task.config.unsafe_code and not metadata.get("sandboxed"):
        raise SettingsError(
            f"{name} runs what the model wrote with nothing around it: take humaneval or mbpp, "
            "which run in a sandbox"
        )


def refuse_leaking(name: str, task: Any, asked: Asked) -> None:
    """Refuse examples that would be drawn from the questions."""
    config = task.config
    others = (task.has_training_docs(), task.has_validation_docs(), config.fewshot_split)
    own = getattr(config.fewshot_config, "samples", None)
    if shots_of(task, asked) and not any(others) and not own:
        raise SettingsError(
            f"{name} has no examples of its own here, and would show its questions as examples: "
            f"ask for {name}:0"
        )


def refuse_unscored(name: str, task: Any) -> None:
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


def refuse_too_many(name: str, task: Any, asked: Asked) -> None:
    """Refuse more examples than there are: lm-eval would stop in the middle."""
    if not (shots := shots_of(task, asked)) or not hasattr(task, "sampler"):
        return
    with_question = task.fewshot_cfg.split == task.config.test_split  # it is drawn, and left out
    most = len(task.sampler.df) - with_question
    if shots > most:
        raise SettingsError(f"{name} has {most} examples: ask for {name}:{most} or fewer")


def refuse_no_tokenizer(loaded: LoadedModel) -> None:
    if loaded.tokenizer is None:
        raise SettingsError(
            f"{loaded.facts.source} has no tokenizer, and questions are text: put the files of its "
            "tokenizer into its folder, or leave --tasks out"
        )


def refuse_no_template(loaded: LoadedModel, settings: EvaluateSettings) -> None:
    if settings.chat_template and not getattr(loaded.tokenizer, "chat_template", None):
        raise SettingsError(
            f"{loaded.facts.source} has no chat template: leave --chat-template out, or put a "
            "chat_template.jinja into its folder"
        )


def shots_of(task: Any, asked: Asked) -> int:
    """Examples as asked for, else as the task says; 0 in a task's file is never overruled."""
    own = task.config.num_fewshot
    return (own if own == 0 or asked.shots is None else asked.shots) or 0
