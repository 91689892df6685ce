"""The figures of nano's card, taken from the records of its run and of the benchmarks.

    python benchmarks/data/nano_card.py > figures.json
    python benchmarks/data/release_nano.py RUN_FOLDER --figures figures.json --commit HASH

Nothing is typed by hand: docs/reports/nano-zero has the samples' figures, benchmarks/results the
last line of each script.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "reports" / "nano-zero"
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str) -> dict[str, Any]:
    """A compressed JSON file of the report."""
    found: dict[str, Any] = json.loads(lzma.decompress((REPORT / name).read_bytes()))
    return found


def last_line(name: str) -> dict[str, Any]:
    """The JSON line that ends what a script printed."""
    line = (RESULTS / name).read_text("utf-8").rstrip().rpartition("\n")[2]
    found: dict[str, Any] = json.loads(line)
    return found


def figures() -> dict[str, Any]:
    """By name, in the order in which `forethought models show nano` prints them."""
    models = record("figures.json.xz")["models"]
    nano, base = models["RL"]["T1"], models["base"]["T1"]
    further = record("figures_control.json.xz")["models"]["further"]["T1"]
    speed = last_line("nano_speed.txt")
    levels = nano["families"]["countdown"]["by_level"]

    def pass_at_1(one: dict[str, Any]) -> float:
        return round(float(one["pass_at_1"]), 3)

    found: dict[str, Any] = {
        "what": "512 held-out problems a family, 16 samples each, temperature 1",
        "pass@1, mean of 14 families": pass_at_1(nano["mean"]),
        "its standard error": round(nano["mean"]["stderr"], 4),
        "base": pass_at_1(base["mean"]),
        "base after RL's time in further pretraining": pass_at_1(further["mean"]),
        "majority of 16": round(nano["mean"]["cons_at_k"], 3),
        "pass@1 at temperature 0.6": pass_at_1(models["RL"]["T0.6"]["mean"]),
        "three bare families": pass_at_1(nano["bare"]),
        "base, bare": pass_at_1(base["bare"]),
        "closing tag missing": round(nano["rates"]["close_missing"], 4),
        "answer unparsable": round(nano["rates"]["unparsable"], 4),
        "cut off": round(nano["rates"]["truncated"], 4),
        "transfer": {
            name: pass_at_1(one) for name, one in models["RL"]["transfer"]["families"].items()
        },
        "pass@1": {name: pass_at_1(one) for name, one in nano["families"].items()}
        | {"countdown, three numbers": pass_at_1(levels["1"])}
        | {"countdown, four numbers": pass_at_1(levels["2"])},
        "tokens a second, two CPU cores": speed["tokens_per_second"],
        "seconds to the first token": speed["first_token_s"]["forethought ask"],
    }
    # Of the file itself, so measured after it is there: the card is made again then.
    if (RESULTS / "nano_parity.txt").is_file():
        parity = last_line("nano_parity.txt")["pass_at_1"]
        found["q8_0 less float32, pass@1"] = parity["difference"]
        found["its standard error, paired"] = parity["difference_stderr"]
    return found


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
