"""``forethought train``: the real program on a recipe of seconds, stopped, resumed, refused."""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte
import pytest

from recipes.recipe_text import GOOD

from .conftest import PROGRAM, Cli, environment, sentence

QUICK = (
    GOOD.replace("vocab_size = 500", "vocab_size = 400\ndocuments = 200")
    .replace("steps = 10", "steps = 3")
    .replace('families = ["sorting", "countdown"]', 'families = ["sorting"]')
)
ENDLESS = QUICK.replace("steps = 3", "steps = 1000000")
PATIENCE = 120
"""Seconds until a run must have come somewhere, on a machine that others use too."""
SLOW_REWARD = """
import time
from pathlib import Path

def reward(problem, reply):
    Path(__file__).with_name("begun").touch()
    time.sleep(60)
    return 0.0
"""


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(QUICK)
    return path


@contextmanager
def training(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``forethought train`` in the background, ended with the test."""
    process = subprocess.Popen(
        [*PROGRAM, "train", *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until ``path`` is there and not empty."""
    end = time.monotonic() + PATIENCE
    while not (path.exists() and (path.stat().st_size or path.name == "begun")):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_stops_after_the_step_and_the_line_goes_on(
    number: signal.Signals, code: int, home: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "a recipe.toml", tmp_path / "run"
    recipe.write_text(ENDLESS)
    with training(home, str(recipe), "--out", str(out), "--seed", "5") as process:
        wait_for(out / "metrics.jsonl", process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr.decode()
    assert stdout == b""
    lines = stderr.decode().splitlines()
    assert "forethought: stopping after this step; once more leaves at once." in lines
    assert lines[-1] == (
        f"resumable: forethought train {shlex.quote(str(recipe))} --out {out} --seed 5 --resume"
    )
    done = (out / "metrics.jsonl").read_text().count("\n")
    with training(home, *shlex.split(lines[-1])[3:]) as process:
        end = time.monotonic() + PATIENCE
        while (out / "metrics.jsonl").read_text().count("\n") <= done:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < end
            time.sleep(0.05)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
def test_a_run_ends_with_a_model_and_one_json(cli: Cli, quick: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("train", str(quick), "--out", str(out), "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["recipe"], report["finished"], report["path"]) == ("tiny", True, str(out))
    assert 0 <= report["summary"]["pass_at_1"] <= 1
    text = done.stderr.decode()
    assert re.search(r"^pretrain: begins at step 0 of 3$", text, re.MULTILINE)
    assert re.search(r"^rl 4: held out  pass@1 \d+\.\d%$", text, re.MULTILINE)
    assert text.endswith(f"Done: {out}\n")
    assert "\x1b" not in text
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }
    again = cli("train", str(quick), "--out", str(out))
    assert again.returncode == 2
    assert "holds a finished run" in sentence(again)
    other = cli("train", str(quick), "--out", str(out), "--resume", "--seed", "1")
    assert other.returncode == 2
    sentence(other)


@pytest.mark.slow
def test_a_profile_is_printed_at_the_end_and_kept(cli: Cli, quick: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("train", str(quick), "--out", str(out), "--profile", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"]  # and nothing else
    text = (out / "profile" / "phases.txt").read_text()
    assert done.stderr.decode().endswith(f"{text}Done: {out}\n")
    assert text.startswith("Where the time went: tiny, ")
    assert {path.name for path in (out / "profile").iterdir()} == {
        "phases.json", "phases.txt", "trace-pretrain.json.gz", "trace-rl.json.gz"
    }  # fmt: skip


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "slow.toml"
    recipe.write_text(QUICK + 'reward.own = "slow.py:reward"\n')
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    with training(home, str(recipe), "--out", str(tmp_path / "run")) as process:
        wait_for(tmp_path / "begun", process)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None  # the step goes on
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert b"Traceback" not in stderr


@pytest.mark.slow
def test_a_terminal_shows_a_panel(home: Path, quick: Path, tmp_path: Path) -> None:
    command = [*PROGRAM, "train", str(quick), "--out", str(tmp_path / "run")]
    child = pexpect.spawn(
        command[0], command[1:], env=environment(home), dimensions=(40, 100), timeout=120
    )
    seen = io.BytesIO()
    child.logfile_read = seen
    child.expect("Done:")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    screen = pyte.Screen(100, 40)
    pyte.ByteStream(screen).feed(seen.getvalue())
    shown = "\n".join(screen.display)
    assert shown.count("╭─ tiny") == 1, shown  # redrawn in its place
    assert re.search(r"rl .* 4/4", shown)
    assert "pass@1" in shown


@pytest.mark.slow
def test_a_dry_run_trains_nothing(cli: Cli, quick: Path, tmp_path: Path) -> None:
    done = cli("train", str(quick), "--dry-run", "--json", "--seed", "9")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["name"] == "tiny"
    assert [stage["kind"] for stage in facts["stages"]] == ["pretrain", "rl"]
    assert facts["seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"home", "quick.toml"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("quick.toml",), "train needs --out DIR, the folder of the run (or --dry-run)."),
        (("quick.toml", "--out", "run", "--seed", "-1"),
         "--seed must be from 0 to 4294967294, not -1."),
        (("quick.toml", "--out", "run", "--threads", "0"),
         "--threads must be from 1 to 512, not 0."),
        (("quick.toml", "--dry-run", "--resume"),
         "--dry-run and --resume exclude each other: leave one out."),
        (("quick.toml", "--dry-run", "--profile"),
         "--dry-run and --profile exclude each other: leave one out."),
        (("quick.toml", "--out", "quick.toml"), None),
        (("quick.toml", "--out", "nowhere", "--resume"), None),
        (("nowhere.toml", "--out", "run"), "there is no recipe FOLDER/nowhere.toml: check the "
         "path."),
        (("--out", "run"), "missing argument 'RECIPE'. See: forethought train --help"),
        (("quick.toml", "--ouput", "run"),
         "there is no option --ouput (did you mean --out?). See: forethought train --help"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...], said: str | None, cli: Cli, quick: Path
) -> None:
    paths = {name: str(quick.parent / name) for name in ("quick.toml", "nowhere.toml", "run")}
    done = cli("train", *(paths.get(word, word) for word in arguments))
    assert done.returncode == 2
    text = sentence(done)
    if said is not None:
        assert text == f"forethought: {said}\n".replace("FOLDER", str(quick.parent))


def test_a_mistake_in_the_recipe_is_said_before_anything_is_made(
    cli: Cli, quick: Path, tmp_path: Path
) -> None:
    quick.write_text(QUICK.replace("group_size", "group_sise"))
    done = cli("train", str(quick), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert sentence(done) == (
        f"forethought: {quick}: stages[2] (rl): group_sise is an unknown key; did you mean "
        "group_size?\n"
    )
    assert not (tmp_path / "run").exists()


def test_without_the_extra_the_line_that_installs_it_is_said(
    cli: Cli, quick: Path, no_extra: dict[str, str]
) -> None:
    done = cli("train", str(quick), "--out", "run", **no_extra)
    assert done.returncode == 2
    assert sentence(done) == (
        "forethought: train needs torch, safetensors, tokenizers, gguf, which the base install "
        "leaves out; install them with: pip install 'forethought[train]'\n"
    )
