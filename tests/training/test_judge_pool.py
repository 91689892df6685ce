"""Verdicts of other processes are those of this one, in order, whatever happens to them."""

from __future__ import annotations

import warnings

import pytest
from test_judging import CLOSE, EOS, FINAL, OPEN, PROBLEM, TOKENIZER, WRONG, ids, judge

from forethought.problems.problem import Problem, Verdict
from forethought.training.judge_pool import JudgePool
from forethought.training.judging import Judge

SAMPLES = [
    ids(OPEN, "x" * (at % 7), CLOSE, FINAL if at % 3 else f"<answer>{WRONG}</answer>", EOS)
    for at in range(100)
]


def judged(pool: JudgePool, samples=SAMPLES):
    for at, sample in enumerate(samples):
        assert pool.submit(PROBLEM, sample) == at
    return pool.results()


class Dies:
    """A verifier that ends the process that asks it, unless that is where it was made."""

    def __init__(self) -> None:
        self.home = True

    def __getstate__(self) -> dict[str, bool]:
        return {"home": False}

    def verify(self, problem: Problem, answer: str) -> Verdict:
        if not self.home:
            raise SystemExit(3)
        return Verdict("correct")


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.filterwarnings("error")
def test_the_same_verdicts_in_the_same_order(workers):
    one = judge()
    expected = [one.judge(PROBLEM, sample) for sample in SAMPLES]
    with JudgePool(one, workers) as pool:
        assert judged(pool) == expected
        assert judged(pool, SAMPLES[40:45]) == expected[40:45]
        assert judged(pool, []) == []


def test_a_judge_that_cannot_be_sent_is_asked_here():
    one = judge(own=lambda problem, reply: 1.0)
    with JudgePool(one, 2) as pool:
        with pytest.warns(UserWarning, match="in this process"):
            found = judged(pool)
        assert found == [one.judge(PROBLEM, sample) for sample in SAMPLES]


def test_a_worker_that_dies_loses_no_verdict():
    one = judge(verifier=Dies())
    with JudgePool(one, 1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert judged(pool) == [one.judge(PROBLEM, sample) for sample in SAMPLES]


def test_a_judge_that_raises_raises_here():
    class Raises(Judge):
        def judge(self, problem, ids):
            raise ZeroDivisionError

    pool = JudgePool(Raises(TOKENIZER, {}, one_reward()), 0)
    with pytest.raises(ZeroDivisionError):
        judged(pool)


def one_reward():
    from forethought.training.config import RewardConfig

    return RewardConfig()
