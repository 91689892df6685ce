"""Supervised fine-tuning on conversations: prompts masked, whole conversations packed, the end
token trained.

A conversation that is longer than it may be is left out, never cut: one without its end would
teach the model not to stop (training pitfall: rows cropped at the right).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

from forethought.dialogue.messages import Message
from forethought.engines.phases import SILENT, Phases
from forethought.errors import UserError
from forethought.models.causal_lm import CausalLM
from forethought.training.batches import TokenSequence
from forethought.training.config import SFTConfig
from forethought.training.conversations import read_conversations
from forethought.training.lanes import Lanes
from forethought.training.optimizer import MasterAdamW, learning_rate
from forethought.training.stage import Facts, SpikeGuard, StepResult, Tensors
from forethought.training.supervised import Supervised
from forethought.training.tokenizer import TrainedTokenizer, render_conversation


class FineTuner:
    """Implements :class:`forethought.training.stage.Stage`.

    Raises UserError where the file has no conversation that fits, or none that trains a token.
    """

    def __init__(
        self,
        network: CausalLM,
        optimizer: MasterAdamW,
        config: SFTConfig,
        tokenizer: TrainedTokenizer,
        data: Path,
        seed: int,
        *,
        lanes: Lanes | None = None,
        phases: Phases = SILENT,
    ) -> None:
        self.steps, self.number = config.steps, 0
        self._config = config
        self._optimizer = optimizer
        self._seed = seed
        everything = [conversation(tokenizer, messages) for messages in read_conversations(data)]
        self._data = [
            one for one in everything if len(one.ids) <= config.max_length and one.targets
        ]
        self.left_out = len(everything) - len(self._data)
        if not self._data:
            raise UserError(
                f"{data}: none of {len(everything)} conversations has a reply and at most "
                f"max_length {config.max_length} tokens; raise max_length or give other data."
            )
        self._guard = SpikeGuard(config.spike_factor)
        self._trainer = Supervised(
            network,
            optimizer,
            vocabulary=tokenizer.size,
            micro_batch_tokens=config.micro_batch_tokens,
            balance=config.balance,
            lanes=lanes,
            phases=phases,
        )

    @property
    def resumable(self) -> bool:
        return True

    def step(self) -> StepResult:
        batch = shuffled_batch(
            self._data, self.number, self._config.batch_conversations, self._seed
        )
        rate = learning_rate(self._config.optimizer, self.number, self.steps)
        metrics = self._trainer.step(batch, rate, self._guard.check)
        self.number += 1
        return StepResult({**metrics, "left_out": self.left_out}, sum(one.inputs for one in batch))

    def state(self) -> tuple[Tensors, Facts]:
        facts = {"number": self.number, **self._guard.facts()}
        return self._optimizer.state_tensors(), facts

    def load(self, tensors: Tensors, facts: Facts) -> None:
        number = facts["number"]
        assert isinstance(number, int)
        self.number = number
        self._guard.load(facts)
        self._optimizer.load_state_tensors(tensors)

    def close(self) -> None: ...


def shuffled_batch(
    data: Sequence[TokenSequence], step: int, size: int, seed: int
) -> list[TokenSequence]:
    """The sequences of one step: the next ``size`` of an endless walk through the data, shuffled
    anew each time round. A function of its arguments alone."""
    first = step * size
    batch: list[TokenSequence] = []
    while len(batch) < size:
        epoch, at = divmod(first + len(batch), len(data))
        order = list(range(len(data)))
        Random((seed << 20) ^ epoch).shuffle(order)
        batch += [data[i] for i in order[at : at + size - len(batch)]]
    return batch


def conversation(tokenizer: TrainedTokenizer, messages: Sequence[Message]) -> TokenSequence:
    """A conversation whose assistant turns, thoughts and end tokens are trained."""
    ids: list[int] = []
    mask: list[bool] = []
    for segment in render_conversation(tokenizer, messages):
        ids += segment.ids
        mask += [segment.trained] * len(segment.ids)
    return TokenSequence(tuple(ids), mask=tuple(mask))
