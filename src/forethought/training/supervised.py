"""One optimiser step on given texts: what pretraining and SFT share.

N: input tokens of a row, L: loss tokens, V: rows of the head that can be predicted.

Sources: DeepSeek-V3 (arXiv:2412.19437) sections 2.1.2 (balance) and 2.2 (MTP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from forethought.engines.phases import SILENT, Phases
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.balance import expert_load, packed_balance_loss, update_bias
from forethought.models.deepseek_v3.gate import Gate
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates
from forethought.models.packed import has_flash
from forethought.training.batches import PackedBatch, Row, TokenSequence
from forethought.training.captured import CapturedPasses
from forethought.training.config import BalanceConfig
from forethought.training.lanes import Lanes
from forethought.training.logprobs import rows_of, summed_surprise
from forethought.training.memory import fitted, step_memory
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient, check_norm
from forethought.training.pass_inputs import FilledRoom, PassInputs, Room, Targets
from forethought.training.ranks import Ranks
from forethought.training.stage import TrainingStopped

Check: TypeAlias = Callable[[float], None]


_LOSSES: Final = ("loss", "mtp_loss", "balance_loss")


class ExpertBalance:
    """Counts which experts a step's tokens chose, and moves the selection biases after it."""

    def __init__(self, network: CausalLM, *, mtp: bool) -> None:
        self.gates: list[Gate] = gates(network, mtp=mtp)
        self._loads: list[torch.Tensor] = []
        self.reset()

    def reset(self) -> None:
        self._loads = [
            torch.zeros(gate.weight.shape[0], dtype=torch.int64, device=gate.weight.device)
            for gate in self.gates
        ]

    def count(self, indices: Sequence[torch.Tensor]) -> None:
        """Add what each gate decided in a pass, int64 [N, K] each."""
        self.add(
            [
                expert_load(indices_NK, len(load_E))
                for load_E, indices_NK in zip(self._loads, indices, strict=True)
            ]
        )

    def add(self, loads: Sequence[torch.Tensor]) -> None:
        """Add what a pass counted, int64 [E] for each gate."""
        for load_E, more_E in zip(self._loads, loads, strict=True):
            load_E += more_E

    def sum_over(self, ranks: Ranks) -> None:
        """Add up what all ranks counted."""
        ranks.sum_(self._loads)

    @torch.no_grad()
    def update(self, step: float) -> None:
        """Move each bias by ``step`` towards an even load, in place; then count anew."""
        pairs = [
            (gate.e_score_correction_bias, load_E)
            for gate, load_E in zip(self.gates, self._loads, strict=True)
            if gate.e_score_correction_bias is not None
        ]
        if pairs and step:
            biases, loads = zip(*pairs, strict=True)
            # All layers at once: they have equally many experts.
            moved_ME = update_bias(torch.stack(biases), torch.stack(loads), step)
            torch._foreach_copy_(list(biases), list(moved_ME.unbind()))
        self.reset()

    @property
    def imbalance(self) -> float | None:
        """The busiest expert's load over the mean, in the worst layer; None without experts."""
        if not self._loads:
            return None
        # One read of the device.
        loads = [(max(load), sum(load) / len(load)) for load in torch.stack(self._loads).tolist()]
        return max(most / mean if mean else 0.0 for most, mean in loads) or None


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one micro-batch adds to a step: its shares of the losses, float64 in the order of
    `Supervised`'s names, on the device (nothing waits for them before the step's last), and how
    many tokens chose each expert, int64 [E] for each gate."""

    shares: torch.Tensor
    loads: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step's sequences, laid out as passes: what can be done while the device is busy."""

    sequences: list[TokenSequence]
    targets: int
    passes: list[PackedBatch] | list[FilledRoom]
    """Of fixed sizes where passes are captured."""


