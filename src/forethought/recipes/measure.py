"""How long a token takes on this machine: a few real passes of the real network, random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.rollout import Rollout
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3.network import DeepseekV3
from forethought.recipes.recipe import Stage
from forethought.training.batches import PackedBatch, TokenSequence, lane_batches
from forethought.training.config import PretrainConfig, RLConfig, SFTConfig
from forethought.training.lanes import Lanes
from forethought.training.logprobs import token_logprobs

PROMPT_TOKENS: Final = 48
"""What a question with its template takes, roughly; only estimates depend on it."""
ROWS: Final = 256
"""Rows of the sampler where a stage does not say otherwise."""

_ENOUGH_SECONDS: Final = 1.5
_MOST_PASSES: Final = 4
_MOST_TOKENS: Final = 16_384
"""Of a measured pass: what a token takes hardly changes beyond."""
_DECODED: Final = (4, 20)
"""Lengths of two rollouts: their difference is what decoding takes, without the prompts."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one token: forward and backward in a packed micro-batch (``train``), and drawn by the
    sampler with `side_by_side` rows (``sample``)."""

    train: float
    sample: float


def text_tokens(stage: Stage) -> int:
    """Tokens of the longest text that the stage trains on."""
    if isinstance(stage, PretrainConfig):
        return stage.corpus.max_document_tokens
    if isinstance(stage, SFTConfig):
        return stage.max_length
    return PROMPT_TOKENS + stage.max_tokens


def side_by_side(stage: Stage) -> int:
    """Rows that the sampler computes at once: the stage's own samples, else held-out ones."""
    if isinstance(stage, RLConfig):
        return min(stage.rows, stage.problems_per_rollout * stage.group_size)
    return ROWS


def measure(network: CausalLM, stage: Stage, lanes: int = 1) -> Seconds:
    """Seconds of a token of ``stage``, from a few seconds of work on ``network``.

    With several ``lanes`` that many micro-batches are trained side by side; one lane samples.
    Texts are random ids of half the longest length: what they say does not change the time. The
    gradients of ``network`` are dropped. Raises ModelError where memory does not suffice.
    """
    train = _train(network, stage, lanes)
    network.zero_grad(set_to_none=True)
    return Seconds(train, _sample(network, side_by_side(stage)))


def _ids(network: CausalLM, count: int, length: int) -> list[tuple[int, ...]]:
    drawn = torch.Generator().manual_seed(0)
    size = network.config.vocab_size
    return [tuple(row) for row in torch.randint(size, (count, length), generator=drawn).tolist()]


def _train(network: CausalLM, stage: Stage, count: int) -> float:
    length = max(3, text_tokens(stage) // 2)
    room = min(stage.micro_batch_tokens, _MOST_TOKENS)
    texts = [TokenSequence(ids) for ids in _ids(network, max(count, room // length), length)]
    lanes = Lanes(network, count)
    parts = lane_batches([text.inputs for text in texts], room, count)[:count]
    batches = [PackedBatch([texts[at] for at in part], network.device) for part in parts]

    def backward(lane: int, batch: PackedBatch) -> None:
        loss = _loss(lanes.networks[lane], batch, mtp=isinstance(stage, PretrainConfig))
        loss.backward()  # type: ignore[no-untyped-call]

    def once() -> None:
        lanes.run(backward, batches)
        lanes.gather_gradients()

    return _quickest(once, network.device) / sum(batch.tokens for batch in batches)


def _loss(network: CausalLM, batch: PackedBatch, *, mtp: bool) -> torch.Tensor:
    hidden_1ND = network.hidden(batch.ids_1N, batch.positions_1N, batch.packed)
    logprobs, _ = token_logprobs(hidden_1ND[0, batch.rows_L], network.head_weight, batch.targets_L)
    loss = -logprobs.mean()
    if mtp and isinstance(network, DeepseekV3) and network.mtp is not None:
        further_1ND = network.mtp_hidden(
            batch.next_N[None], hidden_1ND, batch.positions_1N, batch.packed
        )
        rows = batch.second_rows_L
        second, _ = token_logprobs(
            further_1ND[0, rows], network.head_weight, batch.second_targets_L
        )
        loss = loss - second.mean()
    return loss


def _quickest(once: Callable[[], None], device: torch.device) -> float:
    """Seconds of the quickest pass after one to warm up: other work only ever adds to it."""
    best, spent = float("inf"), 0.0
    for attempt in range(1 + _MOST_PASSES):
        began = time.perf_counter()
        once()
        _wait(device)
        took = time.perf_counter() - began
        if attempt:
            best = min(best, took)
        spent += took
        if attempt and spent > _ENOUGH_SECONDS:
            break
    return best


def _sample(network: CausalLM, rows: int) -> float:
    rollout = Rollout(network, ends=(), vocabulary=network.config.vocab_size, rows=rows)
    prompts = _ids(network, rows, PROMPT_TOKENS)
    sampling = SamplingParameters(temperature=1.0, top_p=1.0)

    def of(length: int) -> Callable[[], None]:
        def once() -> None:
            rollout.sample(prompts, 1, range(rows), sampling, length)

        return once

    short, long = (_quickest(of(length), network.device) for length in _DECODED)
    return max(long - short, 1e-9) / ((_DECODED[1] - _DECODED[0]) * rows)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
