"""``forethought ask`` with the real model: both channels, JSON, interruption, closed pipes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from .conftest import PROGRAM, QUESTION, Cli, ended_by_ctrl_c, environment, local

SUMMARY = re.compile(
    r"thought (\d+) tokens? · answer (\d+) tokens? · [\d.]+ s · \d+ tokens/s · stopped: .+"
)


def test_the_answer_is_on_stdout_and_the_thought_on_stderr(ask: Cli) -> None:
    same = ("--seed", "7", "--max-tokens", "80", "--max-thought", "30")
    done = ask(QUESTION, *same)
    assert done.returncode == 0, done.stderr
    thought = done.stderr.decode()
    assert thought.startswith("thinking:\n")
    assert "\x1b" not in thought
    assert SUMMARY.fullmatch(thought.splitlines()[-1])
    answer = done.stdout.decode()
    assert answer.strip()
    assert answer.endswith("\n")
    assert answer == answer.lstrip()
    assert "<think>" not in answer + thought
    assert "</think>" not in answer + thought
    again = json.loads(ask(QUESTION, *same, "--json").stdout)
    assert again["answer"].strip() == answer.strip()


def test_json_is_exactly_what_the_documentation_says(ask: Cli) -> None:
    done = ask(QUESTION, "--json", "--max-tokens", "60", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    reply = json.loads(done.stdout)
    assert list(reply) == [
        "thought", "answer", "final_answer", "usage", "timings", "stop_reason", "model", "seed"
    ]  # fmt: skip
    usage = reply["usage"]
    assert list(usage) == [
        "prompt_tokens", "thought_tokens", "answer_tokens", "completion_tokens", "total_tokens"
    ]  # fmt: skip
    assert usage["thought_tokens"] + usage["answer_tokens"] == usage["completion_tokens"] <= 60
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert reply["seed"] == 3
    assert reply["model"] == "smollm2:135m"


@pytest.mark.parametrize("kind", [["--logprobs"], ["--logprobs", "raw"], ["--logprobs=sampling"]])
def test_ids_and_logprobs_stand_side_by_side(kind: list[str], ask: Cli) -> None:
    done = ask(*kind, QUESTION, "--json", "--ids", "--max-tokens", "40", "--seed", "1")
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert len(reply["ids"]) == len(reply["logprobs"]) == reply["usage"]["completion_tokens"]
    assert len(reply["prompt_ids"]) == reply["usage"]["prompt_tokens"]
    assert all(p is None or p <= 0 for p in reply["logprobs"])
    assert any(p is not None for p in reply["logprobs"])


def test_several_samples(ask: Cli) -> None:
    # side by side the last bits depend on the order of work, but for --reproducible
    same = ("-n", "3", "--max-tokens", "24", "--seed", "1", "--reproducible")
    done = ask(QUESTION, "--json", *same)
    reply = json.loads(done.stdout)
    assert list(reply) == ["samples"]
    assert [sample["seed"] for sample in reply["samples"]] == [1, 2, 3]
    done = ask(QUESTION, *same)
    assert done.returncode == 0, done.stderr
    answers = [sample["answer"].strip() for sample in reply["samples"]]
    assert done.stdout.decode().strip() == "\n\n".join(a for a in answers if a)
    assert "3 samples" in done.stderr.decode().splitlines()[-1]


def test_the_question_from_everywhere(ask: Cli, tmp_path: Path) -> None:
    bare = ["--template", "bare", "--raw-prompt"]
    file = tmp_path / "q.txt"
    file.write_bytes(b"\xef\xbb\xbffrom a file")
    assert ask("argument", *bare).stdout == b"argument"
    assert ask(*bare, stdin=b"from stdin").stdout == b"from stdin"
    assert ask("-", *bare, stdin=b"from stdin").stdout == b"from stdin"
    assert ask("-f", str(file), *bare, stdin=b"not read").stdout == b"from a file"
    assert ask("-f", "-", *bare, stdin=b"from stdin").stdout == b"from stdin"
    assert ask("argument", *bare, stdin=b"stdin\n").stdout == b"stdin\n\nargument"
    assert ask("argument", "-f", str(file), *bare).stdout == b"from a file\n\nargument"
    assert ask(*bare, stdin=b"ends with a break\n").stdout == b"ends with a break\n"
    assert ask("--raw-prompt", stdin=b"no break\n").stdout.count(b"no break\n\n\n") == 0


def test_the_raw_prompt_is_what_is_counted(ask: Cli) -> None:
    shown = ask(QUESTION, "--raw-prompt", "--system", "Be brief.")
    assert shown.returncode == 0
    assert shown.stderr == b""
    text = shown.stdout.decode()
    assert QUESTION in text
    assert "Be brief." in text
    assert text.endswith("<think>\n")


def test_budgets_and_stops(ask: Cli) -> None:
    some = ("--json", "--seed", "1", "--max-tokens", "80")
    reply = json.loads(ask(QUESTION, "--max-thought", "30", *some).stdout)
    assert 0 < reply["usage"]["thought_tokens"] <= 30
    assert reply["answer"]
    none = json.loads(ask(QUESTION, "--max-thought", "0", *some).stdout)
    assert none["usage"]["thought_tokens"] == 0
    done = ask(QUESTION, "--max-tokens", "20", "--seed", "1")
    assert "token limit" in done.stderr.decode() or "end of answer" in done.stderr.decode()
    greedy = [ask(QUESTION, "--temperature", "0", "--max-tokens", "30").stdout for _ in range(2)]
    assert greedy[0] == greedy[1]
    first = greedy[0].decode().split()[1]
    stopped = ask(QUESTION, "--temperature", "0", "--max-tokens", "30", "--stop", first)
    assert first not in stopped.stdout.decode()
    assert "stop string" in stopped.stderr.decode()


def test_a_hidden_thought_is_not_shown(ask: Cli) -> None:
    done = ask(QUESTION, "--hide-thought", "--max-tokens", "40", "--seed", "1")
    assert len(done.stderr.decode().splitlines()) == 1
    done = ask(QUESTION, "--max-tokens", "40", "--seed", "1", FORETHOUGHT_HIDE_THOUGHT="1")
    assert len(done.stderr.decode().splitlines()) == 1


def test_a_pipe_counts_the_answer_alone(home: Path, smollm2_path: Path) -> None:
    budget = "--seed 7 --max-tokens 80 --max-thought 20"
    command = f"{sys.executable} -m forethought ask '{QUESTION}' {budget}"
    variables = environment(home, **local(smollm2_path))
    answer = subprocess.run(command, shell=True, env=variables, capture_output=True).stdout  # noqa: S602
    counted = subprocess.run(  # noqa: S602
        f"{command} | wc -w", shell=True, env=variables, capture_output=True
    ).stdout
    assert int(counted) == len(answer.split())


def test_a_closed_pipe_ends_silently(home: Path, smollm2_path: Path) -> None:
    variables = environment(home, **local(smollm2_path))
    for arguments in (
        ["ask", "--template", "bare", "Once upon a time", "--max-tokens", "200"],
        ["ask", QUESTION, "--json", "--max-tokens", "30"],
        ["models", "list", "--json"],
        ["--version"],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(writer)
        assert done.returncode == 141
        text = done.stderr.decode()
        assert "Traceback" not in text
        assert "BrokenPipe" not in text
        assert "Exception ignored" not in text


def test_ctrl_c_keeps_what_came(home: Path, smollm2_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "ask", "--template", "bare", "Once upon a time", "--max-tokens", "3000"],
        env=environment(home, **local(smollm2_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    out, err = process.communicate(timeout=20)
    assert time.perf_counter() - begin < 3
    assert process.returncode == 130
    assert (first + out).decode().strip()
    last = err.decode().splitlines()[-1]
    assert SUMMARY.fullmatch(last)
    assert last.endswith("stopped: cancelled")
    assert "Traceback" not in err.decode()


def test_ctrl_c_with_json_gives_whole_json(home: Path, smollm2_path: Path) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "ask", "--template", "bare", "Once upon a time", "--max-tokens", "3000",
         "--json"],
        env=environment(home, **local(smollm2_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out)["stop_reason"] == "cancelled"


def test_on_a_terminal_the_thought_is_dim(home: Path, smollm2_path: Path) -> None:
    variables = environment(home, **local(smollm2_path))
    arguments = ["-m", "forethought", "ask", QUESTION, "--max-tokens", "60", "--seed", "7"]
    seen = pexpect.run(
        " ".join([sys.executable, *arguments[:3], f'"{QUESTION}"', *arguments[4:]]),
        env=variables,
        timeout=60,
    ).decode()
    assert "\x1b[2mthinking:" in seen
    assert seen.count("\x1b[2m") == seen.count("\x1b[0m")
    variables["NO_COLOR"] = "1"
    seen = pexpect.run(
        " ".join([sys.executable, *arguments[:3], f'"{QUESTION}"', *arguments[4:]]),
        env=variables,
        timeout=60,
    ).decode()
    assert "thinking:" in seen
    assert "\x1b" not in seen


@pytest.mark.alone
def test_the_display_of_the_real_engine_is_never_far_behind(smollm2) -> None:
    """How many computed tokens wait when the display draws, with the real engine and clock."""
    import io

    from forethought.cli.display import Display
    from forethought.engines.protocol import AnswerDelta, ThoughtDelta

    display = Display(io.StringIO(), io.StringIO())
    waiting = []
    for batch in smollm2.submit(QUESTION, max_tokens=80, seed=1).batches():
        display.draw(batch)
        # a delta of several tokens is a sentence that was put there at once, not computed
        waiting.append(sum(isinstance(event, ThoughtDelta | AnswerDelta) for event in batch))
    assert sum(waiting) >= 20
    assert max(waiting) <= 8


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.25, 0.35, 0.5, 0.8])
def test_ctrl_c_at_any_moment_ends_the_program(
    delay: float, home: Path, smollm2_path: Path
) -> None:
    process = subprocess.Popen(
        [*PROGRAM, "ask", "--template", "bare", "Once upon a time", "--max-tokens", "3000"],
        env=environment(home, **local(smollm2_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert ended_by_ctrl_c(process.returncode, err), (process.returncode, err.decode())