class Supervised:
    """Next-token prediction on packed sequences, normalised over the whole optimiser step.

    ``vocabulary``: rows of the head that exist as tokens; the padding above is never predicted.
    ``lanes``: those of ``network``; one by default. ``phases`` hear of passes and updates.
    ``fixed_sizes``: passes are padded to few sizes and, on CUDA, captured as graphs; by default on
    CUDA in 16 bits, where one lane computes and nobody listens to its phases.
    """

    def __init__(
        self,
        network: CausalLM,
        optimizer: MasterAdamW,
        *,
        vocabulary: int,
        micro_batch_tokens: int,
        balance: BalanceConfig,
        mtp_weight: float = 0.0,
        lanes: Lanes | None = None,
        phases: Phases = SILENT,
        fixed_sizes: bool | None = None,
    ) -> None:
        self.network = network
        self._lanes = lanes or Lanes(network)
        self._phases = phases
        self.optimizer = optimizer
        self._vocabulary = vocabulary
        self._budget = micro_batch_tokens
        self._balance = balance
        has_mtp = isinstance(network, DeepseekV3) and bool(network.mtp)
        self._mtp_weight = mtp_weight if has_mtp else 0.0
        self._mtp = self._mtp_weight > 0
        self._experts = ExpertBalance(network, mtp=self._mtp)
        balanced = bool(self._experts.gates) and bool(balance.loss_weight)
        self._names = [
            name for name, there in zip(_LOSSES, (True, self._mtp, balanced), strict=True) if there
        ]
        self._captured: CapturedPasses[PassInputs] | None = None
        if fixed_sizes is None:
            # A clock wants to hear of passes, and lanes have gradients of their own.
            fixed_sizes = self._capturable and self._lanes.count == 1 and phases is SILENT
        if fixed_sizes:
            self._capture_passes()

    @property
    def _capturable(self) -> bool:
        """Whether a pass of one size is the same work whatever the lengths of its sequences."""
        network = self.network
        return has_flash(network.device, network.dtype, network.config.widest_head)

    def _capture_passes(self) -> None:
        self._captured = CapturedPasses(
            self._whole_pass,
            lambda: [
                *self.network.parameters(),
                *self.network.buffers(),
                *self.optimizer.gradients,
            ],
            self.network.device,
            capture=self._capturable,
        )
        self.optimizer.keep_gradients()

    @property
    def runs_ahead(self) -> bool:
        """Whether a step's ``meanwhile`` runs while the device computes."""
        return self._captured is not None

    @property
    def graphs(self) -> int:
        """Passes that are held as CUDA graphs."""
        return 0 if self._captured is None else self._captured.captured

    def prepare(self, sequences: Sequence[TokenSequence]) -> Prepared:
        """Lay out the passes of a step. ValueError where nothing is predicted."""
        sequences = [sequence for sequence in sequences if sequence.targets]
        targets = sum(sequence.targets for sequence in sequences)
        if not targets:
            raise ValueError("no sequence of the step has a token to train")
        lengths = [sequence.inputs for sequence in sequences]
        parts = [[sequences[at] for at in part] for part in self._lanes.deal(lengths, self._budget)]
        if self._captured is not None:
            rows = [Row(part) for part in parts]
            count = len(sequences)
            return Prepared(sequences, targets, [self._filled(row, targets, count) for row in rows])
        device = self.network.device
        return Prepared(sequences, targets, [PackedBatch(part, device) for part in parts])

    def step(
        self,
        sequences: Sequence[TokenSequence] | Prepared,
        learning_rate: float,
        check: Check | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, Number]:
        """Train on ``sequences`` together; the step's metrics.

        ``check`` sees the loss before a weight is changed, and may raise. ``meanwhile`` is called
        once passes are under way: on an accelerator nothing waits for it. Raises `TrainingStopped`,
        also before, where loss or gradient is not finite; ValueError where nothing is predicted.
        """
        step = sequences if isinstance(sequences, Prepared) else self.prepare(sequences)
        # A step that was stopped may have left its gradients and loads.
        self.optimizer.zero_grad()
        self._lanes.drop_gradients()
        self._experts.reset()
        with step_memory(self.network.device, self._budget):
            passes = fitted(self._lanes.networks, lambda: self._passes(step), self._begin_anew)
        if meanwhile is not None:
            meanwhile()
        for one in passes:
            self._experts.add(one.loads)
        self._lanes.gather_gradients()
        ranks = self._lanes.ranks
        self.optimizer.sum_gradients(ranks)
        self._experts.sum_over(ranks)
        sums = _summed(self._names, [one.shares for one in passes], ranks)
        if check is not None:
            check(sums["loss"])
        try:
            with self._phases.phase("optimiser", lambda costs: costs.optimizer_step(mtp=self._mtp)):
                norm = check_norm(self.optimizer.step(learning_rate))
        except NonFiniteGradient:
            raise TrainingStopped(
                f"the gradient is not finite (loss {sums['loss']:.4g}): lower "
                "optimizer.learning_rate, and start from the saved state."
            ) from None
        metrics: dict[str, Number] = {
            "loss": sums["loss"],
            "mtp_loss": sums["mtp_loss"] if self._mtp else None,
            "grad_norm": norm,
            "learning_rate": learning_rate,
            "tokens": sum(sequence.inputs for sequence in step.sequences),
            "sequences": len(step.sequences),
        }
        if self._experts.gates:
            metrics["balance_loss"] = sums["balance_loss"]
            metrics["expert_imbalance"] = self._experts.imbalance
        self._experts.update(self._balance.bias_step)
        return metrics

    def _begin_anew(self) -> None:
        """Undo the passes of a step."""
        if self._captured is not None:
            self._captured.forget()
        self.optimizer.zero_grad()
        self._lanes.drop_gradients()

    def _passes(self, step: Prepared) -> list[_Pass]:
        """All passes of a step, their gradients added up."""
        if self._captured is not None:
            return [self._replayed(one) for one in step.passes if isinstance(one, FilledRoom)]
        with ExitStack() as listening:
            recorders = [
                listening.enter_context(self._recorder(network)) for network in self._lanes.networks
            ]

            def work(lane: int, batch: PackedBatch) -> _Pass:
                return self._backward(
                    self._lanes.networks[lane],
                    batch,
                    PassInputs.of(batch, step.targets, len(step.sequences), mtp=self._mtp),
                    recorders[lane],
                )

            batches = [batch for batch in step.passes if isinstance(batch, PackedBatch)]
            return self._lanes.run(work, batches)

    def _recorder(self, network: CausalLM) -> RoutingRecorder:
        return RoutingRecorder(network, gates(network, mtp=self._mtp))

    def _filled(self, row: Row, targets: int, sequences: int) -> FilledRoom:
        room = Room.of([row.size], self._budget, mtp=self._mtp)
        return FilledRoom.of(room, row, targets, sequences, self.network.device)

    def _replayed(self, filled: FilledRoom) -> _Pass:
        """A pass from a graph, where there is one for its size."""
        assert self._captured is not None
        said = self._captured.run(filled)
        experts = [gate.weight.shape[0] for gate in self._experts.gates]
        shares, *loads = torch.split(said, [len(self._names), *experts])
        return _Pass(shares, [load_E.long() for load_E in loads])

    def _whole_pass(self, inputs: PassInputs) -> torch.Tensor:
        """What is captured: a pass, its gradients added to the optimiser's; what `_replayed` reads.

        Not `backward`: what it adds gradients with belongs to the stream on which the optimiser
        was made.
        """
        with self._recorder(self.network) as recorder:
            total, found = self._loss(self.network, inputs, recorder)
        gradients = torch.autograd.grad(total, list(self.optimizer.trained), allow_unused=True)
        self.optimizer.add_gradients(gradients)
        return torch.cat([found.shares, *(load_E.double() for load_E in found.loads)])

    def _backward(
        self,
        network: CausalLM,
        batch: PackedBatch,
        inputs: PassInputs,
        recorder: RoutingRecorder,
    ) -> _Pass:
        """Add the gradient of one micro-batch's share of the step's loss."""

        def computed() -> tuple[tuple[int, ...], int, int | None]:
            second = len(batch.second_rows_L) if self._mtp else None
            return batch.packed.lengths, batch.loss_tokens, second

        with self._phases.phase("forward", lambda costs: costs.forward(*computed())):
            total, found = self._loss(network, inputs, recorder)
        with self._phases.phase("backward", lambda costs: costs.backward(*computed())):
            total.backward()  # type: ignore[no-untyped-call]
        return found

    def _loss(
        self, network: CausalLM, inputs: PassInputs, recorder: RoutingRecorder
    ) -> tuple[torch.Tensor, _Pass]:
        """One micro-batch's share of the step's loss."""
        head_VD = network.head_weight[: self._vocabulary]
        hidden_ND = network.hidden(inputs.ids_1N, inputs.positions_1N, inputs.packed)
        loss = _surprise(hidden_ND, head_VD, inputs.targets) / inputs.all_targets
        shares = [loss]
        total = loss
        if inputs.second is not None:
            assert isinstance(network, DeepseekV3)
            second_ND = network.mtp_hidden(
                inputs.next_N[None], hidden_ND, inputs.positions_1N, inputs.packed
            )
            mtp = _surprise(second_ND, head_VD, inputs.second) / inputs.all_targets
            shares.append(mtp)
            total = total + self._mtp_weight * mtp
        routings = recorder.routings if recorder.layers else []
        if routings and self._balance.loss_weight:
            balance = (
                torch.stack(
                    [
                        packed_balance_loss(
                            routing.scores_NE,
                            routing.indices_NK,
                            inputs.sequence_N,
                            inputs.sequences,
                            self._balance.loss_weight,
                            inputs.real_S,
                        )
                        for routing in routings
                    ]
                ).sum()
                / inputs.all_sequences
            )
            shares.append(balance)
            total = total + balance
        real_N = inputs.real_N if routings else None
        loads = [
            expert_load(routing.indices_NK, routing.scores_NE.shape[1], real_N)
            for routing in routings
        ]
        return total, _Pass(torch.stack([share.detach().double() for share in shares]), loads)


def _surprise(hidden_1ND: torch.Tensor, head_VD: torch.Tensor, targets: Targets) -> torch.Tensor:
    states_LD = rows_of(hidden_1ND, targets.rows_L)
    return summed_surprise(states_LD, head_VD, targets.ids_L, targets.weights_L)


def _summed(names: Sequence[str], shares: Sequence[torch.Tensor], ranks: Ranks) -> dict[str, float]:
    """The losses of a step by name, from the shares of all ranks' micro-batches; the device is read
    once."""
    sums = dict.fromkeys(_LOSSES, 0.0)
    if shares:
        sums |= dict(zip(names, torch.stack(list(shares)).sum(0).tolist(), strict=True))
    return dict(zip(_LOSSES, ranks.totals([sums[name] for name in _LOSSES]), strict=True))
