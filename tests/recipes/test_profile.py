"""A profiled run is the same run, and its figures hang together."""

from __future__ import annotations

import gzip
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.engines.phases import SILENT
from forethought.errors import ModelError
from forethought.models.costs import Cost, CostModel
from forethought.recipes import tracing
from forethought.recipes.ceilings import Ceilings, measure_ceilings
from forethought.recipes.phase_clock import PhaseClock, Spent
from forethought.recipes.profile import NO_PROFILE, Profile
from forethought.recipes.profile_figures import ProfileFigures, SectionFigures
from forethought.recipes.run import train
from micro_run import RECIPE, StopAt, lines, outcome, write_recipe
from tiny_training import tiny_dense

LANES = RECIPE.replace("threads = 1\n", "threads = 1\nlanes = 2\n")
CPU = torch.device("cpu")


def run(folder: Path, text: str = RECIPE, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    train(write_recipe(folder, text), folder / "run", **options)
    return folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run that nobody profiled."""
    return run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("profiled"), profile=True)


def figures(path: Path, name: str = "profile") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / name / "phases.json").read_text())
    return found


def sections(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["stage"], one["part"]): one for one in figures(path)["sections"]}


# -- the run


def test_a_profiled_run_is_the_same_run(whole: Path, profiled: Path) -> None:
    assert outcome(profiled) == outcome(whole)
    assert not (whole / "profile").exists()
    ours, theirs = (lines(path / "timings.jsonl") for path in (profiled, whole))
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]


def test_sections_are_the_steps_and_evaluations_of_stages(profiled: Path) -> None:
    found = sections(profiled)
    # In order, and without the one step of each stage that was traced.
    assert {key: one["count"] for key, one in found.items()} == {
        ("pretrain", "steps"): 7,
        ("pretrain", "evaluations"): 1,
        ("rl", "steps"): 5,
        ("rl", "evaluations"): 3,
    }
    assert list(found) == sorted(found, key=lambda key: (key[0], key[1] != "steps"))
    assert list(found["pretrain", "steps"]["phases"]) == [
        "documents",
        "forward",
        "backward",
        "optimiser",
    ]
    assert list(found["rl", "evaluations"]["phases"]) == [
        "prefill",
        "decode",
        "sampling",
        "verdicts",
    ]
    assert set(found["rl", "steps"]["phases"]) == {
        *found["rl", "evaluations"]["phases"],
        "forward",
        "backward",
        "optimiser",
    }


def test_phases_and_what_is_left_are_all_of_the_time(profiled: Path) -> None:
    everything = figures(profiled)
    covered = 0.0
    for one in everything["sections"]:
        phases = one["phases"].values()
        seconds = sum(phase["seconds"] for phase in phases)
        assert seconds + one["other_seconds"] == pytest.approx(one["seconds"])
        assert sum(phase["share"] for phase in phases) + one["other_share"] == pytest.approx(1)
        assert 0 < one["first_seconds"] <= one["seconds"]
        covered += one["seconds"]
    assert covered < everything["seconds"]
    # What the run itself says its steps took is more: it has the traced ones.
    said = sum(line.get("seconds", 0.0) for line in lines(profiled / "timings.jsonl"))
    steps = sum(one["seconds"] for one in everything["sections"] if one["part"] == "steps")
    assert 0 < steps < said


def test_work_is_that_of_the_tokens_in_the_metrics(profiled: Path) -> None:
    found = sections(profiled)
    pretrain, rl = found["pretrain", "steps"]["phases"], found["rl", "steps"]["phases"]
    assert pretrain["forward"]["calls"] == pretrain["backward"]["calls"] == 7
    assert pretrain["optimiser"]["calls"] == 7
    assert 2 * pretrain["forward"]["flops"]["amount"] == pretrain["backward"]["flops"]["amount"]
    # A minibatch of RL is a forward pass of the policy, one of the reference, and one way back.
    assert rl["forward"]["flops"]["amount"] == rl["backward"]["flops"]["amount"] > 0
    # Two of three rollouts of 16 samples, two minibatches each, were not traced.
    assert rl["verdicts"]["calls"] == 2 * 16
    assert found["rl", "evaluations"]["phases"]["verdicts"]["calls"] == 3 * 8
    assert rl["verdicts"]["flops"]["amount"] == rl["verdicts"]["bytes"]["amount"] == 0
    for one in found.values():
        for phase in one["phases"].values():
            for kind in ("flops", "bytes"):
                rate = phase[kind]
                assert rate["per_second"] == pytest.approx(rate["amount"] / phase["seconds"])
                most = figures(profiled)["ceilings"][kind]
                assert rate["share_of_most"] == pytest.approx(rate["per_second"] / most)
    # No pass is quicker than the quickest product.
    assert max(phase["flops"]["share_of_most"] for phase in pretrain.values()) < 1


def test_the_table_says_what_the_figures_say(profiled: Path) -> None:
    text = (profiled / "profile" / "phases.txt").read_text()
    assert max(map(len, text.splitlines())) <= 100
    for stage, part in sections(profiled):
        assert f"\n{stage}, " in text
        assert part.removesuffix("s") in text
    assert "1 step under the trace" not in text
    assert "2 steps under the trace are not either: trace-pretrain.json.gz" in text
    assert "threads added up" not in text


def test_traces_show_the_phases_of_a_few_steps(profiled: Path) -> None:
    assert figures(profiled)["traces"] == ["trace-pretrain.json.gz", "trace-rl.json.gz"]
    for stage, names in (
        ("pretrain", ["documents", "forward", "backward", "optimiser"]),
        ("rl", ["prefill", "decode", "sampling", "forward", "backward", "optimiser"]),
    ):
        path = profiled / "profile" / f"trace-{stage}.json.gz"
        assert path.stat().st_size < 4 << 20
        with gzip.open(path, "rt") as file:
            events = json.load(file)["traceEvents"]
        spans = [e["name"] for e in events if e.get("cat") == "user_annotation"]
        assert set(names) <= set(spans)
        assert spans.count("optimiser") == 1
        assert any(e["name"] == "aten::mm" for e in events)


def test_a_trace_ends_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_SECONDS", 0.0)
    path = run(tmp_path, profile=True)
    with gzip.open(path / "profile" / "trace-rl.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    # The first phase of the step finds it over.
    assert "decode" not in {e["name"] for e in events}
    assert sections(path)["rl", "steps"]["count"] == 5


def test_a_trace_that_is_too_large_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(folder: Path) -> tracing.Tracer:
        tracer = tracing.Tracer(folder)
        assert tracer.due("rl", 1, 3, whole=True)
        with tracer.step("rl"):
            torch.ones(4) + 1
        assert not tracer.running
        return tracer

    kept = traced(tmp_path)
    assert (kept.files, kept.notes) == (["trace-rl.json.gz"], [])
    assert kept.aside > 0
    (tmp_path / "trace-rl.json.gz").unlink()
    monkeypatch.setattr(tracing, "_MOST_BYTES", 10)
    dropped = traced(tmp_path)
    assert dropped.files == []
    assert "trace-rl.json.gz was larger than" in dropped.notes[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_lanes_are_told_apart_from_the_clock(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", LANES)
    profiled = run(tmp_path / "profiled", LANES, profile=True)
    assert outcome(profiled) == outcome(plain)
    one = sections(profiled)["pretrain", "steps"]
    phases = one["phases"].values()
    assert one["phases"]["forward"]["calls"] == 2 * 7
    # Seconds are of both threads, shares of the first one's time.
    assert sum(phase["share"] for phase in phases) + one["other_share"] == pytest.approx(1)
    forward = one["phases"]["forward"]
    assert forward["seconds"] > 1.2 * forward["share"] * one["seconds"]
    text = (profiled / "profile" / "phases.txt").read_text()
    assert "Seconds of forward and backward are those of 2 threads added up" in text


def test_a_resumed_run_keeps_the_profile_of_its_earlier_part(whole: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    assert not train(recipe, out, monitor=StopAt(4), profile=True).finished
    assert not train(recipe, out, resume=True, monitor=StopAt(6), profile=True).finished
    assert train(recipe, out, resume=True, profile=True).finished
    assert outcome(out) == outcome(whole)
    # Of each stage one step was traced, in the middle of what that part had still to compute.
    counts = [
        [one["count"] for one in figures(out, name)["sections"] if one["part"] == "steps"]
        for name in ("profile-1", "profile-2", "profile")
    ]
    assert counts == [[3], [3, 2], [3]]


def test_a_run_that_breaks_off_leaves_its_profile(tmp_path: Path) -> None:
    class Broken(StopAt):
        def saved(self, *args: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, profile=True, monitor=Broken())
    assert sections(tmp_path / "run")["pretrain", "steps"]["count"] == 3


# -- its parts


def test_nothing_is_asked_of_a_run_without_a_profile() -> None:
    assert NO_PROFILE.phases is SILENT
    with NO_PROFILE.step("rl", 0, 1, whole=True), NO_PROFILE.evaluation("rl"):
        NO_PROFILE.finish()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path).recipe
    profile = Profile(tmp_path)
    profile.finish()  # nothing has begun, nothing is written
    assert not (tmp_path / "profile").exists()
    profile.begin(recipe, tiny_dense(64), 61)
    (tmp_path / "profile").write_text("in the way")
    with pytest.raises(ModelError, match=r"profile cannot be written \(File exists\)"):
        profile.finish()


def costs() -> CostModel:
    return CostModel(tiny_dense(64).config)


def test_the_clock_tells_threads_apart() -> None:
    clock = PhaseClock()
    clock.begin(CPU, costs())

    def work() -> None:
        with clock.phase("forward", lambda costs: Cost(3, 4)):
            time.sleep(0.05)

    other = threading.Thread(target=work)
    other.start()
    work()
    other.join()
    clock.count("forward", lambda costs: Cost(1, 0))
    spent = clock.settle()["forward"]
    assert (spent.calls, spent.cost) == (2, Cost(7, 8))
    assert spent.seconds >= 0.1
    assert 0.05 <= spent.own < spent.seconds - 0.04
    assert clock.settle() == {}


def test_a_phase_that_fails_is_counted_all_the_same() -> None:
    clock = PhaseClock()
    clock.begin(CPU, costs())
    with pytest.raises(KeyError), clock.phase("backward"):
        raise KeyError
    assert clock.settle()["backward"].calls == 1


class Event:
    """In place of a CUDA event: it happens when the device has come so far."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0
        self.waited = 0

    def record(self, stream: object) -> None:
        Event.now += 250.0
        self.at = Event.now

    def synchronize(self) -> None:
        self.waited += 1

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_on_cuda_events_are_read_when_a_step_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Event] = []

    def event(enable_timing: bool) -> Event:
        made.append(Event(enable_timing))
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    clock = PhaseClock()
    clock.begin(torch.device("cuda"), costs())
    for _ in range(2):
        for _ in range(3):
            with clock.phase("decode and sampling", calls=4):
                pass
        with clock.phase("verdicts"):
            time.sleep(0.01)
        assert not any(one.waited for one in made[:-1])
        spent = clock.settle()
        decoded, judged = spent["decode and sampling"], spent["verdicts"]
        assert (decoded.calls, decoded.seconds, decoded.own) == (12, 0.75, 0.75)
        # Judging is not the device's work: the host's clock has it.
        assert judged.seconds >= 0.01
    # Events are used again, and the last of a step is the one that was waited for.
    assert len(made) == 6
    assert sum(one.waited for one in made) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_phases_take_the_device_s_time() -> None:
    clock = PhaseClock()
    device = torch.device("cuda")
    clock.begin(device, costs())
    matrix = torch.ones(4096, 4096, device=device)
    started = time.perf_counter()
    with clock.phase("forward"):
        for _ in range(20):
            matrix = matrix @ matrix / 4096
    launched = time.perf_counter() - started
    spent = clock.settle()["forward"]
    whole = time.perf_counter() - started
    assert launched < spent.seconds <= whole


