"""The table of architectures: what depthcut knows of each model type.

A new architecture is one entry, in `text_models` or `multimodal_models`; a test walks the table.
"""

from depthcut.architectures.entry import KNOWN_FIELDS, Architecture, SlicedTensor
from depthcut.architectures.multimodal_models import MULTIMODAL_MODELS
from depthcut.architectures.text_models import TEXT_MODELS

__all__ = ["ARCHITECTURES", "KNOWN_FIELDS", "Architecture", "SlicedTensor"]

ARCHITECTURES: dict[str, Architecture] = {**TEXT_MODELS, **MULTIMODAL_MODELS}
"""By the model_type of config.json."""
