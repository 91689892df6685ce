"""Whether the benchmarks' results are still what they were: the last step of `make bench`.

`baselines.json` holds figures of committed results: the script, where the figure stands in its JSON
line, its value, which way is better, whether it is speed or memory, and the hardware. A figure that
was measured on the same hardware again may be 15% worse in speed and 5% in memory; beyond that this
fails and says which. Figures of other hardware say nothing, and one line says so.

    python benchmarks/check_baselines.py                     # exit code 1 where something is worse
    python benchmarks/check_baselines.py --update problems   # its results are the new baseline
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).parent
WORSE: Final = {"speed": 0.15, "memory": 0.05}
"""How much worse a figure may be, as a share of its baseline."""
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Baseline:
    """A figure of ``benchmark``'s results, at ``key`` of their JSON line."""

    benchmark: str
    key: tuple[str | int, ...]
    value: float
    better: Literal["higher", "lower"]
    kind: Literal["speed", "memory"]
    machine: str

    @property
    def name(self) -> str:
        return " / ".join(map(str, self.key))

    def worse_by(self, value: float) -> float:
        """By what share of the baseline ``value`` is worse; below 0 where it is better."""
        change = (value - self.value) / self.value
        return -change if self.better == "higher" else change


@dataclass(frozen=True, slots=True)
class Found:
    """The same figure in the results as they are now: None where there is none. ``machine`` is
    what the result says of its machine."""

    baseline: Baseline
    value: float | None
    machine: str

    @property
    def same_hardware(self) -> bool:
        return hardware(self.machine) == self.baseline.machine

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        most = WORSE[self.baseline.kind] + _ROUNDING
        return self.baseline.worse_by(self.value) <= most


def hardware(machine: str) -> str:
    """The name of a processor or card, from a result's line about its machine."""
    return machine.partition(",")[0].strip()


def measured(machine: str) -> str:
    """The date in such a line."""
    return machine.rpartition(";")[2].strip()


def read_baselines(folder: Path) -> list[Baseline]:
    found = json.loads((folder / "baselines.json").read_text("utf-8"))
    return [Baseline(**{**one, "key": tuple(one["key"])}) for one in found]


def write_baselines(folder: Path, baselines: Sequence[Baseline]) -> None:
    lines = ",\n".join("  " + json.dumps(asdict(one)) for one in baselines)
    (folder / "baselines.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_result(folder: Path, benchmark: str) -> dict[str, Any]:
    """The JSON line that ends a benchmark's output; {} where there is no output."""
    path = folder / "results" / f"{benchmark}.txt"
    if not path.exists():
        return {}
    result: dict[str, Any] = json.loads(path.read_text("utf-8").rstrip("\n").rpartition("\n")[2])
    return result


def look_up(result: dict[str, Any], baseline: Baseline) -> Found:
    """Where the baseline's figure is now. Parts of a result may have a machine of their own."""
    value: Any = result
    machine = ""
    for key in baseline.key:
        if isinstance(value, dict):
            machine = value.get("machine", machine)
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            value = None
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return Found(baseline, value if known else None, machine)


def check(folder: Path) -> tuple[list[str], list[Found]]:
    """(what there is to say of each benchmark, the figures that do not hold)."""
    said: list[str] = []
    failed: list[Found] = []
    baselines = read_baselines(folder)
    for benchmark in dict.fromkeys(one.benchmark for one in baselines):
        result = read_result(folder, benchmark)
        own = [look_up(result, one) for one in baselines if one.benchmark == benchmark]
        other = [one for one in own if one.machine and not one.same_hardware]
        same = [one for one in own if one not in other]
        bad = [one for one in same if not one.holds]
        failed += bad
        if same:
            dates = ", ".join(dict.fromkeys(measured(one.machine) for one in same))
            said.append(f"{benchmark}: {len(same) - len(bad)} of {len(same)} hold ({dates})")
        if other:
            names = {hardware(one.machine) for one in other}, {x.baseline.machine for x in other}
            now, then = (", ".join(sorted(each)) for each in names)
            said.append(f"{benchmark}: {len(other)} skipped, of {now} where the baseline is {then}")
    return said, failed


def table(failed: Sequence[Found]) -> Iterator[str]:
    yield f"{'benchmark':18}{'figure':48}{'baseline':>12}{'now':>12}{'worse by':>10}"
    for one in failed:
        baseline = one.baseline
        now, worse = "none", ""
        if one.value is not None:
            now, worse = f"{one.value:,.6g}", f"{baseline.worse_by(one.value):.1%}"
        yield (
            f"{baseline.benchmark:18}{baseline.name:48}{baseline.value:>12,.6g}{now:>12}{worse:>10}"
        )


def update(folder: Path, benchmark: str) -> list[str]:
    """Make a benchmark's results its baseline; what changed. Raises SystemExit where there is no
    such benchmark, or a figure is missing."""
    baselines = read_baselines(folder)
    known = sorted({one.benchmark for one in baselines})
    if benchmark not in known:
        raise SystemExit(f"{benchmark} has no baseline; there are {', '.join(known)}.")
    result = read_result(folder, benchmark)
    said, changed = [], []
    for one in baselines:
        if one.benchmark == benchmark:
            found = look_up(result, one)
            if found.value is None:
                raise SystemExit(f"the results of {benchmark} have no {one.name}: run it first.")
            new = replace(one, value=found.value, machine=hardware(found.machine))
            if new != one:
                said.append(f"{one.name}: {one.value:,.6g} -> {new.value:,.6g} ({new.machine})")
            one = new
        changed.append(one)
    write_baselines(folder, changed)
    return said


def main(arguments: Sequence[str] | None = None, folder: Path = HERE) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", metavar="NAME", help="a benchmark whose results are right")
    options = parser.parse_args(arguments)
    if options.update is not None:
        print("\n".join(update(folder, options.update)) or "nothing has changed")
        return 0
    said, failed = check(folder)
    print("\n".join(said))
    if not failed:
        return 0
    print("", *table(failed), sep="\n")
    print("1 figure does not hold." if len(failed) == 1 else f"{len(failed)} do not hold.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
