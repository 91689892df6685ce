"""What a step computes against the network's own forward pass, without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from deepseek_reference import V2, V3
from reference import assert_close, ours, random_ids, random_reference, relative_error
from rounding_noise import found_error, predicted_error
from test_dense import CASES
from transformers import PreTrainedModel

from forethought.checkpoints.network_config import DenseConfig
from forethought.engines.torch import kernels
from forethought.engines.torch.cache import RowCache
from forethought.engines.torch.kernels import Precision, can_block, can_int8, has_vnni
from forethought.engines.torch.programs import (
    DenseProgram,
    NetworkProgram,
    Program,
    make_program,
)
from forethought.models.causal_lm import CausalLM
from forethought.models.loading import build

LENGTHS = [1, 33, 64, 70]
STEPS = 4
BOUND = {"float32": 1e-5, "bfloat16": 0.04}
"""Largest error as a share of the largest logit."""
INT8_BOUND = {False: 0.1, True: 0.2}
"""The same, by whether weights are narrow. Their steps are at most twice as wide then, so all the
rounding costs at most twice as much."""
INT8_SLACK = 1.25
"""Times what `rounding_noise` predicts, root mean square. Found: 0.88 to 1.14 times, over five
networks of four seeds each, with wide weights; activations of 7 bits in place of 8 would be 1.4
times and more."""


def through_rows(
    program: Program, rows: list[torch.Tensor], lengths: list[int], chunk: int = 1000
) -> list[torch.Tensor]:
    """Logits of every token of each row: its prompt in chunks, the rest in steps of all rows."""
    cache = RowCache(program.layers)
    bucket = 1 << (len(rows) - 1).bit_length()
    cache.reserve(bucket, 8)
    logits: list[list[torch.Tensor]] = [[] for _ in rows]
    with torch.inference_mode():
        for row, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
            for start in range(0, length, chunk):
                part = ids[start : min(start + chunk, length)]
                cache.reserve(bucket, length)
                cache.prefill(row, start, len(part))
                positions = torch.arange(start, start + len(part))[None]
                hidden = program.hidden(part[None], positions, cache)
                logits[row].append(program.logits(hidden))
        padding = [0] * (bucket - len(rows))
        for step in range(min(len(ids) - n for ids, n in zip(rows, lengths, strict=True))):
            now = [length + step for length in lengths]
            cache.reserve(bucket, max(now) + 1)
            ids_B = torch.tensor(
                [int(ids[at]) for ids, at in zip(rows, now, strict=True)] + padding
            )
            lengths_B = torch.tensor(now + padding)
            cache.decode(lengths_B, max(now), program.dtype)
            hidden = program.hidden(ids_B[:, None], lengths_B[:, None], cache)
            for row, one in enumerate(program.logits(hidden)[: len(rows)]):
                logits[row].append(one[None])
    return [torch.cat(parts).float() for parts in logits]


def rows_of(vocabulary: int, lengths: list[int] = LENGTHS) -> list[torch.Tensor]:
    return [
        random_ids(vocabulary, 1, length + STEPS, seed=seed)[0]
        for seed, length in enumerate(lengths)
    ]


def whole(network: CausalLM, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [network(ids[None])[0].float() for ids in rows]


def compare(
    program: Program,
    rows: list[torch.Tensor],
    expected: list[torch.Tensor],
    bound: float,
    chunks: tuple[int, ...] = (32,),
) -> None:
    for chunk in chunks:
        got = through_rows(program, rows, LENGTHS, chunk)
        for row, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
            assert_close(mine, theirs, bound, f"row {row}, chunks of {chunk}")


def usable(precision: str) -> bool:
    return {
        "float32": True,
        "bfloat16": can_block(torch.bfloat16),
        "int8": can_int8(),
    }[precision]


@pytest.mark.parametrize("case", CASES)
def test_dense_float32_equals_the_network(case: str, tmp_path: Path) -> None:
    network = ours(random_reference(CASES[case], seed=3), tmp_path)
    rows = rows_of(97)
    expected = whole(network, rows)
    program = make_program(network, "float32")
    assert isinstance(program, DenseProgram)
    chunks = (1000, 24) if case in ("llama", "qwen3") else (32,)
    compare(program, rows, expected, BOUND["float32"], chunks)


FEW_BITS = ["llama3-tied", "llama-biases", "qwen2-tied", "qwen3"]


@pytest.mark.skipif(not can_block(torch.bfloat16), reason="no bfloat16 on this machine")
@pytest.mark.parametrize("case", FEW_BITS)
def test_dense_bfloat16_is_near_the_network(case: str, tmp_path: Path) -> None:
    network = ours(random_reference(CASES[case], seed=3), tmp_path)
    rows = rows_of(97)
    expected = whole(network, rows)
    program = make_program(network.to(torch.bfloat16), "bfloat16")
    compare(program, rows, expected, BOUND["bfloat16"])


@pytest.fixture(params=[False, True], ids=["wide", "narrow"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Weights as on a CPU without VNNI, on any CPU, and as with VNNI where it has that."""
    if not can_int8():
        pytest.skip("no int8 on this machine")
    found: bool = request.param
    if found:
        monkeypatch.setattr(kernels, "has_vnni", lambda: False)
    elif not has_vnni():
        pytest.skip("products of wide weights saturate on a CPU without VNNI")
    return found


