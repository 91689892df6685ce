"""What a benchmark ran on, and where its output goes."""

from __future__ import annotations

import io
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Tee(io.TextIOBase):
    """Prints and remembers."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._out = sys.__stdout__

    def write(self, text: str) -> int:
        self.parts.append(text)
        assert self._out is not None
        self._out.write(text)
        self._out.flush()
        return len(text)


_tee = Tee()
sys.stdout = _tee


def describe() -> str:
    """One line: processor, cores, versions, date."""
    from forethought.engines.machine import cores, processor

    return (
        f"{processor()}, {cores()[1]} threads allowed; Python {platform.python_version()}, "
        f"xllamacpp {version('xllamacpp')}, forethought {version('forethought')}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def describe_gpu() -> str:
    """One line: card, versions, date."""
    import torch
    import triton

    return (
        f"{torch.cuda.get_device_name()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, triton {triton.__version__}, "
        f"transformers {version('transformers')}, trl {version('trl')}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


def save(name: str, result: dict[str, object], machine: str | None = None) -> None:
    """Print the JSON line, and keep all that was printed in results/NAME.txt."""
    print(json.dumps({"benchmark": name, "machine": machine or describe(), **result}))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.txt").write_text("".join(_tee.parts))
