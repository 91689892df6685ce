"""What is held out never comes in training, and evaluations weigh all parts of it equally."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest

from forethought.errors import UserError
from forethought.problems.families.gcd_lcm import GcdLcm
from forethought.problems.families.linear_equations import LinearEquations
from forethought.problems.families.sorting import Sorting
from forethought.problems.family import Family
from forethought.problems.problem import HELD_OUT_IN, LANGUAGES, Problem, is_held_out
from forethought.problems.registry import BUNDLED, families, family
from forethought.problems.stream import ProblemStream, held_out_problems
from forethought.training.config import CorpusConfig
from forethought.training.corpus import Corpus, CorpusSpec

FAMILIES = families(BUNDLED)


@cache
def evaluated() -> frozenset[str]:
    """What evaluations of several runs ask."""
    asked = [held_out_problems(FAMILIES, 1024, seed) for seed in range(2)]
    return frozenset(problem.canonical for some in asked for problem in some)


def check_stream(draws: int, seed: int) -> None:
    stream = ProblemStream(FAMILIES, seed)
    cells: Counter[tuple[str, int]] = Counter()
    for index in range(draws):
        problem = stream[index]
        assert not is_held_out(problem.canonical)
        assert problem.canonical not in evaluated()
        cells[problem.family, problem.level] += 1
    for one in FAMILIES:
        levels = [cells[one.name, level] for level in range(1, one.levels + 1)]
        assert abs(sum(levels) * len(FAMILIES) / draws - 1) < 0.2
        assert all(abs(n * one.levels / sum(levels) - 1) < 0.3 for n in levels), (one, levels)


def test_no_held_out_problem_comes_in_a_stream():
    check_stream(20_000, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1 << 70])
def test_no_held_out_problem_comes_in_a_long_stream(seed: int):
    check_stream(100_000, seed)


MARKED = """
from forethought.problems.registry import BUNDLED, family

def marked(name):
    base = type(family(name))

    class Marked(base):
        def phrase(self, task, rng, language):
            return f"⟦{self.name}:{self.canonical(task)}⟧ {super().phrase(task, rng, language)}"

    return Marked

