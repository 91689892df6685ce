"""Which source made a run, as far as the machine can tell."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """The git commit of this source tree, with "+" where files differ from it; None where it is no
    checkout (an installed wheel) or git is not there."""
    here = Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in here.parents[2:4]):
        return None
    head = _git(here, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(
        here, "status", "--porcelain", "--untracked-files=no", "--", str(here.parents[0])
    )
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
