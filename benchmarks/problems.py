"""How fast problems are made and checked, on one core.

    python benchmarks/problems.py

Every bundled family, all its levels equally often, with text and answer, in chunks of 1000: the
best and the median chunk. Then right answers verified, training streams and documents drawn, and
256 held-out problems chosen. Time is the processor's for this process, so that what else runs on
the machine counts less. Prints a table and ends with one JSON line.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import harmonic_mean, median
from time import process_time

from _machine import describe, save

CHUNK = 1000
CHUNKS = 15
VERIFY_CHUNKS = 30
TARGET_MEAN, TARGET_EACH, TARGET_VERIFY = 20_000, 2_000, 50_000
ARITHMETIC = ("countdown", "game24", "chained_arithmetic", "linear_equations", "gcd_lcm")


def speeds(chunk: Callable[[int], object], chunks: int, size: int) -> tuple[float, float]:
    """Best and median of ``size`` things a second; ``chunk`` makes those of a number."""
    found = []
    for number in range(chunks):
        start = process_time()
        chunk(number)
        found.append(size / (process_time() - start))
    return max(found), median(found)


def measure(name: str) -> dict[str, float]:
    """Problems made and verified a second."""
    from forethought.problems.registry import family

    one = family(name)
    levels = range(1, one.levels + 1)
    for level in levels:
        one.problem(level, 0)  # makes the tables that are made once

    def make(number: int) -> None:
        first = number * CHUNK
        for seed in range(first, first + CHUNK):
            one.problem(1 + seed % one.levels, seed)

    problems = [one.problem(1 + seed % one.levels, seed) for seed in range(CHUNK)]

    def verify(_: int) -> None:
        for problem in problems:
            one.verify(problem, problem.answer)

    best, usual = speeds(make, CHUNKS, CHUNK)
    verified, verified_usual = speeds(verify, VERIFY_CHUNKS, CHUNK)
    return {"best": best, "median": usual, "verified": verified, "verified_median": verified_usual}


def measure_use() -> dict[str, float]:
    """What training draws: problems and documents a second, and the seconds that 256 held-out
    problems take, tables included or not."""
    from forethought.problems.registry import BUNDLED, families
    from forethought.problems.stream import ProblemStream, held_out_problems
    from forethought.training.config import CorpusConfig
    from forethought.training.corpus import Corpus, CorpusSpec

    bundled = families(BUNDLED)
    start = process_time()
    held_out_problems(bundled, 256, 0)
    held_out = process_time() - start
    stream = ProblemStream(bundled, 0)
    corpus = Corpus(CorpusSpec(tuple(BUNDLED), {}, {}, None, CorpusConfig(), 0))

    def draw(number: int) -> None:
        for index in range(number * CHUNK, (number + 1) * CHUNK):
            stream[index]

    def write(number: int) -> None:
        for index in range(number * CHUNK, (number + 1) * CHUNK):
            corpus[index]

    return {
        "streamed": speeds(draw, CHUNKS, CHUNK)[0],
        "documents": speeds(write, CHUNKS, CHUNK)[0],
        "held_out_seconds": held_out,
    }


def main() -> None:
    """Measure, print, save."""
    from forethought.problems.registry import BUNDLED, family

    print(f"{describe()}\n")
    # First, before any table is made: the tables belong to its time.
    use = measure_use()
    print(f"{'':<20}{'problems/s':>24}{'verified/s':>24}")
    print(f"{'family':<20}{'best':>12}{'median':>12}{'best':>12}{'median':>12}")
    rows = {}
    for name in BUNDLED:
        row = rows[name] = measure(name)
        numbers = (row["best"], row["median"], row["verified"], row["verified_median"])
        print(f"{family(name).name:<20}{numbers[0]:>12,.0f}{numbers[1]:>12,.0f}", end="")
        print(f"{numbers[2]:>12,.0f}{numbers[3]:>12,.0f}")
    mean, usual = (harmonic_mean([row[key] for row in rows.values()]) for key in ("best", "median"))
    print(f"{'harmonic mean':<20}{mean:>12,.0f}{usual:>12,.0f}\n")
    slowest = min(row["best"] for row in rows.values())
    verified = min(rows[name]["verified"] for name in ARITHMETIC)
    for said, value, target in (
        ("harmonic mean", mean, TARGET_MEAN),
        ("slowest family", slowest, TARGET_EACH),
        ("slowest verifier of arithmetic", verified, TARGET_VERIFY),
    ):
        print(f"{said}: {value:,.0f}/s; wanted {target:,}/s: {'yes' if value >= target else 'NO'}")
    print(
        f"training streams: {use['streamed']:,.0f} problems/s, {use['documents']:,.0f} documents/s"
    )
    print(f"256 held-out problems, with the tables they need: {use['held_out_seconds']:.2f} s")
    save(
        "problems",
        {
            "harmonic_mean": round(mean),
            "harmonic_mean_median": round(usual),
            "rows": {name: {k: round(v) for k, v in row.items()} for name, row in rows.items()},
            "use": {key: round(value, 2) for key, value in use.items()},
        },
    )


if __name__ == "__main__":
    main()
