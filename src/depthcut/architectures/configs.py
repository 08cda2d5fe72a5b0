"""What a config says of the stack, and the config of another stack."""

from collections.abc import Callable, Iterable, Sequence

from depthcut.architectures.derived import derive_architecture
from depthcut.architectures.fields import Cut, Field, PerLayerList, Requirement, cut_field
from depthcut.architectures.names import ModuleNames
from depthcut.architectures.table import ARCHITECTURES, KNOWN_FIELDS, Architecture
from depthcut.architectures.values import AROUND, Config, with_value
from depthcut.errors import ArchitectureError, CheckpointError, PlanError

EXTRA_LAYERS = "num_nextn_predict_layers"
"""Layers behind the stack that predict further tokens, in checkpoints of DeepSeek's kind. They
were trained on what the whole stack gives, and plain transformers ignores them by an index that a
cut changes: a cut leaves them out."""

_WIDTHS = ("hidden_size", "n_embd", "d_model", "emb_dim", "model_dim", "dim")
_NOT_PER_LAYER = frozenset(
    {
        "architectures",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "eos_token_id",
        "forced_decoder_ids",
        "keys_to_ignore_at_inference",
        "pad_token_id",
        "suppress_tokens",
    }
)
"""Lists of a config that may happen to be as long as the stack."""
_LARGEST_NUMBER = 1 << 31
"""Of layers or of a width: more is no model."""
_FARTHEST_REMOVAL = 100
"""Blocks that are tried on the way to one whose removal works."""
_OF_OTHER_LAYERS = ("mtp_", "vision_", "audio_", "encoder_", "deepstack_")


def find_architecture(config: Config, names: Iterable[str] = ()) -> Architecture:
    """The table's entry for a config; for an unknown type one that is derived.

    Args:
        config: A checkpoint's config.json.
        names: Its tensors, to derive an entry from.

    Raises:
        ArchitectureError: The config has no model_type, or the stack cannot be found.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ArchitectureError(
            "config.json has no model_type: depthcut cannot tell where the layers are"
        )
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    return derive_architecture(config, names)


def decoder_config(config: Config, architecture: Architecture) -> Config:
    """The part of a config that speaks of the text decoder.

    Raises:
        CheckpointError: It is missing.
    """
    if not _is_nested(config, architecture):
        return config
    inner = config.get(architecture.decoder)
    if isinstance(inner, dict):
        return inner
    raise CheckpointError(
        f"config.json of a {config.get('model_type')} must hold its decoder's config as an "
        f"object under {architecture.decoder}; correct it"
    )


def with_surroundings(config: Config, architecture: Architecture) -> Config:
    """The decoder's part of a config as fields read it: the whole lies in it under AROUND."""
    return {**decoder_config(config, architecture), AROUND: dict(config)}


def _is_nested(config: Config, architecture: Architecture) -> bool:
    """Older configs of some types hold the decoder's keys at the top."""
    flat = architecture.decoder not in config and any(key in config for key in architecture.count)
    return bool(architecture.decoder) and not flat


def layer_count(config: Config, architecture: Architecture) -> int | None:
    """How many layers a config says it has; None: it leaves that to its class.

    Raises:
        CheckpointError: It says something else than one positive number.
    """
    return _number(decoder_config(config, architecture), architecture.count)


def hidden_size(config: Config, architecture: Architecture) -> int | None:
    """The width of the residual stream; None: the config leaves it to its class.

    Raises:
        CheckpointError: It says something else than one positive number.
    """
    decoder = decoder_config(config, architecture)
    given = [key for key in _WIDTHS if key in decoder]
    return _number(decoder, given[:1])


def fields_of(config: Config, architecture: Architecture) -> tuple[Field, ...]:
    """What a config may say of its layers, in the order in which it must be cut.

    Fields that mean the same in every model type come last, without those whose keys an entry's
    own fields are responsible for.
    """
    own = architecture.fields
    if architecture.decoder:
        nested = _is_nested(config, architecture)
        inner = decoder_config(config, architecture).get("model_type") if nested else None
        known = ARCHITECTURES.get(inner if isinstance(inner, str) else architecture.inner)
        own += known.fields if known else ()
    taken = {key for field in own for key in field.keys}
    return own + tuple(field for field in KNOWN_FIELDS if taken.isdisjoint(field.keys))


