"""What a sample is a function of: to the bit in one bucket, in tokens across buckets.

Whatever is compared here has long enough texts of a random network that one wrong bit in a cache or
one shifted random number would show in its ids or log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch

from forethought.engines.model import AskOptions, Model
from forethought.engines.protocol import Sample, SamplingParameters
from forethought.engines.torch.noise import uniform
from forethought.engines.torch.sampler import distribution
from forethought.models.causal_lm import CausalLM
from forethought.models.loading import load as load_network

TEXT = "the cat sat on"
OPTIONS: AskOptions = {
    "template": "bare",
    "max_tokens": 48,
    "logprobs": "sampling",
    "temperature": 1.0,
    "top_p": 0.95,
}
ARCHITECTURES = ["llama", "qwen3", "deepseek_v3"]
ALLOWED = 281
"""Tokens of the tiny tokenizer; the networks have more rows."""
NEAR = 1e-5
"""So near to a boundary a draw may fall either way in another bucket."""


def bits(samples: Sequence[Sample]) -> list[tuple[object, object]]:
    return [(sample.ids, sample.logprobs) for sample in samples]


def ids(samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    return [sample.ids or () for sample in samples]


def seed_without_ends(model: Model, n: int) -> int:
    """A seed of which no sample ends early: a row that leaves makes the bucket smaller."""
    return next(
        seed
        for seed in range(20)
        if all(len(row) == 48 for row in ids(model.samples(TEXT, n=n, seed=seed, **OPTIONS)))
    )


@pytest.fixture(params=ARCHITECTURES)
def named(request: pytest.FixtureRequest, tiny: Callable[[str], Model]) -> tuple[str, Model]:
    return request.param, tiny(request.param)


@pytest.fixture(scope="module")
def exact(tiny_folder: Callable[[str], Path]) -> Callable[[str], CausalLM]:
    """The same weights in float64, without a cache."""
    made: dict[str, CausalLM] = {}

    def network(name: str) -> CausalLM:
        if name not in made:
            made[name] = load_network(tiny_folder(name), dtype=torch.float64)
        return made[name]

    return network


@torch.inference_mode()
def logits_of(network: CausalLM, prompt: Sequence[int], sample: Sequence[int]) -> torch.Tensor:
    """Float64 logits of each token of the sample, by one whole forward pass; [T, V]."""
    whole = network(torch.tensor([[*prompt, *sample]]))[0]
    return whole[len(prompt) - 1 : -1]


def distance_to_boundary(
    logits_V: torch.Tensor, sampling: SamplingParameters, noise: float
) -> float:
    """How far the draw is from another token: of its number from the next cumulative share, and of
    the nucleus from one token more or less."""
    probabilities = distribution(logits_V[None, :ALLOWED], sampling)[0]
    sums = probabilities.cumsum(0)
    distance = float((sums - noise).abs().min())
    if sampling.top_p < 1:
        plain = torch.softmax(logits_V[:ALLOWED] / sampling.temperature, dim=0)
        nucleus = plain.sort(descending=True).values.cumsum(0)
        distance = min(distance, float((nucleus - sampling.top_p).abs().min()))
    return distance


def assert_same_tokens(
    got: Sample, expected: Sample, network: CausalLM, prompt: Sequence[int]
) -> None:
    """Equal ids, or a first difference right at a boundary of the draw."""
    assert got.ids is not None
    assert expected.ids is not None
    assert got.index == expected.index
    pairs = zip(got.ids, expected.ids, strict=False)
    first = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if first is None:
        assert len(got.ids) == len(expected.ids)
        return
    assert got.seed is not None
    noise = uniform(*(torch.tensor([number]) for number in (got.seed, got.index, first)))
    sampling = SamplingParameters(OPTIONS["temperature"] or 0.0, OPTIONS["top_p"] or 1.0)
    logits = logits_of(network, prompt, expected.ids[: first + 1])[first]
    distance = distance_to_boundary(logits, sampling, float(noise[0]))
    print(f"token {first} of sample {got.index} differs, {distance:.2g} from a boundary")
    assert distance < NEAR, (first, got.ids[first], expected.ids[first])


# -- one bucket


def test_the_same_request_gives_the_same_bits(named: tuple[str, Model]) -> None:
    _, model = named
    first = model.samples(TEXT, n=4, seed=3, **OPTIONS)
    assert bits(first) == bits(model.samples(TEXT, n=4, seed=3, **OPTIONS))
    assert len(set(ids(first))) == 4
    assert ids(first) != ids(model.samples(TEXT, n=4, seed=4, **OPTIONS))


def test_neighbours_in_the_bucket_change_no_bit(named: tuple[str, Model]) -> None:
    """Three samples are computed as four, whoever is the fourth: nobody, a sample of the same
    request, one of another with a longer prompt that comes and goes."""
    _, model = named
    seed = seed_without_ends(model, 4)
    alone = bits(model.samples(TEXT, n=3, seed=seed, **OPTIONS))
    assert bits(model.samples(TEXT, n=4, seed=seed, **OPTIONS))[:3] == alone
    for words, tokens in ((3, 7), (90, 60)):
        other = model.submit(
            "the mat " * words, template="bare", seed=9, max_tokens=tokens, temperature=0.7
        )
        mine = model.submit(TEXT, n=3, seed=seed, **OPTIONS)
        assert bits(mine.wait()) == alone
        other.wait()


# -- across buckets


def test_samples_are_the_same_in_every_bucket(
    named: tuple[str, Model], exact: Callable[[str], CausalLM]
) -> None:
    name, model = named
    prompt = model.prompt(TEXT, template="bare").ids
    assert prompt is not None
    for seed in range(4):
        most = model.samples(TEXT, n=16, seed=seed, **OPTIONS)
        for n in (1, 2, 5):
            for got, expected in zip(
                model.samples(TEXT, n=n, seed=seed, **OPTIONS), most[:n], strict=True
            ):
                assert_same_tokens(got, expected, exact(name), prompt)


def test_under_load_samples_are_the_same(
    tiny: Callable[[str], Model], exact: Callable[[str], CausalLM]
) -> None:
    """Requests that come and go from many threads carry a sample through many buckets."""
    model = tiny("llama")
    texts = ["the cat " * (1 + 11 * at) for at in range(7)]
    alone = [model.samples(text, n=1 + at % 3, seed=at, **OPTIONS) for at, text in enumerate(texts)]
    with ThreadPoolExecutor(7) as pool:
        loaded = list(
            pool.map(
                lambda at: model.samples(texts[at], n=1 + at % 3, seed=at, **OPTIONS), range(7)
            )
        )
    for text, some, others in zip(texts, loaded, alone, strict=True):
        prompt = model.prompt(text, template="bare").ids
        assert prompt is not None
        for got, expected in zip(some, others, strict=True):
            assert_same_tokens(got, expected, exact("llama"), prompt)


# -- reproducible


def test_reproducible_samples_have_the_same_bits_for_any_n(named: tuple[str, Model]) -> None:
    _, model = named
    most = bits(model.samples(TEXT, n=20, seed=3, reproducible=True, **OPTIONS))
    for n in (1, 3, 16):
        some = model.samples(TEXT, n=n, seed=3, reproducible=True, **OPTIONS)
        assert bits(some) == most[:n]


def test_reproducible_samples_have_the_same_bits_under_load(named: tuple[str, Model]) -> None:
    _, model = named
    alone = bits(model.samples(TEXT, n=3, seed=3, reproducible=True, **OPTIONS))
    for first in (True, False):
        others: list[object] = []

        def start(into: list[object]) -> None:
            for at in range(3):
                into.append(
                    model.submit("the mat " * (1 + 40 * at), n=5, template="bare", max_tokens=30)
                )

        if first:
            start(others)
        mine = model.submit(TEXT, n=3, seed=3, reproducible=True, **OPTIONS)
        if not first:
            start(others)
        assert bits(mine.wait()) == alone
        for handle in others:
            handle.wait()  # type: ignore[attr-defined]


def test_a_reproducible_sample_goes_on_as_if_never_stopped(named: tuple[str, Model]) -> None:
    """From any of its first tokens, to the bit; also beside others."""
    _, model = named
    (whole,) = model.samples(TEXT, seed=3, reproducible=True, **OPTIONS)
    assert whole.ids is not None
    assert whole.logprobs is not None
    for cut in (1, 2, 17, len(whole.ids) - 1):
        other = model.submit("the mat " * cut, n=2, template="bare", max_tokens=20)
        (rest,) = model.samples(
            TEXT, seed=3, reproducible=True, prefix_ids=whole.ids[:cut], **OPTIONS
        )
        assert rest.ids == whole.ids
        assert rest.logprobs == (*[None] * cut, *whole.logprobs[cut:])
        other.wait()


def test_a_continued_sample_has_the_same_tokens(
    named: tuple[str, Model], exact: Callable[[str], CausalLM]
) -> None:
    """Without `reproducible` the prefix is computed at once: in tokens the same."""
    name, model = named
    prompt = model.prompt(TEXT, template="bare").ids
    assert prompt is not None
    whole = model.samples(TEXT, n=2, seed=5, **OPTIONS)[0]
    assert whole.ids is not None
    for cut in (1, 17, 40):
        rest = model.ask(TEXT, seed=5, prefix_ids=whole.ids[:cut], **OPTIONS)
        assert_same_tokens(rest, whole, exact(name), prompt)


# -- log-probabilities

SETTINGS: list[AskOptions] = [
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.5, "top_p": 1.0, "top_k": 7},
    {"temperature": 0.8, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 20, "min_p": 0.02},
]


def filtered(logits_V: torch.Tensor, settings: AskOptions) -> torch.Tensor:
    """Log-probabilities that are drawn from, float64, as the protocol words it; [V]."""
    temperature = settings["temperature"]
    assert temperature is not None
    order = logits_V.argsort(descending=True, stable=True)
    weights = torch.softmax(logits_V[order] / temperature, dim=0)
    kept = torch.ones(len(order), dtype=torch.bool)
    kept[settings.get("top_k") or len(order) :] = False
    weights = weights * kept / (weights * kept).sum()
    before = weights.cumsum(0) - weights
    kept &= before < (settings.get("top_p") or 1.0)
    kept &= weights >= (settings.get("min_p") or 0.0) * weights[0]
    weights = weights * kept
    result = torch.full_like(logits_V, -torch.inf)
    result[order] = (weights / weights.sum()).log()
    return result


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["qwen2-yarn-tied", "deepseek_v3"])
def test_logprobs_are_exact(
    name: str,
    settings: AskOptions,
    tiny: Callable[[str], Model],
    exact: Callable[[str], CausalLM],
) -> None:
    """Of what is drawn from and of the model itself, against float64 without a cache."""
    model, network = tiny(name), exact(name)
    prompt = model.prompt(TEXT, template="bare").ids
    assert prompt is not None
    common: AskOptions = {"template": "bare", "max_tokens": 40, "n": 3, "seed": 11, **settings}
    drawn = model.samples(TEXT, logprobs="sampling", **common)
    raw = model.samples(TEXT, logprobs="raw", **common)
    assert ids(drawn) == ids(raw)
    for one, other in zip(drawn, raw, strict=True):
        assert one.ids is not None
        assert one.logprobs is not None
        assert other.logprobs is not None
        logits_TV = logits_of(network, prompt, one.ids)
        for at, token in enumerate(one.ids):
            expected = filtered(logits_TV[at, :ALLOWED], settings)[token]
            assert one.logprobs[at] == pytest.approx(float(expected), abs=5e-5)
            plain = torch.log_softmax(logits_TV[at], dim=0)[token]
            assert other.logprobs[at] == pytest.approx(float(plain), abs=5e-5)


def test_greedy_is_certain_and_takes_the_best(
    named: tuple[str, Model], exact: Callable[[str], CausalLM]
) -> None:
    name, model = named
    prompt = model.prompt(TEXT, template="bare").ids
    assert prompt is not None
    for n in (1, 4):
        samples = model.samples(
            TEXT, template="bare", temperature=0, max_tokens=40, n=n, logprobs="sampling"
        )
        assert len(set(ids(samples))) == 1
        (mine, *_) = samples
        assert mine.ids is not None
        assert mine.logprobs == (0.0,) * len(mine.ids)
        logits_TV = logits_of(exact(name), prompt, mine.ids)
        for at, token in enumerate(mine.ids):
            best = float(logits_TV[at, :ALLOWED].max())
            assert float(logits_TV[at, token]) >= best - 1e-4
