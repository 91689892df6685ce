"""``forethought problems``: the families of checkable problems, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli import options
from forethought.cli.terminal import columns, nearest, print_json, require
from forethought.cli.terminal import show as show_text
from forethought.cli.usage import PlainCommand, PlainGroup
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.problems.problem import Language, Problem
    from forethought.problems.source import LevelledSource

_EXAMPLE_WIDTH = 72
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

problems = typer.Typer(
    cls=PlainGroup,
    help="See the problems that a model is trained on, and check an answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FamilyName = Annotated[
    str,
    typer.Argument(
        metavar="FAMILY",
        help="A family of `problems list`, your own (path/to/file.py:Class), or of other makers: "
        "reasoning-gym/NAME, gsm8k:FILE, math:FILE.",
    ),
]
Level = Annotated[
    int, typer.Option("--level", help="Level of difficulty, from 1 upwards.", metavar="N")
]
Seed = Annotated[
    int,
    typer.Option("--seed", help="Which problem of the level, a number from 0.", metavar="N"),
]
Tongue = Annotated[
    str | None,
    typer.Option("--language", help="Its language (default: drawn).", metavar="en|zh"),
]


UnsafeNoSandbox = Annotated[
    bool,
    typer.Option(
        "--unsafe-no-sandbox",
        help="Run other makers' generators and graders outside a sandbox, on your risk.",
    ),
]


@problems.command("list", cls=PlainCommand)
def list_(as_json: options.AsJson = False) -> Callable[[], int]:
    """List the bundled families: their levels, how they are worked, an example.

    A family without worked thoughts in pretraining is only ever met as question and answer there.
    """
    return lambda: _list(as_json=as_json)


@problems.command("show", cls=PlainCommand)
def show(
    family: FamilyName,
    level: Level = 1,
    seed: Seed = 0,
    language: Tongue = None,
    work: Annotated[bool, typer.Option("--work", help="Work it out, too.")] = False,
    style: Annotated[
        str | None,
        typer.Option("--style", help="How (default: the plainest way).", metavar="STYLE"),
    ] = None,
    unsafe_no_sandbox: UnsafeNoSandbox = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Show one problem: the same family, level and seed always give the same one.

    \b
      forethought problems show sorting --level 2 --seed 7
      forethought problems show sorting --level 2 --seed 7 --work --style check
    """

    def run() -> int:
        with _chosen(family, level, seed, language, unsafe_no_sandbox) as chosen:
            return _show(chosen, style or ("" if work else None), as_json=as_json)

    return run


@problems.command("verify", cls=PlainCommand)
def verify(
    family: FamilyName,
    answer: Annotated[
        str,
        typer.Option(
            "--answer",
            help="A final answer, or a whole sample with <think> and <answer> tags.",
            metavar="TEXT",
        ),
    ],
    level: Level = 1,
    seed: Seed = 0,
    language: Tongue = None,
    unsafe_no_sandbox: UnsafeNoSandbox = False,
    as_json: options.AsJson = False,
) -> Callable[[], int]:
    """Check an answer to the problem that `show` shows. Exit code 0 if it is right, 1 if not.

    \b
      forethought problems verify sorting --level 2 --seed 7 --answer "1, 2, 3, 4"

    Problems of other makers are drawn and graded in a sandbox, which needs bubblewrap.
    """

    def run() -> int:
        with _chosen(family, level, seed, language, unsafe_no_sandbox) as chosen:
            return _verify(chosen, answer, as_json=as_json)

    return run


