"""One optimiser step on given texts: what pretraining and SFT share.

N: input tokens of a row, L: loss tokens, V: rows of the head that can be predicted.

Sources: DeepSeek-V3 (arXiv:2412.19437) sections 2.1.2 (balance) and 2.2 (MTP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from forethought.training.batches import PackedBatch, TokenSequence
from forethought.training.config import BalanceConfig
from forethought.training.lanes import Lanes
from forethought.training.logprobs import rows_of, summed_surprise
from forethought.training.memory import step_memory
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient, check_norm
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
        for load_E, indices_NK in zip(self._loads, indices, strict=True):
            load_E += expert_load(indices_NK, len(load_E))

    def sum_over(self, ranks: Ranks) -> None:
        """Add up what all ranks counted."""
        ranks.sum_(self._loads)

    @torch.no_grad()
    def update(self, step: float) -> None:
        """Move each bias by ``step`` towards an even load, in place; then count anew."""
        for gate, load_E in zip(self.gates, self._loads, strict=True):
            bias_E = gate.e_score_correction_bias
            if bias_E is not None and step:
                bias_E.copy_(update_bias(bias_E, load_E, step))
        self.reset()

    @property
    def imbalance(self) -> float | None:
        """The busiest expert's load over the mean, in the worst layer; None without experts."""
        if not self._loads:
            return None
        worst = torch.stack([load.max() / load.double().mean() for load in self._loads]).nan_to_num(
            nan=0.0
        )
        return float(worst.max()) or None


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one micro-batch adds to a step: its shares of the losses by name (float64, on the
    device: nothing waits for them before the step's last), and which experts each gate chose,
    int64 [N, K] each."""

    shares: dict[str, torch.Tensor]
    experts: list[torch.Tensor]


class Supervised:
    """Next-token prediction on packed sequences, normalised over the whole optimiser step.

    ``vocabulary``: rows of the head that exist as tokens; the padding above is never predicted.
    ``lanes``: those of ``network``; one by default. ``phases`` hear of passes and updates.
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
        self._experts = ExpertBalance(network, mtp=self._mtp_weight > 0)

    def step(
        self, sequences: Sequence[TokenSequence], learning_rate: float, check: Check | None = None
    ) -> dict[str, Number]:
        """Train on ``sequences`` together; the step's metrics.

        ``check`` sees the loss before a weight is changed, and may raise. Raises `TrainingStopped`,
        also before, where loss or gradient is not finite; ValueError where nothing is predicted.
        """
        sequences = [sequence for sequence in sequences if sequence.targets]
        targets = sum(sequence.targets for sequence in sequences)
        if not targets:
            raise ValueError("no sequence of the step has a token to train")
        # A step that was stopped may have left its gradients and loads.
        self.optimizer.zero_grad()
        self._lanes.drop_gradients()
        self._experts.reset()
        lengths = [sequence.inputs for sequence in sequences]
        parts = self._lanes.deal(lengths, self._budget)
        shares: list[dict[str, torch.Tensor]] = []
        with step_memory(self.network.device, self._budget), ExitStack() as listening:
            recorders = [
                listening.enter_context(
                    RoutingRecorder(network, gates(network, mtp=self._mtp_weight > 0))
                )
                for network in self._lanes.networks
            ]

            def work(lane: int, part: list[int]) -> _Pass:
                batch = PackedBatch([sequences[at] for at in part], self.network.device)
                network = self._lanes.networks[lane]
                return self._backward(
                    network, batch, len(part), targets, len(sequences), recorders[lane]
                )

            for one in self._lanes.run(work, parts):
                shares.append(one.shares)
                self._experts.count(one.experts)
        self._lanes.gather_gradients()
        ranks = self._lanes.ranks
        self.optimizer.sum_gradients(ranks)
        self._experts.sum_over(ranks)
        sums = _summed(shares, ranks)
        if check is not None:
            check(sums["loss"])
        mtp = self._mtp_weight > 0
        try:
            with self._phases.phase("optimiser", lambda costs: costs.optimizer_step(mtp=mtp)):
                norm = check_norm(self.optimizer.step(learning_rate))
        except NonFiniteGradient:
            raise TrainingStopped(
                f"the gradient is not finite (loss {sums['loss']:.4g}): lower "
                "optimizer.learning_rate, and start from the saved state."
            ) from None
        metrics: dict[str, Number] = {
            "loss": sums["loss"],
            "mtp_loss": sums["mtp_loss"] if self._mtp_weight else None,
            "grad_norm": norm,
            "learning_rate": learning_rate,
            "tokens": sum(sequence.inputs for sequence in sequences),
            "sequences": len(sequences),
        }
        if self._experts.gates:
            metrics["balance_loss"] = sums["balance_loss"]
            metrics["expert_imbalance"] = self._experts.imbalance
        self._experts.update(self._balance.bias_step)
        return metrics

    def _backward(
        self,
        network: CausalLM,
        batch: PackedBatch,
        sequences: int,
        all_targets: int,
        all_sequences: int,
        recorder: RoutingRecorder,
    ) -> _Pass:
        """Add the gradient of one micro-batch's share of the step's loss."""

        def computed() -> tuple[tuple[int, ...], int, int | None]:
            second = len(batch.second_rows_L) if self._mtp_weight else None
            return batch.packed.lengths, batch.loss_tokens, second

        with self._phases.phase("forward", lambda costs: costs.forward(*computed())):
            total, found = self._loss(
                network, batch, sequences, all_targets, all_sequences, recorder
            )
        with self._phases.phase("backward", lambda costs: costs.backward(*computed())):
            total.backward()  # type: ignore[no-untyped-call]
        return found

    def _loss(
        self,
        network: CausalLM,
        batch: PackedBatch,
        sequences: int,
        all_targets: int,
        all_sequences: int,
        recorder: RoutingRecorder,
    ) -> tuple[torch.Tensor, _Pass]:
        """One micro-batch's share of the step's loss."""
        head_VD = network.head_weight[: self._vocabulary]
        hidden_ND = network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
        surprise = summed_surprise(rows_of(hidden_ND, batch.rows_L), head_VD, batch.targets_L)
        loss = surprise / all_targets
        shares = {"loss": loss.detach().double()}
        total = loss
        if self._mtp_weight:
            assert isinstance(network, DeepseekV3)
            second_ND = network.mtp_hidden(
                batch.next_N[None], hidden_ND, batch.positions_1N, batch.packed
            )
            surprise = summed_surprise(
                rows_of(second_ND, batch.second_rows_L), head_VD, batch.second_targets_L
            )
            mtp = surprise / all_targets
            shares["mtp_loss"] = mtp.detach().double()
            total = total + self._mtp_weight * mtp
        routings = recorder.routings if recorder.layers else []
        if routings and self._balance.loss_weight:
            balance = (
                torch.stack(
                    [
                        packed_balance_loss(
                            routing.scores_NE,
                            routing.indices_NK,
                            batch.sequence_N,
                            sequences,
                            self._balance.loss_weight,
                        )
                        for routing in routings
                    ]
                ).sum()
                / all_sequences
            )
            shares["balance_loss"] = balance.detach().double()
            total = total + balance
        return total, _Pass(shares, [routing.indices_NK for routing in routings])


def _summed(shares: Sequence[Mapping[str, torch.Tensor]], ranks: Ranks) -> dict[str, float]:
    """The losses of a step by name, from the shares of all ranks' micro-batches; the device is read
    once."""
    sums = dict.fromkeys(_LOSSES, 0.0)
    if shares:
        names = list(shares[0])
        sums_M = torch.stack([torch.stack([one[name] for name in names]) for one in shares]).sum(0)
        sums |= dict(zip(names, sums_M.tolist(), strict=True))
    return dict(zip(_LOSSES, ranks.totals([sums[name] for name in _LOSSES]), strict=True))
