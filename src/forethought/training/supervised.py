"""One optimiser step on given texts: what pretraining and SFT share.

N: input tokens of a row, L: loss tokens, V: rows of the head that can be predicted.

Sources: DeepSeek-V3 (arXiv:2412.19437) sections 2.1.2 (balance) and 2.2 (MTP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.balance import expert_load, packed_balance_loss, update_bias
from forethought.models.deepseek_v3.gate import Gate
from forethought.models.deepseek_v3.routing import RoutingRecorder, gates
from forethought.training.batches import PackedBatch, TokenSequence, micro_batches
from forethought.training.config import BalanceConfig
from forethought.training.logprobs import token_logprobs
from forethought.training.monitor import Number
from forethought.training.optimizer import MasterAdamW, NonFiniteGradient
from forethought.training.stage import TrainingStopped

Check: TypeAlias = Callable[[float], None]


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

    def count(self, recorder: RoutingRecorder) -> None:
        """Add what the gates decided in the pass that just ran."""
        for load_E, routing in zip(self._loads, recorder.routings, strict=True):
            load_E += expert_load(routing.indices_NK, len(load_E))

    def add(self, indices_MNK: torch.Tensor) -> None:
        """Add choices that were taken down elsewhere, int64 [M, N, K] for the M gates."""
        for load_E, indices_NK in zip(self._loads, indices_MNK, strict=True):
            load_E += expert_load(indices_NK, len(load_E))

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
        loads = [load for load in self._loads if int(load.sum())]
        return max((float(load.max() / load.double().mean()) for load in loads), default=None)


class Supervised:
    """Next-token prediction on packed sequences, normalised over the whole optimiser step.

    ``vocabulary``: rows of the head that exist as tokens; the padding above is never predicted.
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
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._vocabulary = vocabulary
        self._budget = micro_batch_tokens
        self._balance = balance
        self._mtp = network if isinstance(network, DeepseekV3) and network.mtp else None
        self._mtp_weight = mtp_weight if self._mtp is not None else 0.0
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
        self._experts.reset()
        parts = micro_batches([sequence.inputs for sequence in sequences], self._budget)
        sums = {"loss": 0.0, "mtp_loss": 0.0, "balance_loss": 0.0}
        with RoutingRecorder(self.network, self._experts.gates) as recorder:
            for part in parts:
                batch = PackedBatch([sequences[at] for at in part], self.network.device)
                for name, value in self._backward(
                    batch, len(part), targets, len(sequences), recorder
                ).items():
                    sums[name] += value
        if check is not None:
            check(sums["loss"])
        try:
            norm = self.optimizer.step(learning_rate)
        except NonFiniteGradient:
            raise TrainingStopped(
                f"the gradient is not finite (loss {sums['loss']:.4g}): lower "
                "optimizer.learning_rate, and start from the saved state."
            ) from None
        metrics: dict[str, Number] = {
            "loss": sums["loss"],
            "mtp_loss": sums["mtp_loss"] if self._mtp_weight else None,
            "grad_norm": float(norm),
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
        batch: PackedBatch,
        sequences: int,
        all_targets: int,
        all_sequences: int,
        recorder: RoutingRecorder,
    ) -> dict[str, float]:
        """Add the gradient of one micro-batch's share of the step's loss; its shares by name."""
        network = self.network
        head_VD = network.head_weight[: self._vocabulary]
        hidden_ND = network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
        logprobs_L, _ = token_logprobs(
            hidden_ND[0, batch.rows_L], head_VD, batch.targets_L, entropy=False
        )
        loss = -logprobs_L.sum() / all_targets
        shares = {"loss": float(loss.detach())}
        total = loss
        if self._mtp is not None and self._mtp_weight:
            second_ND = self._mtp.mtp_hidden(
                batch.next_N[None], hidden_ND, batch.positions_1N, batch.packed
            )
            second_L, _ = token_logprobs(
                second_ND[0, batch.second_rows_L],
                head_VD,
                batch.second_targets_L,
                entropy=False,
            )
            mtp = -second_L.sum() / all_targets
            shares["mtp_loss"] = float(mtp.detach())
            total = total + self._mtp_weight * mtp
        if recorder.layers:
            self._experts.count(recorder)
            if self._balance.loss_weight:
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
                            for routing in recorder.routings
                        ]
                    ).sum()
                    / all_sequences
                )
                shares["balance_loss"] = float(balance.detach())
                total = total + balance
        total.backward()  # type: ignore[no-untyped-call]
        return shares
