"""Hostile samples of the audit against other makers' verifiers, in their sandbox.

What may be accepted here and not from our own families: words around one number, and its unit,
which the official gradings of GSM8K and MATH do not look at.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("math_verify")
pytest.importorskip("reasoning_gym")
pytest.importorskip("tokenizers")

from forethought.evaluation.audit import HOSTILE, Case, audit_tokenizer
from forethought.problems.adapters.adapters import Adapters
from forethought.problems.sandbox_runner import Limits
from forethought.problems.source import LevelledSource
from forethought.training.config import RewardConfig
from forethought.training.judging import Judge
from forethought.training.tokenizer import TrainedTokenizer

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("CI") != "true",
    reason="bwrap is not installed",
)
WORDS_DO_NOT_MATTER = {"another unit", "question copied"}
GSM8K = ["5+13=18\n#### 18", "#### 2,468", "#### -7", "#### 0.5"]
MATH = [
    r"\frac{3}{4}", r"2\sqrt{3}", r"(3, \frac{\pi}{2})", "[-2,7)", "42", r"\text{Evelyn}",
    r"\text{(C)}", "4210_5", "x^2+2x+1", r"50\%", r"90^\circ", r"\{1,2,3\}",
]  # fmt: skip
GYM = ["countdown", "spiral_matrix", "gcd", "caesar_cipher"]


@pytest.fixture(scope="module")
def adapters() -> Iterator[Adapters]:
    with Adapters(limits=Limits(seconds=2.0)) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer() -> TrainedTokenizer:
    return audit_tokenizer()


def gsm8k(adapters: Adapters, folder: Path) -> LevelledSource:
    lines = [{"question": f"How many, case {n}?", "answer": a} for n, a in enumerate(GSM8K)]
    (folder / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return adapters.source("gsm8k:gsm8k.jsonl", folder, {})


def math(adapters: Adapters, folder: Path) -> LevelledSource:
    lines = [
        {"problem": f"What, case {n}?", "solution": rf"\boxed{{{a}}}", "level": "Level 1"}
        for n, a in enumerate(MATH)
    ]
    (folder / "math.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return adapters.source("math:math.jsonl", folder, {})


def accepted(
    source: LevelledSource,
    tokenizer: TrainedTokenizer,
    count: int,
    most: int | None = None,
    excused: set[str] | None = None,
) -> list[tuple[str, str, str]]:
    """Hostile samples that the source takes for right: gold, kind, text. ``most`` of a kind."""
    judge = Judge(tokenizer, {source.name: source}, RewardConfig())
    problems = list(source.problems(1, range(count)))
    found = []
    for number, problem in enumerate(problems):
        others = [one.answer for one in problems if one.answer != problem.answer]
        rng = Random(number)
        wrong, other = rng.sample(others, 2)
        case = Case(problem, problem.answer, wrong, other, rng)
        for kind, texts in HOSTILE.items():
            if kind in (excused or ()):
                continue
            for text in list(texts(case))[:most]:
                ids = [*tokenizer.tokenizer.encode(text, parse_special=True), tokenizer.eos_id]
                if judge.judge(problem, ids).verdict.correct:
                    found.append((problem.answer, kind, text[:200]))
    return found


@needs_bwrap
def test_gsm8k_takes_no_hostile_sample_of_each_kind(
    adapters: Adapters, tokenizer: TrainedTokenizer, tmp_path: Path
) -> None:
    source = gsm8k(adapters, tmp_path)
    assert accepted(source, tokenizer, len(GSM8K), 2, WORDS_DO_NOT_MATTER) == []


@needs_bwrap
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("make", "count"), [(gsm8k, len(GSM8K)), (math, len(MATH))])
def test_lists_take_no_hostile_sample(
    make: object, count: int, adapters: Adapters, tokenizer: TrainedTokenizer, tmp_path: Path
) -> None:
    assert callable(make)
    source = make(adapters, tmp_path)
    assert accepted(source, tokenizer, count, None, WORDS_DO_NOT_MATTER) == []


@needs_bwrap
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", GYM)
def test_reasoning_gym_takes_no_hostile_sample(
    name: str, adapters: Adapters, tokenizer: TrainedTokenizer, tmp_path: Path
) -> None:
    source = adapters.source(f"reasoning-gym/{name}", tmp_path, {})
    assert accepted(source, tokenizer, 5) == []
    adapters.check_health()
