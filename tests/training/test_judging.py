"""The table of replies: what is thought, what is answer, and which form is rewarded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from forethought.errors import UserError
from forethought.problems.problem import Problem, Verdict, unscorable
from forethought.training.config import RewardConfig
from forethought.training.judging import Judge, Reply, own_reward
from tiny_training import ShownDigit, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
OPEN, CLOSE, EOS = "<think>", "</think>", "<|end|>"
PROBLEM = ShownDigit().problem(3, seed=1)
RIGHT = PROBLEM.answer
WRONG = str((int(RIGHT) + 1) % 10)


def ids(*parts: str) -> list[int]:
    """Tags and the end as their ids where they are a part of their own; everything else as text."""
    special = {OPEN: TOKENIZER.think_id, CLOSE: TOKENIZER.end_think_id, EOS: TOKENIZER.eos_id}
    found: list[int] = []
    for part in parts:
        if part in special:
            found.append(special[part])
        else:
            found += TOKENIZER.tokenizer.encode(part, parse_special=False)
    return found


def judge(own=None, verifier=None, **reward) -> Judge:
    return Judge(TOKENIZER, {"shown_digit": verifier or ShownDigit()}, RewardConfig(**reward), own)


FINAL = f"\n\n<answer>{RIGHT}</answer>"

# Name: the parts of a sample, whether it is right, whether it is well formed, its thought.
TABLE = {
    "as it should be": ((OPEN, "\nIt is.\n", CLOSE, FINAL, EOS), True, True, "It is."),
    "a newline after the answer": ((OPEN, "x", CLOSE, FINAL + "\n", EOS), True, True, "x"),
    "a wrong answer": (
        (OPEN, "x", CLOSE, f"<answer>{WRONG}</answer>", EOS),
        False,
        True,
        "x",
    ),
    "an answer only in the thought": (
        (OPEN, f"<answer>{RIGHT}</answer>", CLOSE, f"It is {RIGHT}.", EOS),
        False,
        False,
        f"<answer>{RIGHT}</answer>",
    ),
    "right in the thought, wrong after it": (
        (OPEN, f"<answer>{RIGHT}</answer>", CLOSE, f"<answer>{WRONG}</answer>", EOS),
        False,
        True,
        f"<answer>{RIGHT}</answer>",
    ),
    "wrong in the thought, right after it": (
        (OPEN, f"<answer>{WRONG}</answer>", CLOSE, FINAL, EOS),
        True,
        True,
        f"<answer>{WRONG}</answer>",
    ),
    "a thought that never ends": (
        (OPEN, f"so <answer>{RIGHT}</answer>", EOS),
        False,
        False,
        f"so <answer>{RIGHT}</answer>",
    ),
    "two closing tags": ((OPEN, "x", CLOSE, FINAL, CLOSE, FINAL, EOS), True, False, None),
    "the answer between two closing tags": (
        (OPEN, "x", CLOSE, FINAL, CLOSE, "done", EOS),
        False,
        False,
        None,
    ),
    "two opening tags": ((OPEN, OPEN, "x", CLOSE, FINAL, EOS), True, False, None),
    "a thought that opens late": (("x", OPEN, "y", CLOSE, FINAL, EOS), True, False, None),
    "a closing tag alone": (("x", CLOSE, FINAL, EOS), True, False, "x"),
    "a closing tag first": ((CLOSE, FINAL, EOS), True, False, ""),
    "no tags": ((FINAL, EOS), True, False, ""),
    "no tags and no answer": ((f"It is {RIGHT}.", EOS), False, False, ""),
    "tags spelt out of other tokens": (
        ("<think>x</think>" + FINAL, EOS),
        True,
        False,
        "",
    ),
    "a closing tag spelt out": (
        (OPEN, "x</thi", "nk>" + FINAL, EOS),
        False,
        False,
        "x</think>" + FINAL,
    ),
    "an empty thought": ((OPEN, CLOSE, FINAL, EOS), True, False, ""),
    "a thought of blanks": ((OPEN, "\n \n", CLOSE, FINAL, EOS), True, False, ""),
    "junk after the answer": ((OPEN, "x", CLOSE, FINAL + " and 12", EOS), True, False, "x"),
    "junk before the answer": ((OPEN, "x", CLOSE, "So: " + FINAL, EOS), True, False, "x"),
    "two answers, the last one counts": (
        (OPEN, "x", CLOSE, f"<answer>{RIGHT}</answer><answer>{WRONG}</answer>", EOS),
        False,
        False,
        "x",
    ),
    "a box is read but has not the form": (
        (OPEN, "x", CLOSE, f"\\boxed{{{RIGHT}}}", EOS),
        True,
        False,
        "x",
    ),
    "cut off in the thought": ((OPEN, "x"), False, False, "x"),
    "cut off in the answer": ((OPEN, "x", CLOSE, f"<answer>{RIGHT}"), False, False, "x"),
    "no end token": ((OPEN, "x", CLOSE, FINAL), True, False, "x"),
    "an end token on the way": ((OPEN, "x", EOS, CLOSE, FINAL, EOS), True, False, "x"),
    "an end token only": ((EOS,), False, False, ""),
    "nothing": ((), False, False, ""),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name):
    parts, right, well_formed, thought = TABLE[name]
    judged = judge().judge(PROBLEM, ids(*parts))
    assert judged.verdict.correct == right
    assert judged.reply.well_formed == well_formed
    if thought is not None:
        assert judged.reply.thought == thought
    assert (judged.accuracy, judged.format) == (float(right), float(well_formed))
    assert judged.reward == float(right) + float(well_formed)
    assert not judged.own


def test_thought_tokens_are_those_between_the_tags():
    reply = judge().read(ids(OPEN, "wait 12", CLOSE, FINAL, EOS))
    assert reply.thought_tokens == len(ids("wait 12"))
    assert judge().read(ids(OPEN, "wait 12")).thought_tokens == len(ids("wait 12"))
    assert judge().read(ids("wait 12", EOS)).thought_tokens == 0


def test_the_rewards_have_weights():
    judged = judge(accuracy=2.0, format=0.1).judge(PROBLEM, ids(OPEN, "x", CLOSE, FINAL, EOS))
    assert judged.reward == pytest.approx(2.1)
    bare = judge(accuracy=2.0, format=0.1).judge(PROBLEM, ids(FINAL, EOS))
    assert bare.reward == pytest.approx(2.0)


def test_half_a_character_is_text():
    token = TOKENIZER.tokenizer.encode("é", parse_special=False)[0]
    reply = judge().read([TOKENIZER.think_id, token, TOKENIZER.end_think_id, *ids(FINAL, EOS)])
    assert reply.thought == "�"
    assert reply.well_formed


def test_what_the_verifier_cannot_judge_has_no_reward():
    class Failing:
        def verify(self, problem: Problem, answer: str) -> Verdict:
            return unscorable("the sandbox died")

    judged = judge(verifier=Failing()).judge(PROBLEM, ids(OPEN, "x", CLOSE, FINAL, EOS))
    assert judged.reward is None
    assert judged.verdict.reason == "the sandbox died"
    # Without a final answer nobody is asked.
    assert judge(verifier=Failing()).judge(PROBLEM, ids(OPEN, "x", CLOSE, EOS)).reward == 0


def test_an_own_reward_is_added():
    def length(problem: Problem, reply: Reply) -> float:
        assert problem is PROBLEM
        return float(len(reply.thought))

    sample = ids(OPEN, "four", CLOSE, FINAL, EOS)
    judged = judge(length, own_weight=0.5).judge(PROBLEM, sample)
    assert (judged.own, judged.reward) == (4.0, 4.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_own_reward_that_is_no_number_is_no_reward(value):
    judged = judge(lambda problem, reply: value).judge(PROBLEM, ids(FINAL, EOS))
    assert judged.reward is None
    assert judged.own == 0
    assert "own reward is" in judged.verdict.reason


def test_an_own_reward_that_fails_is_no_reward():
    judged = judge(lambda problem, reply: 1 / 0).judge(PROBLEM, ids(FINAL, EOS))
    assert judged.reward is None
    assert "ZeroDivisionError" in judged.verdict.reason


def test_an_own_reward_comes_from_a_file(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def short(problem, reply):\n    return -len(reply.answer)\n")
    function = own_reward("mine.py:short", tmp_path)
    assert function(PROBLEM, judge().read(ids("four", EOS))) == -4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("missing.py:short", "there is no file"),
        ("short", "there is no file"),
        ("mine.py:long", "has no function 'long'"),
        ("mine.py:NUMBER", "has no function 'NUMBER'"),
        ("broken.py:short", "cannot be imported"),
        ("notes.txt:short", "is no Python file"),
    ],
)
def test_a_spec_that_names_no_function_is_refused(tmp_path, spec, says):
    (tmp_path / "mine.py").write_text("NUMBER = 1\ndef short(problem, reply):\n    return 0\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('on purpose')\n")
    (tmp_path / "notes.txt").write_text("nothing\n")
    with pytest.raises(UserError, match=says):
        own_reward(spec, tmp_path)


def test_rewards_of_nothing_are_refused():
    with pytest.raises(ValueError, match="nothing is rewarded"):
        RewardConfig(accuracy=0.0, format=0.0)
