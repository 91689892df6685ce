"""Downloading from the terminal: what will come, the question, and the progress bar."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from forethought.cli import terminal

if TYPE_CHECKING:
    from forethought.checkpoints.pull import DownloadInfo
    from forethought.checkpoints.resolve import DownloadPolicy

_BAR = 24


class Fetch(NamedTuple):
    """How a missing model may be fetched: what ``load`` and ``resolve`` take."""

    policy: DownloadPolicy
    progress: ProgressBar | None


def permission(*, yes: bool) -> Fetch:
    """Whether a missing model may be downloaded: ``--yes``, or what the person says when asked.

    Where nobody can be asked it is no, which is said before anything is looked up on the network.
    """
    from forethought.checkpoints.resolve import DownloadPolicy

    if not yes and not terminal.can_ask():
        return Fetch(DownloadPolicy("no"), None)

    def agree(info: DownloadInfo) -> bool:
        announce(info)
        return yes or terminal.confirm("Download it?")

    bar = ProgressBar() if terminal.is_terminal(sys.stderr) else None
    return Fetch(DownloadPolicy("ask", agree), bar)


def announce(info: DownloadInfo) -> None:
    """Say what would be downloaded: name, size, licence, source, hash, and where it goes."""
    files = f"{len(info.files)} files, " if len(info.files) > 1 else ""
    terminal.note(
        f"{info.name}: {files}{terminal.size(info.size)}, licence {info.license}, "
        f"from {info.source}, SHA-256 {info.sha256[:12]}…, to {info.target.parent}"
    )


class ProgressBar:
    """One line on stderr that is drawn over itself. Called with bytes done and bytes in all."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: int | None = None
        self._drawn = False

    def __call__(self, done: int, total: int | None) -> None:
        """Draw the line."""
        if self._first is None:
            # what an earlier process brought does not count for the speed
            self._first = done
        seconds = max(time.monotonic() - self._started, 1e-6)
        speed = f"{terminal.size(int((done - self._first) / seconds))}/s"
        if total:
            filled = min(_BAR, _BAR * done // total)
            bar = "#" * filled + "." * (_BAR - filled)
            text = (
                f"[{bar}] {100 * done // total:3d}%  "
                f"{terminal.size(done)} of {terminal.size(total)}  {speed}"
            )
        else:
            text = f"{terminal.size(done)}  {speed}"
        sys.stderr.write(f"{terminal.CLEAR_LINE}{text}")
        sys.stderr.flush()
        self._drawn = True
        if total is not None and done >= total:
            self.close()

    def close(self) -> None:
        """End the line, if there is one."""
        if self._drawn:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._drawn = False
