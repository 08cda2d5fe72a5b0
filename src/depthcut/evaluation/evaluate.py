"""The stage: every model on the same text and the same prompts."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

from depthcut.errors import SettingsError
from depthcut.evaluation.generation import generate_all
from depthcut.evaluation.inputs import evaluation_inputs
from depthcut.evaluation.prompts import read_prompts
from depthcut.evaluation.quality import judge, refuse_unpaired
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.records import Evaluation, ModelEvaluation, Origin
from depthcut.settings import EvaluateSettings, LoadSettings
from depthcut.text.sequences import Sequences


def evaluate_models(
    models: Mapping[str, LoadedModel],
    sequences: Sequences,
    settings: EvaluateSettings,
    load: LoadSettings,
) -> Evaluation:
    """Judge models on a text; the first is the reference of the comparisons.

    Args:
        models: By the name to show, in the order to show.
        sequences: Made with the models' common tokenizer.

    Raises:
        SettingsError: No model, different tokenizers, or numbers below their least.
        CheckpointError: A model's loss is not a finite number.
        TextError: Fewer than two sequences.
        SourceError: The file of prompts cannot be read.
    """
    started = time.monotonic()
    _check(settings, models)
    prompts = read_prompts(settings.prompts) if settings.new_tokens else ()
    refuse_unpaired(models)
    with ExitStack() as modes:
        for loaded in models.values():
            modes.enter_context(in_eval_mode(loaded.model))
        qualities, comparisons = judge(models, sequences, batch_size=settings.batch_size)
        texts = generate_all(models, prompts, new_tokens=settings.new_tokens)
    judged = []
    for name, loaded in models.items():
        judged.append(
            ModelEvaluation(
                name=name,
                model=loaded.facts,
                loss=qualities[name].loss,
                perplexity=qualities[name].perplexity,
                bits_per_byte=qualities[name].bits_per_byte,
                generations=texts[name],
            )
        )
    digests = [loaded.facts.digest for loaded in models.values()]
    inputs = evaluation_inputs(digests, sequences.facts.digest, settings, load)
    return Evaluation(
        origin=Origin.since(started, inputs=inputs),
        text=sequences.facts,
        settings=settings,
        load=load,
        prompts=prompts,
        models=tuple(judged),
        comparisons=comparisons,
    )


def _check(settings: EvaluateSettings, models: Mapping[str, LoadedModel]) -> None:
    if not models:
        raise SettingsError("no model to evaluate: name at least one")
    least = {"new_tokens": 0}
    if settings.batch_size is not None:
        least["batch_size"] = 1
    for field, minimum in least.items():
        if (value := getattr(settings, field)) < minimum:
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number of at least {minimum}")
