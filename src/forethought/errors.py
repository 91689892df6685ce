"""The errors a user can meet: one clear sentence each, and an exit code.

A sentence says what was wrong, where, and what to do. A traceback is a bug.
Exit codes: 2 for a mistake of the user, 1 for a model, a server or the machine, 130 for Ctrl-C.
"""

from __future__ import annotations


class ForethoughtError(Exception):
    """Anything that ends a command with a sentence instead of a traceback."""

    exit_code = 1


class UserError(ForethoughtError):
    """The request cannot be served as asked: bad option, unknown model, prompt too long."""

    exit_code = 2


class ModelError(ForethoughtError):
    """The model's file or the engine failed: truncated GGUF, unknown architecture, no memory."""


class ServerError(ForethoughtError):
    """A remote server was unreachable, died, or answered something that is not the protocol."""


class DownloadError(ForethoughtError):
    """A download failed: no network, wrong hash, disk full. No unfinished file has a final name."""
