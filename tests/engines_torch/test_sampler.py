"""The fast sampler against the sorted float64 reference, and that against plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.noise import uniform
from forethought.engines.torch.sampler import (
    RowParameters,
    Sampler,
    distribution,
    draw,
    raw_logprobs,
)
from forethought.errors import ModelError, UserError

INF = math.inf
PLAIN = SamplingParameters(1.0, 1.0)
GREEDY = SamplingParameters(0.0, 1.0)
KINDS = [
    SamplingParameters(),
    PLAIN,
    GREEDY,
    SamplingParameters(0.7, 1.0),
    SamplingParameters(1.5, 1.0, min_p=0.05),
    SamplingParameters(0.6, 1.0, top_k=50),
    SamplingParameters(0.6, 0.9, top_k=20, min_p=0.1),
    SamplingParameters(0.1, 0.99),
]


def by_hand(logits: list[float], sampling: SamplingParameters) -> list[float]:
    """`distribution` of one row, token by token."""
    best = max(logits)
    weight = [math.exp((x - best) / sampling.temperature) for x in logits]
    kept = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    if sampling.top_p < 1:
        total, mass, nucleus = math.fsum(weight[token] for token in kept), 0.0, []
        for token in kept:
            nucleus.append(token)
            mass += weight[token]
            if mass >= sampling.top_p * total:
                break
        kept = nucleus
    kept = [token for token in kept if weight[token] >= sampling.min_p]
    total = math.fsum(weight[token] for token in kept)
    return [weight[token] / total if token in kept else 0.0 for token in range(len(logits))]


some_logits = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 2.5, -3.0, -INF]), st.floats(-20, 20, width=32)),
    min_size=1,
    max_size=80,
).filter(lambda logits: max(logits) > -INF)
# Bounds that no sum of tied tokens meets exactly, where one rounding would decide.
some_sampling = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.05, 0.3, 0.6, 1.0, 1.7]),
    top_p=st.sampled_from([0.0, 0.1234, 0.51234, 0.91234, 0.9991234, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40, 1000]),
    min_p=st.sampled_from([0.0, 0.051234, 0.51234, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(some_logits, some_sampling)
def test_reference_equals_plain_python(logits, sampling):
    got = distribution(torch.tensor([logits]), sampling)[0]
    expected = torch.tensor(by_hand(logits, sampling), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def check_draws(logits_BV: torch.Tensor, sampling: SamplingParameters, seed: int = 0) -> None:
    """Ids and log-probabilities of the fast path are those of the reference."""
    rows = len(logits_BV)
    sampler = Sampler([RowParameters(sampling, seed, i, "sampling") for i in range(rows)])
    position_B = torch.full((rows,), 3)
    drawn = sampler.sample(logits_BV, position_B)
    assert drawn.ids_B.dtype == torch.int64
    assert drawn.logprobs_B is not None
    probs_BV = distribution(logits_BV, sampling)
    noise_B = uniform(torch.full((rows,), seed), torch.arange(rows), position_B)
    sums_BV = probs_BV.cumsum(-1)
    expected_B = (sums_BV <= noise_B[:, None]).sum(-1)
    for row in range(rows):
        token, noise = int(drawn.ids_B[row]), float(noise_B[row])
        probability = float(probs_BV[row, token])
        assert probability > 0
        if token != int(expected_B[row]):
            upper = float(sums_BV[row, token])
            assert min(abs(upper - noise), abs(upper - probability - noise)) < 1e-5
        logprob = float(drawn.logprobs_B[row])
        assert logprob == pytest.approx(math.log(probability), rel=1e-6, abs=1e-12)
        assert logprob <= 0


@settings(max_examples=150, deadline=None)
@given(some_logits, some_sampling, st.integers(0, 2**63 - 1))
def test_draws_equal_the_reference(logits, sampling, seed):
    check_draws(torch.tensor([logits] * 8), sampling, seed)


def family(name: str, vocabulary: int, rows: int) -> torch.Tensor:
    noise = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1))
    rank = torch.arange(1, vocabulary + 1).float()
    match name:
        case "flat":
            return torch.zeros(rows, vocabulary)
        case "nearly flat":
            return noise * 0.3
        case "wide":
            return noise * 4
        case "peaked":
            zipf = (-2.5 * rank.log()).expand(rows, -1)
            return zipf.gather(1, noise.argsort(-1)) + 30
        case "one token":
            return noise.scatter(1, torch.full((rows, 1), vocabulary // 3), 60.0)
        case "few levels":
            return noise.round()
        case "holes":
            return noise.masked_fill(noise < 1, -INF)
    raise AssertionError(name)


FAMILIES = ["flat", "nearly flat", "wide", "peaked", "one token", "few levels", "holes"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("vocabulary", [49152, 1000])
def test_large_vocabularies(name, vocabulary):
    logits_BV = family(name, vocabulary, 2)
    for sampling in KINDS:
        check_draws(logits_BV, sampling)
    check_draws(logits_BV, SamplingParameters(1.0, 1.0, top_k=900), 5)
    check_draws(logits_BV, SamplingParameters(1.0, 1.0, min_p=1.0), 5)


def test_frequencies():
    """Eight tokens, 12,800 draws: chi-square under the distribution that is reported."""
    sampling = SamplingParameters(0.8, 0.97)
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -4.0, 2.0, 1.5])
    sampler = Sampler([RowParameters(sampling, 11, i) for i in range(64)])
    counts = torch.zeros(8)
    for position in range(200):
        ids_B = sampler.sample(logits_V.expand(64, -1), torch.full((64,), position)).ids_B
        counts += torch.bincount(ids_B, minlength=8)
    expected = distribution(logits_V[None], sampling)[0].float() * counts.sum()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("vocabulary", [320, 4096, 49152])
def test_a_row_does_not_depend_on_the_others(vocabulary):
    """Bit-equal alone, in any company and at any place, whatever the others' parameters."""
    rows = [RowParameters(KINDS[i % len(KINDS)], i // 3, i, "sampling") for i in range(16)]
    names = ["peaked", "nearly flat", "one token", "few levels"]
    logits_BV = torch.cat([family(name, vocabulary, 4) for name in names])
    position_B = torch.arange(16) * 17
    whole = Sampler(rows).sample(logits_BV, position_B)
    for members in ([3], [9], [15, 2, 7, 7, 1], list(range(8)), list(range(15, -1, -1))):
        part = Sampler([rows[i] for i in members]).sample(logits_BV[members], position_B[members])
        assert torch.equal(part.ids_B, whole.ids_B[members])
        assert torch.equal(part.logprobs_B, whole.logprobs_B[members])
    for kind in KINDS:
        same = [RowParameters(kind, 5, i, "sampling") for i in range(16)]
        whole = Sampler(same).sample(logits_BV, position_B)
        for i in (0, 6, 11):
            alone = Sampler(same[i : i + 1]).sample(logits_BV[i : i + 1], position_B[i : i + 1])
            assert torch.equal(alone.ids_B, whole.ids_B[i : i + 1])
            assert torch.equal(alone.logprobs_B, whole.logprobs_B[i : i + 1])


def test_asking_for_logprobs_changes_no_draw():
    logits_BV = family("wide", 4096, 16)
    position_B = torch.arange(16)
    for kind in KINDS:
        ids = [
            Sampler([RowParameters(kind, 5, i, asked) for i in range(16)])
            .sample(logits_BV, position_B)
            .ids_B
            for asked in (None, "sampling", "raw")
        ]
        assert torch.equal(ids[0], ids[1])
        assert torch.equal(ids[0], ids[2])


def test_greedy_takes_the_lower_of_equals_with_logprob_zero():
    logits_BV = torch.zeros(3, 200)
    logits_BV[0, [70, 130, 199]] = 4
    logits_BV[1, [199, 198]] = 1
    for temperature in (0.0, 1e-7):
        rows = [RowParameters(SamplingParameters(temperature), 0, i, "sampling") for i in range(3)]
        drawn = Sampler(rows).sample(logits_BV, torch.arange(3))
        assert drawn.ids_B.tolist() == [70, 198, 0]
        assert drawn.logprobs_B.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("vocabulary", [49152, 1001, 320])
def test_raw_logprobs(name, vocabulary):
    logits_BV = family(name, vocabulary, 3)
    expected_BV = logits_BV.double().log_softmax(-1)
    for ids_B in (logits_BV.argmax(-1), logits_BV.argmax(-1).flip(0), torch.tensor([0, 7, 301])):
        expected_B = expected_BV.gather(-1, ids_B[:, None])[:, 0]
        torch.testing.assert_close(raw_logprobs(logits_BV, ids_B), expected_B, rtol=1e-6, atol=0)


def test_near_certainty_keeps_its_digits():
    """A log-probability of -1e-9 is that, and not the rounding of 1."""
    logits_BV = torch.zeros(1, 49152)
    logits_BV[0, 77] = 32.0
    for kind in (PLAIN, SamplingParameters(0.9, 1.0)):
        drawn = Sampler([RowParameters(kind, 0, 0, "sampling")]).sample(
            logits_BV, torch.zeros(1, dtype=torch.int64)
        )
        others = 49151 * math.exp(-32 / kind.temperature)
        assert float(drawn.logprobs_B) == pytest.approx(-math.log1p(others), rel=1e-6, abs=1e-15)


def test_low_temperatures_do_not_round_large_logits():
    """Scaled by 1 / 0.05 these logits are 20,000, where float32 has steps of 0.002."""
    rows = 20_000
    cold = SamplingParameters(0.05, 1.0)
    logits_BV = torch.full((rows, 64), -1.0)
    logits_BV[:, 20], logits_BV[:, 40] = 1000.0, 1000.0 + 2**-12
    sampler = Sampler([RowParameters(cold, 0, i) for i in range(rows)])
    ids_B = sampler.sample(logits_BV, torch.zeros(rows, dtype=torch.int64)).ids_B
    first = 1 / (1 + math.exp(2**-12 / 0.05))
    noise_B = uniform(torch.tensor(0), torch.arange(rows), torch.tensor(0))
    wrong_B = (ids_B == 20) != (noise_B < first)
    assert float((noise_B[wrong_B] - first).abs().sum()) < 1e-5


def test_each_row_gets_the_logprob_it_asked_for():
    logits_BV = family("wide", 320, 4)
    asked = [None, "sampling", "raw", "sampling"]
    hot = SamplingParameters(2.0, 0.9)
    rows = [RowParameters(hot if i < 3 else GREEDY, 4, i, kind) for i, kind in enumerate(asked)]
    drawn = Sampler(rows).sample(logits_BV, torch.zeros(4, dtype=torch.int64))
    none, sampling, raw, greedy = drawn.logprobs_B.tolist()
    ids = drawn.ids_B.tolist()
    assert math.isnan(none)
    assert sampling == pytest.approx(float(distribution(logits_BV[1:2], hot)[0, ids[1]].log()))
    assert raw == pytest.approx(float(logits_BV[2].double().log_softmax(-1)[ids[2]]))
    assert greedy == 0.0
    rows = [RowParameters(row.sampling, 4, i) for i, row in enumerate(rows)]
    drawn = Sampler(rows).sample(logits_BV, torch.zeros(4, dtype=torch.int64))
    assert drawn.logprobs_B is None
    assert drawn.ids_B.tolist() == ids


def test_forbidden_ids_and_padded_embeddings():
    logits_BV = family("wide", 320, 16)
    logits_BV[:, 300:] = 50
    logits_BV[:, 9] = 40
    before = logits_BV.clone()
    for kind in KINDS:
        rows = [
            RowParameters(kind, 1, i, "sampling", forbidden_ids=(9, 310) if i % 2 else ())
            for i in range(16)
        ]
        sampler = Sampler(rows, allowed=300)
        for _ in range(2):
            drawn = sampler.sample(logits_BV, torch.arange(16))
            assert torch.equal(logits_BV, before)
            masked_BV = logits_BV.clone()
            masked_BV[:, 300:] = -INF
            masked_BV[1::2, 9] = -INF
            expected_BV = distribution(masked_BV, kind)
            probability_B = expected_BV.gather(-1, drawn.ids_B[:, None])[:, 0]
            torch.testing.assert_close(drawn.logprobs_B, probability_B.log(), rtol=1e-6, atol=1e-12)
            assert drawn.ids_B[::2].tolist() == [9] * 8


def test_bfloat16_is_computed_in_float32():
    logits_BV = family("wide", 320, 16).bfloat16()
    for kind in KINDS:
        rows = [RowParameters(kind, 1, i, "sampling") for i in range(16)]
        half = Sampler(rows).sample(logits_BV, torch.arange(16))
        full = Sampler(rows).sample(logits_BV.float(), torch.arange(16))
        assert torch.equal(half.ids_B, full.ids_B)
        assert torch.equal(half.logprobs_B, full.logprobs_B)
    ids_B = logits_BV.argmax(-1)
    assert torch.equal(raw_logprobs(logits_BV, ids_B), raw_logprobs(logits_BV.float(), ids_B))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-300, 0.3, 1.0, 7.0]), min_size=1, max_size=9))
