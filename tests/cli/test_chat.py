"""``forethought chat``: in a pseudo-terminal, and with a script on stdin."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from .conftest import QUESTION, Cli, environment, local

LONG = "Write a long story about a dragon."


@pytest.fixture
def chat(home: Path, smollm2_path: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """Start a chat in a pseudo-terminal."""
    started: list[pexpect.spawn] = []

    def start(*args: str, **variables: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "forethought", "chat", *args],
            env=environment(
                home,
                PROMPT_TOOLKIT_NO_CPR="1",
                NO_COLOR="1",
                **(local(smollm2_path) | variables),
            ),
            encoding="utf-8",
            timeout=60,
            dimensions=(50, 200),
        )
        started.append(child)
        child.expect("Ctrl-D leaves")
        child.expect(">")
        return child

    yield start
    for child in started:
        child.close(force=True)


@pytest.fixture
def script(cli: Cli, smollm2_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Run a chat with these lines on stdin: exit code, stdout, stderr."""

    def run(*lines: str, args: tuple[str, ...] = (), **variables: str) -> tuple[int, str, str]:
        done = cli(
            "chat",
            *args,
            stdin="\n".join([*lines, ""]).encode(),
            **(local(smollm2_path) | variables),
        )
        assert "Traceback" not in done.stderr.decode()
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return run


def test_a_turn_history_and_leaving(chat: Callable[..., pexpect.spawn], home: Path) -> None:
    child = chat("--max-tokens", "60", "--seed", "7")
    child.sendline(QUESTION)
    child.expect("thinking: \\(a: answer now")
    child.expect("stopped: ")
    child.expect(">")
    child.sendline("/hlep")
    child.expect("did you mean help")
    child.sendline("/help")
    child.expect("/continue \\[N\\]")
    child.expect("new line")
    child.expect(">")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    history = home / "chat_history"
    assert QUESTION in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_one_key_means_answer_now(chat: Callable[..., pexpect.spawn]) -> None:
    # the answer may take all the tokens that are left
    child = chat("--max-thought", "600", "--min-thought", "550", "--max-tokens", "800")
    child.sendline(QUESTION)
    child.expect("thinking: ")
    time.sleep(0.5)
    begin = time.perf_counter()
    child.send("a")
    child.expect("stopped: [^\r\n]*thought closed on request", timeout=60)
    assert time.perf_counter() - begin < 60
    child.expect(">")


def test_ctrl_c_stops_and_continue_goes_on(chat: Callable[..., pexpect.spawn]) -> None:
    child = chat("--max-thought", "1500", "--min-thought", "60", "--max-tokens", "2000")
    child.sendline(LONG)
    child.expect("thinking: ")
    time.sleep(0.7)
    child.sendintr()
    child.expect("stopped: cancelled, inside the thought", timeout=10)
    child.expect(">")
    child.sendline("/continue 300")
    child.expect("stopped: (token limit|end of answer)", timeout=60)
    child.expect(">")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_ctrl_c_at_the_prompt_stays(chat: Callable[..., pexpect.spawn]) -> None:
    child = chat()
    child.sendintr()
    child.expect("Ctrl-D or /quit leaves")
    child.expect(">")
    child.sendline("/quit")
    child.expect(pexpect.EOF)


def test_several_lines_with_escape_enter(chat: Callable[..., pexpect.spawn]) -> None:
    child = chat("--max-tokens", "40")
    child.send("first line")
    child.send("\x1b\r")
    child.send("second line\r")
    child.expect("stopped: ", timeout=60)
    child.expect(">")
    child.sendline("/context")
    child.expect("first line second line")


def test_the_terminal_is_as_it_was(chat: Callable[..., pexpect.spawn]) -> None:
    import termios

    child = chat("--max-tokens", "40")
    child.sendline(QUESTION)
    child.expect("stopped: ")
    child.expect(">")
    child.sendline("/quit")
    child.expect("\n")
    time.sleep(0.5)
    flags = termios.tcgetattr(child.child_fd)[3]
    assert flags & termios.ECHO
    assert flags & termios.ICANON


