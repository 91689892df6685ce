"""The last step of `make bench`: what counts as worse, and on which hardware."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "check_baselines", BENCHMARKS / "check_baselines.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = _module()
MACHINE = "A processor, 2 threads allowed; Python 3.12; 2026-01-02 03:04 UTC"


def baseline(key: list[str | int], value: float, kind: str = "speed", better: str = "higher"):
    return {
        "benchmark": "made_up",
        "key": key,
        "value": value,
        "better": better,
        "kind": kind,
        "machine": "A processor",
    }


RATE = baseline(["rows", 1, "rate"], 200)
SECONDS = baseline(["seconds"], 2.0, better="lower")
MEMORY = baseline(["parts", "one", "peak"], 100, kind="memory", better="lower")


def result(
    rate: Any = 200, seconds: Any = 2.0, peak: Any = 100, machine: str = MACHINE
) -> dict[str, Any]:
    return {
        "benchmark": "made_up",
        "machine": machine,
        "rows": [{"rate": 1}, {"rate": rate}],
        "seconds": seconds,
        "parts": {"one": {"peak": peak}},
    }


def folder(path: Path, found: dict[str, Any] | None, *figures: dict[str, Any]) -> Path:
    text = json.dumps(figures or [RATE, SECONDS, MEMORY])
    (path / "baselines.json").write_text(text)
    (path / "results").mkdir(exist_ok=True)
    if found is not None:
        lines = f"a table {{of figures}}\n\n{json.dumps(found)}\n"
        (path / "results" / "made_up.txt").write_text(lines)
    return path


def run(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = check.main(list(arguments), path)
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "found",
    [
        result(),
        result(rate=172),  # 14% fewer a second
        result(rate=170),  # 15%
        result(seconds=2.28),  # 14% longer
        result(peak=105),  # 5% more memory
        result(rate=9000, seconds=0.1, peak=1),
    ],
)
def test_what_is_within_the_limits_holds(tmp_path, capsys, found):
    code, said = run(folder(tmp_path, found), capsys)
    assert (code, said) == (0, ["made_up: 3 of 3 hold (2026-01-02 03:04 UTC)"])


@pytest.mark.parametrize(
    ("found", "name", "numbers"),
    [
        (result(rate=168), "rows / 1 / rate", ["200", "168", "16.0%"]),
        (result(seconds=2.32), "seconds", ["2", "2.32", "16.0%"]),
        (result(peak=106), "parts / one / peak", ["100", "106", "6.0%"]),
    ],
)
def test_what_is_worse_is_in_the_table(tmp_path, capsys, found, name, numbers):
    code, said = run(folder(tmp_path, found), capsys)
    assert code == 1
    assert said[0] == "made_up: 2 of 3 hold (2026-01-02 03:04 UTC)"
    assert said[2].split() == ["benchmark", "figure", "baseline", "now", "worse", "by"]
    assert said[3].split() == ["made_up", *name.split(), *numbers]
    assert said[4:] == ["1 figure does not hold."]


def test_memory_and_speed_have_limits_of_their_own(tmp_path, capsys):
    assert run(folder(tmp_path, result(peak=114)), capsys)[0] == 1
    assert run(folder(tmp_path, result(rate=188)), capsys)[0] == 0


@pytest.mark.parametrize("rate", [None, "fast", True, [1]])
def test_a_figure_that_is_missing_does_not_hold(tmp_path, capsys, rate):
    code, said = run(folder(tmp_path, result(rate=rate)), capsys)
    assert code == 1
    assert said[3].split() == ["made_up", "rows", "/", "1", "/", "rate", "200", "none"]


def test_keys_that_are_not_there_do_not_hold(tmp_path, capsys):
    found = result()
    del found["parts"], found["seconds"]
    found["rows"] = found["rows"][:1]
    code, said = run(folder(tmp_path, found), capsys)
    assert code == 1
    assert said[-1] == "3 do not hold."


def test_results_that_are_not_there_do_not_hold(tmp_path, capsys):
    code, said = run(folder(tmp_path, None), capsys)
    assert code == 1
    assert said[-1] == "3 do not hold."


def test_other_hardware_is_skipped_in_one_line(tmp_path, capsys):
    other = result(rate=1, seconds=99, peak=9999, machine="Another card, Python 3; today")
    code, said = run(folder(tmp_path, other), capsys)
    assert code == 0
    assert said == [
        "made_up: 3 skipped, of Another card where the baseline is A processor",
    ]


def test_parts_of_a_result_may_have_a_machine_of_their_own(tmp_path, capsys):
    found = result(rate=1, peak=106, machine="Another card, Python 3; today")
    found["parts"]["one"]["machine"] = MACHINE
    code, said = run(folder(tmp_path, found), capsys)
    assert code == 1
    assert said[:2] == [
        "made_up: 0 of 1 hold (2026-01-02 03:04 UTC)",
        "made_up: 2 skipped, of Another card where the baseline is A processor",
    ]
    assert "parts / one / peak" in said[4]


def test_results_become_the_baseline_when_asked(tmp_path, capsys):
    path = folder(tmp_path, result(rate=120, machine="Another card, Python 3; today"))
    kept = baseline(["x"], 3) | {"benchmark": "left_alone"}
    path.joinpath("baselines.json").write_text(json.dumps([RATE, SECONDS, MEMORY, kept]))
    code, said = run(path, capsys, "--update", "made_up")
    assert code == 0
    assert said[0] == "rows / 1 / rate: 200 -> 120 (Another card)"
    written = json.loads(path.joinpath("baselines.json").read_text())
    assert written == [
        RATE | {"value": 120, "machine": "Another card"},
        SECONDS | {"machine": "Another card"},
        MEMORY | {"machine": "Another card"},
        kept,
    ]
    assert run(path, capsys, "--update", "made_up") == (0, ["nothing has changed"])


def test_what_cannot_be_a_baseline_is_said(tmp_path):
    path = folder(tmp_path, result(rate=None))
    before = path.joinpath("baselines.json").read_text()
    with pytest.raises(SystemExit, match=r"results of made_up have no rows / 1 / rate: run it"):
        check.main(["--update", "made_up"], path)
    with pytest.raises(SystemExit, match=r"other has no baseline; there are made_up\."):
        check.main(["--update", "other"], path)
    assert path.joinpath("baselines.json").read_text() == before


# -- the figures of the project


def test_every_baseline_is_a_figure_of_a_benchmark_here():
    baselines = check.read_baselines(BENCHMARKS)
    assert len({(one.benchmark, one.key) for one in baselines}) == len(baselines) > 30
    for one in baselines:
        assert (BENCHMARKS / f"{one.benchmark}.py").is_file()
        assert one.value > 0
        found = check.look_up(check.read_result(BENCHMARKS, one.benchmark), one)
        assert found.value is not None, one
    assert {one.kind for one in baselines} == {"speed", "memory"}


def test_committed_results_hold():
    said, failed = check.check(BENCHMARKS)
    assert failed == [], said