def test_no_draw_has_weight_zero(weights):
    if sum(weights) == 0:
        weights[-1] = 1.0
    noise_B = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    ids_B = draw(torch.tensor([weights] * 3, dtype=torch.float64), noise_B)
    assert all(weights[i] > 0 for i in ids_B.tolist())
    assert weights[: int(ids_B[0])] == [0.0] * int(ids_B[0])


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_none(bad, kind):
    logits_BV = torch.zeros(2, 320)
    logits_BV[1, 200] = bad
    sampler = Sampler([RowParameters(kind, 0, i) for i in range(2)])
    with pytest.raises(ModelError, match="finite maximum"):
        sampler.sample(logits_BV, torch.arange(2))
    with pytest.raises(ModelError, match="every token forbidden"):
        sampler.sample(torch.full((2, 320), -INF), torch.arange(2))


@pytest.mark.parametrize(
    ("sampling", "word"),
    [
        (SamplingParameters(temperature=-1), "temperature"),
        (SamplingParameters(temperature=math.nan), "temperature"),
        (SamplingParameters(top_p=1.1), "top_p"),
        (SamplingParameters(min_p=-0.1), "min_p"),
        (SamplingParameters(top_k=-1), "top_k"),
    ],
)
def test_bad_parameters_are_named(sampling, word):
    with pytest.raises(UserError, match=word):
        Sampler([RowParameters(sampling, 0, 0)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("vocabulary", [1000, 49152])
def test_cuda_draws_the_same_and_waits_for_nothing(vocabulary):
    names = ["peaked", "nearly flat", "one token", "few levels"]
    logits_BV = torch.cat([family(name, vocabulary, 4) for name in names])
    asked = ["sampling", "raw", None]
    rows = [RowParameters(KINDS[i % len(KINDS)], 3, i, asked[i % 3], (1,)) for i in range(16)]
    position_B = torch.arange(16) + 5
    expected = Sampler(rows, allowed=990).sample(logits_BV, position_B)
    sampler = Sampler(rows, "cuda", allowed=990)
    on_device = logits_BV.cuda(), position_B.cuda()
    sampler.sample(*on_device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = sampler.sample(*on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(drawn.ids_B.cpu(), expected.ids_B)
    torch.testing.assert_close(
        drawn.logprobs_B.cpu(), expected.logprobs_B, rtol=1e-6, atol=1e-12, equal_nan=True
    )
    alone = Sampler(rows[3:4], "cuda", allowed=990)
    one = alone.sample(on_device[0][3:4], on_device[1][3:4])
    assert torch.equal(one.ids_B, drawn.ids_B[3:4])
