"""Every way of choosing layers on one model and text, judged on other texts, in one folder.

    sweep.json  sweep.csv  sweep.md  survey.json  surveys/  searches/  judged/

What is there and was made from the same inputs is taken as it is: the same command goes on where
a killed one stopped, and one that asks for a further way measures only that.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthcut import api
from depthcut.errors import ArchitectureError, PlanError, SettingsError
from depthcut.evaluation.estimates import perplexity, ratio_estimate
from depthcut.files import sole_writer, write_file
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.model.loading import load as load_model
from depthcut.model.skipping import Losses
from depthcut.records import (
    JudgedText,
    Judgement,
    ModelFacts,
    Origin,
    Sweep,
    Way,
    inputs_digest,
    layer_counts,
    layer_set,
    merged,
    write_record,
)
from depthcut.searching.judging import judge_choices
from depthcut.settings import LoadSettings, SweepSettings, Texts, TextSettings
from depthcut.sweeping.choosing import Announce, Chooser, file_name, found
from depthcut.sweeping.ways import AskedWay, asked_ways
from depthcut.text.documents import Text, open_text
from depthcut.text.sequences import Sequences, read_sequences


def compare_ways(
    model: str | Path | PreTrainedModel,
    settings: SweepSettings,
    load: LoadSettings,
    *,
    texts: Sequence[str] | None,
    judges: Mapping[str, Sequence[str]] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path | None,
    overwrite: bool,
    announce: Announce,
) -> Sweep:
    """What `depthcut.sweep` does, with its arguments."""
    with sole_writer(folder) if folder is not None else nullcontext():
        asked = asked_ways(settings.criteria, settings.objective)
        source = _Model(model, tokenizer, load)
        counts = _counts(settings, source.facts.layers)
        reading = _Reading(settings, texts, judges)
        inputs = inputs_digest(
            "sweep",
            settings,
            load,
            source.facts.digest,
            [reading.text.digest, *(text.digest for _, text in reading.judges.values())],
            [way.name for way in asked],
        )
        path = None if folder is None else folder / "sweep.json"
        if path is not None and (known := found(path, Sweep, inputs, overwrite=overwrite)):
            announce(f"{path.name} is there already")
            return known
        record = _sweep(
            source.loaded, asked, reading, load, counts=counts, settings=settings, inputs=inputs,
            folder=folder, overwrite=overwrite, announce=announce,
        )  # fmt: skip
        if folder is not None and path is not None:
            from depthcut.reporting.sweep_exports import sweep_csv, sweep_markdown

            write_file(folder / "sweep.csv", sweep_csv(record).encode(), overwrite=True)
            write_file(folder / "sweep.md", sweep_markdown(record).encode(), overwrite=True)
            write_record(record, path)
        return record


def _sweep(
    loaded: LoadedModel,
    asked: Sequence[AskedWay],
    reading: "_Reading",
    load: LoadSettings,
    *,
    counts: Sequence[int],
    settings: SweepSettings,
    inputs: str,
    folder: Path | None,
    overwrite: bool,
    announce: Announce,
) -> Sweep:
    started = time.monotonic()
    if loaded.tokenizer is None:
        raise SettingsError("a model in memory needs its tokenizer: pass tokenizer=")
    tokenizer = loaded.tokenizer
    # Read before anything is measured: a text that is not as it should be says so at once.
    judging = {
        name: (how, read_sequences(text, how, tokenizer))
        for name, (how, text) in reading.judges.items()
    }
    _warm_up(loaded)
    chooser = Chooser(
        loaded=loaded,
        read=lambda asked: read_sequences(reading.text, asked, tokenizer),
        digest=reading.text.digest,
        settings=reading.settings,
        load=load,
        counts=counts,
        folder=folder,
        overwrite=overwrite,
        announce=announce,
    )
    ways = chooser.ways(asked)
    judged = []
    for name, (how, sequences) in judging.items():
        announce(f"judge: {name}")
        inputs_here = inputs_digest("judge", how, load, loaded.facts.digest, sequences.facts.digest)
        journal = None if folder is None else _journal(folder, name, inputs_here)
        judged.append(
            judge_ways(
                loaded,
                ways,
                sequences,
                name=name,
                inputs=inputs_here,
                journal=journal,
                batch_size=settings.batch_size,
            )
        )
    return Sweep(
        origin=Origin.since(started, inputs=inputs),
        model=loaded.facts,
        settings=settings,
        load=load,
        calibration=reading.name,
        calibration_digest=reading.text.digest,
        ways=ways,
        judged=tuple(judged),
    )


def judge_ways(
    loaded: LoadedModel,
    ways: Sequence[Way],
    sequences: Sequences,
    *,
    name: str,
    inputs: str,
    journal: Path | None = None,
    batch_size: int | None = None,
) -> JudgedText:
    """What a text says of everything that some ways chose.

    Args:
        loaded: The model.
        ways: What they chose.
        sequences: The text.
        name: Of the text, for people.
        inputs: Digest of what the losses depend on, for the journal.
        journal: Where what was measured is kept; None: nowhere.
        batch_size: Sequences in a forward pass; default: chosen from the memory at hand.
    """
    choices = {
        tuple(layer for block in choice.removed for layer in range(*block))
        for way in ways
        for choice in way.choices
    }
    measured = judge_choices(
        loaded,
        sequences,
        choices,
        inputs=inputs,
        journal=journal,
        batch_size=batch_size,
        title=f"judge: {name}",
    )
    predicted = [len(ids) - 1 for ids in sequences.sequences]
    untouched = measured[()]
    return JudgedText(
        text=msgspec.structs.replace(sequences.facts, source=name),
        predicted=tuple(predicted),
        judgements=tuple(
            _judgement(removed, measured[removed], untouched, torch.tensor(predicted))
            for removed in sorted(measured, key=lambda each: (len(each), each))
        ),
    )


def _judgement(
    removed: tuple[int, ...], losses: Losses, untouched: Losses, predicted: Tensor
) -> Judgement:
    loss = ratio_estimate(losses.loss * predicted, predicted)
    kept = torch.stack([losses.loss, losses.divergence]).float()
    return Judgement(
        removed=merged(removed),
        loss=loss,
        perplexity=perplexity(loss),
        loss_difference=ratio_estimate((losses.loss - untouched.loss) * predicted, predicted),
        kl_divergence=ratio_estimate(losses.divergence * predicted, predicted),
        by_sequence=kept.numpy().astype("<f4").tobytes(),
    )


def _journal(folder: Path, name: str, inputs: str) -> Path:
    """A file of its own for each text and way of reading it, in judged/."""
    judged = folder / "judged"
    judged.mkdir(parents=True, exist_ok=True)
    return judged / f"{file_name(Path(name).name)[:40]}-{inputs[:8]}.jsonl"


class _Model:
    """A model, whose facts are known before it is loaded."""

    def __init__(
        self,
        source: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        settings: LoadSettings,
    ) -> None:
        self._source, self._tokenizer, self._settings = source, tokenizer, settings

    @cached_property
    def facts(self) -> ModelFacts:
        if isinstance(self._source, str | Path):
            try:
                return api.facts(self._source, load=self._settings)
            except ArchitectureError:  # cannot be sliced, and yet be measured
                pass
        return self.loaded.facts

    @cached_property
    def loaded(self) -> LoadedModel:
        if isinstance(self._source, str | Path):
            return load_model(self._source, self._settings)
        return from_memory(self._source, self._tokenizer)


class _Reading:
    """The texts, opened: that one is missing is known before anything is measured."""

    def __init__(
        self,
        settings: SweepSettings,
        texts: Sequence[str] | None,
        judges: Mapping[str, Sequence[str]] | None,
    ) -> None:
        self.settings = settings
        """Of the text that the ways choose by: its sequences that do not judge."""
        self.text = open_text(settings, texts)
        self.name = " + ".join(source.name for source in self.text.sources)
        self.judges: dict[str, tuple[TextSettings, Text]] = {}
        """By name: how it is read, and the text."""
        names = (settings.judge,) if isinstance(settings.judge, str) else settings.judge
        if judges is not None:
            for name, documents in judges.items():
                how = self._judging(name)
                self.judges[name] = how, open_text(how, documents)
        elif names:
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise SettingsError(f"--judge {twice[0]} stands there twice: name it once")
            for name in names:
                how = self._judging(name)
                self.judges[name] = how, open_text(how)
        else:
            self._hold_out()
            return
        for name, (_, text) in self.judges.items():
            if text.digest == self.text.digest:
                raise SettingsError(
                    f"--judge {name} judges what was chosen on it: name another text, or leave "
                    "--judge out to judge on every eighth sequence, which the ways do not see"
                )

    def _hold_out(self) -> None:
        """Every eighth sequence of the one text judges, and the ways do not see it."""
        asked = self.settings
        if asked.part != "all":
            raise SettingsError(f"--part {asked.part}: name a --judge to judge on")
        how = msgspec.structs.replace(
            self._judging(asked.text),
            part="held-out",
            split=asked.split,
            text_config=asked.text_config,
        )
        self.judges[f"{self.name}, every eighth sequence"] = how, self.text
        self.settings = msgspec.structs.replace(asked, part="train")

    def _judging(self, name: Texts) -> TextSettings:
        return TextSettings(
            text=name,
            split=self.settings.judge_split,
            columns=self.settings.columns,
            packing=self.settings.packing,
            context=self.settings.judge_context,
            tokens=self.settings.judge_tokens,
        )


def _counts(settings: SweepSettings, layers: int) -> tuple[int, ...]:
    """Numbers of layers to remove.

    Raises:
        SettingsError: Not numbers of layers.
        PlanError: More layers than may go.
    """
    counts = layer_counts(str(settings.drop), layers)
    free = layers - len(layer_set(settings.protect or "", layers))
    if counts[-1] > free:
        raise PlanError(
            f"drop {settings.drop}: only {free} layers may go beside the protected "
            f"{settings.protect}; protect fewer or drop fewer"
        )
    return counts


def _warm_up(loaded: LoadedModel) -> None:
    """What a device does at its first use shall not count as the cost of the first way."""
    with torch.inference_mode():
        loaded.model(input_ids=torch.zeros(1, 8, dtype=torch.int64, device=loaded.device))