@problems.command("audit", cls=PlainCommand)
def audit(as_json: options.AsJson = False) -> Callable[[], int]:
    """Check the verifiers of the bundled families; needs the extra train.

    Each gets 200 hostile samples, of which it may accept none, and 200 right ones in odd forms, of
    which it may refuse one. Exit code 1 if one of them fails.
    """
    return lambda: _audit(as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The source and the problem that the options name. ``isolated``: None where nothing of other
    makers' is run."""

    source: LevelledSource
    problem: Problem
    isolated: bool | None

    def facts(self) -> dict[str, Any]:
        """The problem as plain data, with what a report on it has to say."""
        facts = _facts(self.problem)
        return facts if self.isolated is None else {**facts, "isolated": self.isolated}


@contextmanager
def _chosen(
    name: str, level: int, seed: int, language: str | None, unsafe_no_sandbox: bool
) -> Iterator[_Chosen]:
    """Raises UserError for a family, a level, a seed or a language that there is not."""
    from forethought.checkpoints.dataset_files import dataset_file
    from forethought.problems.adapters.adapters import Adapters, is_adapted
    from forethought.problems.registry import source

    require(seed >= 0, f"--seed must be at least 0, not {seed}.")
    with Adapters(dataset_file, unsafe_no_sandbox=unsafe_no_sandbox) as adapters:
        found = source(name, adapters)
        isolated = adapters.isolated if is_adapted(name) else None
        yield _Chosen(found, found.problem(level, seed, _language(language)), isolated)


def _language(word: str | None) -> Language | None:
    from forethought.problems.problem import LANGUAGES

    for language in LANGUAGES:
        if word == language:
            return language
    hint = nearest(word or "", [*LANGUAGES])
    require(word is None, f"--language must be one of {', '.join(LANGUAGES)}, not {word!r}{hint}.")
    return None


def _list(*, as_json: bool) -> int:
    from forethought.problems.registry import BUNDLED, family

    rows = []
    for name in BUNDLED:
        one = family(name)
        rows.append(
            {
                "name": name,
                "levels": one.levels,
                "bare": one.bare,
                "styles": list(one.styles),
                "example": one.problem(1, 0, "en").text,
            }
        )
    if as_json:
        print_json({"families": rows}, indent=2)
        return 0
    table = [["family", "levels", "worked", "example"]]
    table += [
        [
            str(row["name"]),
            f"1-{row['levels']}",
            "no" if row["bare"] else ", ".join(one for one in _texts(row["styles"])),
            _one_line(str(row["example"])),
        ]
        for row in rows
    ]
    show_text(columns(table))
    return 0


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE_WIDTH else line[: _EXAMPLE_WIDTH - 3] + "..."


def _facts(problem: Problem) -> dict[str, Any]:
    return {
        "family": problem.family,
        "level": problem.level,
        "seed": problem.seed,
        "language": problem.language,
        "held_out": problem.held_out,
        "question": problem.text,
        "answer": problem.answer,
        "canonical": problem.canonical,
    }


def _show(chosen: _Chosen, style: str | None, *, as_json: bool) -> int:
    """``style``: None shows no work, "" the plainest."""
    from random import Random

    problem = chosen.problem
    facts = chosen.facts()
    text = f"{problem.text}\n"
    if style is not None:
        from forethought.problems.family import Family

        family = chosen.source
        if not isinstance(family, Family):
            raise UserError(f"{problem.family} brings no worked thoughts: leave --work out.")
        styles = list(family.styles)
        style = style or styles[0]
        require(
            style in styles,
            f"{problem.family} has no style {style!r}: its styles are {', '.join(styles)}.",
        )
        worked = family.worked(problem, Random(problem.seed), style=style)
        thought = ("" if problem.language == "zh" else " ").join(worked.steps)
        facts |= {"style": style, "steps": list(worked.steps), "arrives_at": worked.answer}
        text += f"\n{thought}\n\n{worked.answer or 'It arrives at no answer.'}\n"
    if as_json:
        print_json(facts, indent=2)
    else:
        show_text(text)
    return 0


def _verify(chosen: _Chosen, text: str, *, as_json: bool) -> int:
    from forethought.problems.problem import wrong

    problem = chosen.problem
    final = _final(text)
    if final is None:
        verdict = wrong("the sample has no final answer after its thought")
    else:
        verdict = chosen.source.verify(problem, final)
    if as_json:
        print_json(
            {
                **chosen.facts(),
                "final_answer": final,
                "status": verdict.status,
                "reason": verdict.reason,
            },
            indent=2,
        )
    elif verdict.correct:
        show_text("correct\n")
    else:
        show_text(f"{verdict.status}: {verdict.reason}\n")
    return 0 if verdict.correct else 1


def _audit(*, as_json: bool) -> int:
    from forethought.engines.load import require_torch

    require_torch("problems audit")
    from forethought.evaluation.audit import audit

    rows = audit()
    passed = all(row.passed for row in rows)
    if as_json:
        print_json({"passed": passed, "families": [asdict(row) for row in rows]}, indent=2)
        return 0 if passed else 1
    table = [["family", "hostile", "accepted", "right", "refused", ""]]
    for row in rows:
        numbers = (row.hostile, row.false_accepts, row.right, row.false_rejects)
        table.append([row.family, *map(str, numbers), "" if row.passed else "FAILS"])
    show_text(columns(table, right=frozenset(range(1, 5))))
    for row in rows:
        for example in row.examples:
            show_text(f"{row.family}: {example}\n")
    return 0 if passed else 1


def _final(text: str) -> str | None:
    """The final answer in what was given: all of it, unless its tags say that it is a sample."""
    if not any(tag in text for tag in _TAGS):
        return text.strip()
    from forethought.dialogue.final_answer import final_answer
    from forethought.dialogue.parse import parse

    # A prompt may have opened the thought: then the sample has its end only.
    return final_answer(parse(text, assume_thought="</think>" in text).raw_answer)
