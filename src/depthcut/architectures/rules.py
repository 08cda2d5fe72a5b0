"""What config classes fill a missing list of layers with, and what stands in older keys instead."""

from collections.abc import Callable

from depthcut.architectures.fields import IndexList, Rule, Values
from depthcut.architectures.values import (
    Config,
    layer_indices,
    positive,
    value_at,
    whole_number,
)
from depthcut.errors import ArchitectureError

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
INDEXED = "indexed_attention"


def periodic(
    key: str | None,
    default: int,
    *,
    hit: object = FULL,
    miss: object = SLIDING,
    offset: int = -1,
) -> Rule:
    """`hit` for layers with (layer - offset) % period == 0, the period being `key`'s value."""

    def rule(config: Config, layers: int) -> Values:
        period = default if key is None else positive(config, key, default)
        return [miss if (layer - offset) % period else hit for layer in range(layers)]

    return rule


def constant(value: object) -> Rule:
    """The same for every layer."""
    return lambda _, layers: [value] * layers


def repeated(*pattern: str) -> Rule:
    """A pattern over and over."""
    return lambda _, layers: [pattern[layer % len(pattern)] for layer in range(layers)]


def dense_first(
    key: str | None, default: int, frequency: str | None = None, *, sparse: str = "sparse"
) -> Rule:
    """dense for the first `key` layers, then sparse, all or every `frequency` layers."""

    def rule(config: Config, layers: int) -> Values:
        first = (whole_number(config, key, default) if key else default) or 0
        every = value_at(config, frequency) if frequency else 1
        if isinstance(every, list) and len(every) == layers:
            marked = [bool(each) for each in every]
        else:
            period = positive(config, frequency, 1) if frequency else 1
            marked = [layer % period == 0 for layer in range(layers)]
        return [sparse if layer >= first and marked[layer] else "dense" for layer in range(layers)]

    return rule


def sliding_from(key: str, default: int, *, switch: str | None = "use_sliding_window") -> Rule:
    """Sliding attention from layer `key` on, if the config has a window; else full."""

    def rule(config: Config, layers: int) -> Values:
        window = config.get("sliding_window", 4096)
        if switch is not None and not config.get(switch):
            window = None
        start = whole_number(config, key, default) or 0
        return [FULL if window is None or layer < start else SLIDING for layer in range(layers)]

    return rule


def named_by(field: IndexList, hit: str, miss: str, otherwise: Rule) -> Rule:
    """`hit` for the layers in a list of indices; `otherwise` where there is none."""

    def rule(config: Config, layers: int) -> Values:
        flags = field.read(config, layers)
        if flags is None:
            return otherwise(config, layers)
        return [hit if flag else miss for flag in flags]

    return rule


def listed(key: str, hit: str, miss: str, otherwise: Rule) -> Rule:
    """`hit` where another per-layer list has a true entry; `otherwise` where there is none."""

    def rule(config: Config, layers: int) -> Values:
        entries = value_at(config, key)
        if not isinstance(entries, list):
            return otherwise(config, layers)
        return [hit if entry else miss for entry in entries[:layers]]

    return rule


def where(holds: Callable[[int, int], bool], hit: str = FULL, miss: str = SLIDING) -> Rule:
    """`hit` for layers for which (layer, number of layers) holds."""
    return lambda _, layers: [hit if holds(layer, layers) else miss for layer in range(layers)]


def even_below_window(config: Config, layers: int) -> Values:
    """As Qwen2-MoE: even layers below max_window_layers slide."""
    start = whole_number(config, "max_window_layers", 28) or 0
    slides = bool(config.get("use_sliding_window"))
    return [
        SLIDING if slides and layer % 2 == 0 and layer < start else FULL for layer in range(layers)
    ]


def by_rope(with_rope: str, without: str, needs: tuple[str, ...]) -> Rule:
    """One kind for the layers with rotary embedding and one for those without it; all are full
    unless the config has what `needs` names."""

    def rule(config: Config, layers: int) -> Values:
        local = all(config.get(key) for key in needs)
        ropes = rotary(config, layers)
        return [(with_rope if rope else without) if local else FULL for rope in ropes]

    return rule


def rotary(config: Config, layers: int) -> Values:
    """no_rope_layers, whose 1 means that the layer has rotary embedding; [] is as good as none."""
    given = config.get("no_rope_layers")
    if isinstance(given, list) and given:
        return given
    return periodic("no_rope_layer_interval", 4, hit=0, miss=1)(config, layers)


def zamba_kinds(config: Config, layers: int) -> Values:
    """As Zamba: two recurrent layers, a hybrid one, then a period counted from there."""
    period = positive(config, "attn_layer_period", 6)
    offset = whole_number(config, "attn_layer_offset", 4) or 0
    later: Values = [
        "hybrid" if layer % period == offset else LINEAR for layer in range(layers - 3)
    ]
    return [LINEAR, LINEAR, "hybrid", *later][:layers]


def zamba2_kinds(_: Config, layers: int) -> Values:
    """As Zamba 2: a fixed list of 54."""
    if layers != 54:
        raise ArchitectureError(
            f"config.json must give layers_block_type, a list of {layers} entries; add it"
        )
    hybrid = {6, 12, 18, 24, 30, 36, 42, 47, 51}
    return ["hybrid" if layer in hybrid else LINEAR for layer in range(layers)]


def by_compression(config: Config, layers: int) -> Values:
    """As DeepSeek-V4: from compress_ratios, else two heavy ones, then light and heavy in turn."""
    ratios = config.get("compress_ratios")
    kinds = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    if not isinstance(ratios, list):
        light, heavy = kinds[4], kinds[128]
        return [heavy if layer < 2 or layer % 2 == 0 else light for layer in range(layers)]
    if unknown := [ratio for ratio in ratios if ratio not in kinds]:
        raise ArchitectureError(
            f"config.json: compress_ratios must be of 0, 4 and 128, found {unknown[0]!r}"
        )
    return [kinds[ratio] for ratio in ratios[:layers]]


def pattern_after_dense(config: Config, layers: int) -> Values:
    """As Cohere2-MoE: one period in the dense layers at the front, another one behind them."""
    dense = whole_number(config, "first_k_dense_replace", 0) or 0
    front = positive(config, "prefix_dense_sliding_window_pattern", 1)
    behind = positive(config, "sliding_window_pattern", 4)
    return [
        SLIDING
        if ((layer + 1) % front if layer < dense else (layer - dense + 1) % behind)
        else FULL
        for layer in range(layers)
    ]


def from_kimi_lists(config: Config, layers: int) -> Values:
    """From linear_attn_config.full_attn_layers, which counts from 1; else every fourth is full."""
    full = layer_indices(config, "linear_attn_config.full_attn_layers", layers, base=1)
    return [
        FULL if (layer in full if full is not None else layer and layer % 4 == 0) else LINEAR
        for layer in range(layers)
    ]


def index_sharing(config: Config, layers: int) -> Values:
    """As GLM's sparse attention: which layers have an indexer and which share the last one's."""
    pattern = config.get("index_topk_pattern")
    if isinstance(pattern, str | list):
        return ["full" if kind in {"F", "full"} else "shared" for kind in pattern[:layers]]
    offset = whole_number(config, "index_skip_topk_offset", 2) or 0
    every = max(whole_number(config, "index_topk_freq", 1) or 1, 1)
    return [
        "full" if max(layer - offset + 1, 0) % every == 0 else "shared" for layer in range(layers)
    ]