def check_int8(reference: PreTrainedModel, folder: Path, *, narrow: bool) -> None:
    network, rows = ours(reference, folder / "network"), rows_of(97)
    expected = whole(network, rows)
    got = through_rows(make_program(network, "int8"), rows, LENGTHS, 32)
    for row, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        assert_close(mine, theirs, INT8_BOUND[narrow], f"row {row}")
    predicted = predicted_error(ours(reference, folder / "noisy"), rows, narrow=narrow)
    assert found_error(got, expected) < INT8_SLACK * predicted


@pytest.mark.parametrize("case", FEW_BITS)
def test_dense_int8_is_as_near_as_its_rounding_allows(
    case: str, narrow: bool, tmp_path: Path
) -> None:
    check_int8(random_reference(CASES[case], seed=3), tmp_path, narrow=narrow)


def test_shared_parameters_stay_and_give_the_same(tmp_path: Path) -> None:
    """`share`: what is trained is what is sampled from, also after a step of the optimiser."""
    network = ours(random_reference(CASES["qwen3"], seed=3), tmp_path)
    parameters = dict(network.named_parameters())
    program = make_program(network, "float32", share=True)
    assert isinstance(program, NetworkProgram)
    rows = rows_of(97)
    compare(program, rows, whole(network, rows), BOUND["float32"])
    after = dict(network.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is parameters[name] for name in parameters)
    assert all(parameter.requires_grad for parameter in after.values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1).add_(0.01)
    compare(program, rows, whole(network, rows), BOUND["float32"])


DEEPSEEK: dict[str, dict[str, Any]] = {
    "v3": V3,
    "v3-tied-halves": {**V3, "tie_word_embeddings": True, "rope_interleave": False},
    "v2": {**V2, "topk_group": 1, "n_group": 1},
}


def deepseek(name: str, tmp_path: Path) -> CausalLM:
    reference = random_reference({**DEEPSEEK[name], "max_position_embeddings": 256}, seed=4)
    return ours(reference, tmp_path)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", DEEPSEEK)
def test_deepseek_float32_equals_the_network(name: str, share: bool, tmp_path: Path) -> None:
    network = deepseek(name, tmp_path)
    rows = rows_of(97)
    expected = whole(network, rows)
    program = make_program(network, "float32", share=share)
    assert isinstance(program, NetworkProgram)
    compare(program, rows, expected, BOUND["float32"])


def deepseek_of_all_experts() -> PreTrainedModel:
    """Without a choice of experts, which a rounding may turn: all of them are taken."""
    every = {"num_experts_per_tok": 12, "topk_group": 4, "max_position_embeddings": 256}
    return random_reference({**V3, **every}, seed=4)


@pytest.mark.skipif(not can_block(torch.bfloat16), reason="no bfloat16 on this machine")
def test_deepseek_bfloat16_is_near_the_network(tmp_path: Path) -> None:
    network = ours(deepseek_of_all_experts(), tmp_path)
    rows = rows_of(97)
    expected = whole(network, rows)
    program = make_program(network.to(torch.bfloat16), "bfloat16")
    compare(program, rows, expected, BOUND["bfloat16"])


def test_deepseek_int8_is_as_near_as_its_rounding_allows(narrow: bool, tmp_path: Path) -> None:
    check_int8(deepseek_of_all_experts(), tmp_path, narrow=narrow)


BITS = DenseConfig(
    model_type="llama",
    vocab_size=97,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    rope_theta=1e4,
    initializer_range=0.15,
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32])
def test_a_rows_logits_have_the_same_bits_in_any_company(rows: int, precision: Precision) -> None:
    """The same bucket, other neighbours (of other lengths) and another place."""
    if not usable(precision):
        pytest.skip(f"no {precision} on this machine")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    network = build(BITS, dtype=dtype, generator=torch.Generator().manual_seed(1))
    program = make_program(network, precision)
    mine = random_ids(97, 1, 30 + STEPS, seed=77)[0]
    seen: torch.Tensor | None = None
    for at, other in ((0, 5), (rows - 1, 600), (rows // 2, 64)):
        batch = [random_ids(97, 1, other + STEPS, seed=row)[0] for row in range(rows)]
        lengths = [other] * rows
        batch[at], lengths[at] = mine, 30
        logits = through_rows(program, batch, lengths)[at]
        seen = logits if seen is None else seen
        assert torch.equal(logits, seen), (at, other)


def test_a_program_frees_what_it_takes_over(tmp_path: Path) -> None:
    """At most one layer is held twice: the network keeps no weight that the program laid out."""
    network = ours(random_reference(CASES["llama"], seed=3), tmp_path)
    before = network.num_parameters()
    make_program(network, "float32")
    assert network.num_parameters() < before / 20
    mixture = deepseek("v3", tmp_path / "v3")
    linear = sum(
        part.weight.numel()
        for name, part in mixture.named_modules()
        if isinstance(part, torch.nn.Linear) and not name.endswith("kv_b_proj")
    )
    before = mixture.num_parameters()
    make_program(mixture, "float32")
    assert mixture.num_parameters() <= before - linear


def test_errors_of_the_comparison_are_seen() -> None:
    """The measure itself: a wrong logit is no small error."""
    expected = torch.randn(3, 97)
    wrong = expected.clone()
    wrong[1, 5] += 0.01
    assert relative_error(wrong, expected) > 1e-3