def cut_config(
    config: Config,
    kept: Sequence[int],
    architecture: Architecture | None = None,
    layers: int | None = None,
    *,
    extra: int = 0,
) -> dict[str, object]:
    """The config of the model that is made of the layers `kept`, in this order.

    Nothing is changed in place; what does not speak of layers is carried as it is.

    Args:
        config: A checkpoint's config.json.
        kept: The old layer of each new one; repeats allowed.
        architecture: Default: the table's.
        layers: How many there are, where the config does not say.
        extra: How many layers behind the stack only predict further tokens; they are left out.

    Raises:
        ArchitectureError: The config cannot say this cut; the message names the field and, where
            there is one, the nearest block whose removal works.
        CheckpointError: The config contradicts itself.
        PlanError: `kept` is empty or out of range.
    """
    architecture = architecture or find_architecture(config)
    layers = layer_count(config, architecture) or layers
    if layers is None:
        raise CheckpointError(f"config.json must give {architecture.count[0]}, found nothing")
    cut = Cut(layers, tuple(kept), extra)
    if not cut.kept or not set(cut.kept) <= set(range(layers)):
        raise PlanError(f"the kept layers {list(kept)} must be at least one, out of 0–{layers - 1}")
    if architecture.refusal:
        raise ArchitectureError(f"{config.get('model_type')}: {architecture.refusal}")
    try:
        result = _cut(config, architecture, cut)
    except ArchitectureError as error:
        nearby = nearest_removal(
            cut, lambda left: _cut(config, architecture, Cut(layers, left, extra))
        )
        raise ArchitectureError(f"{error}{nearby}") from error
    if extra and EXTRA_LAYERS in decoder_config(result, architecture):
        path = f"{architecture.decoder}." if _is_nested(result, architecture) else ""
        result = with_value(result, path + EXTRA_LAYERS, 0)
    return result


def _cut(config: Config, architecture: Architecture, cut: Cut) -> dict[str, object]:
    before = with_surroundings(config, architecture)
    fields = fields_of(config, architecture)
    after = before
    for field in fields:
        if not isinstance(field, Requirement):
            after = cut_field(field, before, after, cut)
    whole, left = _filled(before, fields, cut.layers), _filled(after, fields, len(cut.kept))
    for field in fields:
        if isinstance(field, Requirement):
            cut_field(field, whole, left, cut)
    _refuse_unknown_lists(before, fields, cut)
    nested = _is_nested(config, architecture)
    decoder = {key: value for key, value in after.items() if key != AROUND}
    around = after[AROUND]
    assert isinstance(around, dict)
    names = ModuleNames(architecture.stacks, cut)
    done = {key.partition(".")[0] for field in fields for key in field.keys}
    decoder = {k: v if k in done else names.renumbered(v) for k, v in decoder.items()}
    decoder = _counted(decoder, architecture, cut)
    if not nested:
        return decoder
    return {
        k: decoder if k == architecture.decoder else names.renumbered(v) for k, v in around.items()
    }


def _filled(config: Config, fields: Sequence[Field], layers: int) -> Config:
    """The config as its class fills it in."""
    for field in fields:
        if isinstance(field, PerLayerList) and field.default is not None:
            values = field.read(config, layers)
            config = with_value(config, field.key, values)
    return config


def _counted(config: object, architecture: Architecture, cut: Cut) -> dict[str, object]:
    """The decoder's config with its new number of layers."""
    assert isinstance(config, dict)
    given = [key for key in architecture.count if key in config] or architecture.count[:1]
    return config | dict.fromkeys(given, len(cut.kept))


def _refuse_unknown_lists(config: Config, fields: Sequence[Field], cut: Cut) -> None:
    known = _NOT_PER_LAYER.union(*(field.keys for field in fields))
    for key, value in config.items():
        if key == AROUND or not isinstance(value, list) or len(value) != cut.layers or key in known:
            continue
        if not key.startswith(_OF_OTHER_LAYERS):
            raise ArchitectureError(
                f"config.json: the list {key!r} has as many entries as there are layers "
                f"({cut.layers}), and depthcut does not know whether it speaks of them; "
                "remove it from config.json if the model does not need it"
            )


def _number(config: Config, keys: Sequence[str]) -> int | None:
    values = {key: config[key] for key in keys if config.get(key) is not None}
    if not values:
        return None
    numbers = {
        value for value in values.values() if type(value) is int and 0 < value < _LARGEST_NUMBER
    }
    if len(numbers) != 1 or len(set(map(str, values.values()))) != 1:
        found = ", ".join(f"{key} {value!r}" for key, value in values.items())
        raise CheckpointError(
            f"config.json must give {keys[0]} as one positive number, found {found}; correct it"
        )
    return numbers.pop()


def nearest_removal(cut: Cut, works: Callable[[tuple[int, ...]], object]) -> str:
    """For a refusal: the block of as many layers next to the removed ones that could go.

    Args:
        cut: What was refused.
        works: Called with the layers that stay; raises ArchitectureError where they cannot.
    """
    gone = sorted(set(range(cut.layers)) - set(cut.kept))
    if not gone:
        return ""
    first, last = gone[0] - _FARTHEST_REMOVAL, gone[0] + _FARTHEST_REMOVAL
    starts = range(max(first, 0), min(last, cut.layers - len(gone)) + 1)
    for start in sorted(starts, key=lambda start: (abs(start - gone[0]), start)):
        stop = start + len(gone)
        try:
            works((*range(start), *range(stop, cut.layers)))
        except ArchitectureError:
            continue
        block = f"layers {start}–{stop - 1}" if len(gone) > 1 else f"layer {start}"
        return f"; the nearest removal that works: {block}"
    return ""
