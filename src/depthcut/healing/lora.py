"""The plain form of healing: LoRA on all linear layers, merged into the checkpoint at the end."""

import math
import time
from pathlib import Path

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import SettingsError, TextError
from depthcut.files import new_folder
from depthcut.healing.adapters import adapted, weight_deltas
from depthcut.healing.card import heal_card
from depthcut.healing.inputs import heal_inputs
from depthcut.healing.merging import add_to_weight
from depthcut.healing.result import copy_base
from depthcut.healing.training import seeded, train
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.stored_weights import find_weight
from depthcut.records import HealRecord, Origin, write_record
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import Sequences


def heal_checkpoint(
    loaded: LoadedModel,
    sequences: Sequences,
    settings: HealSettings,
    load: LoadSettings,
    out: Path,
) -> HealRecord:
    """Train a model with LoRA (arXiv:2106.09685) on a text and write it with the adapters merged.

    The result has the tensors, names and dtypes of the checkpoint it came from. The adapters
    are added to the weights in that checkpoint's files, in float32, rounded once to the files'
    dtype: also when training ran in another dtype, or on a 4-bit base (QLoRA,
    arXiv:2305.14314), whose rounding so never reaches the result. `loaded` itself is as before
    when this returns.

    Args:
        loaded: The model; one in memory is saved first, in its own dtype.
        sequences: Made with its tokenizer; repeated, shuffled, until the steps are done.
        out: The folder to be; it must not exist.

    Raises:
        SettingsError: Numbers that cannot be meant, a 4-bit model without a folder, or a loss
            that ceased to be a number.
        TextError: Nothing to train on.
        ArchitectureError: Weights that adapters cannot be merged into.
        OutputError: `out` exists or cannot be written.
        MissingExtraError: peft is not installed.
    """
    started = time.monotonic()
    _check(settings)
    if not sequences.sequences:
        raise TextError("no sequence to train on: give more text")
    context = max(len(ids) for ids in sequences.sequences)
    with new_folder(out, needed_bytes=loaded.facts.weight_bytes) as working:
        copy_base(loaded, working)
        base = open_checkpoint(working)
        model_facts(base, source=str(out))  # a type that cannot be described: said before training
        with seeded(settings.seed), adapted(loaded.model, settings) as wrapped:
            for name, delta in weight_deltas(wrapped):
                find_weight(base, name, delta.shape)  # before the training, not after it
            trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
            fitting = fitting_batch_size(
                loaded,
                context,
                bytes_per_token=_activation_bytes(loaded),
                most=1 << settings.batch_size.bit_length(),
            )
            training = train(
                wrapped,
                sequences.sequences,
                settings,
                device=loaded.device,
                checkpoint_activations=fitting < settings.batch_size,
            )
            for name, delta in weight_deltas(wrapped):
                add_to_weight(find_weight(base, name, delta.shape), delta)
            if settings.keep_adapter:
                folder = str(working / "adapter")
                wrapped.save_pretrained(folder, save_embedding_layers=False)
        inputs = heal_inputs(loaded.facts.digest, sequences.facts.digest, settings, load)
        record = HealRecord(
            origin=Origin.since(started, inputs=inputs),
            model=loaded.facts,
            text=sequences.facts,
            settings=settings,
            load=load,
            trained_parameters=trained,
            trained_tokens=training.tokens,
            losses=training.losses,
            result=model_facts(open_checkpoint(working), source=str(out)),
        )
        card = heal_card(record, loaded.folder, name=out.name)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(record, working / "depthcut.json")
    return record


def _activation_bytes(loaded: LoadedModel) -> int:
    """What training keeps of each token: in its layers (28 numbers for each of their width,
    measured on SmolLM2 with adapters) and for the loss (the logits and their gradient)."""
    config = loaded.model.config.get_text_config()
    element_bytes = max(2, next(loaded.model.parameters()).element_size())
    kept = 30 * element_bytes * loaded.facts.hidden_size * loaded.facts.layers
    return kept + 12 * int(config.vocab_size)


def _check(settings: HealSettings) -> None:
    least = {"steps": 1, "batch_size": 1, "accumulate": 1, "rank": 1, "warmup_steps": 0, "seed": 0}
    for field, minimum in least.items():
        if (value := getattr(settings, field)) < minimum:
            raise _refused(field, value, f"a number of at least {minimum}")
    for field in ("learning_rate", "alpha"):
        value = getattr(settings, field)
        if not (math.isfinite(value) and value > 0):
            raise _refused(field, value, "a number above 0")
    if not 0 <= settings.dropout < 1:
        raise _refused("dropout", settings.dropout, "a number from 0 to below 1")
    if settings.seed >= 2**32:
        raise _refused("seed", settings.seed, "a number below 2**32")


def _refused(field: str, value: object, expected: str) -> SettingsError:
    return SettingsError(f"--{field.replace('_', '-')} {value}: expected {expected}")