globals().update({name: marked(name) for name in BUNDLED})
"""


def check_corpus(documents: int, seed: int, folder: Path) -> None:
    """Every question in the documents says what problem it is."""
    (folder / "marked.py").write_text(MARKED)
    specs = tuple(f"marked.py:{name}" for name in BUNDLED)
    spec = CorpusSpec(specs, {}, {}, None, CorpusConfig(), seed, folder=folder)
    corpus = Corpus(spec)
    seen: Counter[str] = Counter()
    for index in range(documents):
        document = corpus[index]
        text = document.text if document.question is None else document.question
        canonical = text.partition("⟦")[2].partition("⟧")[0]
        assert canonical
        assert not is_held_out(canonical)
        assert canonical not in evaluated()
        seen[canonical.partition(":")[0]] += 1
    assert set(seen) == set(BUNDLED)


def test_no_held_out_problem_is_in_a_document(tmp_path: Path):
    check_corpus(6_000, 5, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_no_held_out_problem_is_in_many_documents(seed: int, tmp_path: Path):
    check_corpus(100_000, seed, tmp_path)


def test_a_held_out_stream_has_nothing_else():
    stream = ProblemStream(FAMILIES, 3, held_out=True)
    assert all(stream[index].held_out for index in range(300))


def test_a_stream_is_a_function_of_seed_and_number():
    one, same, other = (ProblemStream(FAMILIES, seed) for seed in (8, 8, 9))
    problems = [one[index] for index in range(200)]
    assert [same[index] for index in reversed(range(200))] == problems[::-1]
    assert sum(other[index] == problem for index, problem in enumerate(problems)) < 5
    assert len({problem.seed for problem in problems}) == 200
    assert {problem.language for problem in problems} == set(LANGUAGES)


def test_weights_levels_and_language_of_a_stream():
    stream = ProblemStream(
        families(["sorting", "gcd_lcm", "countdown"]),
        1,
        levels={"sorting": (2, 4), "gcd_lcm": (1,)},
        weights={"sorting": 3.0, "countdown": 0.5},
        language="zh",
    )
    problems = [stream[index] for index in range(4000)]
    counts = Counter(problem.family for problem in problems)
    for name, share in (("sorting", 3 / 4.5), ("gcd_lcm", 1 / 4.5), ("countdown", 0.5 / 4.5)):
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)
    levels = Counter(problem.level for problem in problems if problem.family == "sorting")
    assert set(levels) == {2, 4}
    assert levels[2] / levels[4] == pytest.approx(1, abs=0.15)
    assert {problem.language for problem in problems} == {"zh"}


@pytest.mark.parametrize("name", BUNDLED)
def test_one_in_16_is_held_out_whatever_the_words(name: str):
    one = family(name)
    held_out: dict[str, bool] = {}
    for seed in range(1200):
        level = seed % one.levels + 1
        problem, other = (one.problem(level, seed, language) for language in LANGUAGES)
        drawn = one.problem(level, seed)
        assert problem.held_out == other.held_out == drawn.held_out
        assert problem.text != other.text
        held_out[problem.canonical] = problem.held_out
    expected = len(held_out) / HELD_OUT_IN
    assert abs(sum(held_out.values()) - expected) < 5 * expected**0.5


def shuffled(problem: Problem, rng: Random) -> object:
    """The same task with its parts in another order."""
    task = problem.task
    if problem.family == "linear_equations":
        return task._replace(left=task.right, right=task.left)
    field = {"sorting": "items", "gcd_lcm": "numbers"}.get(problem.family, "numbers")
    parts = list(getattr(task, field))
    rng.shuffle(parts)
    return task._replace(**{field: tuple(parts)})


@pytest.mark.parametrize("name", ["sorting", "gcd_lcm", "linear_equations", "countdown", "game24"])
def test_the_order_of_parts_does_not_change_what_is_held_out(name: str):
    one, rng = family(name), Random(0)
    for seed in range(200):
        problem = one.problem(one.levels, seed)
        again = replace(
            problem, canonical=f"{name}:{one.canonical(shuffled(problem, rng))}", text="again"
        )
        assert again.held_out == problem.held_out


def test_what_is_held_out_is_the_same_on_every_machine():
    names = [f"sorting:{number}" for number in range(100)]
    held_out = [12, 13, 21, 36, 38, 45, 54, 62]
    assert [at for at, name in enumerate(names) if is_held_out(name)] == held_out


@pytest.mark.parametrize("count", [14, 256, 777])
def test_held_out_problems_weigh_families_levels_and_languages_equally(count: int):
    problems = held_out_problems(FAMILIES, count, 4)
    assert len(problems) == count
    assert all(problem.held_out for problem in problems)

    def even(values: list[int]) -> bool:
        return max(values) - min(values) <= 1

    of_family = Counter(problem.family for problem in problems)
    assert even([of_family[name] for name in BUNDLED])
    cells = Counter((problem.family, problem.level) for problem in problems)
    spoken = Counter((problem.family, problem.level, problem.language) for problem in problems)
    for one in FAMILIES:
        levels = range(1, one.levels + 1)
        assert even([cells[one.name, level] for level in levels])
        assert even([sum(spoken[one.name, level, lang] for level in levels) for lang in LANGUAGES])
        for level in levels:
            assert even([spoken[one.name, level, language] for language in LANGUAGES])


def test_held_out_problems_are_different_and_a_function_of_the_seed():
    problems = held_out_problems(FAMILIES, 112, 4)
    assert len({problem.canonical for problem in problems}) == 112
    assert held_out_problems(FAMILIES, 112, 4) == problems
    assert held_out_problems(FAMILIES, 56, 4) == problems[:56]
    assert held_out_problems(FAMILIES, 112, 5) != problems


def test_a_mean_over_held_out_problems_weighs_all_levels_equally():
    # A model that can do level 1 alone gets the mean of 1, 0, 0 and 0.
    problems = held_out_problems([Sorting(), GcdLcm(), LinearEquations()], 240, 0)
    assert sum(problem.level == 1 for problem in problems) / 240 == 0.25


def test_levels_can_be_chosen():
    problems = held_out_problems([Sorting(), GcdLcm()], 40, 0, levels={"sorting": (2, 3)})
    assert Counter((problem.family, problem.level) for problem in problems) == {
        ("sorting", 2): 10, ("sorting", 3): 10,
        **{("gcd_lcm", level): 5 for level in (1, 2, 3, 4)},
    }  # fmt: skip


@dataclass(frozen=True)
class Few(Sorting):
    """Shows some of a few fixed lists."""

    name: ClassVar[str] = "few"
    lists: int = 40

    def draw(self, rng, level):
        at = rng.randrange(self.lists)
        return super().draw(Random(at), level)


def few(wanted: int) -> Family:
    """A family that has so many held-out problems at level 1."""
    for lists in range(1, 200):
        found = {Few(lists).draw(Random(seed), 1) for seed in range(lists * 20)}
        if sum(is_held_out(f"few:{Few().canonical(task)}") for task in found) == wanted:
            return Few(lists)
    raise AssertionError(wanted)


def test_a_level_with_too_few_repeats_some():
    problems = held_out_problems([few(2)], 8, 0, levels={"few": (1,)})
    assert len(problems) == 8
    assert len({problem.canonical for problem in problems}) == 2


def test_a_level_without_any_is_an_error():
    with pytest.raises(UserError, match=r"few has no held-out problem at level 1\."):
        held_out_problems([few(0)], 1, 0, levels={"few": (1,)})
    with pytest.raises(UserError, match="few has too few problems: none of 10000 draws was held"):
        ProblemStream([few(0)], 0, levels={"few": (1,)}, held_out=True)[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"levels": {"sorting": (1, 5)}}, "sorting has no level 5: its levels are 1 to 4."),
     ({"weights": {"sorting": 0.0}}, "the weight of sorting is 0.0; it must be a number above 0."),
     ({"weights": {"sorting": float("nan")}}, "the weight of sorting is nan; it must be a number "
      "above 0.")],
)  # fmt: skip
def test_mistakes(options, said):
    with pytest.raises(UserError) as raised:
        ProblemStream([Sorting()], 0, **options)
    assert str(raised.value) == said


def test_a_stream_needs_a_family():
    with pytest.raises(UserError, match="name at least one"):
        ProblemStream([], 0)
