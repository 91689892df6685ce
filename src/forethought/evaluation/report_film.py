"""The film of a run as HTML: the same problems, as each moment's model answers them.

No script: the frames of a problem are the articles behind a group of radio buttons, so that the
arrow keys page through them, and the cells of the overview are labels of the same buttons.
Everything a model wrote is text (`report_text`), its tags included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from forethought.dialogue.final_answer import ANSWER_CLOSE, ANSWER_OPEN
from forethought.dialogue.parse import parse
from forethought.evaluation.report_text import as_attribute, as_html
from forethought.training.monitor import FilmFrame

MOST_EVALUATIONS: Final = 48
"""Evaluations on the page; of more, these many spread evenly, first and last among them."""
_MOST_CHARACTERS: Final = 20_000
"""Characters of a sample on the page."""

_BLANK: Final = " \t\n"
"""What is left out around a stretch of text: not what `as_html` spells out."""
_ANSWER_TAG: Final = re.compile(f"({re.escape(ANSWER_OPEN)}|{re.escape(ANSWER_CLOSE)})")

RIGHT: Final = ("right", "✓", "right")
WRONG: Final = ("wrong", "✗", "wrong")
CUT: Final = ("cut", "…", "cut off at the token limit")
ABSENT: Final = ("absent", "·", "not in the film")


class Moment(NamedTuple):
    """One evaluation of the run."""

    stage: str
    step: int


@dataclass(frozen=True, slots=True)
class Film:
    """Frames by problem and evaluation. ``left_out``: evaluations that are not on the page."""

    moments: tuple[Moment, ...]
    problems: tuple[tuple[int, tuple[FilmFrame | None, ...]], ...]
    """The number of each problem and its frames, one for each moment."""
    left_out: int


def film_of(frames: Sequence[FilmFrame]) -> Film:
    """The film that these frames make; the later of two frames of one place counts."""
    found = {(Moment(frame.stage, frame.step), frame.number): frame for frame in frames}
    every = list(dict.fromkeys(moment for moment, _ in found))
    moments = every
    if len(every) > MOST_EVALUATIONS:
        last = len(every) - 1
        chosen = {at * last // (MOST_EVALUATIONS - 1) for at in range(MOST_EVALUATIONS)}
        moments = [every[at] for at in sorted(chosen)]
    kept = set(moments)
    numbers = sorted({number for moment, number in found if moment in kept})
    return Film(
        tuple(moments),
        tuple(
            (number, tuple(found.get((moment, number)) for moment in moments)) for number in numbers
        ),
        len(every) - len(moments),
    )


def film_html(film: Film) -> str:
    """The overview and a section for each problem."""
    return "\n".join(
        [
            '<section class="film" id="film">',
            "<h2>The film</h2>",
            f"<p>{_introduction(film)}</p>",
            *_overview(film),
            *(line for number, frames in film.problems for line in _problem(film, number, frames)),
            "</section>",
        ]
    )


def _introduction(film: Film) -> str:
    shown = _count(len(film.moments), "evaluation")
    some = (
        f" {film.left_out} more between them are in film.jsonl, not here." if film.left_out else ""
    )
    return (
        f"{_count(len(film.problems), 'held-out problem')}, never trained on, as the model "
        f"answered them at {shown}: one sample each. Pick a mark to read it; within a problem the "
        f"arrow keys go from one evaluation to the next.{some}"
    )


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _mark(frame: FilmFrame | None) -> tuple[str, str, str]:
    """Class, sign and words."""
    if frame is None:
        return ABSENT
    if frame.correct:
        return RIGHT
    return CUT if frame.truncated else WRONG


# -- the overview


def _overview(film: Film) -> Iterator[str]:
    yield '<div class="wide"><table class="overview">'
    yield '<thead><tr><th scope="col" rowspan="2">problem</th>'
    for stage, group in groupby(film.moments, key=lambda moment: moment.stage):
        span = sum(1 for _ in group)
        yield f'<th class="stage" scope="colgroup" colspan="{span}">{as_html(stage)}</th>'
    yield "</tr><tr>"
    for at, moment in enumerate(film.moments):
        yield f'<th class="step{_edge(film, at)}" scope="col"><span>{moment.step}</span></th>'
    yield "</tr></thead><tbody>"
    for number, frames in film.problems:
        some = next(frame for frame in frames if frame is not None)
        yield (
            f'<tr><th scope="row"><a href="#p{number}">{number + 1}</a> {as_html(some.family)}'
            f' <span class="quiet">level {some.level}</span></th>'
        )
        for at, frame in enumerate(frames):
            yield _cell(film, number, at, frame)
        yield "</tr>"
    yield '</tbody><tfoot><tr><th scope="row">right</th>'
    for at in range(len(film.moments)):
        column = [frames[at] for _, frames in film.problems if frames[at] is not None]
        right = sum(frame.correct for frame in column if frame is not None)
        yield f'<td class="{_edge(film, at).strip()}">{right}</td>'
    yield "</tr></tfoot></table></div>"
    yield '<p class="legend">'
    for kind, sign, words in (RIGHT, WRONG, CUT):
        yield f'<span><b class="mark {kind}">{sign}</b> {words}</span>'
    yield "</p>"


def _edge(film: Film, at: int) -> str:
    """The class of the first column of a stage."""
    first = at > 0 and film.moments[at].stage != film.moments[at - 1].stage
    return " edge" if first else ""


def _cell(film: Film, number: int, at: int, frame: FilmFrame | None) -> str:
    kind, sign, _ = _mark(frame)
    edge = _edge(film, at).strip()
    if frame is None:
        return f'<td class="{edge}"><span class="mark {kind}">{sign}</span></td>'
    return (
        f'<td class="{edge}"><label class="mark {kind}" for="p{number}f{at}" '
        f'title="{_title(frame)}">{sign}</label></td>'
    )


def _title(frame: FilmFrame) -> str:
    """What a mark says to who cannot see it, as the value of an attribute."""
    return as_attribute(f"{frame.stage}, step {frame.step}: {_mark(frame)[2]}, {_tokens(frame)}")


def _tokens(frame: FilmFrame) -> str:
    return _count(frame.tokens, "token")


# -- one problem


def _problem(film: Film, number: int, frames: tuple[FilmFrame | None, ...]) -> Iterator[str]:
    there = [at for at, frame in enumerate(frames) if frame is not None]
    shown = [(at, frame) for at, frame in enumerate(frames) if frame is not None]
    some = shown[-1][1]
    yield f'<section class="problem" id="p{number}">'
    yield (
        f"<h3>Problem {number + 1} <span>{as_html(some.family)}, level {some.level}, "
        f"{as_html(some.language)}</span></h3>"
    )
    yield f'<div class="question">{as_html(some.question)}</div>'
    yield f'<p class="reference">A right answer: <bdi>{as_html(some.reference)}</bdi></p>'
    yield f'<div class="strip" role="radiogroup" aria-label="Evaluations of problem {number + 1}">'
    stage = ""
    for place, (at, frame) in enumerate(shown):
        if frame.stage != stage:
            stage = frame.stage
            yield f'<span class="stage">{as_html(stage)}</span>'
        kind, sign, _ = _mark(frame)
        name, checked = f"p{number}f{at}", " checked" if at == there[-1] else ""
        yield f'<input type="radio" name="p{number}" id="{name}"{checked}>'
        yield f'<label class="mark {kind}" for="{name}" title="{_title(frame)}">{sign}</label>'
        earlier = there[place - 1] if place else None
        later = there[place + 1] if place + 1 < len(there) else None
        yield from _frame(frame, number, earlier, later)
    yield "</div></section>"


def _frame(frame: FilmFrame, number: int, earlier: int | None, later: int | None) -> Iterator[str]:
    kind, sign, words = _mark(frame)
    yield "<article><header>"
    yield (
        f"<strong>{as_html(frame.stage)}, step {frame.step}</strong>"
        f'<span class="{kind}">{sign} {words}</span><span>{_tokens(frame)}</span>'
    )
    yield f"<nav>{_turn(number, earlier, '‹ earlier')}{_turn(number, later, 'later ›')}</nav>"
    yield f'</header><div class="sample">{_sample(frame)}</div></article>'


def _turn(number: int, at: int | None, words: str) -> str:
    if at is None:
        return f"<span>{words}</span>"
    return f'<label for="p{number}f{at}">{words}</label>'


def _sample(frame: FilmFrame) -> str:
    """Thought and answer side by side. All stretches of the text are there, in their order; only
    the blank space around each is left out."""
    text, more = frame.text[:_MOST_CHARACTERS], len(frame.text) - _MOST_CHARACTERS
    segments = parse(text, complete=not frame.truncated).segments
    thinking = "".join(
        f'<div class="{one.kind}">{as_html(one.text.strip(_BLANK))}</div>'
        for one in segments
        if one.kind != "answer" and one.text.strip(_BLANK)
    )
    answer = "".join(one.text for one in segments if one.kind == "answer").strip(_BLANK)
    notes = []
    if more > 0:
        notes.append(f"{more:,} more characters are in film.jsonl.")
    if frame.truncated:
        notes.append("Cut off here, at the token limit.")
    if not thinking and not answer:
        notes.append("Nothing: the sample ended at once.")
    parts = []
    if thinking:
        parts.append(f'<div class="part"><h4>Thought</h4>{thinking}</div>')
    if answer:
        parts.append(f'<div class="part"><h4>Answer</h4>{_answer(answer)}</div>')
    parts += [f'<p class="note">{note}</p>' for note in notes]
    return "".join(parts)


def _answer(text: str) -> str:
    pieces = [
        f'<span class="tag">{as_html(piece)}</span>' if at % 2 else as_html(piece)
        for at, piece in enumerate(_ANSWER_TAG.split(text))
    ]
    return f'<div class="answer">{"".join(pieces)}</div>'
