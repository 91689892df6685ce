"""The cost model against what the networks themselves compute and hold.

FLOPs: torch's own counter listens to every product while attention is spelled out token by token,
so that what is counted is what a causal token needs. Bytes: those of real tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from forethought.engines.torch.cache import RowCache
from forethought.models.causal_lm import CausalLM
from forethought.models.costs import Cost, CostModel
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.packed import PackedSequences
from forethought.training.batches import TokenSequence
from forethought.training.config import BalanceConfig
from forethought.training.supervised import Supervised
from tiny_training import optimizer_of, tiny_dense, tiny_v3

VOCABULARY = 53
USED = 50
"""Rows of the head that are tokens."""
LENGTHS = [5, 17, 1, 9]
NETWORKS: dict[str, Callable[[], CausalLM]] = {
    "dense": lambda: tiny_dense(VOCABULARY),
    "v3": lambda: tiny_v3(VOCABULARY),
    "v3 with MTP": lambda: tiny_v3(VOCABULARY, mtp=True),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> CausalLM:
    return NETWORKS[request.param]()


def costs_of(network: CausalLM, vocabulary: int = VOCABULARY) -> CostModel:
    return CostModel(network.config, value_bytes=network.dtype.itemsize, vocabulary=vocabulary)


# -- attention, spelled out: one token, the keys that it sees, two products


def attend_token(
    q_HK: torch.Tensor, k_GSK: torch.Tensor, v_GSV: torch.Tensor, scale: float
) -> torch.Tensor:
    """[H, V]."""
    repeats = len(q_HK) // len(k_GSK)
    k_HSK = k_GSK.repeat_interleave(repeats, dim=0)
    v_HSV = v_GSV.repeat_interleave(repeats, dim=0)
    scores_H1S = torch.bmm(q_HK[:, None], k_HSK.transpose(1, 2)) * scale
    return torch.bmm(scores_H1S.softmax(dim=-1), v_HSV)[:, 0]


def spelled(packed, layer, q_BHTK, k_BGTK, v_BGTV, scale):
    """In place of `PackedSequences.attend`."""
    out = []
    for start, length in zip(packed.starts, packed.lengths, strict=True):
        for at in range(start, start + length):
            seen = slice(start, at + 1)
            k_GSK, v_GSV = k_BGTK[0, :, seen], v_BGTV[0, :, seen]
            out.append(attend_token(q_BHTK[0, :, at], k_GSK, v_GSV, scale))
    return torch.stack(out, dim=1)[None]


class SpelledCache:
    """Keys and values of rows, by list. A pass computes whole prompts [1, N], or one token of each
    row [B, 1]; latents are values as far as ``latent`` columns go."""

    def __init__(self, latent: int) -> None:
        self._latent = latent
        self._stored: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._rows: list[int] = []

    def expect(self, rows: list[int]) -> None:
        """Whose tokens the next pass computes, in order."""
        self._rows = rows

    def attend(self, layer, q_BHTK, k_BGTK, v_BGTV, scale):
        values = k_BGTK[..., : self._latent] if v_BGTV is None else v_BGTV
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTK, k_BGTK, values))
        out = []
        for at, row in enumerate(self._rows):
            stored = self._stored.setdefault((layer, row), [])
            stored.append((k[at], v[at]))
            keys, seen = (torch.stack(parts, dim=1) for parts in zip(*stored, strict=True))
            out.append(attend_token(q[at], keys, seen, scale))
        out_NHV = torch.stack(out)
        if v_BGTV is None:
            out_NHV = torch.nn.functional.pad(out_NHV, (0, k.shape[-1] - self._latent))
        return out_NHV.view(q_BHTK.shape[0], q_BHTK.shape[2], *out_NHV.shape[1:]).transpose(1, 2)


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """A way to ask how many FLOPs the products within it took."""

    def added(_self, a_shape, b_shape, **_: object) -> int:
        return 2 * a_shape[0] * a_shape[1] * b_shape[1]

    found = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
    with found:
        yield found.get_total_flops


def texts(prompts: list[int]) -> list[TokenSequence]:
    rng = torch.Generator().manual_seed(1)
    return [
        TokenSequence(tuple(torch.randint(USED, (n + 1,), generator=rng).tolist()), prompt)
        for n, prompt in zip(LENGTHS, prompts, strict=True)
    ]


# -- FLOPs


def test_flops_of_a_training_step_are_those_of_its_products(network, monkeypatch):
    monkeypatch.setattr(PackedSequences, "attend", spelled)
    mtp = isinstance(network, DeepseekV3) and network.mtp is not None
    trainer = Supervised(
        network,
        optimizer_of(network),
        vocabulary=USED,
        micro_batch_tokens=1000,
        balance=BalanceConfig(loss_weight=0.0),
        mtp_weight=0.3 if mtp else 0.0,
    )
    # Prompts are not trained: the head sees the other tokens alone.
    prompts = [3, 10, 1, 4]
    sequences = texts(prompts)
    with counted() as flops:
        trainer.step(sequences, 1e-3)
        found = flops()
    loss = sum(n + 1 - prompt for n, prompt in zip(LENGTHS, prompts, strict=True))
    # Of each sequence the last input has nothing after its next token, and the token before the
    # first trained one predicts it from one place earlier where there is such a place.
    second = sum(
        min(n - 1, n + 1 - max(prompt, 2)) for n, prompt in zip(LENGTHS, prompts, strict=True)
    )
    costs = costs_of(network, USED)
    assert found == costs.training(LENGTHS, loss, second if mtp else None).flops
    forward = costs.forward(LENGTHS, loss, second if mtp else None).flops
    assert 3 * forward == found


def test_flops_of_a_forward_pass(network, monkeypatch):
    monkeypatch.setattr(PackedSequences, "attend", spelled)
    packed = PackedSequences(LENGTHS)
    ids = torch.zeros(1, packed.tokens, dtype=torch.int64)
    with counted() as flops, torch.no_grad():
        network.hidden(ids, packed.positions_1N, packed)
        found = flops()
    assert found == costs_of(network).forward(LENGTHS, 0).flops > 0


def test_flops_of_prefill_and_decode_are_those_of_their_products(network):
    cache = SpelledCache(getattr(network.config, "kv_lora_rank", 0))
    packed = PackedSequences(LENGTHS)
    ids = torch.zeros(1, packed.tokens, dtype=torch.int64)
    costs = costs_of(network)
    with torch.no_grad():
        cache.expect(packed.sequence_N.tolist())
        with counted() as flops:
            hidden_1ND = network.hidden(ids, packed.positions_1N, cache)
            network.logits(hidden_1ND[0, :4])
            assert flops() == costs.prefill(LENGTHS, logits=4).flops
        stored = torch.tensor(LENGTHS)
        cache.expect(list(range(len(LENGTHS))))
        for step in range(2):
            with counted() as flops:
                hidden_B1D = network.hidden(ids[:, :4].T, (stored + step)[:, None], cache)
                network.logits(hidden_B1D[:, 0])
                context = sum(LENGTHS) + (step + 1) * len(LENGTHS)
                assert flops() == costs.decode(len(LENGTHS), context).flops


def test_the_head_counts_for_loss_tokens_alone(network):
    costs = costs_of(network, USED)
    more = costs.forward(LENGTHS, 7).flops - costs.forward(LENGTHS, 4).flops
    assert more == 3 * 2 * network.config.hidden_size * USED


# -- bytes


def weights(network: CausalLM) -> int:
    """Bytes of what every step reads: no embedding but a tied one, no MTP module."""
    tied = network.config.tie_word_embeddings
    return sum(
        tensor.nbytes
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        if not name.startswith(("mtp.", "rotary")) and (tied or name != "model.embed_tokens.weight")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_decode_step_are_those_of_its_tensors(network, dtype):
    network = network.to(dtype)
    costs = costs_of(network)
    cache = RowCache(network.config.num_hidden_layers)
    cache.reserve(4, 64)
    packed = PackedSequences([3] * 4)
    cache.prefill_packed(range(4), packed)
    ids = torch.zeros(1, 12, dtype=torch.int64)
    with torch.no_grad():
        hidden_1ND = network.hidden(ids, packed.positions_1N, cache)
        logits_BV = network.logits(hidden_1ND[0, :4]).float()
    of_a_token = cache.bytes / (4 * 64)
    rows = 4000  # so many that every expert is met
    embedded = network.model.embed_tokens.weight[:1].nbytes * rows
    logits = logits_BV[:1].nbytes * rows
    wanted = weights(network) + embedded + (9 * rows + rows) * of_a_token + logits
    assert costs.decode(rows, 9 * rows).bytes == pytest.approx(wanted, rel=1e-12)
    assert costs.draw(rows).bytes == logits
    prefilled = costs.prefill([9] * rows, logits=rows).bytes
    wanted = weights(network) + 9 * embedded + 9 * rows * of_a_token + logits
    assert prefilled == pytest.approx(wanted, rel=1e-12)


def test_bytes_of_training_are_weights_twice_and_gradients_once(network):
    mtp = isinstance(network, DeepseekV3) and network.mtp is not None
    sequences = [TokenSequence(tuple(range(USED)))] * 40
    trainer = Supervised(
        network,
        optimizer_of(network),
        vocabulary=VOCABULARY,
        micro_batch_tokens=10_000,
        balance=BalanceConfig(),
        mtp_weight=0.3 if mtp else 0.0,
    )
    written = 0

    def keep(*_: object) -> None:
        nonlocal written
        written = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)

    trainer.step(sequences, 1e-3, check=keep)
    lengths = [one.inputs for one in sequences]
    costs = costs_of(network)
    loss, second = sum(lengths), sum(lengths) - len(lengths)
    read = weights(network)
    embedded = network.model.embed_tokens.weight[:1].nbytes * sum(lengths)
    if mtp:
        read += sum(tensor.nbytes for tensor in network.mtp.state_dict().values())
        embedded *= 2
    wanted = 2 * read + embedded + written
    found = costs.training(lengths, loss, second if mtp else None)
    assert found.bytes == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_an_optimiser_step_are_those_of_its_state(network, dtype):
    network = network.to(dtype)
    mtp = isinstance(network, DeepseekV3) and network.mtp is not None
    optimizer = optimizer_of(network)
    state = optimizer.state_tensors()
    moments = sum(t.nbytes for name, t in state.items() if name.endswith((".exp_avg", "avg_sq")))
    masters = sum(t.nbytes for name, t in state.items() if name.endswith(".master"))
    own = sum(parameter.nbytes for parameter in network.parameters())
    if dtype == torch.bfloat16:
        gradients, written = masters, masters + own
    else:
        gradients = masters = written = own
    wanted = 2 * gradients + 2 * moments + masters + written
    assert costs_of(network).optimizer_step(mtp=mtp) == Cost(0, wanted)


def test_parameters_are_those_of_the_network(network):
    mtp = isinstance(network, DeepseekV3) and network.mtp is not None
    assert costs_of(network).trained_parameters(mtp=mtp) == network.num_parameters()


def test_experts_that_few_tokens_reach():
    """Four experts of which each token takes two: by listing all that two tokens may do."""
    config = tiny_v3(VOCABULARY).config.model_copy(
        update={"n_routed_experts": 4, "num_experts_per_tok": 2}
    )
    costs = CostModel(config)
    pairs = list(itertools.combinations(range(4), 2))
    reached = [len({*one, *other}) / 4 for one in pairs for other in pairs]
    assert costs.touched_experts(2) == pytest.approx(sum(reached) / len(reached))
    assert costs.touched_experts(1) == 0.5
    assert costs.touched_experts(0) == 0.0
    # A step of one row reads half of the experts, a large one all of them.
    experts = 3 * config.moe_intermediate_size * config.hidden_size * 4 * 2  # two layers of four
    rest = costs.decode(1, 1).bytes - 0.5 * experts * 4
    assert costs.decode(1000, 1000).bytes == pytest.approx(
        rest + experts * 4 + 999 * (rest_of_a_row(costs)), rel=1e-9
    )


def rest_of_a_row(costs: CostModel) -> float:
    """What one more row moves besides weights: its embedding, cache and logits."""
    return costs.decode(3001, 3001).bytes - costs.decode(3000, 3000).bytes


def test_a_dense_network_has_no_experts():
    assert CostModel(tiny_dense(VOCABULARY).config).touched_experts(9) == 0.0


def test_costs_add_up():
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)
