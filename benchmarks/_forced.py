"""Rollouts of forced lengths for us and for TRL: the same samples end at the same places.

Importable by the processes that judge: a stub of a problem, of a tokenizer and of a judge, around
the real sampler, the real losses and the real optimiser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import RolloutSample
from forethought.problems.problem import CORRECT, Problem, wrong
from forethought.training.judging import Judged, Reply

PROBLEMS: Final = 128
SAMPLES: Final = 16
PROMPT: Final = 48
MOST: Final = 640
END: Final = 1
_FILE: Final = Path(__file__).parent / "data" / "rollout_lengths.json"


def lengths() -> list[list[int]]:
    """How long each sample is, [problem][sample]: from the committed file of real lengths."""
    found = json.loads(_FILE.read_text())["lengths"]
    flat = [int(one) for row in found for one in (row if isinstance(row, list) else [row])]
    flat = (flat * (PROBLEMS * SAMPLES // len(flat) + 1))[: PROBLEMS * SAMPLES]
    return [flat[at * SAMPLES : (at + 1) * SAMPLES] for at in range(PROBLEMS)]


def prompt_ids(number: int, vocabulary: int) -> tuple[int, ...]:
    """A prompt of random tokens; END is in none."""
    rng = Random(number)
    return tuple(rng.randrange(2, vocabulary) for _ in range(PROMPT))


def reward_of(ids: Sequence[int]) -> float:
    """Something that half of a group gets, for us and for TRL alike."""
    return float(ids[0] % 2)


class Problems:
    """A stream of problems without an end."""

    def problem(self, index: int, choose: object = None) -> Problem:
        return Problem("forced", 1, index, "en", str(index), "0", str(index))


class Prompts:
    """In place of a template: the text is a number, the prompt its tokens."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def ids(self, question: str) -> tuple[int, ...]:
        return prompt_ids(int(question), self._vocabulary)


class Tokens:
    """In place of a tokenizer: ids have no text."""

    def __init__(self, vocabulary: int) -> None:
        self.size = vocabulary
        self.eos_id = END
        self.tokenizer = self

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        return [b"" for _ in ids]


class ParityJudge:
    """In place of a verifier."""

    def judge(self, problem: Problem, ids: Sequence[int]) -> Judged:
        reward = reward_of(ids)
        verdict = CORRECT if reward else wrong("odd")
        reply = Reply("", "", None, well_formed=False, thought_tokens=len(ids))
        return Judged(reply, verdict, reward, 0.0, 0.0, reward)


def forced_policy(network: Any, vocabulary: int, ranks: Any = None) -> Any:
    """A policy whose samples end where the file says, whichever of the ``ranks`` draws them."""
    from forethought.training.lanes import Lanes
    from forethought.training.policy import Policy
    from forethought.training.shared_rollout import gather_samples

    plan = lengths()

    class Forced(Policy):
        def sample(
            self,
            problems: Sequence[Problem],
            n: int,
            seeds: Sequence[int],
            sampling: SamplingParameters,
            max_tokens: int,
            *,
            rows: int,
            record_experts: bool = False,
            on_finished: Callable[[int, int, RolloutSample], None] | None = None,
        ) -> list[list[RolloutSample]]:
            fast = self._on_cuda(rows, record_experts and self.has_experts)
            ranks = self.lanes.ranks
            own = ranks.own(len(problems))
            groups = fast.sample(
                [self.prompter.ids(problems[at].text) for at in own],
                n,
                [seeds[at] for at in own],
                sampling,
                max_tokens,
                lengths=[plan[at] for at in own],
                on_finished=on_finished
                and (lambda at, index, one: on_finished(own[at], index, one)),
            )
            return gather_samples(ranks, groups, len(problems))

    tokens, prompts = Tokens(vocabulary), Prompts(vocabulary)
    return Forced(network, tokens, prompts, lanes=Lanes(network, 1, ranks))  # type: ignore[arg-type]