def test_ceilings_are_measured_without_a_random_number() -> None:
    before = torch.get_rng_state()
    started = time.perf_counter()
    found = measure_ceilings(CPU, torch.float32)
    assert time.perf_counter() - started < 20
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e8 < found.flops < 1e14
    assert 1e8 < found.bytes < 1e13
    assert found.matrix in (256, 512, 1024, 2048, 4096, 8192)


def test_what_is_traced_is_the_middle_of_what_is_computed(tmp_path: Path) -> None:
    tracer = tracing.Tracer(tmp_path)
    assert [n for n in range(40) if tracer.due("long", n, 40, whole=True)] == list(range(18, 40))
    assert tracer.due("short", 0, 5, whole=True) is False
    assert tracer.due("short", 2, 5, whole=True) is True
    # A step within a rollout is not where a trace begins.
    assert tracer.due("rl", 0, 20, whole=True) is False
    assert tracer.due("rl", 9, 20, whole=False) is False
    assert tracer.due("rl", 10, 20, whole=True) is True
    assert not any(tracer.due("one", n, 8, whole=True) for n in (7,))
    assert tracer.due("resumed", 30, 40, whole=True) is False
    assert tracer.due("resumed", 34, 40, whole=True) is True


# -- the table


def test_a_table_to_the_letter() -> None:
    most = Ceilings(flops=2e12, bytes=1e11, matrix=1024, buffer=1 << 29)
    spent = {
        "forward": Spent(8.0, 4.0, 12, Cost(4e12, 2e9)),
        "verdicts": Spent(0.5, 0.5, 1234),
    }
    section = SectionFigures.of("rl", "steps", [6.0, 4.0], spent, most)
    assert section.other_seconds == 5.5
    found = ProfileFigures(
        recipe="mine",
        hardware="A processor",
        device="cpu",
        dtype="float32",
        threads=1,
        lanes=2,
        processes=2,
        torch="2.11",
        ceilings=most,
        seconds=12.5,
        sections=(section,),
        traced_steps=1,
        traces=("trace-rl.json.gz",),
        notes=("a note",),
    )
    text = found.as_text()
    assert text.startswith(
        "Where the time went: mine, 12.5 s\n"
        "A processor; cpu, float32, 1 thread in each of 2 lanes, torch 2.11\n"
        "max, measured at the start: 2 TFLOP/s (products of 1024 x 1024), 100 GB/s "
        "(copies of 512 MiB)\n"
        "\n"
        "rl, 2 steps, 10 s, the first 6 s\n"
        "phase                 seconds   share    calls     FLOP   FLOP/s  of max    bytes"
        "      B/s  of max\n"
        "verdicts                0.500    5.0%    1,234        -        -       -        -"
        "        -       -\n"
        "forward                 8.000   40.0%       12      4 T    500 G   25.0%      2 G"
        "    250 M    0.2%\n"
        "other                   5.500   55.0%\n"
        "\n"
        "2.5 s are in no table: start, tokenizer, max, saved states, traces.\n"
        "1 step under the trace are not either: trace-rl.json.gz.\n"
    )
    assert "what the first of 2 processes computed" in text
    assert text.endswith("a note\n")
    assert json.loads(found.as_json())["sections"][0]["phases"]["forward"]["calls"] == 12
