"""Tiny models on disk, built once for all tests."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # nobody looks at a terminal of this width

import pytest
import torch
from hypothesis import settings

from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

torch.set_num_threads(1)
settings.register_profile("depthcut", deadline=None)  # a busy machine is no failure
settings.load_profile("depthcut")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-layer Llama with tokenizer and chat template: read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tiny(build_tiny("llama"), folder)
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in several weight files: read only."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama-sharded"
    save_tiny(build_tiny("llama"), folder, max_shard_size=100_000)
    tiny_tokenizer(folder)
    return folder
