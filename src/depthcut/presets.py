"""Settings of healing that belong together, by name: they stand where nothing else was said."""

from collections.abc import Container, Mapping
from typing import Any

import msgspec

from depthcut.errors import SettingsError, nearest
from depthcut.settings import HealSettings

HEAL_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "method": "lora", "rank": 16, "alpha": 32.0,
        "steps": 60, "batch_size": 4, "context": 256, "held_out_tokens": 4096,
    },
    "best": {
        "method": "full", "loss": "kl:1,next-token:0.1", "teacher": "parent",
        "steps": 2000, "batch_size": 16, "context": 1024, "warmup_steps": 50,
    },
    "gromov": {
        "method": "qlora", "modules": "mlp", "rank": 64, "alpha": 64.0, "dropout": 0.05,
        "text": "allenai/c4", "text_config": "en", "context": 2048,
        "steps": 5000, "batch_size": 16, "learning_rate": 3e-4, "warmup_steps": 100,
    },
    "domain": {
        "method": "full", "loss": "next-token",
        "steps": 1000, "batch_size": 16, "context": 1024, "warmup_steps": 50,
    },
}  # fmt: skip
"""quick: a look in minutes. best: all weights, the parent as teacher. gromov: as Gromov et al. heal
(arXiv:2403.17887): low-rank matrices on the MLPs of a 4-bit base, C4, 5,000 steps of 16 sequences.
domain: continued pretraining on a text of one's own, with some of another against forgetting."""


def heal_preset(name: str, **changes: Any) -> HealSettings:
    """The settings of a preset, with changes.

    Raises:
        SettingsError: There is no such preset.
    """
    return msgspec.structs.replace(HealSettings(), **preset_values(name, changes), **changes)


def preset_values(name: str, given: Container[str]) -> Mapping[str, Any]:
    """What a preset sets of what is not given; its text goes with all that tells of it.

    Raises:
        SettingsError: There is no such preset.
    """
    if name not in HEAL_PRESETS:
        raise SettingsError(
            f"--preset {name}: expected {', '.join(HEAL_PRESETS)}{nearest(name, HEAL_PRESETS)}"
        )
    left = [field for field in HEAL_PRESETS[name] if field not in given]
    return {
        field: HEAL_PRESETS[name][field]
        for field in left
        if not ("text" in given and field.startswith("text"))
    }
