"""Nothing that goes wrong in a chat takes the conversation along; servers in a chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest

from cli.conftest import Cli, environment
from forethought.cli import chat, chat_commands
from forethought.cli.chat_file import save
from forethought.cli.chat_session import ChatSession, _watcher
from forethought.cli.settings import MAX_SEED
from forethought.errors import UserError
from openai_server import OpenAIServer, Sleep, fields, stream


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(stream(fields(["t"], ["The answer."]))) as running:
        yield running


def script(cli: Cli, server: OpenAIServer, *lines: str, **more: Any) -> tuple[int, str]:
    """Run these lines against the server: exit code and stderr."""
    done = cli("chat", "-m", f"{server.base_url}#m", stdin="\n".join([*lines, ""]).encode(), **more)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/save .", "is a folder"),
        ("/save /", "is a folder"),
        ("/save ..", "is a folder"),
        ("/save ~nouser/x", "home folder ~nouser"),
        ("/load ~nouser/x", "home folder ~nouser"),
        ("/save a\0b", "NUL"),
        ("/model ~nouser/x.gguf", "home folder ~nouser"),
        ("/budget 99999999999", "whole number of tokens"),
    ],
)
def test_a_mistake_is_said_and_the_chat_goes_on(
    line: str, said: str, cli: Cli, server: OpenAIServer, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    code, err = script(cli, server, "Hello?", line, f"/save {kept}")
    assert code == 2, err
    assert said in err
    assert "unexpected" not in err
    assert len(json.loads(kept.read_text())["messages"]) == 2


@pytest.mark.parametrize("editor", ["not-executable", "folder"])
def test_an_editor_that_cannot_run(
    editor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "not-executable").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("VISUAL", str(tmp_path / editor))
    with pytest.raises(UserError, match="cannot be run"):
        chat_commands.edited("a thought")


def test_a_blank_editor_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", " ")
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c pass")
    assert chat_commands.edited("a thought") == "a thought"


def test_what_is_unexpected_is_noted_and_the_next_line_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []

    def run_line(session: object, line: str) -> None:
        lines.append(line)
        if line == "bad":
            raise RuntimeError("two\nlines")
        if line == "/quit":
            raise chat_commands.Leave

    monkeypatch.setattr(chat_commands, "run_line", run_line)
    monkeypatch.setattr(chat, "_piped_lines", lambda: iter(["bad", "good", "/quit", "never"]))
    assert chat._converse(SimpleNamespace(), interactive=False) == 1  # type: ignore[arg-type]
    assert lines == ["bad", "good", "/quit"]
    said = capsys.readouterr().err
    assert "unexpected RuntimeError: two lines; the chat goes on" in said
    assert said.count("\n") == 1


def test_a_closed_pipe_still_ends_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_line(session: object, line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(chat_commands, "run_line", run_line)
    monkeypatch.setattr(chat, "_piped_lines", lambda: iter(["x"]))
    with pytest.raises(BrokenPipeError):
        chat._converse(SimpleNamespace(), interactive=False)  # type: ignore[arg-type]


def test_ids_beyond_the_vocabulary(cli: Cli, scripted_path: Path, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "", "thought": "x", "model": scripted_path.stem}
    message |= {"seed": 1, "stop_reason": "length", "thought_end": "cut", "ids": [2**31 - 1]}
    turns = [{"role": "user", "content": "q"}, message]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps({"format": "forethought-chat", "version": 1, "messages": turns}))
    lines = f"/load {file}\n/continue\n/save {tmp_path / 'kept.json'}\n"
    done = cli("chat", "-m", str(scripted_path), "--threads", "1", stdin=lines.encode())
    assert done.returncode in (1, 2), done.stderr
    assert b"Traceback" not in done.stderr
    assert b"unexpected" not in done.stderr
    assert len(json.loads((tmp_path / "kept.json").read_text())["messages"]) == 2


def test_a_text_that_is_no_unicode_is_not_saved_half(tmp_path: Path) -> None:
    session: Any = SimpleNamespace(
        model=SimpleNamespace(name="m"), seed=None, options={"system": "\udcff"}, turns=[]
    )
    with pytest.raises(Exception, match="cannot be written") as caught:
        save(session, tmp_path / "chat.json")
    assert type(caught.value).__name__ == "ForethoughtError"
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_refused_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    def answer_now() -> None:
        raise UserError("no such thing")

    _watcher(SimpleNamespace(answer_now=answer_now))._pressed()  # type: ignore[arg-type]
    assert "no such thing" in capsys.readouterr().err


def test_a_server_is_not_promised_to_answer_now(home: Path) -> None:
    slow = stream([*fields(["thinking"], []), Sleep(1.5), *fields([], ["The answer."])])
    with OpenAIServer(slow) as server:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "forethought", "chat", "-m", f"{server.base_url}#m"],
            env=environment(home, PROMPT_TOOLKIT_NO_CPR="1", NO_COLOR="1"),
            encoding="utf-8",
            timeout=30,
            dimensions=(50, 200),
        )
        child.expect("Ctrl-D leaves")
        child.expect(">")
        child.sendline("Hello?")
        child.expect("thinking: \\(Ctrl-C: stop\\)")
        child.send("a")
        child.expect("stopped: ")
        assert "Exception" not in child.before
        child.close(force=True)


def test_the_seed_of_a_chat_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought.engines.limits import LARGEST_SEED

    assert MAX_SEED == LARGEST_SEED

    class Asked(Exception):
        pass

    def request(messages: object, **options: Any) -> None:
        raise Asked(options["seed"])

    session = ChatSession(
        model=SimpleNamespace(request=request),  # type: ignore[arg-type]
        options={},
        opener=lambda name: None,  # type: ignore[arg-type,return-value]
        seed=MAX_SEED,
    )
    seen = []
    for session.generations in (0, 1, 2):
        with pytest.raises(Asked) as caught:
            session.ask("q")
        seen.append(caught.value.args[0])
    assert seen == [MAX_SEED, 0, 1]


@pytest.mark.parametrize("verb", ["ask", "chat"])
def test_a_server_does_not_mind_what_is_set_for_models_here(
    verb: str, cli: Cli, home: Path, server: OpenAIServer
) -> None:
    (home / "config.toml").write_text("context = 4096\nthreads = 2\n")
    model = ("-m", f"{server.base_url}#m")
    done = cli(verb, *model, stdin=b"Hello?\n", FORETHOUGHT_GPU_LAYERS="3")
    assert done.returncode == 0, done.stderr
    assert b"The answer." in done.stdout


@pytest.mark.parametrize("option", ["--threads", "--ctx", "--gpu-layers"])
def test_a_flag_that_a_server_cannot_serve_is_refused(
    option: str, cli: Cli, server: OpenAIServer
) -> None:
    done = cli("ask", "Hello?", "-m", f"{server.base_url}#m", option, "2")
    assert done.returncode == 2
    assert option.encode() in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert server.chats == []


def test_flags_of_the_first_model_do_not_keep_a_server_out(
    cli: Cli, scripted_path: Path, server: OpenAIServer
) -> None:
    lines = f"/model {server.base_url}#m\nHello?\n"
    flags = ("--threads", "1", "--ctx", "256")
    done = cli("chat", "-m", str(scripted_path), *flags, stdin=lines.encode())
    assert done.returncode == 0, done.stderr
    assert b"The answer." in done.stdout
