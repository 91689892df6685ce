"""What a person is told who asks a model of the families alone about something else."""

from __future__ import annotations

from typing import Final

PULL: Final = "deepseek-r1:1.5b"
"""The model of the catalogue to pull instead: small enough for any laptop, and trained to think."""


def known_to(name: str) -> tuple[str, ...]:
    """The families that the model ``name`` knows and nothing else; none for a general model, and
    where its card cannot be read, which loading it will say."""
    from forethought.cli.on_disk import entry_of
    from forethought.engines.persona import known_families
    from forethought.errors import ForethoughtError

    try:
        return known_families(entry_of(name))
    except ForethoughtError:
        return ()


def outside_note(question: str, model: str) -> str | None:
    """The line for stderr if ``question`` is none of the bundled families' problems, else None.

    For ``model``, which knows nothing but those families. It answers all the same, and the exit
    code is what it would have been: this is a hint, and `forethought.problems.scope` may err.
    """
    # here, so that other models do not wait for it
    from forethought.problems.scope import in_scope

    return None if in_scope(question) else outside_line(model)


def outside_line(model: str) -> str:
    """The sentence itself."""
    return (
        f"{model} knows fourteen kinds of puzzle and this looks like none of them: "
        f"for more, forethought models pull {PULL}"
    )
