"""How many threads llama.cpp should use here: measured once with the model at hand, remembered.

More threads are not always faster: on a busy or virtual machine two can collapse where one is
steady. Fewer threads win unless more are clearly (10%) faster. The answer depends on the machine,
the wheel and roughly on the model's size, and is kept in the cache folder.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from forethought import paths
from forethought.engines.llama_server import Chunk, LlamaServer, LoadOptions
from forethought.engines.machine import cores

MEASURE_UP_TO = 2 << 30
"""Bytes of weights above which loading several times would cost more than a good guess."""
_TOKENS = 12
_ROUNDS = 2
_SECONDS = 1.5
"""A round is cut off here: on a busy machine a bad choice can be a hundred times slower."""
_CLEARLY_FASTER = 1.1


def candidates() -> list[int]:
    """Thread counts worth trying, ascending, at most four."""
    physical, logical = cores()
    return sorted({max(1, physical // 2), physical, logical, 1 if physical <= 4 else physical})


def remembered_threads(path: Path) -> int | None:
    """What was measured here before for a model of this size, if anything."""
    return _read().get(_key(path))


def choose_threads(options: LoadOptions, report: Callable[[str], None] | None = None) -> int:
    """The number of threads for this model; measures when nothing is remembered."""
    known = remembered_threads(options.path)
    if known is not None:
        return known
    tried = candidates()
    if len(tried) == 1 or options.path.stat().st_size > MEASURE_UP_TO:
        # Decoding is bound by memory: hardware threads of one core share its port to memory.
        return cores()[0]
    if report is not None:
        report("measuring how many threads are fastest here, once")
    small = replace(options, cells=512, slots=1)
    speeds = {count: measure(replace(small, threads=count)) for count in tried}
    best = tried[0]
    for count in tried[1:]:
        if speeds[count] > speeds[best] * _CLEARLY_FASTER:
            best = count
    remember(options.path, best)
    if report is not None:
        told = ", ".join(f"{count}: {speed:.0f} tokens/s" for count, speed in speeds.items())
        report(f"threads {told}; using {best}")
    return best


def measure(options: LoadOptions) -> float:
    """Decoded tokens per second, the best of a few short rounds."""
    server = LlamaServer(options)
    best = 0.0
    try:
        for _ in range(_ROUNDS):
            times: list[float] = []

            started = time.perf_counter()

            def on_chunk(
                _chunk: Chunk, times: list[float] = times, started: float = started
            ) -> bool:
                times.append(time.perf_counter())
                return times[-1] - started > _SECONDS

            body = {
                "prompt": [1, 2, 3],
                "n_predict": _TOKENS,
                "ignore_eos": True,
                "temperature": 0.0,
                "cache_prompt": False,
            }
            server.complete(body, on_chunk)
            if len(times) > 2:
                best = max(best, (len(times) - 2) / max(1e-9, times[-2] - times[0]))
            if time.perf_counter() - started > _SECONDS:
                break
    finally:
        server.close()
    return best


def remember(path: Path, threads: int) -> None:
    """Keep a choice. A cache folder that cannot be written costs a measurement, no more."""
    known = _read()
    known[_key(path)] = threads
    target = _file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(known, indent=1))
        aside.replace(target)
    except OSError:
        return


def _file() -> Path:
    return paths.cache_dir() / "threads.json"


def _read() -> dict[str, int]:
    try:
        data = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {
        str(key): value
        for key, value in data.items()
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 512
    }


def _key(path: Path) -> str:
    """Machine, cores allowed, wheel, and the size of the model in powers of two."""
    import xllamacpp  # needed next anyway; importlib.metadata would cost 20 ms

    size = path.stat().st_size.bit_length()
    return f"{platform.node()}|{cores()[1]}|{xllamacpp.__version__}|2^{size}"
