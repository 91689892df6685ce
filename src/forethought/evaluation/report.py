"""The report of a training run: a page that tells its course, and the curves as pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forethought.errors import ModelError
from forethought.evaluation.report_page import page_html
from forethought.evaluation.report_plots import draw, plots_of, require_matplotlib
from forethought.evaluation.report_summary import Summary, summarise
from forethought.evaluation.run_record import read_run

FOLDER: Final = "report"
PAGE: Final = "report.html"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and what it says in figures."""

    page: Path
    pictures: tuple[Path, ...]
    summary: Summary


def write_report(run: Path, out: Path | None = None) -> Report:
    """Report the run in the folder ``run``, under way or finished, into ``out`` (``run``/report).

    Writes ``report.html``, which needs no other file, and a PNG of each plot for which the run has
    values; files of those names are replaced. Reads only the run's own logs, so it may be asked
    while the run goes on. The same logs give the same files.

    Raises UserError where there is no run, a log is damaged or matplotlib is missing, ModelError
    where ``out`` cannot be written.
    """
    record = read_run(run)
    require_matplotlib()
    summary = summarise(record)
    folder = run / FOLDER if out is None else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [draw(plot, record) for plot in plots_of(record)]
        paths = tuple(folder / f"{picture.plot.name}.png" for picture in pictures)
        for picture, path in zip(pictures, paths, strict=True):
            _write(path, picture.png)
        _write(folder / PAGE, page_html(record, summary, pictures).encode("utf-8"))
    except OSError as error:
        raise ModelError(
            f"The report cannot be written to {folder} ({error.strerror or error}): name another "
            "folder with --out, or make room."
        ) from None
    return Report(folder / PAGE, paths, summary)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: who looks at the page meanwhile sees the old one. Raises OSError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
