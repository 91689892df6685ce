"""Whether a question is a problem of the families: bars on questions that nothing was fitted on."""

from __future__ import annotations

import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from forethought.problems import scope as detector
from forethought.problems.problem import LANGUAGES
from forethought.problems.registry import BUNDLED, family
from forethought.problems.scope import Scope, in_scope, scope

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def lines(name: str) -> list[str]:
    text = (BENCHMARKS / "texts" / f"scope_{name}.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def phrasings(name: str) -> list[tuple[str, str]]:
    """Family and question."""
    return [
        (label, text.replace("\\n", "\n"))
        for label, _, text in (line.partition("\t") for line in lines(name))
    ]


HELD_OUT = phrasings("held_out_phrasings")
PROBLEMS = [
    family(name).problem(level, seed, language).text
    for name in BUNDLED
    for level in range(1, family(name).levels + 1)
    for seed in range(1000, 1010)
    for language in LANGUAGES
]


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


# -- the bars


def test_at_most_one_in_a_hundred_held_out_phrasings_is_a_false_alarm() -> None:
    missed = [(label, text) for label, text in HELD_OUT if not in_scope(text)]
    print(*missed, sep="\n")
    assert len(missed) <= len(HELD_OUT) / 100


def test_95_of_100_held_out_general_questions_are_caught() -> None:
    questions = lines("held_out_general")
    assert len(questions) == len(set(questions)) == 100
    missed = [question for question in questions if in_scope(question)]
    print(*missed, sep="\n")
    assert len(missed) <= 5


def test_the_held_out_phrasings_are_ten_of_each_family_in_both_languages() -> None:
    counts = Counter(label for label, _ in HELD_OUT)
    assert set(counts) == set(BUNDLED)
    assert min(counts.values()) >= 10
    both = Counter((label, is_chinese(text)) for label, text in HELD_OUT if label != "sudoku4")
    assert len(both) == 2 * (len(BUNDLED) - 1)
    assert min(both.values()) >= 4


def test_no_held_out_question_is_fitted_on() -> None:
    fitted = {text.casefold() for _, text in phrasings("phrasings")}
    fitted |= {line.casefold() for line in lines("general")}
    held_out = {text.casefold() for _, text in HELD_OUT}
    held_out |= {line.casefold() for line in lines("held_out_general")}
    assert fitted.isdisjoint(held_out)


def test_problems_as_the_families_ask_them_are_inside() -> None:
    missed = [text for text in PROBLEMS if not in_scope(text)]
    print(*missed, sep="\n")
    assert len(missed) <= len(PROBLEMS) / 1000


@pytest.mark.slow
def test_phrasings_left_out_of_the_fit_are_inside() -> None:
    pytest.importorskip("numpy")
    script = make_scope()
    threshold = detector._weights().threshold
    found = script.left_out(script.fit_on())
    for kind in ("phrasing", "own"):
        scores = [score for question, score, _ in found if question.kind == kind]
        assert sum(score < threshold for score in scores) <= len(scores) / 100


def make_scope() -> ModuleType:
    path = BENCHMARKS / "data" / "make_scope.py"
    spec = importlib.util.spec_from_file_location("make_scope", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # its dataclasses look their module up by name
    import sys

    sys.modules["make_scope"] = module
    spec.loader.exec_module(module)
    return module


# -- what people type differently

FULL_WIDTH = {ord("0") + digit: ord("０") + digit for digit in range(10)}


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.lower,
        lambda text: text.translate(FULL_WIDTH),
        lambda text: f"  {text}  \n",
        lambda text: text.rstrip("?.。？"),
        lambda text: text.replace("?", "？").replace(",", "，").replace(":", "："),
        lambda text: text.replace('"', "“").replace("*", "×").replace(" / ", " ÷ "),
        lambda text: text.replace(" - ", " − "),
        lambda text: text + ("请一步一步思考。" if is_chinese(text) else " Think step by step."),
        lambda text: text + (" 谢谢" if is_chinese(text) else " please"),
        lambda text: ("请问：" if is_chinese(text) else "Please answer: ") + text,
    ],
)
def test_it_stays_inside_however_it_is_typed(change: Callable[[str], str]) -> None:
    texts = [*PROBLEMS[::3], *(text for _, text in HELD_OUT)]
    missed = [text for text in texts if in_scope(text) and not in_scope(change(text))]
    print(*missed, sep="\n")
    assert len(missed) <= len(texts) / 100


@pytest.mark.parametrize("tail", [" Think step by step.", " please", "请一步一步思考。"])
def test_a_general_question_stays_outside_with_a_tail(tail: str) -> None:
    missed = [one for one in lines("held_out_general") if in_scope(one + tail)]
    assert len(missed) <= 5


def test_the_nearest_family_is_named() -> None:
    found = scope("How many r are in strawberry?")
    assert found.inside
    assert found.family == "letter_counting"
    assert found.score > 0.0
    right = [scope(text).family == label for label, text in HELD_OUT]
    assert sum(right) >= 0.95 * len(right)


@pytest.mark.parametrize("question", ["", "   \n", "?", "\0", "\ud800", "🙂" * 50, "x" * 5000])
def test_what_is_no_question_is_outside(question: str) -> None:
    assert scope(question) == Scope(False, "", float("-inf"))


def test_every_problem_is_shorter_than_what_is_looked_at() -> None:
    assert max(map(len, PROBLEMS)) * 3 < detector.LONGEST


# -- what it costs


def test_the_data_file_is_small_and_covers_the_families() -> None:
    path = Path(detector.__file__).with_name("scope.json")
    assert path.stat().st_size <= 100_000
    kept = json.loads(path.read_text("utf-8"))
    assert kept["classes"] == [*BUNDLED, "general"]
    assert {len(one) for one in kept["weights"].values()} == {len(kept["classes"])}


@pytest.mark.alone
def test_a_question_takes_milliseconds() -> None:
    in_scope("What is 1 + 2?")
    texts = [text for _, text in HELD_OUT]
    start = time.perf_counter()
    for text in texts:
        in_scope(text)
    assert (time.perf_counter() - start) / len(texts) < 0.005


@pytest.mark.alone
@pytest.mark.parametrize(
    "piece",
    ["1 ", "1, ", "(", "((1+", "a, ", "1.", "....\n", "f", "0", '"', '"a', "<", "x ", "1:", "1月",
     "和", "1 and ", " ", "\n", "4 x ", "1-", "a's ", "1/2/"],
)  # fmt: skip
def test_no_text_is_slow(piece: str) -> None:
    in_scope("What is 1 + 2?")
    start = time.perf_counter()
    in_scope((piece * 3000)[: detector.LONGEST])
    assert time.perf_counter() - start < 0.25
