"""Threads on a quiet and on a busy machine: llama.cpp's OpenMP threads spin while they wait.

    python benchmarks/threads.py

SmolLM2-135M, 48 new tokens, best of three in each of several processes: one and two threads, two
with other waiting policies of OpenMP; all of it alone, and beside one busy process. Prints a table
and ends with one JSON line.
"""

from __future__ import annotations

import os
import subprocess
import sys

from _machine import describe, save

PROBE = """
import sys
from pathlib import Path
from forethought.engines.llama_server import LoadOptions
from forethought.engines.threads import measure
print(max(measure(LoadOptions(Path(sys.argv[1]), cells=512, threads=int(sys.argv[2])))
          for _ in range(3)))
"""
SETTINGS: list[tuple[str, int, dict[str, str]]] = [
    ("1 thread", 1, {}),
    ("2 threads", 2, {}),
    ("2 threads, OMP_WAIT_POLICY=PASSIVE", 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ("2 threads, GOMP_SPINCOUNT=1000", 2, {"GOMP_SPINCOUNT": "1000"}),
]


def speed(path: str, threads: int, environment: dict[str, str]) -> float:
    """Tokens per second in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path, str(threads)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Measure, print, save."""
    from forethought.checkpoints.resolve import resolve

    path = str(resolve("smollm2:135m").path)
    print(f"{describe()}\n\n{'tokens/s':<38}{'alone':>8}{'beside a busy process':>24}")
    rows = {}
    for name, threads, environment in SETTINGS:
        alone = speed(path, threads, environment)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            try:
                beside = speed(path, threads, environment)
            finally:
                busy.kill()
        rows[name] = {"alone": round(alone, 1), "beside_a_busy_process": round(beside, 1)}
        print(f"{name:<38}{alone:>8.1f}{beside:>24.1f}")
    save("threads", {"rows": rows})


if __name__ == "__main__":
    main()
