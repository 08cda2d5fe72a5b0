"""The records of a whole run, made up but shaped like a real one: no model, no numpy."""

import math
import random
from array import array
from collections.abc import Sequence
from operator import mul
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from depthcut.planning import plan_by_hand, plan_from_survey
from depthcut.records import (
    Bench,
    BenchedModel,
    Comparison,
    Estimate,
    Evaluation,
    HealJudgement,
    HealRecord,
    ModelEvaluation,
    ModelFacts,
    Origin,
    Plan,
    RepairedBlock,
    RepairRecord,
    RepairStep,
    Scores,
    SliceRecord,
    SpeedRatio,
    Spread,
    Survey,
    TextFacts,
    TextPart,
    TextQuality,
    Timing,
    texts_in_words,
    write_record,
)
from depthcut.settings import (
    BenchSettings,
    EvaluateSettings,
    HealSettings,
    LoadSettings,
    PlanSettings,
    RepairSettings,
    SurveySettings,
    Tokens,
)

ORIGIN = Origin(
    inputs="5f2b7c1d9e8a4b6c5f2b7c1d9e8a4b6c",
    seconds=61.4,
    created="2026-01-31T09:30:00+00:00",
    versions={"python": "3.11.9", "depthcut": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0"},
    machine="Linux x86_64, 2 cores",
)
PROMPTS = ("What is the capital of France?", "Write a haiku about a river.")
WIDTH = 16
State = list[float]


class Run(NamedTuple):
    """Everything a run's folder can hold; None: that stage did not run."""

    survey: Survey | None
    plan: Plan | None
    slice: SliceRecord | None
    repair: RepairRecord | None
    heal: HealRecord | None
    evaluation: Evaluation | None
    bench: Bench | None = None

    def write(self, folder: Path) -> Path:
        made = (f"{name}/depthcut.json" for name in ("pruned", "repaired", "healed"))
        places = ("survey.json", "plan.json", *made, "evaluation.json", "bench.json")
        for record, place in zip(self, places, strict=True):
            if record is not None:
                write_record(record, folder / place)
        return folder


def make_run(
    layers: int = 30,
    plan: PlanSettings | None = None,
    *,
    source: str = "smollm2",
    repair: bool = True,
    heal: bool = True,
    speed: bool = True,
    sequences: int = 12,
    generations: Sequence[str] | None = None,
) -> Run:
    survey = make_survey(layers, source=source, sequences=sequences)
    settings = plan or PlanSettings(drop="25%")
    if settings.remove:
        chosen = plan_by_hand(survey.model, settings)
    else:
        chosen = plan_from_survey(survey, settings)
    result = make_facts(len(chosen.kept_layers), source="pruned", digest="b" * 32)
    repaired = make_facts(result.layers, source="repaired", digest="f" * 32)
    healed = make_facts(result.layers, source="healed", digest="c" * 32)
    models = [("original", survey.model, 3.36), ("pruned", result, 4.35)]
    if repair:
        models.append(("repaired", repaired, 3.9))
    if heal:
        models.append(("healed", healed, 3.71))
    evaluation = make_evaluation(models, generations=generations)
    return Run(
        survey=survey,
        plan=chosen,
        slice=SliceRecord(origin=ORIGIN, plan=chosen, parent=chosen.model, result=result),
        repair=make_repair(chosen, repaired) if repair else None,
        heal=make_heal(repaired if repair else result, healed) if heal else None,
        evaluation=evaluation,
        bench=make_bench([each[:2] for each in (models[0], models[-1])]) if speed else None,
    )


def make_facts(layers: int, *, source: str = "smollm2", digest: str = "a" * 32) -> ModelFacts:
    per_layer, other = 3_540_096, 28_312_128
    return ModelFacts(
        source=source,
        digest=digest,
        model_type="llama",
        layers=layers,
        hidden_size=576,
        dtype="BF16",
        layer_parameters=(per_layer,) * layers,
        other_parameters=other,
        weight_bytes=2 * (per_layer * layers + other),
    )


def make_survey(
    layers: int = 30, *, source: str = "smollm2", sequences: int = 12, seed: int = 0
) -> Survey:
    numbers = random.Random(seed)
    states = [make_states(layers, numbers) for _ in range(sequences)]
    return Survey(
        origin=ORIGIN,
        model=make_facts(layers, source=source),
        text=TextFacts(
            source="builtin", digest="d" * 32, sequences=sequences, tokens=512 * sequences
        ),
        settings=SurveySettings(part="train"),
        load=LoadSettings(),
        norms=tuple(
            math.fsum(_norm(sequence[depth]) for sequence in states) / sequences
            for depth in range(layers + 1)
        ),
        scores=tuple(
            make_scores(states, criterion, tokens, numbers)
            for criterion in ("angular", "block-influence", "relative-magnitude")
            for tokens in ("last", "all")
        ),
    )


def make_states(layers: int, numbers: random.Random) -> list[State]:
    """A residual stream: depths 0 to L of one sequence; deep layers add little, the last much."""
    state = [numbers.gauss(0, 1) for _ in range(WIDTH)]
    states = [state]
    for layer in range(layers):
        place = layer / layers
        added = 0.3 + 1.1 * math.exp(-11 * place) + 0.5 * math.exp(-(((place - 1) / 0.05) ** 2))
        added += 0.1 * math.cos(5.5 * place)
        size = added * _norm(state) / math.sqrt(WIDTH)
        state = [1.04 * each + size * numbers.gauss(0, 1) for each in state]
        states.append(state)
    return states


def make_scores(
    states: Sequence[Sequence[State]], criterion: str, tokens: Tokens, numbers: random.Random
) -> Scores:
    layers = len(states[0]) - 1
    scope: Literal["block", "layer"] = "block" if criterion == "angular" else "layer"
    noise = 0.06 if tokens == "last" else 0.01
    samples = [
        [
            max(0.0, score * (1 + numbers.gauss(0, noise)))
            for score in _one_sequence(sequence, criterion, scope)
        ]
        for sequence in states
    ]
    entries = [_estimate(column) for column in zip(*samples, strict=True)]
    widths = [layers - start if scope == "block" else 1 for start in range(layers)]
    cells = iter(entries)
    rows = [[next(cells) for _ in range(width)] for width in widths]
    return Scores(
        criterion=criterion,
        tokens=tokens,
        scope=scope,
        paper="Gromov et al. 2024, arXiv:2403.17887",
        meaning=f"what {criterion} says: 0 nothing happens",
        mean=tuple(tuple(value for value, _ in row) for row in rows),
        stderr=tuple(tuple(error for _, error in row) for row in rows),
        per_sequence=array("f", [each for sample in samples for each in sample]).tobytes(),
    )


def make_repair(plan: Plan, result: ModelFacts) -> RepairRecord:
    return RepairRecord(
        origin=ORIGIN,
        plan=plan,
        parent=plan.model,
        text=TextFacts(source="builtin", digest="d" * 32, sequences=128, tokens=65_536),
        settings=RepairSettings(part="train"),
        load=LoadSettings(),
        fitted_tokens=57_344,
        held_out_tokens=8_192,
        blocks=tuple(
            RepairedBlock(
                start=start,
                stop=stop,
                steps=(
                    RepairStep(
                        layer=start - 1,
                        tensors=(f"model.layers.{start - 1}.mlp.down_proj.weight",),
                        ridge=0.01,
                        condition=1.7e4,
                        error_before=0.412,
                        error_after=0.173,
                    ),
                ),
            )
            for start, stop in plan.removed
        ),
        result=result,
    )


def make_heal(model: ModelFacts, result: ModelFacts) -> HealRecord:
    return HealRecord(
        origin=ORIGIN,
        model=model,
        text=TextFacts(source="builtin", digest="d" * 32, sequences=180, tokens=90_000),
        teacher=make_facts(30),
        settings=HealSettings(steps=200, teacher="parent"),
        load=LoadSettings(),
        trained_parameters=4_128_768,
        trained_tokens=819_200,
        micro_batch_size=4,
        devices=1,
        starts=1,
        training_seconds=55.0,
        losses=tuple((step, 0.2 + 0.8 * math.exp(-step / 40)) for step in range(10, 201, 10)),
        judgements=tuple(
            HealJudgement(step=step, loss=loss, next_token=3.5 + loss)
            for step, loss in ((0, 1.0), (100, 0.31), (200, 0.28))
        ),
        held_out_tokens=8_192,
        best_step=200,
        result=result,
    )


def make_evaluation(
    models: Sequence[tuple[str, ModelFacts, float]],
    *,
    generations: Sequence[str] | None = None,
) -> Evaluation:
    texts = generations or [f"An answer by {name}." for name, _, _ in models]
    first = models[0][2]
    return Evaluation(
        origin=ORIGIN,
        text=TextFacts(source="builtin", digest="e" * 32, sequences=64, tokens=32_704),
        settings=EvaluateSettings(part="held-out"),
        load=LoadSettings(),
        prompts=PROMPTS,
        models=tuple(
            ModelEvaluation(
                name=name,
                model=facts,
                loss=Estimate(value=loss, stderr=0.031),
                perplexity=Estimate(value=math.exp(loss), stderr=0.031 * math.exp(loss)),
                bits_per_byte=Estimate(value=loss / 3.1, stderr=0.031 / 3.1),
                generations=(text,) * len(PROMPTS),
            )
            for (name, facts, loss), text in zip(models, texts, strict=True)
        ),
        comparisons=tuple(
            Comparison(
                name=name,
                loss_difference=Estimate(value=loss - first, stderr=0.012),
                agreement=Estimate(value=math.exp(first - loss), stderr=0.004),
                kl_divergence=Estimate(value=0.9 * (loss - first), stderr=0.01),
            )
            for name, _, loss in models[1:]
        ),
    )


def on_two_texts(evaluation: Evaluation) -> Evaluation:
    """The same on two texts; what a model lost was lost on the second by three quarters."""
    assert evaluation.text
    first = evaluation.models[0].loss
    assert first
    names = ("support.txt", "c4.jsonl")
    parts = tuple(
        TextPart(source=name, digest=name, share=0.5, sequences=32, tokens=16_352) for name in names
    )
    return msgspec.structs.replace(
        evaluation,
        text=msgspec.structs.replace(
            evaluation.text,
            source=texts_in_words(parts),
            parts=parts,
            order=bytes(each % 2 for each in range(64)),
        ),
        models=tuple(
            msgspec.structs.replace(
                model,
                texts=tuple(
                    make_text_quality(name, first.value, weight * (model.loss.value - first.value))
                    for name, weight in zip(names, (0.5, 1.5), strict=True)
                ),
            )
            for model in evaluation.models
            if model.loss
        ),
    )


def make_text_quality(name: str, first: float, lost: float) -> TextQuality:
    """Of the first model where nothing was lost."""
    loss = first + lost
    found = TextQuality(
        source=name,
        loss=Estimate(value=loss, stderr=0.044),
        perplexity=Estimate(value=math.exp(loss), stderr=0.044 * math.exp(loss)),
        bits_per_byte=Estimate(value=loss / 3.1, stderr=0.044 / 3.1),
    )
    if not lost:
        return found
    return msgspec.structs.replace(
        found,
        loss_difference=Estimate(value=lost, stderr=0.017),
        agreement=Estimate(value=math.exp(-abs(lost)), stderr=0.006),
        kl_divergence=Estimate(value=0.9 * abs(lost), stderr=0.014),
    )


def make_bench(
    models: Sequence[tuple[str, ModelFacts]], *, batch_sizes: tuple[int, ...] = (1,)
) -> Bench:
    """Time in proportion to the layers, and the ideal a little ahead of it."""
    (_, first), *others = models
    return Bench(
        origin=ORIGIN,
        settings=BenchSettings(batch_sizes=batch_sizes),
        load=LoadSettings(),
        versions={"transformers": "5.24.0", "torch": "2.13.0"},
        cpu="A processor at 2.50GHz",
        device="cpu",
        threads=2,
        models=tuple(
            BenchedModel(
                name=name,
                model=facts,
                weight_bytes=facts.weight_bytes,
                read_bytes=facts.weight_bytes,
                peak_memory_bytes=300_000_000 + 2 * facts.parameters,
                timings=tuple(make_timing(facts.layers, size) for size in batch_sizes),
            )
            for name, facts in models
        ),
        ratios=tuple(
            SpeedRatio(
                name=name,
                batch_size=size,
                first_token=make_spread(first.layers / facts.layers),
                decode=make_spread(first.layers / facts.layers),
                throughput=make_spread(first.layers / facts.layers),
                ideal_prefill=1.02 * first.layers / facts.layers,
                ideal_decode=first.weight_bytes / facts.weight_bytes,
            )
            for name, facts in others
            for size in batch_sizes
        ),
    )


def make_timing(layers: int, batch_size: int) -> Timing:
    return Timing(
        batch_size=batch_size,
        first_token=make_spread(layers * batch_size / 55),
        prefill=make_spread(28_000 / layers),
        decode=make_spread(900 * batch_size**0.5 / layers),
        throughput=make_spread(600 * batch_size**0.5 / layers),
        cache_bytes=544 * layers * 768 * batch_size,
    )


def make_spread(median: float) -> Spread:
    rounds = tuple(median * factor for factor in (0.97, 1.0, 1.02, 0.99, 1.01))
    return Spread(median=median, low=median * 0.99, high=median * 1.01, rounds=rounds)


def angle(first: State, second: State) -> float:
    """Angular distance in half turns."""
    cosine = sum(map(mul, first, second)) / (_norm(first) * _norm(second))
    return math.acos(max(-1.0, min(1.0, cosine))) / math.pi


def _one_sequence(sequence: Sequence[State], criterion: str, scope: str) -> list[float]:
    layers = len(sequence) - 1
    if scope == "block":
        return [
            angle(sequence[start], sequence[stop])
            for start in range(layers)
            for stop in range(start + 1, layers + 1)
        ]
    pairs = [(sequence[layer], sequence[layer + 1]) for layer in range(layers)]
    if criterion == "relative-magnitude":
        return [
            _norm([b - a for a, b in zip(first, second, strict=True)]) / _norm(first)
            for first, second in pairs
        ]
    return [1 - math.cos(math.pi * angle(first, second)) for first, second in pairs]


def _estimate(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    variance = math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _norm(state: State) -> float:
    return math.sqrt(math.fsum(each * each for each in state))
