import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._story import NAMES, THINGS, Story
from forethought.problems.families.word_problems import STORIES, WordProblems, WordTask
from forethought.problems.problem import Language, Problem

FAMILY = WordProblems()

MEANING = {
    "more": lambda x, y: x + y,
    "fewer": lambda x, y: x - y,
    "boxes": lambda x, y: x * y,
    "share": lambda x, y: x / y,
    "together": lambda x, y: x + y,
    "difference": lambda x, y: abs(x - y),
    "boxes_and_single": lambda x, y, z: x * y + z,
    "from_boxes": lambda x, y, z: x * y - z,
    "change": lambda x, y, z: z - x * y,
    "in_and_out": lambda x, y, z: x + y - z,
    "compare": lambda x, y: 2 * x + y,
    "pooled": lambda x, y, z: (x + y) / z,
    "two_goods": lambda x, y, z, v: x * y + z * v,
    "rest_shared": lambda x, y, z, v: (x * y - z) / v,
    "bus": lambda x, y, z, v: x - y + z - v,
    "book": lambda x, y, z, v: x - y * z - v,
    "trip": lambda x, y, z, v: (x * y + z) / v,
    "three_persons": lambda x, y, z: x + 2 * x * y - z,
    "two_goods_change": lambda x, y, z, v, w: w - x * y - z * v,
    "trip_cost": lambda x, y, z, v, w: (x * y + z) / v * w,
    "wages": lambda x, y, z, v, w: (x * y * z - v) / w,
    "orchard": lambda x, y, z, v, w: (x * y * z - v) / w,
}
ALL_STORIES = {story.name: story for stories in STORIES for story in stories}


def asking(
    name: str, *numbers: int, language: Language = "en", things: tuple[int, int] = (0, 1)
) -> Problem:
    task = WordTask(ALL_STORIES[name], numbers, (0, 1, 2), things)
    answer = FAMILY.answer(task, language)
    return Problem("word_problems", 1, 0, language, "?", answer, FAMILY.canonical(task), task)


def numbers_told(problem: Problem, story: Story) -> dict[str, int]:
    """The numbers of a text by the field in which they stand."""
    for told in story.words[problem.language].told:
        pattern = re.escape(told).replace(r"\{", "{").replace(r"\}", "}")
        seen: set[str] = set()

        def group(field: re.Match[str], seen: set[str] = seen) -> str:
            name = field[1]
            if name not in "xyzvw":
                return r"\w+?"
            if name in seen:
                return f"(?P={name})"
            seen.add(name)
            return f"(?P<{name}>[0-9]+)"

        found = re.match(re.sub(r"\{(\w)\}", group, pattern), problem.text)
        if found:
            return {name: int(number) for name, number in found.groupdict().items()}
    raise AssertionError(problem.text)


def test_word_problems_keep_the_contract_of_a_family():
    check_contract(FAMILY, 100)


def test_the_answer_is_what_the_story_means():
    seen = set()
    for problem in problems_of(FAMILY, 300):
        story = problem.task.story
        told = numbers_told(problem, story)
        right = MEANING[story.name](**told)
        assert right == int(problem.answer) > 0, problem
        assert len(re.findall("[0-9]+", problem.text)) == len(told)
        seen.add((story.name, problem.language))
    assert len(seen) == 2 * len(MEANING) == 2 * len(ALL_STORIES)


def test_numbers_are_within_the_bounds_of_their_level():
    bounds = {1: 81, 2: 100, 3: 250, 4: 1000}
    for level, stories in enumerate(STORIES, 1):
        for story in stories:
            assert len(story.plan) == level
            rng = Random(level)
            for _ in range(400):
                numbers = story.numbers(rng)
                assert min(numbers) >= 2, (story.name, numbers)
                values = list(numbers)
                for operator, left, right in story.plan:
                    a, b = values[left], values[right]
                    exact = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
                    assert exact == int(exact) > 0, (story.name, numbers)
                    values.append(int(exact))
                assert max(values) <= bounds[level], (story.name, numbers)


def test_every_story_has_four_texts_and_words_for_each_step():
    for story in ALL_STORIES.values():
        for words in story.words.values():
            assert len({told + asked for told in words.told for asked in words.asked}) >= 4
            assert len(words.steps) == len(story.plan)
            assert all(step.count("{calc}") == 1 for step in words.steps)
    assert len(set(NAMES["en"])) == len(set(NAMES["zh"])) == 16
    assert len(set(THINGS["en"])) == len(set(THINGS["zh"])) == 16


