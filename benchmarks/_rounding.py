"""One seed on processors of several kinds: what rounding alone does to a run of tiny-zero.

    python benchmarks/_rounding.py --keep DIR

Trains the bundled recipe once for each set of vector instructions that libraries can be held to
(environment variables of oneDNN, MKL and ATen), four minutes each and longer with few of them, and
prints the held-out pass@1 of every evaluation. The sums are the same but for the order in which
they are rounded, so these are the runs that other machines make of the same seed: how far they are
apart is what a committed run tells about another one, and what the test of the recipe allows.
Runs that DIR has are not made again, and one that was broken off is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from _machine import describe, save

AVX2: Final = {
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
KINDS: Final[dict[str, dict[str, str]]] = {
    "this machine's own": {},
    "AVX2": AVX2,
    "AVX2 in MKL alone": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "SSE, MKL in compatible mode": {
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
    },
}


def trained(folder: Path, variables: dict[str, str]) -> Path:
    """The finished run in the folder, made with these variables unless it is there."""
    if not (folder / "config.json").is_file():
        again = ["--resume"] if folder.exists() else []
        command = [sys.executable, "-m", "forethought", "train", "tiny-zero", "--out", str(folder)]
        subprocess.run([*command, *again], env=os.environ | variables, check=True)
    return folder


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of RL's evaluations, the one before it included."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [one for one in lines if one["stage"] == "rl" and one["pass_at_1"] is not None]


def main() -> None:
    """Train, print, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/rounding"), help="folder of the runs"
    )
    parser.add_argument("--only", help="kinds, by semicolons")
    arguments = parser.parse_args()
    kinds = arguments.only.split(";") if arguments.only else list(KINDS)
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {'; '.join(KINDS)}")
    found = {}
    for number, (name, variables) in enumerate(KINDS.items()):
        if name in kinds:
            found[name] = evaluations(trained(arguments.keep / str(number), variables))
    print(f"{describe()}\nheld-out pass@1 of tiny-zero, seed 1, by step of RL\n")
    steps = [one["step"] for one in next(iter(found.values()))]
    print(f"{'vector instructions':30}" + "".join(f"{step:>8}" for step in steps))
    for name, lines in found.items():
        print(f"{name:30}" + "".join(f"{one['pass_at_1']:>8.3f}" for one in lines))
    print()
    figures = {name: [round(one["pass_at_1"], 4) for one in lines] for name, lines in found.items()}
    save("rounding", {"pass_at_1": figures, "steps": steps})


if __name__ == "__main__":
    main()
