"""The stage: every model on the same text, the same prompts and the same clock."""

import time
from collections.abc import Mapping
from contextlib import ExitStack

from depthcut.errors import SettingsError
from depthcut.evaluation.footprint import measure_footprint
from depthcut.evaluation.generation import generate_all
from depthcut.evaluation.inputs import evaluation_inputs
from depthcut.evaluation.prompts import read_prompts
from depthcut.evaluation.quality import judge, refuse_unpaired
from depthcut.evaluation.speed import SpeedMeasure, measure_speed, refuse_too_long
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.progress import progress
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

    Peak memory is that of each model alone: on a GPU its weights and what the timed runs
    allocated beside them; on the CPU what loading and running it adds to a fresh process
    (None for a model in memory).

    Args:
        models: By the name to show, in the order to show.
        sequences: Made with the models' common tokenizer.

    Raises:
        SettingsError: No model, different tokenizers, numbers below their least, or more tokens
            than a model has positions.
        CheckpointError: A model's loss is not a finite number.
        TextError: Fewer than two sequences.
        SourceError: The file of prompts cannot be read.
    """
    started = time.monotonic()
    _check(settings, models)
    prompts = read_prompts(settings.prompts) if settings.new_tokens else ()
    refuse_unpaired(models)
    if settings.rounds:
        refuse_too_long(models, settings)
    with ExitStack() as modes:
        for loaded in models.values():
            modes.enter_context(in_eval_mode(loaded.model))
        qualities, comparisons = judge(models, sequences, batch_size=settings.batch_size)
        texts = generate_all(models, prompts, new_tokens=settings.new_tokens)
        speeds = measure_speed(models, settings) if settings.rounds else {}
    peaks = _peaks(models, speeds, settings, load)
    judged = []
    for name, loaded in models.items():
        speed = speeds.get(name)
        judged.append(
            ModelEvaluation(
                name=name,
                model=loaded.facts,
                loss=qualities[name].loss,
                perplexity=qualities[name].perplexity,
                bits_per_byte=qualities[name].bits_per_byte,
                prefill=speed.prefill if speed else None,
                decode=speed.decode if speed else None,
                peak_memory_bytes=peaks.get(name),
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
    least = {"new_tokens": 0, "rounds": 0, "prefill_tokens": 1, "decode_tokens": 1}
    if settings.batch_size is not None:
        least["batch_size"] = 1
    for field, minimum in least.items():
        if (value := getattr(settings, field)) < minimum:
            option = field.replace("_", "-")
            raise SettingsError(f"--{option} {value}: expected a number of at least {minimum}")


def _peaks(
    models: Mapping[str, LoadedModel],
    speeds: Mapping[str, SpeedMeasure],
    settings: EvaluateSettings,
    load: LoadSettings,
) -> dict[str, int | None]:
    peaks = {name: speed.peak_device_bytes for name, speed in speeds.items()}
    apart = {name: models[name].folder for name in speeds if models[name].device.type == "cpu"}
    if not apart:
        return peaks
    with progress("evaluate: memory", len(apart), unit="models") as advance:
        for name, folder in apart.items():
            if folder is not None:
                peaks[name] = measure_footprint(folder, settings, load)
            advance(1, name)
    return peaks
