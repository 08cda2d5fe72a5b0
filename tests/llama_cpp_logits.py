"""Logits of a GGUF file in llama.cpp, one thread, no quantised cache."""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import llama_cpp as library

_QUIET = llama_cpp.llama_log_callback(lambda *_: None)
"""Kept alive as long as llama.cpp may call it."""


def llama_cpp_logits(file: Path, tokens: Sequence[int]) -> np.ndarray | None:
    """Of every token, shape (tokens, vocabulary); None: llama.cpp does not load the file."""
    library.llama_log_set(_QUIET, ctypes.c_void_p(0))
    settings = library.llama_model_default_params()
    settings.use_mmap = False
    with _silent():
        model = library.llama_model_load_from_file(str(file).encode(), settings)
    if not model:
        return None
    try:
        return _decode(model, tokens)
    finally:
        library.llama_model_free(model)


def _decode(model: object, tokens: Sequence[int]) -> np.ndarray:
    settings = library.llama_context_default_params()
    settings.n_ctx = 128
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0
    context = library.llama_init_from_model(model, settings)
    batch = library.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    assert library.llama_decode(context, batch) == 0
    width = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    rows = [library.llama_get_logits_ith(context, place) for place in range(len(tokens))]
    logits = np.stack([np.ctypeslib.as_array(row, (width,)).copy() for row in rows])
    library.llama_batch_free(batch)
    library.llama_free(context)
    return logits


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the library prints by itself when it refuses a file."""
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
