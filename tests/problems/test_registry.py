"""Families by name, and a person's own from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethought.errors import UserError
from forethought.problems.adapters.adapters import Adapters, is_adapted
from forethought.problems.adapters.fixed_list import FixedList
from forethought.problems.adapters.gsm8k import Gsm8k
from forethought.problems.family import Family
from forethought.problems.registry import BUNDLED, families, family, source
from forethought.problems.stream import ProblemStream, held_out_problems

OWN = '''
from dataclasses import dataclass
from forethought.problems.answers import whole_number
from forethought.problems.family import Family, Worked

@dataclass(frozen=True)
class Doubling(Family):
    """Twice a number."""
    name = "doubling"
    levels = 2
    def draw(self, rng, level): return rng.randrange(10**level)
    def canonical(self, task): return str(task)
    def phrase(self, task, rng, language): return f"Double {task}."
    def answer(self, task, language): return str(2 * task)
    def verify(self, problem, answer): return whole_number(answer, 2 * problem.task)
    def worked(self, problem, rng, *, style="steps", slip=0.0): return Worked((), None)

@dataclass(frozen=True)
class Choosy(Doubling):
    factor: int

class NoFamily:
    pass

a_value = 7
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_family_has_the_name_that_it_is_found_by(name: str):
    found = family(name)
    assert isinstance(found, Family)
    assert found.name == name
    assert found.levels > 1
    assert type(found).__doc__


def test_a_family_from_a_file(folder: Path):
    found = family("mine.py:Doubling", folder=folder)
    problem = found.problem(1, 3)
    assert problem.canonical == f"doubling:{problem.task}"
    assert found.verify(problem, f" {problem.answer}. ").correct
    assert not found.verify(problem, f"{problem.answer}.. ").correct
    assert not found.verify(problem, f"{problem.answer}.。").correct
    # Absolute paths need no folder, and the file is run once.
    assert type(family(f"{folder}/mine.py:Doubling")) is type(found)


def test_families_keep_their_order(folder: Path):
    specs = ["sorting", "mine.py:Doubling", "countdown"]
    assert [one.name for one in families(specs, folder=folder)] == [
        "sorting",
        "doubling",
        "countdown",
    ]


@pytest.mark.parametrize(
    ("spec", "near"),
    [("countdwon", "countdown"), ("linear_equation", "linear_equations"), ("sudoku", "sudoku4")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(spec: str, near: str):
    with pytest.raises(UserError) as raised:
        family(spec)
    assert str(raised.value) == f"there is no problem family {spec!r}: did you mean {near!r}?"


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(UserError, match=r"there are countdown, game24, .*sudoku4"):
        family("zzz")


def failure(spec: str, folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        family(spec, folder=folder)
    said = str(raised.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_a_file_that_is_not_there(folder: Path):
    said = failure("other.py:Doubling", folder)
    assert said == f"other.py:Doubling: there is no file {folder}/other.py; " + (
        "write path/to/file.py:Class."
    )


@pytest.mark.parametrize("name", ["Tripling", "NoFamily", "a_value", "dataclass", ""])
def test_a_class_that_is_not_there_or_is_no_family(name: str, folder: Path):
    said = failure(f"mine.py:{name}", folder)
    assert said == f"{folder}/mine.py has no class {name!r} that is a Family."


def test_a_family_that_needs_arguments(folder: Path):
    said = failure("mine.py:Choosy", folder)
    assert "mine.py:Choosy cannot be made (Choosy.__init__() missing" in said


def test_an_abstract_family(folder: Path):
    (folder / "half.py").write_text("from forethought.problems.family import Family\n")
    said = failure("half.py:Family", folder)
    assert "half.py:Family cannot be made (Can't instantiate abstract class" in said


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("raise ValueError('two\\nlines')", "ValueError"),
    ],
)
def test_a_file_that_raises(text: str, kind: str, folder: Path):
    (folder / "broken.py").write_text(text)
    said = failure("broken.py:Doubling", folder)
    assert said.startswith(f"{folder}/broken.py cannot be imported ({kind}: ")
    # Once it is mended it can be imported.
    (folder / "broken.py").write_text(OWN)
    assert family("broken.py:Doubling", folder=folder).name == "doubling"


def test_a_file_that_is_no_python(folder: Path):
    (folder / "mine.txt").write_text(OWN)
    assert "mine.txt is no Python file" in failure("mine.txt:Doubling", folder)


@pytest.mark.parametrize(
    ("specs", "name"),
    [(("sorting", "countdown", "sorting"), "sorting"),
     (("mine.py:Doubling", "mine.py:Doubling"), "doubling")],
)  # fmt: skip
def test_two_families_of_one_name(specs: tuple[str, ...], name: str, folder: Path):
    with pytest.raises(UserError) as raised:
        families(specs, folder=folder)
    assert str(raised.value) == (
        f"two problem families are called {name!r}: give one another name."
    )


def test_problems_of_other_makers_are_no_families(folder: Path):
    for spec in ("reasoning-gym/chain_sum", "gsm8k:train.jsonl", "math:hf://owner/name/a.jsonl"):
        assert is_adapted(spec)
        assert "brings no worked thoughts" in failure(spec, folder)
    for spec in ("sorting", "mine.py:Doubling", "folder/reasoning-gym/mine.py:Doubling"):
        assert not is_adapted(spec)
    with Adapters() as adapters:
        assert source("mine.py:Doubling", adapters, folder=folder).name == "doubling"
        with pytest.raises(UserError, match="is on the hub"):
            source("math:hf://owner/name/a.jsonl", adapters)


def test_a_list_has_levels_and_one_line_in_sixteen_is_held_out(tmp_path: Path):
    lines = [json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) for n in range(800)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    plain = FixedList(Gsm8k(tmp_path / "train.jsonl"))
    assert (plain.name, plain.levels, plain.languages) == ("gsm8k", 1, ("en",))
    stream = ProblemStream([plain], 0)
    trained = {stream[at].text for at in range(200)}
    sheet = held_out_problems([plain], 20, 0)
    assert len({one.text for one in sheet}) == 20
    assert trained.isdisjoint(one.text for one in sheet)
    assert all(plain.verify(one, one.answer).correct for one in sheet)
    share = sum(plain.problem(1, at).held_out for at in range(800)) / 800
    assert 0.03 < share < 0.1
    for level, language in ((0, None), (2, "en"), (1, "zh")):
        with pytest.raises(UserError):
            plain.problem(level, 0, language)