def test_a_script_on_stdin(script: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = script(QUESTION, "And cucumbers?", args=("--max-tokens", "40", "--seed", "1"))
    assert code == 0, err
    assert err.count("stopped: ") == 2
    assert "thinking:\n" in err
    assert out.strip()
    assert "thinking" not in out


def test_save_and_load_and_go_on(
    script: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    args = ("--max-tokens", "30", "--seed", "5", "--temperature", "0.5")
    code, _, err = script(QUESTION, f"/save {file}", args=args)
    assert code == 0, err
    saved = json.loads(file.read_text())
    assert saved["format"] == "forethought-chat"
    assert saved["model"] == "smollm2:135m"
    assert saved["seed"] == 5
    assert saved["parameters"] == {"temperature": 0.5, "max_tokens": 30}
    user, assistant = saved["messages"]
    assert user == {"role": "user", "content": QUESTION}
    assert assistant["thought"]
    assert assistant["stop_reason"] in ("length", "stop")
    assert assistant["ids"]
    assert not list(tmp_path.glob("*.part"))
    again = tmp_path / "again.json"
    code, _, err = script(f"/load {file}", f"/save {again}")
    assert code == 0, err
    assert json.loads(again.read_text()) == saved


def test_continue_goes_on_from_the_very_tokens(
    script: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """The stopped tokens stay as they were, and exactly so many new ones follow."""
    stopped, resumed = tmp_path / "stopped.json", tmp_path / "resumed.json"
    code, _, err = script(
        "Once upon a time",
        f"/save {stopped}",
        "/continue 30",
        f"/save {resumed}",
        args=("--temperature", "0", "--template", "bare", "--max-tokens", "30"),
    )
    assert code == 0, err
    first, second = (json.loads(f.read_text())["messages"][-1] for f in (stopped, resumed))
    assert first["stop_reason"] == "length"
    assert len(first["ids"]) == 30
    assert len(second["ids"]) == 60
    assert second["ids"][:30] == first["ids"]
    assert second["content"].startswith(first["content"])
    assert len(second["content"]) > len(first["content"])


def test_edit_thinks_on_from_the_edited_thought(
    script: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import sys; open(sys.argv[1], 'w').write('A tomato is a berry, so it is a fruit.\\n')"
    )
    file = tmp_path / "chat.json"
    code, _, err = script(
        QUESTION,
        "/edit",
        f"/save {file}",
        args=("--max-tokens", "60", "--seed", "1"),
        EDITOR=f"{sys.executable} {editor}",
    )
    assert code == 0, err
    message = json.loads(file.read_text())["messages"][-1]
    assert message["opening"].startswith("A tomato is a berry")
    assert message["thought"].startswith("A tomato is a berry")
    assert err.count("stopped: ") == 2
    code, _, err = script(
        QUESTION, "/edit", args=("--max-tokens", "40", "--seed", "1"), EDITOR="false"
    )
    assert code == 2
    assert "nothing was changed" in err


def test_context_shows_what_is_sent(script: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = script(
        "/system Be brief.",
        QUESTION,
        "/context",
        args=("--max-tokens", "60", "--seed", "7", "--ctx", "1000"),
    )
    assert code == 0, err
    assert "dropped" in out
    assert "1 thought of an earlier turn is not sent back." in out
    assert "the context holds 1000" in out
    exact = out.partition("Exactly this is sent:\n")[2]
    assert QUESTION in exact
    assert "Be brief." in exact
    thought = err.split("thinking:\n")[1].splitlines()[0]
    assert thought not in exact


def test_budget_model_and_mistakes(script: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = script(
        "/budget",
        "/budget 33",
        "/budget off",
        "/budget x",
        "/model",
        "/model smolm2",
        "/continue",
        "/retry",
        "/edit",
        "/save",
        "/load /nonexistent.json",
        "/contxt",
        "",
        " /not a command, but a question",
        "/quit",
        "never asked",
        args=("--max-tokens", "30"),
    )
    assert code == 2
    for words in (
        "closed at 33 tokens",
        "whole number of tokens, not 'x'",
        "The model is smollm2:135m",
        "'smolm2'",
        "There is no answer yet",
        "which file?",
        "no such file",
        "did you mean context?",
    ):
        assert words in err, err
    assert err.count("stopped: ") == 1


def test_retry_draws_again(script: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    code, _, err = script(
        QUESTION,
        f"/save {one}",
        "/retry",
        f"/save {two}",
        args=("--max-tokens", "40", "--seed", "1"),
    )
    assert code == 0, err
    first, second = (json.loads(f.read_text())["messages"] for f in (one, two))
    assert len(first) == len(second) == 2
    assert first[1]["seed"] != second[1]["seed"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "is not JSON"),
        ("[]", "not a chat saved by forethought"),
        ('{"format": "forethought-chat", "version": 9}', "version 9"),
        ('{"format": "forethought-chat", "version": 1, "messages": 3}', "messages"),
        (
            '{"format": "forethought-chat", "version": 1, "messages": [{"role": "x"}]}',
            "message 1: role is 'x'",
        ),
        (
            '{"format": "forethought-chat", "version": 1, "messages": [], '
            '"parameters": {"temperature": -1}}',
            "temperature",
        ),
        (
            '{"format": "forethought-chat", "version": 1, "messages": [], "parameters": {"n": 1}}',
            "unknown parameter 'n'",
        ),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_no_chats(content: str, said: str, tmp_path: Path) -> None:
    from forethought.cli.chat_file import load
    from forethought.errors import UserError

    file = tmp_path / "chat.json"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        load(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value) or os.sep not in str(caught.value)
