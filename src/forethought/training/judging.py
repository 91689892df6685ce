"""What a sample is worth: its thought and final answer taken apart by ids, the verdict, the format.

The final answer comes from what follows the *last* closing tag, never from the thought, and the
format is judged on token ids: a tag that a model spells out of other tokens is text (training
pitfalls: answers found inside thoughts, format rewards for empty thoughts).
Source: DeepSeek-R1 (arXiv:2501.12948) section 2.2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from forethought.dialogue.final_answer import final_answer
from forethought.errors import UserError
from forethought.problems.own_code import own_module
from forethought.problems.problem import Problem, Verdict, unscorable, wrong
from forethought.training.config import RewardConfig
from forethought.training.tokenizer import TrainedTokenizer

_ONE_ANSWER: Final = re.compile(r"\s*<answer>(?:(?!</?answer>).)+</answer>\s*", re.DOTALL)


class Verifier(Protocol):
    """Whoever checks answers: a family, or an adapter of somebody else's problems."""

    def verify(self, problem: Problem, answer: str) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A sample as it reads: texts without tags, and whether it keeps to the form."""

    thought: str
    answer: str
    """What follows the thought, raw."""
    final_answer: str | None
    well_formed: bool
    thought_tokens: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A sample's verdict and reward. ``reward`` is None where the verifier failed."""

    reply: Reply
    verdict: Verdict
    accuracy: float
    format: float
    own: float
    reward: float | None


OwnReward: TypeAlias = Callable[[Problem, Reply], float]
"""A person's own reward: of a problem and the reply to it, any finite number."""


class Judge:
    """Reads and rewards samples.

    ``verifiers``: by the name of the family. ``own``: a further reward, times `own_weight`.
    """

    def __init__(
        self,
        tokenizer: TrainedTokenizer,
        verifiers: dict[str, Verifier],
        reward: RewardConfig,
        own: OwnReward | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._verifiers = verifiers
        self._reward = reward
        self._own = own

    def read(self, ids: Sequence[int]) -> Reply:
        """A sample's parts. A sample without a closing tag that began a thought is all thought;
        one without any tag is all answer."""
        tokenizer = self._tokenizer
        body = [token for token in ids if token != tokenizer.eos_id]
        ended = bool(ids) and ids[-1] == tokenizer.eos_id
        opens, closes = body.count(tokenizer.think_id), body.count(tokenizer.end_think_id)
        began = bool(body) and body[0] == tokenizer.think_id
        if closes:
            at = len(body) - 1 - body[::-1].index(tokenizer.end_think_id)
        else:
            at = len(body) if began else -1
        inside = body[1 if began else 0 : max(at, 0)]
        thought = self._text(inside).strip()
        answer = self._text(body[at + 1 :])
        well_formed = (
            ended
            and began
            and opens == closes == 1
            and len(body) == len(ids) - 1
            and bool(thought)
            and _ONE_ANSWER.fullmatch(answer) is not None
        )
        return Reply(thought, answer, final_answer(answer), well_formed, len(inside))

    def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
        """The verdict on a sample, and its reward."""
        reply = self.read(ids)
        if reply.final_answer is None:
            verdict = wrong("no final answer")
        else:
            verdict = self._verifiers[problem.family].verify(problem, reply.final_answer)
        weights = self._reward
        accuracy, form = float(verdict.correct), float(reply.well_formed)
        own = 0.0
        if self._own is not None:
            own, failure = _asked(self._own, problem, reply)
            verdict = failure or verdict
        reward = None
        if verdict.status != "unscorable":
            reward = weights.accuracy * accuracy + weights.format * form + weights.own_weight * own
        return Judged(reply, verdict, accuracy, form, own, reward)

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(self._tokenizer.tokenizer.pieces(ids)).decode("utf-8", "replace")


def _asked(own: OwnReward, problem: Problem, reply: Reply) -> tuple[float, Verdict | None]:
    """What a person's own reward says, and the verdict where it failed."""
    try:
        value = float(own(problem, reply))
    except Exception as error:  # It is the person's code: a run is not lost to one odd sample.
        return 0.0, unscorable(f"the own reward failed: {type(error).__name__}: {error}")
    if not math.isfinite(value):
        return 0.0, unscorable(f"the own reward is {value}")
    return value, None


def own_reward(spec: str, folder: Path) -> OwnReward:
    """The function that ``file.py:name`` names, relative to ``folder``. The file is the person's
    own code and is run. Raises UserError where file or function is missing or cannot be called."""
    file_text, _, name = spec.rpartition(":")
    path = (folder / file_text).resolve()
    if not file_text or not path.is_file():
        raise UserError(f"reward.own {spec!r}: there is no file {path}; write file.py:function.")
    try:
        module = own_module(path)
    except UserError as error:
        raise UserError(f"reward.own {spec!r}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward.own {spec!r}: {path} has no function {name!r}.")
    found: OwnReward = function
    return found
