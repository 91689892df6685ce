"""The generator against its published vectors, its own arithmetic in plain integers, statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.engines.torch.noise import NoiseAhead, philox, uniform

VECTORS = [
    # counter, key, words: the known-answer tests of Random123 for philox4x32, 10 rounds.
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def in_integers(seed: int, index: int, position: int) -> float:
    """`uniform` in Python's integers, straight from the paper."""
    word = 0xFFFFFFFF
    c = [position & word, position >> 32 & word, index & word, index >> 32 & word]
    k = [seed & word, seed >> 32 & word]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k[0], b & word, a >> 32 ^ c[3] ^ k[1], a & word]
        k = [k[0] + 0x9E3779B9 & word, k[1] + 0xBB67AE85 & word]
    return ((c[0] >> 5) * 2**26 + (c[1] >> 6)) / 2**53


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_published_vectors(counter, key, words):
    got = philox(
        tuple(torch.tensor([word]) for word in counter), tuple(torch.tensor([word]) for word in key)
    )
    assert tuple(int(word) for word in got) == words


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)),
        min_size=1,
        max_size=9,
    )
)
def test_equals_plain_integers(rows):
    seed_B, index_B, position_B = (torch.tensor(column) for column in zip(*rows, strict=True))
    got = uniform(seed_B, index_B, position_B)
    assert got.dtype == torch.float64
    assert got.tolist() == [in_integers(*row) for row in rows]


def test_pure_and_independent_of_the_batch():
    seed_B, index_B = torch.arange(64) * 7919, torch.arange(64)
    position_B = torch.arange(64) + 1000
    whole = uniform(seed_B, index_B, position_B)
    assert torch.equal(whole, uniform(seed_B, index_B, position_B))
    for i in (0, 17, 63):
        alone = uniform(seed_B[i : i + 1], index_B[i : i + 1], position_B[i : i + 1])
        assert torch.equal(alone, whole[i : i + 1])


def test_noise_ahead_is_the_same_noise():
    seed_B, index_B = torch.tensor([3, 2**63 - 1, 3]), torch.tensor([0, 1, 2])
    ahead = NoiseAhead(seed_B, index_B, span=4)
    position_B = torch.tensor([10, 500, 0])
    # Forwards past the span twice, back, far away, and rows that move apart.
    for move in [0, 1, 1, 1, 1, 1, 1, 1, 1, -2, -9, 10**12]:
        position_B = position_B + move
        assert torch.equal(ahead.at(position_B), uniform(seed_B, index_B, position_B))
    position_B = position_B + torch.tensor([0, 3, 5])
    assert torch.equal(ahead.at(position_B), uniform(seed_B, index_B, position_B))


def axis(name: str, n: int = 40_000) -> torch.Tensor:
    """Numbers along one of the three arguments, the others fixed."""
    along, fixed = torch.arange(n), torch.tensor([5])
    arguments = {"seed": fixed, "index": fixed, "position": fixed, name: along}
    return uniform(arguments["seed"], arguments["index"], arguments["position"])


@pytest.mark.parametrize("name", ["seed", "index", "position"])
def test_moments_uniformity_and_neighbours(name):
    """All limits are five standard deviations of what true noise would show."""
    u = axis(name)
    n = len(u)
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert len(u.unique()) == n
    assert abs(float(u.mean()) - 1 / 2) < 5 * (1 / 12 / n) ** 0.5
    assert abs(float(u.var()) - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    for lag in (1, 2, 64):
        product = (u[:-lag] - 0.5) * (u[lag:] - 0.5) * 12
        assert abs(float(product.mean())) < 5 * (1 / n) ** 0.5
    bins = torch.histc(u, bins=256, min=0, max=1)
    expected = n / 256
    assert abs(float(((bins - expected) ** 2 / expected).sum()) - 255) < 5 * (2 * 255) ** 0.5


def test_pairs_of_neighbours_fill_the_square():
    seed_S, position_P = torch.arange(100)[:, None], torch.arange(401)
    u = uniform(seed_S, torch.tensor(0), position_P)
    for first, second in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):
        cells = (first * 16).long() * 16 + (second * 16).long()
        counts = torch.bincount(cells.flatten(), minlength=256).double()
        expected = counts.sum() / 256
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 5 * 510**0.5


def test_low_bits_are_random():
    bits = (axis("position") * 2**53).long()
    for bit in range(53):
        ones = int((bits >> bit & 1).sum())
        assert abs(ones - len(bits) / 2) < 5 * (len(bits) / 4) ** 0.5, bit


def test_arguments_do_not_stand_in_for_each_other():
    one, two = torch.tensor([1]), torch.tensor([2])
    numbers = [float(uniform(a, b, c)) for a in (one, two) for b in (one, two) for c in (one, two)]
    assert len(set(numbers)) == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_bits():
    arguments = [torch.randint(0, 2**63 - 1, (4096,)) for _ in range(3)]
    assert torch.equal(uniform(*arguments), uniform(*(a.cuda() for a in arguments)).cpu())
