"""llama.cpp's tokenizer over a vocabulary alone: for checking an export before it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forethought.checkpoints.gguf_header import read_header
from forethought.engines.llama_loading import LlamaOptions, LoadedLlama
from forethought.engines.llama_tokenizer import LlamaTokenizer

CONTEXT = 256


@contextmanager
def open_llama_tokenizer(path: str | os.PathLike[str]) -> Iterator[LlamaTokenizer]:
    """Load a GGUF with the smallest context there is, and give its tokenizer.

    Made for the files of :func:`forethought.checkpoints.vocabulary.vocabulary_gguf`, which load in
    a moment; any GGUF will do. Raises ModelError where llama.cpp cannot load it.
    """
    file = Path(path)
    header = read_header(file)
    options = LlamaOptions(
        path=file, header=header, context=CONTEXT, most_context=CONTEXT, threads=1, gpu_layers=0
    )
    loaded = LoadedLlama(options, report=lambda _: None)
    try:
        # llama.cpp never ends when it is closed before its loop runs; an answer shows that it does.
        with loaded.use() as server:
            server.metrics()
        yield LlamaTokenizer(loaded, header)
    finally:
        loaded.close()