def test_the_canonical_form_forgets_names_things_and_the_order_of_like_parts():
    one = asking("together", 3, 5)
    assert one.canonical == "together 3 5" == asking("together", 5, 3, things=(4, 2)).canonical
    assert FAMILY.canonical(one.task._replace(names=(9, 8, 7))) == one.canonical
    assert asking("more", 3, 5).canonical != asking("more", 5, 3).canonical
    assert asking("boxes", 3, 5).canonical != asking("boxes", 5, 3).canonical
    goods = asking("two_goods", 7, 2, 4, 9)
    assert goods.canonical == "two_goods 4 9 7 2" == asking("two_goods", 4, 9, 7, 2).canonical
    assert goods.answer == asking("two_goods", 4, 9, 7, 2).answer
    assert asking("two_goods", 2, 7, 4, 9).canonical != goods.canonical
    change = asking("two_goods_change", 7, 2, 4, 9, 100)
    assert change.canonical == "two_goods_change 4 9 7 2 100"


def test_every_level_has_different_problems_that_are_held_out():
    for level in range(1, 5):
        problems = [FAMILY.problem(level, seed) for seed in range(2000)]
        assert len({one.canonical for one in problems if one.held_out}) >= 12


@pytest.mark.parametrize(
    "answer",
    ["32", " 32 ", "32.", "32。", "+32", "**32**", "$32$", "`32`", "32 apples", "32 Apples.",
     "32apples", "32个苹果", "32 个", "032"],
)  # fmt: skip
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(asking("boxes", 4, 8), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", ".", "apples", "33", "-32", "−32", "32 or 33", "32, 33", "32 = 33", "3 2", "32 pencils",
     "32 apples and 1", "４２", "３２", "٣٢", "32²", "32.0.", "32 dollars", "$32", "apples 32",
     "4 * 8", "32 apples apples", "32支铅笔", "thirty-two", "32" + " " * 400, "9" * 400, "0x20",
     "3,2", "32个苹果或33", "\x00"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(asking("boxes", 4, 8), answer).correct


def test_money_pages_and_thousands_are_read():
    change = asking("change", 3, 4, 20)
    for answer in ("8", "$8", "8 dollars", "8元", "¥8", "8 dollars."):
        assert FAMILY.verify(change, answer).correct
    for answer in ("$$8", "8$", "8 pencils", "8 个", "€8"):
        assert not FAMILY.verify(change, answer).correct
    book = asking("book", 1500, 20, 10, 66)
    for answer in ("1,234 pages", "1234页", "1,234"):
        assert FAMILY.verify(book, answer).correct
    assert not FAMILY.verify(book, "12,34").correct


@given(st.text(max_size=60))
def test_no_text_makes_the_word_problem_verifier_raise(text):
    FAMILY.verify(asking("change", 3, 4, 20), text)
    FAMILY.verify(asking("boxes", 4, 8), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.1 < share_right(FAMILY, "steps", 0.5) < 0.45
    assert share_right(FAMILY, "check", 0.5) == 1.0


def test_thoughts_calculate_with_and_without_words():
    problem = asking("from_boxes", 3, 6, 10)
    thoughts = {FAMILY.worked(problem, Random(seed)).steps for seed in range(20)}
    assert thoughts == {
        ("At first there are 3 * 6 = 18 apples.", "Left are 18 - 10 = 8 apples."),
        ("3 * 6 = 18.", "18 - 10 = 8."),
    }
    chinese = asking("from_boxes", 3, 6, 10, language="zh")
    checked = {FAMILY.worked(chinese, Random(seed), style="check").steps for seed in range(20)}
    assert ("3 * 6 = 18。", "18 - 10 = 8。", "检查：18 / 6 = 3。", "检查：8 + 10 = 18。") in checked
    repaired = [
        FAMILY.worked(problem, Random(seed), style="check", slip=0.5).steps for seed in range(20)
    ]
    assert any("Wait, 3 * 6 = 18." in steps for steps in repaired)
    assert any("Check: 18 / 6 = 3." in steps for steps in repaired)


def test_thoughts_of_the_first_level_are_short():
    for seed in range(200):
        problem = FAMILY.problem(1, seed)
        assert sum(map(len, FAMILY.worked(problem, Random(seed)).steps)) <= 60
