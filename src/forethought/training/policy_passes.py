"""The passes of a policy update: samples forwards and backwards, and what they say together.

N: input tokens of a row, L: loss tokens, M: layers with experts, E: experts, K: experts a token.

A pass says a row of numbers that stays on the device until the step's last pass is under way, so
nothing waits in between; where the device is a GPU, passes have few sizes and are captured.

Source: routing replay (arXiv:2510.11370).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import torch

from forethought.engines.phases import SILENT
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.balance import expert_load
from forethought.models.deepseek_v3.routing import differs, gates
from forethought.models.packed import has_flash
from forethought.training.batches import Row, RowSize
from forethought.training.captured import CapturedPasses
from forethought.training.config import RLConfig
from forethought.training.losses import LossMetrics, Normaliser, TokenBatch, k3_kl, policy_loss
from forethought.training.memory import fitted, step_memory
from forethought.training.optimizer import MasterAdamW
from forethought.training.pass_inputs import Room
from forethought.training.policy import Policy
from forethought.training.policy_inputs import (
    FilledPolicyRoom,
    PolicyInputs,
    PolicyRoom,
    TrainedSample,
)
from forethought.training.ranks import Ranks

_LOSS: Final = tuple(field.name for field in fields(LossMetrics))
_SAID: Final = (*_LOSS, "entropy", "mismatch", "flipped")
"""What a pass says before its experts' loads."""

_ROOMY: Final = 1.25
"""How much larger than needed a room may be that has a graph already."""


@dataclass(slots=True)
class Sums:
    """What the passes of an update say together. Losses and ratios are shares of the whole step."""

    loss: dict[str, float]
    """By the names of :class:`LossMetrics`."""
    loads: list[torch.Tensor]
    """How many tokens chose each expert, int64 [E] for each gate."""
    entropy: float = 0.0
    """Over loss tokens, as the next: KL(sampler, trainer) of each."""
    mismatch: float = 0.0
    tokens: int = 0
    flipped: float = 0.0
    """Of ``routed`` tokens, how many took other experts than in the sampler, mean over layers."""
    routed: int = 0
    replayed: int = 0
    """Passes that took the sampler's experts."""
    diverged: bool = False
    """Sampler and trainer disagreed more than they may."""

    def over(self, ranks: Ranks) -> Sums:
        """What the passes of all ranks say together, but for their loads."""
        if ranks.alone:
            return self
        names = [name for name in _LOSS if name != "ratio_max"]
        own = [self.entropy, self.mismatch, self.tokens, self.flipped, self.routed, self.replayed]
        totals = ranks.totals([*(self.loss[name] for name in names), *own, self.diverged])
        largest = ranks.gather(torch.tensor([self.loss["ratio_max"]], dtype=torch.float64))
        loss = dict(zip(names, totals, strict=False))
        entropy, mismatch, tokens, flipped, routed, replayed, diverged = totals[len(names) :]
        return Sums(
            {**loss, "ratio_max": float(torch.cat(largest).max())},
            self.loads,
            entropy,
            mismatch,
            round(tokens),
            flipped,
            round(routed),
            round(replayed),
            diverged > 0,
        )


