"""One engine in a process of its own: how long to load and to the first token, how much memory.

    python benchmarks/_one_engine.py STARTED ENGINE [DTYPE]

`STARTED` is the clock (`time.time()`) when the process was started. Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import cast

import forethought as ft
from forethought.engines.load import EngineName


def peak_mib() -> float | None:
    """The most resident memory so far; mapped files count (VmHWM). None where Linux is not."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Load, ask for one token, print."""
    started, engine = float(sys.argv[1]), cast(EngineName, sys.argv[2])
    dtype = sys.argv[3] if len(sys.argv) > 3 else None
    began = time.time()
    model = ft.load("smollm2:135m", engine=engine, dtype=dtype, threads=2, context=512)
    loaded = time.time()
    prompt = model.prompt("Once upon a time", template="bare")
    model.samples(prompt, max_tokens=1, temperature=0.0)
    first = time.time()
    model.close()
    print(
        json.dumps(
            {
                "load_s": round(loaded - began, 2),
                "first_token_s": round(first - started, 2),
                "peak_mib": peak_mib(),
            }
        )
    )


if __name__ == "__main__":
    main()
