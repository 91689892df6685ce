"""Passes of fixed sizes, padded and on a GPU captured, against passes made for their sequences."""

from __future__ import annotations

import logging
from random import Random

import numpy as np
import pytest
import torch

from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.balance import expert_load
from forethought.training.batches import Row, TokenSequence
from forethought.training.captured import CapturedPasses
from forethought.training.config import BalanceConfig
from forethought.training.pass_inputs import FilledRoom, PassInputs, Room
from forethought.training.supervised import Supervised
from tiny_training import optimizer_of, tiny_dense, tiny_v3

VOCABULARY = 64
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
KINDS = ["dense", "v3", "mtp"]


def made(kind: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> CausalLM:
    if kind == "dense":
        return tiny_dense(VOCABULARY, dtype=dtype).to(device)
    return tiny_v3(VOCABULARY, mtp=kind == "mtp", dtype=dtype).to(device)


def texts(seed: int, count: int, longest: int = 30) -> list[TokenSequence]:
    rng = Random(seed)
    found = []
    for _ in range(count):
        ids = tuple(rng.choices(range(VOCABULARY), k=rng.randint(2, longest)))
        found.append(TokenSequence(ids, rng.randrange(1, len(ids))))
    return found


def trainer(network: CausalLM, *, fixed: bool, budget: int = 64) -> Supervised:
    return Supervised(
        network,
        optimizer_of(network, clip_norm=1e6),
        vocabulary=VOCABULARY,
        micro_batch_tokens=budget,
        balance=BalanceConfig(loss_weight=0.2, bias_step=0.01),
        mtp_weight=0.3,
        fixed_sizes=fixed,
    )


@pytest.mark.parametrize("budget", [20, 64, 10_000])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_about_a_run(kind, budget):
    """Losses, norms, loads, biases and weights of several steps, in float64."""
    runs = []
    for fixed in (False, True):
        network = made(kind)
        one = trainer(network, fixed=fixed, budget=budget)
        metrics = [one.step(texts(step, 4 + 2 * step), 1e-2) for step in range(4)]
        runs.append((metrics, network.state_dict()))
    (plain, plain_state), (padded, padded_state) = runs
    for mine, other in zip(plain, padded, strict=True):
        assert mine.keys() == other.keys()
        for name, number in mine.items():
            assert other[name] == (number if number is None else pytest.approx(number, rel=1e-9))
    for name, tensor in plain_state.items():
        torch.testing.assert_close(padded_state[name], tensor, rtol=1e-8, atol=1e-10)


def test_a_room_serves_rows_of_like_size_and_refuses_larger_ones():
    rows = []
    for seed in range(60):
        fitting = texts(seed, 40, 12)
        while sum(text.inputs for text in fitting) > 96:
            fitting.pop()
        rows.append(Row(fitting))
    rooms = [Room.of([row.size], 96, mtp=True) for row in rows]
    assert len(set(rooms)) < 20
    assert sum(room in rooms[:at] for at, room in enumerate(rooms)) > 40
    for row in rows:
        room = Room.of([row.size], 96, mtp=True)
        assert room.tokens - row.tokens < 6
        assert room.targets - len(row.rows_L) < 12
        filled = FilledRoom.of(room, row, 5, 2, torch.device("cpu"))
        assert len(filled.values) == room.size
        inputs = filled.inputs(filled.values)
        assert sum(inputs.packed.lengths) == room.tokens
        rows_L, weights_L = inputs.targets.rows_L, inputs.targets.weights_L
        assert weights_L is not None
        # Gradients are copied back to rows: none may be named twice.
        assert len(rows_L.unique()) == len(rows_L)
        assert torch.equal(rows_L[weights_L.bool()], torch.from_numpy(row.rows_L))
        real_N = inputs.real_N
        assert real_N is not None
        assert int(real_N.sum()) == row.tokens
    small = Room.of([Row(texts(0, 2, 5)).size], 96, mtp=False)
    with pytest.raises(ValueError, match="for Room"):
        small.filled(Row(texts(0, 20)), 1, 1)


def test_sequences_of_one_length_that_fill_a_row_are_known_as_such():
    even = [TokenSequence(tuple(range(3)) * 171 + (0,)) for _ in range(2)]  # 513 inputs each
    room = Room.of([Row(even).size], 4096, mtp=False)
    assert (room.even, room.tokens, room.sequences) == (513, 1026, 2)
    assert Room.of([Row([*even, texts(0, 1)[0]]).size], 4096, mtp=False).even == 0


def test_padding_is_nobodys_choice_of_experts():
    indices_NK = torch.tensor([[0, 1], [1, 2], [0, 2]])
    mask_N = torch.tensor([True, False, True])
    assert expert_load(indices_NK, 4, mask_N).tolist() == [2, 1, 1, 0]


def test_what_a_step_reads_ahead_is_laid_out_while_it_runs():
    network = made("dense")
    one = trainer(network, fixed=True)
    order: list[str] = []

    def check(loss: float) -> None:
        order.append("loss")

    following = texts(1, 3)
    one.step(one.prepare(texts(0, 3)), 1e-3, check, lambda: order.append("meanwhile"))
    assert order == ["meanwhile", "loss"]
    assert one.prepare(following).targets == sum(text.targets for text in following)
    with pytest.raises(ValueError, match="no sequence"):
        one.prepare([TokenSequence((1, 2), mask=(False, False))])


@GPU
@pytest.mark.parametrize("kind", KINDS)
def test_captured_passes_train_as_others_do(kind):
    runs = []
    for fixed in (False, True):
        network = made(kind, torch.bfloat16, "cuda")
        one = trainer(network, fixed=fixed, budget=256)
        metrics = [one.step(texts(step % 3, 40), 1e-3) for step in range(9)]
        runs.append([(float(each["loss"]), float(each["grad_norm"])) for each in metrics])
        assert (one.graphs > 0) is fixed
    # bfloat16 rounds a row otherwise when more rows stand beside it.
    np.testing.assert_allclose(runs[0], runs[1], rtol=0.05)
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=0.01)


