"""Greedy tokens of llama.cpp by id, computed as plainly as it can, to compare networks with."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Greedy:
    """llama.cpp with one model, asked over its own port: only there it answers with token ids."""

    address: str
    key: str

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest tokens after `prompt`; fewer where the end token comes."""
        body = {
            "prompt": list(prompt),
            "n_predict": count,
            "temperature": 0.0,
            "samplers": ["top_k"],
            "top_k": 1,
            "return_tokens": True,
            "cache_prompt": False,
        }
        request = urllib.request.Request(
            f"{self.address}/completion",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [int(token) for token in json.load(answer)["tokens"]]


@contextlib.contextmanager
def opened(path: Path, *, context: int = 256) -> Iterator[Greedy]:
    """llama.cpp with `path`: float32 cache, no flash attention, one thread.

    RuntimeError where it does not load the file.
    """
    import xllamacpp

    key = os.urandom(24).hex()
    p = xllamacpp.CommonParams()
    p.model.path = str(path)
    p.n_ctx = context
    p.n_parallel = 1
    p.fit_params = False
    p.warmup = False
    p.verbosity = -1
    p.api_keys = [key]
    p.cors_origins = ""
    p.ui = False
    p.cache_ram_mib = 0
    p.cpuparams.n_threads = 1
    p.cpuparams_batch.n_threads = 1
    p.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    try:
        yield Greedy(str(server.listening_address), key)
    finally:
        del server
