"""How long a text a model can take at all."""

from torch import nn

from depthcut.model.loading import LoadedModel


def learned_positions(loaded: LoadedModel) -> int | None:
    """How many tokens a model with an embedding per position can take; None: no such limit."""
    words = loaded.model.get_input_embeddings()
    tables = [
        name
        for name, module in loaded.backbone.named_modules()
        if isinstance(module, nn.Embedding) and module is not words
    ]
    if not any("pos" in name or "wpe" in name for name in tables):
        return None
    return int(loaded.model.config.max_position_embeddings)