class PolicyPasses:
    """Computes the gradient of one optimiser step. ``reference``: where the loss has a KL term.

    ``fixed_sizes``: passes are padded to few sizes and, on CUDA, captured as graphs; by default on
    CUDA in 16 bits, where one lane computes and nobody listens to its phases.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: MasterAdamW,
        config: RLConfig,
        reference: CausalLM | None,
        *,
        fixed_sizes: bool | None = None,
    ) -> None:
        self._policy, self._optimizer, self._config = policy, optimizer, config
        self._reference = reference
        network = policy.network
        self._experts = [gate.weight.shape[0] for gate in gates(network)]
        self._captured: CapturedPasses[PolicyInputs] | None = None
        capturable = has_flash(network.device, network.dtype, network.config.widest_head)
        if fixed_sizes is None:
            # A clock wants to hear of passes, and lanes have gradients of their own.
            fixed_sizes = capturable and policy.lanes.count == 1 and policy.phases is SILENT
        if fixed_sizes:
            optimizer.keep_gradients()
            self._captured = CapturedPasses(
                lambda inputs: self._whole_pass(inputs, replay=False),
                self._places,
                network.device,
                capture=capturable,
            )

    @property
    def graphs(self) -> int:
        """Passes that are held as CUDA graphs."""
        return 0 if self._captured is None else self._captured.captured

    def run(
        self,
        trained: Sequence[TrainedSample],
        normaliser: Normaliser,
        *,
        fresh: bool,
        replaying: bool,
    ) -> Sums:
        """Add the gradients of all samples' share of the step's loss to the optimiser's.

        Only a ``fresh`` rollout tells how far the sampler was from the trainer: after an update the
        difference is the update. Where it is too large, a pass takes the sampler's experts; with
        ``replaying`` all do at once. That is known when the last pass is over, so that none waits
        for another: the passes are then made again.
        """
        lengths = [one.sequence.inputs for one in trained]
        budget, lanes = self._config.micro_batch_tokens, self._policy.lanes
        dealt = lanes.deal(lengths, budget, even=self._captured is not None)
        parts = [[trained[at] for at in part] for part in dealt]
        says = self._passes(parts, normaliser, [replaying] * len(parts))
        asked = fresh and not replaying and bool(self._experts)
        apart = [asked and said["mismatch"] > self._config.replay_above for said, _ in says]
        flipped = sum(said["flipped"] for said, _ in says) if asked else 0.0
        if any(apart):
            self._drop_gradients()
            says = self._passes(parts, normaliser, apart)
        tokens = [sum(len(one.sample.ids) for one in part) for part in parts]
        return Sums(
            loss=_losses([said for said, _ in says]),
            loads=self._loads([loads for _, loads in says]),
            entropy=sum(said["entropy"] for said, _ in says),
            mismatch=sum(
                said["mismatch"] * count for (said, _), count in zip(says, tokens, strict=True)
            ),
            tokens=sum(tokens),
            flipped=flipped,
            routed=sum(lengths[at] for part in dealt for at in part) if asked else 0,
            replayed=len(parts) if replaying else sum(apart),
            diverged=any(apart),
        )

    def _loads(self, of_passes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        device = self._policy.network.device
        total = torch.zeros(sum(self._experts), dtype=torch.int64, device=device)
        for loads in of_passes:
            total += loads.long()
        return list(torch.split(total, self._experts)) if self._experts else []

    def _passes(
        self,
        parts: Sequence[Sequence[TrainedSample]],
        normaliser: Normaliser,
        replayed: Sequence[bool],
    ) -> list[tuple[dict[str, float], torch.Tensor]]:
        """All passes, and for each what it says and its loads; waits for the last of them."""
        device, lanes = self._policy.network.device, self._policy.lanes

        def compute() -> list[torch.Tensor]:
            if self._captured is not None:
                return self._replays(self._captured, parts, normaliser, replayed)

            def one(lane: int, item: tuple[Sequence[TrainedSample], bool]) -> torch.Tensor:
                part, replay = item
                return self._backward(lane, PolicyInputs.of(part, normaliser, device), replay)

            return lanes.run(one, list(zip(parts, replayed, strict=True)))

        with step_memory(device, self._config.micro_batch_tokens):
            said = fitted(lanes.networks, compute, self._begin_anew)
        if not said:
            return []
        heads = torch.stack([each[: len(_SAID)] for each in said]).tolist()
        return [
            (dict(zip(_SAID, head, strict=True)), each[len(_SAID) :])
            for head, each in zip(heads, said, strict=True)
        ]

    def _drop_gradients(self) -> None:
        self._optimizer.zero_grad()
        self._policy.lanes.drop_gradients()

    def _begin_anew(self) -> None:
        """Undo passes."""
        if self._captured is not None:
            self._captured.forget()
        self._drop_gradients()

    # -- one pass

    def _backward(self, lane: int, inputs: PolicyInputs, replay: bool) -> torch.Tensor:
        phases, lengths = self._policy.phases, inputs.packed.lengths
        with phases.phase("forward"):  # each pass in it says what it cost
            loss, said = self._loss(lane, inputs, replay=replay)
        count = len(inputs.targets_L)
        with phases.phase("backward", lambda costs: costs.backward(lengths, count)):
            loss.backward()  # type: ignore[no-untyped-call]
        return said

    def _loss(
        self, lane: int, inputs: PolicyInputs, *, replay: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One micro-batch's share of the step's loss, and what it says; float64 [_SAID + M E]."""
        policy, base = self._policy, inputs.base
        sampled_MNK = None if inputs.sampled_MNK is None else inputs.sampled_MNK.long()
        scored = policy.score(
            inputs, self._config.temperature, replay_MNK=sampled_MNK if replay else None, lane=lane
        )
        old_L = inputs.old_L.to(scored.logprobs_L.dtype)
        tokens = TokenBatch(
            scored.logprobs_L,
            old_L,
            inputs.lengths_S,
            inputs.advantages_S,
            self._reference_logprobs(inputs),
        )
        normaliser = inputs.normaliser(self._config.max_tokens)
        loss, metrics = policy_loss(tokens, self._config.loss, normaliser)
        entropy_L, weights_L = scored.entropy_L, base.targets.weights_L
        if weights_L is not None:
            entropy_L = entropy_L * weights_L
        flipped, loads = entropy_L.new_zeros(()), []
        if scored.experts_MNK is not None:
            real_N = base.real_N
            if sampled_MNK is not None:
                differs_MN = differs(sampled_MNK, scored.experts_MNK).double()
                flipped = (differs_MN if real_N is None else differs_MN * real_N).sum()
                flipped = flipped / len(differs_MN)
            loads = [
                expert_load(indices_NK, experts, real_N)
                for indices_NK, experts in zip(scored.experts_MNK, self._experts, strict=True)
            ]
        own = (entropy_L.sum(), k3_kl(scored.logprobs_L, old_L), flipped)
        scalars = [getattr(metrics, name) for name in _LOSS]
        said = torch.stack([one.detach().double() for one in (*scalars, *own)])
        return loss, torch.cat([said, *(load_E.double() for load_E in loads)])

    def _reference_logprobs(self, inputs: PolicyInputs) -> torch.Tensor | None:
        if self._reference is None:
            return None
        with torch.no_grad():
            temperature = self._config.temperature
            return self._policy.score_with(self._reference, inputs, temperature).logprobs_L

    # -- passes of fixed sizes

    def _places(self) -> list[torch.Tensor]:
        with_reference = [self._policy.network] + ([self._reference] if self._reference else [])
        return [
            *(one for network in with_reference for one in network.parameters()),
            *(one for network in with_reference for one in network.buffers()),
            *self._optimizer.gradients,
        ]

    def _whole_pass(self, inputs: PolicyInputs, *, replay: bool) -> torch.Tensor:
        """A pass, its gradients added to the optimiser's. Not `backward`: what it adds gradients
        with belongs to the stream on which the optimiser was made."""
        loss, said = self._loss(0, inputs, replay=replay)
        trained = list(self._optimizer.trained)
        self._optimizer.add_gradients(torch.autograd.grad(loss, trained, allow_unused=True))
        return said

    def _replays(
        self,
        captured: CapturedPasses[PolicyInputs],
        parts: Sequence[Sequence[TrainedSample]],
        normaliser: Normaliser,
        replayed: Sequence[bool],
    ) -> list[torch.Tensor]:
        """All passes, in one room, from a graph where there is one. Those that take the sampler's
        experts are too few to be captured."""
        if not parts:
            return []
        device = self._policy.network.device
        # Rows themselves are laid out one by one, while the device computes those before.
        sizes = [
            RowSize(
                [one.sequence.inputs for one in part], sum(one.sequence.targets for one in part)
            )
            for part in parts
        ]
        room = self._room(captured, sizes)
        said = []
        for part, replay in zip(parts, replayed, strict=True):
            row = Row([one.sequence for one in part])
            filled = FilledPolicyRoom.of(room, row, part, normaliser, device)
            if replay:
                inputs = filled.inputs(filled.values.to(device, non_blocking=True))
                said.append(self._whole_pass(inputs, replay=True))
            else:
                said.append(captured.run(filled))
        return said

    def _room(self, captured: CapturedPasses[PolicyInputs], sizes: Sequence[RowSize]) -> PolicyRoom:
        """The smallest room, or a known one that is hardly larger: a rollout is never as long as
        the one before, and to capture a pass takes as long as many passes."""
        budget = 2 * self._config.micro_batch_tokens
        smallest = Room.of(sizes, budget, mtp=False, may_be_even=False)
        for room in reversed(captured.rooms):
            assert isinstance(room, PolicyRoom)
            base = room.base
            small = base.tokens <= _ROOMY * smallest.tokens
            small = small and base.targets <= _ROOMY**2 * smallest.targets
            if small and base.holds(sizes):
                return room
        layers = len(self._experts)
        chosen = gates(self._policy.network)[0].top_k if layers else 0
        return PolicyRoom(smallest, (layers, chosen) if layers else None)


def _losses(of_passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """The losses of a step, by name."""
    sums = {name: sum(said[name] for said in of_passes) for name in _LOSS}
    return {**sums, "ratio_max": max((said["ratio_max"] for said in of_passes), default=0.0)}
