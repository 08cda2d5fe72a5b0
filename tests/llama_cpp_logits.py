"""Logits of a GGUF file in llama.cpp, one thread, no quantised cache."""

import faulthandler
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as library


def llama_cpp_logits(file: Path, tokens: Sequence[int]) -> np.ndarray | None:
    """Of every token, shape (tokens, vocabulary); None: llama.cpp refuses the file.

    In a process of its own: what llama.cpp cannot do it often says by aborting.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_logits, args=(file, tokens, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        child.join()


def _send_logits(file: Path, tokens: Sequence[int], sender: Connection) -> None:
    faulthandler.disable()  # an abort is an answer
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    settings = library.llama_model_default_params()
    settings.use_mmap = False
    model = library.llama_model_load_from_file(str(file).encode(), settings)
    if model:
        sender.send(_decode(model, tokens))
    os._exit(0)  # nothing of the parent's is to be cleaned up here


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
    return np.stack([np.ctypeslib.as_array(row, (width,)).copy() for row in rows])
