"""Every model type that transformers builds as a causal language model, one cut each.

The whole table (more cuts, multimodal types, mergekit beside it) is benchmarks/architectures.py.
"""

from pathlib import Path

import pytest
from benchmarks.architectures import Judge, load, slice_by_depthcut
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthcut.architectures.table import ARCHITECTURES
from tests.every_type import auto_class, build, model_types

REFUSED = frozenset(
    {
        *("beam", "diffllama"),  # they compute with the index of a layer
        *("dory", "hrm_text", "inkling2_loop_text", "inkling2_text"),  # they run layers in loops
        *("gemma3n_text", "gemma4", "gemma4_text", "glm_moe_dsa", "hy_v4"),  # they share
        *("bamba", "jamba", "rwkv", "qwen4_exp", "qwen4_exp_text", "zamba2"),
    }
)
"""Whose layers 1 and 4 cannot go."""


@pytest.mark.parametrize(
    "model_type", sorted(set(model_types()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
)
def test_a_cut_is_exact_or_rightly_refused(model_type: str, tmp_path: Path) -> None:
    build(model_type).save_pretrained(tmp_path / "model")
    judge = Judge(load(auto_class(model_type), tmp_path / "model"), auto_class(model_type))
    outcome, why = judge(slice_by_depthcut, tmp_path / "model", (1, 4))
    assert outcome == ("refused" if model_type in REFUSED else "exact"), why


@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_the_table_knows_every_causal_language_model(model_type: str) -> None:
    assert model_type in ARCHITECTURES
