"""``forethought chat``: a conversation with line editing, history and commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from forethought.cli import options
from forethought.cli.ask import ask_options, check_engine, engine_of, has_mtp, not_taken, open_model
from forethought.cli.interrupt import forget, nothing_made_of_ctrl_c, raise_if_pressed
from forethought.cli.settings import (
    MAX_SEED,
    Value,
    export_to_environment,
    load_settings,
    warn_unknown_variables,
)
from forethought.cli.terminal import is_terminal, note, require
from forethought.errors import ForethoughtError

if TYPE_CHECKING:
    from forethought.cli.chat_session import ChatSession
    from forethought.engines.model import Model

PROMPT = "> "


def chat(
    model: options.Model = None,
    engine: options.Engine = None,
    ctx: options.Context = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    speculate: options.Speculate = None,
    lora: options.Lora = None,
    system: options.System = None,
    template: options.Template = None,
    max_thought: options.MaxThought = None,
    min_thought: options.MinThought = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    reproducible: options.Reproducible = None,
    hide_thought: options.HideThought = None,
    yes: options.Yes = False,
) -> Callable[[], int]:
    """Talk with a model; /help in it lists its commands.

    While it thinks, the key "a" means "answer now", and Ctrl-C stops it and keeps what came:
    /continue goes on from there, /edit opens the thought in your editor and goes on from what you
    make of it. Esc then Enter starts a new line, Ctrl-D leaves.

    Thoughts of earlier turns are not sent back; /context shows what will be.

    With text on stdin instead of a terminal, each line is a question or a command.
    """
    flags: dict[str, Value] = {
        "model": model,
        "engine": engine,
        "context": ctx,
        "threads": threads,
        "gpu_layers": gpu_layers,
        "device": device,
        "dtype": dtype,
        "speculate": speculate,
        "system": system,
        "template": template,
        "max_thought": max_thought,
        "min_thought": min_thought,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "reproducible": reproducible,
        "hide_thought": hide_thought,
    }
    return lambda: run(flags, seed=seed, lora=lora, yes=yes)


def run(flags: dict[str, Value], *, seed: int | None, lora: str | None, yes: bool) -> int:
    """Run the conversation to its end; the exit code is that of the first thing that failed."""
    settings = load_settings(flags)
    check_engine(settings)
    require(
        seed is None or 0 <= seed <= MAX_SEED, f"--seed must be from 0 to {MAX_SEED}, not {seed}."
    )
    warn_unknown_variables()
    export_to_environment(settings)
    loading = open_model(settings, lora=lora, slots=1, yes=yes)
    # imported while the weights load
    from forethought.cli.chat_session import ChatSession

    interactive = is_terminal(sys.stdin)
    session = ChatSession(
        model=loading.wait(),
        options=ask_options(settings),
        seed=seed,
        hide_thought=settings.switch("hide_thought"),
        interactive=interactive,
        opener=lambda name: _open_other(name, flags, yes=yes),
    )
    raise_if_pressed()
    code = _converse(session, interactive=interactive)
    session.model.close()
    return code


def _open_other(name: str, flags: dict[str, Value], *, yes: bool) -> Model:
    settings = load_settings({**flags, "model": name})
    # flags that this engine does not know were for the model that the chat began with
    unknown = not_taken(engine_of(name, settings.text("engine")))
    if settings.switch("speculate") and not has_mtp(name):
        unknown += ("speculate",)
    return open_model(settings.without(unknown), lora=None, slots=1, yes=yes).wait()


def _converse(session: ChatSession, *, interactive: bool) -> int:
    from forethought.cli.chat_commands import Leave, run_line

    lines = _typed_lines(session) if interactive else _piped_lines()
    first_failure = 0
    try:
        for line in lines:
            if interactive:
                forget()  # what an earlier line swallowed is not meant for this one
            try:
                with nothing_made_of_ctrl_c():
                    run_line(session, line)
            except (Leave, BrokenPipeError):
                raise
            except ForethoughtError as error:
                note(f"forethought: {error}")
                first_failure = first_failure or error.exit_code
            except KeyboardInterrupt:
                if not interactive:
                    raise
                note("Stopped.")
            except Exception as error:  # a bug of ours must not take the conversation along
                _note_unexpected(error)
                first_failure = first_failure or 1
    except Leave:
        pass
    # at a terminal the person has read what failed, and has gone on
    return 0 if interactive else first_failure


def _note_unexpected(error: Exception) -> None:
    if os.environ.get("FORETHOUGHT_DEBUG", "") not in ("", "0"):
        import traceback

        note(traceback.format_exc().rstrip())
    what = " ".join(str(error).split()) or "no message"
    note(
        f"forethought: unexpected {type(error).__name__}: {what}; the chat goes on. This is a "
        "bug; FORETHOUGHT_DEBUG=1 shows the traceback."
    )


def _piped_lines() -> Iterator[str]:
    while line := sys.stdin.buffer.readline():
        # one bad byte in a script must not take the lines around it along
        yield line.decode("utf-8", errors="replace").rstrip("\r\n")


def _typed_lines(session: ChatSession) -> Iterator[str]:
    ask_line = _line_editor()
    note(f"{session.model.name}. /help lists the commands, Ctrl-D leaves.")
    while True:
        try:
            yield ask_line()
        except KeyboardInterrupt:
            note("Ctrl-D or /quit leaves.")
        except EOFError:
            return


def _line_editor() -> Callable[[], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from forethought.cli.chat_commands import COMMANDS

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    prompts: PromptSession[str] = PromptSession(
        history=_history(),
        key_bindings=bindings,
        multiline=True,
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
    )
    return lambda: prompts.prompt(PROMPT)


def _history() -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from forethought.paths import history_file

    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # what one asks is nobody else's business
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError as error:
        note(f"forethought: no history is kept: {path}: {error.strerror}.")
        return InMemoryHistory()
    return FileHistory(str(path))
