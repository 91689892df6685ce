"""``forethought report``: the course of a training run as a page that one can keep and send."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forethought.cli import options
from forethought.cli.terminal import is_terminal, note, print_json
from forethought.cli.terminal import show as show_text

if TYPE_CHECKING:
    from forethought.evaluation.report import Report


def report(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The folder of a run (train --out), finished or under way."
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option("--out", help="Where the page goes (default: RUN/report).", metavar="DIR"),
    ] = None,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Do not open the page in a browser.")
    ] = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Write the report of a training run: curves, the film of its answers, what it took.

    \b
      forethought report my-run
      forethought report my-run --out my-report --no-open

    The page is one file without script that loads nothing; each curve is a PNG beside it. On a
    terminal it is opened in the browser. Needs the extra train.
    """

    def run_it() -> int:
        from forethought.evaluation.report import write_report
        from forethought.paths import expand

        found = write_report(expand(run), None if out is None else expand(out))
        if as_json:
            print_json(_as_json(found), indent=2)
            return 0
        note(_said(found))
        show_text(f"{found.page}\n")
        if not no_open and is_terminal(sys.stdout) and _has_screen():
            _open(found.page)
        return 0

    return run_it


def _as_json(found: Report) -> dict[str, object]:
    return {
        "page": str(found.page),
        "pictures": [str(path) for path in found.pictures],
        **found.summary.as_json(),
    }


def _said(found: Report) -> str:
    """The run in one line."""
    from forethought.evaluation.report_page import pass_at_1, state_text

    summary = found.summary
    words = f"{summary.recipe}: {state_text(summary)}"
    if summary.first is not None and summary.last is not None:
        first, last = pass_at_1(summary.first), pass_at_1(summary.last)
        words += f"; held-out pass@1 {last}" + (f" (first {first})" if first != last else "")
    return words


def _has_screen() -> bool:
    """Whether there is a screen for a browser; else one could begin inside this terminal."""
    return sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def _open(page: Path) -> None:
    import webbrowser

    webbrowser.open(page.resolve().as_uri())
