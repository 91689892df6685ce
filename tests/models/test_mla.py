"""Latent attention: absorbed equals plain, and the equations read aloud in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from deepseek_reference import V3, YARN, config_of, constructed, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import assert_close, random_ids, random_reference

from forethought.checkpoints.network_config import DeepseekConfig
from forethought.models.cache import PlainCache
from forethought.models.deepseek_v3.mla import MLA
from forethought.models.rope import rotary_cos_sin, rotary_table

CONFIG = config_of(random_reference(V3))


def layer_of(config: DeepseekConfig, seed: int = 0) -> MLA:
    generator = torch.Generator().manual_seed(seed)
    layer = MLA(config, 0).double()
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
    return layer


def rotation(config: DeepseekConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    table = rotary_table(config.rope_theta, config.qk_rope_head_dim, config.rope_scaling, 64)
    return rotary_cos_sin(table, positions, torch.float64)


def equations(
    layer: MLA, x_TD: torch.Tensor, cos_TR: torch.Tensor, sin_TR: torch.Tensor
) -> torch.Tensor:
    """Equations 1 to 11 for one sequence, one head and one pair of tokens at a time."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + 1e-6).sqrt() * weight

    def turn(x: torch.Tensor, t: int) -> torch.Tensor:
        pairs = torch.view_as_complex(x.clone().view(-1, 2))
        return torch.view_as_real(pairs * torch.complex(cos_TR[t], sin_TR[t])).flatten()

    c = CONFIG
    queries, keys, values = [], [], []
    for t, x in enumerate(x_TD):
        latent = norm(layer.q_a_proj.weight @ x, layer.q_a_layernorm.weight)
        q = (layer.q_b_proj.weight @ latent).view(c.num_attention_heads, -1)
        joint = layer.kv_a_proj_with_mqa.weight @ x
        rope = turn(joint[c.kv_lora_rank :], t)
        latent = norm(joint[: c.kv_lora_rank], layer.kv_a_layernorm.weight)
        kv = (layer.kv_b_proj.weight @ latent).view(c.num_attention_heads, -1)
        n = c.qk_nope_head_dim
        queries.append([torch.cat((row[:n], turn(row[n:], t))) for row in q])
        keys.append([torch.cat((row[:n], rope)) for row in kv])
        values.append([row[n:] for row in kv])
    scale = c.qk_head_dim**-0.5 * (0.1 * YARN["mscale_all_dim"] * math.log(4.0) + 1.0) ** 2
    rows = []
    for t in range(len(x_TD)):
        heads = []
        for h in range(c.num_attention_heads):
            scores = torch.stack([queries[t][h] @ keys[s][h] * scale for s in range(t + 1)])
            shares = scores.softmax(0)
            heads.append(sum(shares[s] * values[s][h] for s in range(t + 1)))
        rows.append(layer.o_proj.weight @ torch.cat(heads))
    return torch.stack(rows)


@torch.no_grad()
def test_attention_is_that_of_the_equations() -> None:
    layer = layer_of(CONFIG)
    x_BTD = torch.randn(1, 20, 45, dtype=torch.float64)
    cos_BTR, sin_BTR = rotation(CONFIG, torch.arange(20)[None])
    expected = equations(layer, x_BTD[0], cos_BTR[0], sin_BTR[0])
    plain = layer(x_BTD, cos_BTR, sin_BTR, None)
    torch.testing.assert_close(plain[0], expected)
    absorbed = layer(x_BTD, cos_BTR, sin_BTR, PlainCache(1, 20, 1))
    torch.testing.assert_close(absorbed[0], expected)


class Widths(PlainCache):
    """A cache that remembers what it was given."""

    def attend(
        self,
        layer: int,
        q_BHTK: torch.Tensor,
        k_BGTK: torch.Tensor,
        v_BGTV: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        self.key = tuple(k_BGTK.shape)
        self.value = None if v_BGTV is None else tuple(v_BGTV.shape)
        return super().attend(layer, q_BHTK, k_BGTK, v_BGTV, scale)


@torch.no_grad()
def test_the_absorbed_cache_holds_one_latent_row_a_token() -> None:
    layer = layer_of(CONFIG)
    x_BTD = torch.randn(2, 4, 45, dtype=torch.float64)
    turns = rotation(CONFIG, torch.arange(4).expand(2, 4))
    cache = Widths(2, 4, 1)
    layer(x_BTD, *turns, cache)
    assert cache.key == (2, 1, 4, 26 + 6)
    assert cache.value is None
    layer.absorb = False
    cache = Widths(2, 4, 1)
    layer(x_BTD, *turns, cache)
    assert cache.key == (2, 5, 4, 11 + 6)
    assert cache.value == (2, 5, 4, 9)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    batch=st.integers(1, 3),
    changes=st.sampled_from([{}, {"q_lora_rank": None}, {"rope_interleave": False}]),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_absorbed_equals_plain_however_the_tokens_come(
    steps: list[int], batch: int, changes: dict[str, Any], seed: int
) -> None:
    config = CONFIG.model_copy(update=changes)
    layer = layer_of(config, seed)
    total = sum(steps)
    generator = torch.Generator().manual_seed(seed)
    x_BTD = torch.randn(batch, total, 45, generator=generator, dtype=torch.float64)
    cos_BTR, sin_BTR = rotation(config, torch.arange(total).expand(batch, total))
    whole = layer(x_BTD, cos_BTR, sin_BTR, None)
    for absorb in (True, False):
        layer.absorb = absorb
        cache, parts, first = PlainCache(batch, total, 1), [], 0
        for new in steps:
            part = slice(first, first + new)
            parts.append(layer(x_BTD[:, part], cos_BTR[:, part], sin_BTR[:, part], cache))
            first += new
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_a_whole_network_absorbed_equals_plain() -> None:
    network, _ = pair(V3)
    ids = random_ids(97, 2, 30)
    results = []
    for absorb in (True, False):
        network.absorb = absorb
        cache = PlainCache(2, 30, layers=3)
        steps = [network(ids[:, :25], cache.positions(25), cache)]
        steps += [network(ids[:, t : t + 1], cache.positions(1), cache) for t in range(25, 30)]
        results.append(torch.cat(steps, dim=1))
    assert_close(results[0], results[1], 1e-5)


def test_absorbing_copies_no_weight() -> None:
    layer = layer_of(CONFIG).float()
    seen: list[int] = []
    bmm = torch.bmm

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(b.untyped_storage().data_ptr())
        return bmm(a, b)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "bmm", watched)
        cos_BTR, sin_BTR = (part.float() for part in rotation(CONFIG, torch.arange(3)[None]))
        layer(torch.randn(1, 3, 45), cos_BTR, sin_BTR, PlainCache(1, 3, 1))
    assert seen == [layer.kv_b_proj.weight.untyped_storage().data_ptr()] * 2


def test_gradients_flow_through_the_absorbed_form_too() -> None:
    network = constructed(CONFIG)
    ids = random_ids(97, 1, 12)
    cache = PlainCache(1, 12, layers=3)
    network(ids, cache.positions(12), cache).logsumexp(-1).sum().backward()
    absorbed = network.model.layers[0].self_attn.kv_b_proj.weight.grad.clone()
    network.zero_grad()
    network(ids).logsumexp(-1).sum().backward()
    assert_close(absorbed, network.model.layers[0].self_attn.kv_b_proj.weight.grad, 1e-4)
