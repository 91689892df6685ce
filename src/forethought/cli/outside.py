"""What a person is told who asks a model of the families alone about something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forethought.engines.model import Model

PULL: Final = "deepseek-r1:1.5b"
"""The model of the catalogue to pull instead: small enough for any laptop, and trained to think."""


def note_outside(model: Model, question: str) -> None:
    """Say on stderr that ``question`` is none of the problems that ``model`` knows.

    Of a model that knows some families alone; of any other nothing is said. Called when the
    question has been submitted: the prompt is read meanwhile.
    """
    if not model.families:
        return
    line = outside_note(question, model.name)
    if line is not None:
        from forethought.cli.terminal import note

        note(f"forethought: {line}")


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
