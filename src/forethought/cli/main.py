"""The entry point: which verb runs, and what every failure looks like.

Start-up is a feature. ``--version`` is answered before typer is imported, a verb named by the
first argument is the only one imported, and heavy libraries load only where a verb uses them.

Exit codes: 0 done, 1 a model, a server or the machine failed, 2 the request was wrong,
130 interrupted by Ctrl-C, 141 whoever read our output went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from forethought.errors import ForethoughtError

if TYPE_CHECKING:
    import typer

Verb = Callable[[], int]
"""What a parsed command line becomes. It runs after typer is done, because typer turns Ctrl-C
into an exception of its own and prints an empty line."""

VERBS = ("ask", "chat", "models", "train", "report", "problems", "paths", "doctor")

INTERRUPTED = 130
PIPE_CLOSED = 141

_ABOUT = """Ask a reasoning model on your own machine, and watch it think.

\b
  forethought ask "What is 17 + 4 * 3?"      the thought on stderr, the answer on stdout
  forethought chat                           a conversation, with history and commands
  forethought models list                    what there is, and what is on disk
  forethought train RECIPE --out DIR         train a model that thinks, from nothing
  forethought report RUN                     how that went: a page of curves and answers
  forethought problems list                  what such a model is asked

Nothing leaves this machine unless you name a server or download a model.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Never lets a traceback out."""
    code = _guarded(argv)
    if "forethought.cli.loading" in sys.modules:
        from forethought.cli.loading import LOADER, leave_if_busy

        leave_if_busy(code, LOADER)  # one that a /model began and Ctrl-C left alone
    return code


def _guarded(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _lenient_output()
        if arguments in (["--version"], ["-V"]):
            from forethought import __version__

            sys.stdout.write(f"forethought {__version__}\n")
            sys.stdout.flush()
            return 0
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        if "threading" in sys.modules:
            from forethought.cli.loading import leave_if_busy

            leave_if_busy(INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except ForethoughtError as error:
        _say(str(error))
        return error.exit_code
    except Exception as error:
        return _unexpected(error)


def _run(arguments: list[str]) -> int:
    from forethought.cli.interrupt import nothing_made_of_ctrl_c, raise_if_pressed, remembered

    with remembered(), nothing_made_of_ctrl_c():
        result = _parsed(arguments)
        raise_if_pressed()
        return int(result() if callable(result) else result or 0)


def _parsed(arguments: list[str]) -> Verb | int | None:
    """The verb that the arguments ask for, or the exit code where there is none to run."""
    import typer

    from forethought.cli.usage import help_instead, usage_sentence

    try:
        result = build(arguments)(args=arguments, prog_name="forethought", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        help_text = help_instead(error)
        if help_text is not None:
            sys.stdout.write(f"{help_text}\n")
            return 2
        sentence = usage_sentence(error)
        if sentence is None:
            raise
        _say(sentence)
        return 2
    return cast("Verb | int | None", result)


def build(arguments: Sequence[str] = ()) -> typer.Typer:
    """The typer application: the one verb that ``arguments`` begin with, else all of them."""
    import typer

    from forethought.cli.usage import PlainGroup

    app = typer.Typer(
        cls=PlainGroup,
        name="forethought",
        help=_ABOUT,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # rich's panels cost 100 ms at every --help and do not survive a pipe
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def program(
        version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit."),
    ) -> int:
        if version:
            from forethought import __version__

            typer.echo(f"forethought {__version__}")
            raise typer.Exit
        return 0

    app.callback(help=_ABOUT)(program)
    wanted = [verb for verb in VERBS if arguments and arguments[0] == verb]
    for verb in wanted or VERBS:
        _register(app, verb)
    return app


def _register(app: typer.Typer, verb: str) -> None:
    from forethought.cli.usage import PlainCommand

    if verb == "ask":
        from forethought.cli.ask import ask

        app.command("ask", cls=PlainCommand)(ask)
    elif verb == "chat":
        from forethought.cli.chat import chat

        app.command("chat", cls=PlainCommand)(chat)
    elif verb == "models":
        from forethought.cli.models import models

        app.add_typer(models, name="models")
    elif verb == "train":
        from forethought.cli.train import train

        app.command("train", cls=PlainCommand)(train)
    elif verb == "report":
        from forethought.cli.report import report

        app.command("report", cls=PlainCommand)(report)
    elif verb == "problems":
        from forethought.cli.problems import problems

        app.add_typer(problems, name="problems")
    elif verb == "paths":
        from forethought.cli.paths import paths

        app.command("paths", cls=PlainCommand)(paths)
    elif verb == "doctor":
        from forethought.cli.doctor import doctor

        app.command("doctor", cls=PlainCommand)(doctor)


def _lenient_output() -> None:
    """A terminal that cannot show a character shows "?" instead of ending the answer."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _say(sentence: str) -> None:
    from forethought.cli.terminal import is_terminal, visible

    # a sentence may quote a file, a server or a model: none of them may drive the terminal
    text = visible(sentence) if is_terminal(sys.stderr) else sentence
    try:
        sys.stderr.write(f"forethought: {text}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads stderr: the exit code has to do


def _unexpected(error: Exception) -> int:
    if os.environ.get("FORETHOUGHT_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()
        return 1
    what = " ".join(str(error).split()) or "no message"
    _say(
        f"unexpected {type(error).__name__}: {what}. This is a bug; "
        "FORETHOUGHT_DEBUG=1 shows the traceback."
    )
    return 1


def _forget_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush has nowhere to fail."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        pass
