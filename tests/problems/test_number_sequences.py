from collections.abc import Iterator, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families.number_sequences import NumberSequences
from forethought.problems.problem import Problem

FAMILY = NumberSequences()


def asking(*terms: int) -> Problem:
    answer = FAMILY.answer(terms, "en")
    return Problem("number_sequences", 1, 0, "en", "?", answer, FAMILY.canonical(terms), terms)


def continued(
    terms: tuple[int, ...], wide: Sequence[int] = range(-400, 401)
) -> Iterator[tuple[str, int]]:
    """Every rule and every choice of its parameters that makes these terms, and the term after
    them, by trying: a sequence is made from its parameters and thrown away once it differs."""
    a, b = terms[:2]

    def agrees(kind: str, made: list[int]) -> Iterator[tuple[str, int]]:
        if tuple(made[:-1]) == terms:
            yield kind, made[-1]

    for step in (step for step in wide if a + step == b):
        yield from agrees("arithmetic", [a + n * step for n in range(len(terms) + 1)])
        for other in wide:
            pairs = [(n + 1) // 2 * step + n // 2 * other for n in range(len(terms) + 1)]
            yield from agrees("alternating", [a + both for both in pairs])
            grown = [n * step + n * (n - 1) // 2 * other for n in range(len(terms) + 1)]
            yield from agrees("quadratic", [a + sum_ for sum_ in grown])
    for ratio in (ratio for ratio in wide if a * ratio == b and abs(ratio) > 1):
        yield from agrees("geometric", [a * ratio**n for n in range(len(terms) + 1)])
    made = [a, b]
    while len(made) <= len(terms):
        made.append(made[-1] + made[-2])
    yield from agrees("fibonacci", made)


def test_number_sequences_keep_the_contract_of_a_family():
    check_contract(FAMILY)
    assert FAMILY.bare


def test_trying_all_rules_of_the_family_finds_one_next_term():
    kinds: dict[int, set[str]] = {}
    for problem in problems_of(FAMILY, 60):
        found = list(continued(problem.task))
        assert {str(after) for _, after in found} == {problem.answer}, problem.task
        kinds.setdefault(problem.level, set()).update(kind for kind, _ in found)
    assert kinds[1] == {"arithmetic", "alternating", "quadratic"}
    assert kinds[2] == {"arithmetic", "alternating", "quadratic", "geometric"}
    assert kinds[3] >= {"alternating", "quadratic"}
    assert kinds[4] >= {"alternating", "quadratic", "geometric", "fibonacci"}


def test_five_terms_are_what_makes_the_rules_agree():
    assert set(continued((0, 1, 1))) >= {("fibonacci", 2), ("alternating", 2), ("quadratic", 0)}
    assert {len(problem.task) for problem in problems_of(FAMILY, 20)} == {5, 6}
    small = range(-6, 7)
    for a, b, c in product(small, small, small):
        pairs = [(n + 1) // 2 * b + n // 2 * c for n in range(5)]
        grown = [n * b + n * (n - 1) // 2 * c for n in range(5)]
        for sums in (pairs, grown):
            terms = tuple(a + both for both in sums)
            if len(set(terms)) > 1:
                assert len({after for _, after in continued(terms, range(-40, 41))}) == 1, terms


def test_the_draws_keep_their_bounds():
    for problem in problems_of(FAMILY, 400):
        terms, level = problem.task, problem.level
        low, high = {1: (0, 20), 2: (-20, 99), 3: (0, 50), 4: (-50, 50)}[level]
        assert low <= terms[0] <= high
        if level == 1:
            assert 1 <= terms[1] - terms[0] <= 9
        assert max(map(abs, terms)) <= {1: 56, 2: 729, 3: 130, 4: 9 * 4**5}[level]


@pytest.mark.parametrize(
    "answer", ["-3", "−3", " -3 ", "-3.", "-3。", "**-3**", "`-3`", "$-3$", '"-3"', "-03"]
)
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(asking(12, 9, 6, 3, 0), answer).correct


def test_thousands_may_be_separated():
    assert FAMILY.verify(asking(4, 16, 64, 256), "1,024").correct


@pytest.mark.parametrize(
    "answer",
    ["", "3", "-4", "-3.0", "-3 or -6", "-3, -6", "-3 = -6", "0 - 3", "--3", "-３", "-٣", "³",
     "12, 9, 6, 3, 0, -3", "-3 -3", "minus 3", "(-3)", "-3" + " " * 400, "-0x3", "-3...", "-"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(asking(12, 9, 6, 3, 0), answer).correct


@given(st.text(max_size=60))
def test_no_text_makes_the_verifier_raise(text):
    FAMILY.verify(asking(12, 9, 6, 3, 0), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.1 < share_right(FAMILY, "steps", 0.5) < 0.7
    assert share_right(FAMILY, "check", 0.5) == 1.0


@pytest.mark.parametrize(
    ("terms", "steps"),
    [
        (
            (2, 5, 8, 11, 14),
            "5 - 2 = 3. 8 - 5 = 3. 11 - 8 = 3. 14 - 11 = 3. Always + 3. 14 + 3 = 17.",
        ),
        (
            (3, -6, 12, -24),
            "-6 - 3 = -9. 12 - (-6) = 18. -24 - 12 = -36. Not the same. The ratio: "
            "always * -2. -24 * (-2) = 48.",
        ),
        (
            (1, 2, 4, 7, 11),
            "2 - 1 = 1. 4 - 2 = 2. 7 - 4 = 3. 11 - 7 = 4. The steps go + 1. 4 + 1 = 5. "
            "11 + 5 = 16.",
        ),
        (
            (9, 4, 6, 1, 3),
            "4 - 9 = -5. 6 - 4 = 2. 1 - 6 = -5. 3 - 1 = 2. By turns - 5 and + 2. 3 - 5 = -2.",
        ),
        (
            (1, 4, 5, 9, 14),
            "4 - 1 = 3. 5 - 4 = 1. 9 - 5 = 4. 14 - 9 = 5. Each is the sum of the two before. "
            "9 + 14 = 23.",
        ),
    ],
)
def test_thoughts_are_arithmetic_that_holds(terms, steps):
    assert " ".join(FAMILY.worked(asking(*terms), Random(0)).steps) == steps


def test_a_check_finds_the_slip():
    thoughts = [
        " ".join(FAMILY.worked(asking(2, 4, 8, 16, 32), Random(n), style="check", slip=0.9).steps)
        for n in range(20)
    ]
    assert any("Check: 32 * 2 = 64. Wait, 64, not " in thought for thought in thoughts)
