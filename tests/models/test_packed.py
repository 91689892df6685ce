"""A packed row gives every sequence what it would get alone: logits, gradients, bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import assert_close, random_ids

from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.packed import PackedSequences
from tiny_training import tiny_dense, tiny_v3

VOCABULARY = 53
NETWORKS = ["dense", "v3", "mtp"]
LENGTHS = st.lists(st.integers(1, 23), min_size=1, max_size=7)


def network(kind: str, dtype: torch.dtype) -> CausalLM:
    if kind == "dense":
        return tiny_dense(VOCABULARY, dtype=dtype)
    return tiny_v3(VOCABULARY, mtp=kind == "mtp", dtype=dtype)


def outputs(model: CausalLM, ids_1T, positions_1T=None, packed=None) -> torch.Tensor:
    """Logits [1, T, V], with those of the MTP module (of the token after next) behind them."""
    following = random_ids(VOCABULARY, 1, 400, seed=9)[:, ids_1T[0]]
    hidden = model.hidden(ids_1T, positions_1T, packed)
    parts = [model.logits(hidden)]
    if isinstance(model, DeepseekV3) and model.mtp is not None:
        parts.append(model.mtp_logits(following, hidden, positions_1T, packed))
    return torch.cat(parts, dim=-1)


def rows(lengths: list[int], seed: int = 0) -> list[torch.Tensor]:
    return [random_ids(VOCABULARY, 1, length, seed + at) for at, length in enumerate(lengths)]


def packed_outputs(model: CausalLM, ids: list[torch.Tensor]) -> torch.Tensor:
    packed = PackedSequences([one.shape[1] for one in ids])
    return outputs(model, torch.cat(ids, dim=1), packed.positions_1N, packed)


def alone_outputs(model: CausalLM, ids: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([outputs(model, one) for one in ids], dim=1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_packed_row_gives_the_logits_of_each_sequence_alone(kind):
    ids = rows([5, 17, 1, 9, 23, 16, 2])
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = network(kind, dtype)
        with torch.no_grad():
            assert_close(packed_outputs(model, ids), alone_outputs(model, ids), bound, str(dtype))


_DOUBLE = {kind: network(kind, torch.float64) for kind in NETWORKS}


@pytest.mark.parametrize("kind", NETWORKS)
@settings(max_examples=10, deadline=None)
@given(lengths=LENGTHS)
@example(lengths=[7, 7, 7])  # one group, nothing to move
@example(lengths=[20, 1, 20, 1])  # two groups, interleaved
@example(lengths=[1])
def test_whatever_the_lengths(kind, lengths):
    ids = rows(lengths, seed=len(lengths))
    with torch.no_grad():
        assert_close(packed_outputs(_DOUBLE[kind], ids), alone_outputs(_DOUBLE[kind], ids), 1e-10)


def gradients(model: CausalLM, out: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a sum that weighs every output differently."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((out * weights).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("lengths", [[5, 17, 1, 9, 23, 16, 2], [6, 6, 6]])
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_of_every_parameter_are_those_of_one_by_one(kind, lengths):
    model, ids = _DOUBLE[kind], rows(lengths)
    packed = gradients(model, packed_outputs(model, ids))
    alone = gradients(model, alone_outputs(model, ids))
    assert packed.keys() == alone.keys()
    for name, gradient in alone.items():
        assert float(gradient.abs().max()) > 0 or "experts" in name, name
        assert_close(packed[name], gradient, 1e-10, name)


@pytest.mark.parametrize("kind", ["dense", "v3"])
def test_gradients_are_those_of_a_padded_batch(kind):
    model, ids = _DOUBLE[kind], rows([5, 17, 9])
    padded = torch.zeros(3, 17, dtype=torch.int64)
    for row, one in zip(padded, ids, strict=True):
        row[: one.shape[1]] = one[0]
    out = model(padded)
    kept = torch.cat([out[at, : one.shape[1]] for at, one in enumerate(ids)])[None]
    expected = gradients(model, kept)
    for name, gradient in gradients(model, packed_outputs(model, ids)).items():
        assert_close(gradient, expected[name], 1e-10, name)


@pytest.mark.parametrize("lengths", [[5, 17, 1, 9, 16], [6, 6, 6, 6, 6]])
@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_another_sequence_changes_no_bit(kind, lengths):
    model = network(kind, torch.float32)
    if isinstance(model, DeepseekV3):
        # The path whose numbers do not depend on what the rest of the row chose.
        model.set_expert_path("gather")
    ids = rows(lengths)
    before = packed_outputs(model, ids)[0]
    for changed in range(len(ids)):
        other = list(ids)
        other[changed] = (ids[changed] + 1) % VOCABULARY
        after = packed_outputs(model, other)[0]
        start = sum(lengths[:changed])
        own = torch.zeros(len(before), dtype=torch.bool)
        own[start : start + lengths[changed]] = True
        assert torch.equal(after[~own], before[~own])
        assert not torch.equal(after[own], before[own])


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_gradient_goes_from_one_sequence_to_another(kind):
    model, lengths = _DOUBLE[kind], [5, 17, 1, 9, 16]
    packed = PackedSequences(lengths)
    ids = torch.cat(rows(lengths), dim=1)
    seen: list[torch.Tensor] = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *call: seen.append(call[2]))
    out = outputs(model, ids, packed.positions_1N, packed)
    handle.remove()
    for at, length in enumerate(lengths):
        own = packed.sequence_N == at
        # Later tokens of a sequence do not reach its first one either.
        (gradient,) = torch.autograd.grad(out[0, own].sum(), seen[0], retain_graph=True)
        assert int(own.sum()) == length
        assert not gradient[0, ~own].any()
        assert gradient[0, own].any(dim=-1).all()


def test_positions_and_owners_follow_from_the_lengths():
    packed = PackedSequences([2, 3, 1])
    assert packed.positions_1N.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert packed.sequence_N.tolist() == [0, 0, 1, 1, 1, 2]
    assert packed.starts == (0, 2, 5)
    assert packed.tokens == 6


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_an_empty_row_or_sequence_is_refused(lengths):
    with pytest.raises(ValueError, match="each of them a token"):
        PackedSequences(lengths)


def test_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match="a packed row of 5 tokens"):
        _DOUBLE["dense"].hidden(
            torch.zeros(1, 4, dtype=torch.int64), torch.arange(4)[None], PackedSequences([3, 2])
        )
