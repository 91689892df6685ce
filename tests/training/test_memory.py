"""Running out of memory in a step says which key to lower."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch

from forethought.errors import UserError
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.deepseek_v3.routing import RoutingRecorder, replayed
from forethought.models.packed import PackedSequences
from forethought.training.batches import TokenSequence
from forethought.training.config import BalanceConfig
from forethought.training.lanes import Lanes
from forethought.training.memory import step_memory
from forethought.training.supervised import Supervised
from tiny_training import optimizer_of, tiny_dense, tiny_v3

VOCABULARY = 64


def network_of(kind: str) -> CausalLM:
    if kind == "dense":
        return tiny_dense(VOCABULARY, dtype=torch.float64)
    return tiny_v3(VOCABULARY, mtp=kind == "mtp", dtype=torch.float64)


def texts() -> list[TokenSequence]:
    rng = Random(4)
    return [
        TokenSequence(tuple(rng.choices(range(VOCABULARY), k=rng.randint(3, 20))))
        for _ in range(12)
    ]


class Small:
    """A memory that holds what so many layers compute, and no more, unless it is recomputed."""

    def __init__(self, networks: Sequence[CausalLM], layers: int) -> None:
        self.left, self.refused = layers, 0
        for network in networks:
            for layer in network.model.layers:
                layer.parts = self.guarded(network, layer.parts)

    def guarded(self, network: CausalLM, parts: Any) -> Any:
        def held(*inputs: Any) -> Any:
            if not network.recompute:
                self.left -= 1
                if self.left < 0:
                    self.refused += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return parts(*inputs)

        return held


def test_out_of_memory_names_the_key_and_its_half():
    with (
        pytest.raises(UserError, match="lower micro_batch_tokens to 4096"),
        step_memory(torch.device("cpu"), 8192),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), step_memory(torch.device("cpu"), 8192):
        raise ZeroDivisionError


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_says_what_half_would_save():
    def fill():
        with step_memory(torch.device("cuda"), 8192):
            held = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda")]
            while True:
                held.append(torch.empty(1 << 34, dtype=torch.uint8, device="cuda"))

    with pytest.raises(UserError, match=r"saves at least \d+\.\d GiB"):
        fill()


@pytest.mark.parametrize("kind", ["dense", "v3"])
def test_activations_that_are_computed_twice_give_the_same_gradients(kind: str) -> None:
    """Also of experts that are replayed, and read by a recorder on the way."""
    ids_1N = torch.arange(24)[None] % VOCABULARY
    packed = PackedSequences([10, 3, 11])
    generator = torch.Generator().manual_seed(1)
    experts_MNK = torch.stack(
        [torch.randperm(8, generator=generator)[:2] for _ in range(2 * 24)]
    ).view(2, 24, 2)
    found = []
    for recompute in (False, True):
        network = network_of(kind)
        network.recompute = recompute
        saved: list[int] = []

        def kept(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        def loss(network: CausalLM = network) -> torch.Tensor:
            hidden = network.hidden(ids_1N, packed.positions_1N, packed)
            return network.logits(hidden).logsumexp(-1).sum()

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            if isinstance(network, DeepseekV3):
                with replayed(network, experts_MNK), RoutingRecorder(network) as recorder:
                    total = loss()
                total = total + sum(one.weights_NK.square().sum() for one in recorder.routings)
            else:
                total = loss()
        total.backward()
        found.append(({n: p.grad for n, p in network.named_parameters()}, sum(saved)))
    (plain, much), (twice, little) = found
    assert little < much / 2
    for name, gradient in plain.items():
        assert (gradient is None) == (twice[name] is None)
        if gradient is not None:
            torch.testing.assert_close(twice[name], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("kind", ["dense", "v3", "mtp"])
def test_a_step_that_does_not_fit_is_taken_with_fewer_activations(
    kind: str, lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The same step to the last bits, with one line; from then on without trying."""
    runs = []
    for room in (10**9, 5):
        network = network_of(kind)
        own = Lanes(network, lanes)
        memory = Small(own.networks, room)
        trainer = Supervised(
            network,
            optimizer_of(network, clip_norm=1e6),
            vocabulary=VOCABULARY,
            micro_batch_tokens=32,
            balance=BalanceConfig(loss_weight=0.2, bias_step=0.01),
            mtp_weight=0.3,
            lanes=own,
        )
        metrics = [trainer.step(texts(), 1e-2) for _ in range(3)]
        runs.append((metrics, network.state_dict(), memory.refused, network.recompute))
    (plain, weights, none, off), (small, others, refused, on) = runs
    assert (none, off, on) == (0, False, True)
    assert 1 <= refused <= lanes
    for mine, other in zip(plain, small, strict=True):
        for name, number in mine.items():
            assert other[name] == (number if number is None else pytest.approx(number, rel=1e-9))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-9, atol=1e-12)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "micro_batch_tokens" in caplog.text
