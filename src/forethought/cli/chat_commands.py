"""What a line of the chat does: the commands, and everything else is a question."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from forethought.cli.chat_session import ChatSession
from forethought.cli.settings import LARGEST
from forethought.cli.terminal import columns, nearest, note, show
from forethought.errors import UserError
from forethought.paths import expand


class Leave(Exception):  # the way out of the loop, not an error
    """The person wants to go."""


class Command(NamedTuple):
    """A command: what it does with the text after its name, how it is written, its help."""

    run: Callable[[ChatSession, str], None]
    usage: str
    help: str


def run_line(session: ChatSession, line: str) -> None:
    """Do what one line says.

    A line that begins with a slash is a command; a space before the slash makes it a question.
    """
    if not line.strip():
        return
    if not line.startswith("/"):
        session.ask(line.strip())
        return
    word, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(word.strip().lower())
    if command is None:
        hint = nearest(word.lower(), list(COMMANDS))
        raise UserError(
            f"there is no command /{word}{hint}. /help lists them; "
            "a space before the slash makes it a question."
        )
    command.run(session, rest.strip())


def _positive(text: str, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= LARGEST:
        raise UserError(f"{what} is a whole number of tokens, not {text!r}.")
    return number


def _continue(session: ChatSession, rest: str) -> None:
    session.resume(_positive(rest, "/continue N: N") if rest else None)


def _edit(session: ChatSession, rest: str) -> None:
    before = session.last_thought()
    after = edited(before)
    if after == before:
        note("The thought is unchanged; /retry asks again.")
        return
    session.resume_from(after)


def edited(text: str) -> str:
    """``text`` after the person's editor ($VISUAL, $EDITOR) had it."""
    import subprocess
    import tempfile

    set_by_hand = (os.environ.get(name, "").strip() for name in ("VISUAL", "EDITOR"))
    editor = next(filter(None, set_by_hand), "")
    if not editor:
        editor = "notepad" if sys.platform == "win32" else "vi"
    descriptor, name = tempfile.mkstemp(prefix="thought-", suffix=".txt")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        code = subprocess.call([*shlex.split(editor), name])
        if code != 0:
            raise UserError(f"The editor {editor} ended with {code}: nothing was changed.")
        after = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no editor {editor!r}: set EDITOR to one.") from None
    except OSError as error:  # not executable, a folder, no program
        raise UserError(f"The editor {editor!r} cannot be run: {error.strerror}.") from None
    except ValueError as error:  # quotes that do not close, or a file that is no UTF-8 any more
        raise UserError(f"The thought could not be edited with {editor}: {error}.") from None
    finally:
        path.unlink(missing_ok=True)
    # editors end a file with a line break that nobody typed
    return after if text.endswith("\n") else after.removesuffix("\n")


def _retry(session: ChatSession, rest: str) -> None:
    session.retry()


def _save(session: ChatSession, rest: str) -> None:
    from forethought.cli.chat_file import save

    path = _path(rest, "/save FILE")
    save(session, path)
    note(f"Saved {len(session.turns)} messages to {path}.")


def _load(session: ChatSession, rest: str) -> None:
    from forethought.cli.chat_file import load

    path = _path(rest, "/load FILE")
    loaded = load(path)
    session.restore(loaded["turns"], loaded["parameters"], loaded["seed"])
    note(f"Loaded {len(session.turns)} messages from {path}.")
    if loaded["model"] not in (None, session.model.name):
        note(f"They were with {loaded['model']}; /model {loaded['model']} takes that model.")


def _path(rest: str, usage: str) -> Path:
    if not rest:
        raise UserError(f"{usage}: which file?")
    return expand(rest)


def _model(session: ChatSession, rest: str) -> None:
    if not rest:
        note(f"The model is {session.model.name}. /model NAME takes another.")
        return
    session.change_model(rest)
    note(f"The model is now {session.model.name}; the conversation stays.")


def _budget(session: ChatSession, rest: str) -> None:
    if rest.lower() in ("off", "none", "default"):
        session.options.pop("max_thought", None)
    elif rest:
        number = _positive(rest, "/budget N: N")
        least = session.options.get("min_thought")
        if least is not None and number < least:
            raise UserError(f"/budget {number} is below the least thought, {least} tokens.")
        session.options["max_thought"] = number
    most = session.options.get("max_thought")
    note(
        "The thought is closed at the model's own budget, or where the room for it ends."
        if most is None
        else f"The thought is closed at {most} tokens; /budget off lifts that."
    )


def _system(session: ChatSession, rest: str) -> None:
    if rest.lower() == "off":
        session.options.pop("system", None)
    elif rest:
        session.options["system"] = rest
    text = session.options.get("system")
    note("There is no system prompt." if text is None else f"System prompt: {text}")


def _context(session: ChatSession, rest: str) -> None:
    from forethought.cli.chat_context import describe

    show(describe(session))


def _help(session: ChatSession, rest: str) -> None:
    rows = [[command.usage, command.help] for command in COMMANDS.values()]
    show(columns(rows))
    note(
        'While it thinks: "a" answers now, Ctrl-C stops and keeps what came. '
        "Esc then Enter starts a new line."
    )


def _quit(session: ChatSession, rest: str) -> None:
    raise Leave


COMMANDS: dict[str, Command] = {
    "continue": Command(_continue, "/continue [N]", "go on inside the stopped thought or answer"),
    "edit": Command(_edit, "/edit", "edit the last thought, and think on from it"),
    "retry": Command(_retry, "/retry", "answer the last question again"),
    "context": Command(_context, "/context", "show what will be sent, and what is left out"),
    "budget": Command(_budget, "/budget [N|off]", "close the thought at N tokens"),
    "system": Command(_system, "/system [TEXT|off]", "set the system prompt"),
    "model": Command(_model, "/model [NAME]", "show or change the model"),
    "save": Command(_save, "/save FILE", "write the chat, thoughts included, to a file"),
    "load": Command(_load, "/load FILE", "take up a saved chat"),
    "help": Command(_help, "/help", "show this"),
    "quit": Command(_quit, "/quit", "leave (as does Ctrl-D)"),
}