@GPU
def test_where_lengths_matter_passes_are_not_captured():
    network = made("v3", torch.float32, "cuda")
    one = trainer(network, fixed=True, budget=256)
    plain = trainer(made("v3", torch.float32, "cuda"), fixed=False, budget=256)
    for step in range(4):
        mine, other = (each.step(texts(step, 40), 1e-3)["loss"] for each in (one, plain))
        assert mine == pytest.approx(other, rel=1e-4)
    assert one.graphs == 0


@GPU
@pytest.mark.parametrize("kind", KINDS)
def test_captured_passes_in_bfloat16_keep_float32_masters_and_see_weights_that_move(kind):
    network = made(kind, torch.bfloat16, "cuda")
    one = trainer(network, fixed=True, budget=256)
    data = texts(3, 40)
    losses = [float(one.step(data, 1e-2)["loss"]) for _ in range(12)]
    assert one.graphs > 0
    assert losses[-1] < 0.8 * losses[0]
    # Elsewhere in memory: the graphs are made again, and training goes on from there.
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    again = [float(one.step(data, 1e-4)["loss"]) for _ in range(3)]
    assert again == pytest.approx([losses[-1]] * 3, rel=0.2)
    assert one.graphs > 0


@GPU
def test_a_pass_that_cannot_be_captured_runs_as_it_is_and_says_so_once(caplog):
    def waits(inputs: PassInputs) -> torch.Tensor:
        return torch.full((1,), float(inputs.ids_1N.sum()), device="cuda")  # no graph can hold it

    device = torch.device("cuda")
    passes = CapturedPasses(waits, list, device, capture=True)
    row = Row(texts(0, 3))
    filled = FilledRoom.of(Room.of([row.size], 64, mtp=False), row, 1, 1, device)
    with caplog.at_level(logging.WARNING):
        said = [float(passes.run(filled)) for _ in range(4)]
    assert said == [float(row.ids_N.sum())] * 4
    assert passes.captured == 0
    assert len(caplog.records) == 1
    assert "without CUDA graphs" in caplog.text
    # What torch draws from on this device is not left as it was in the middle of the capture.
    assert bool(torch.randn(8, device="cuda").isfinite().all())
