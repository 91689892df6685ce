"""What samplers say of their phases: the work of every token, once, whatever the rows."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext

import pytest

from forethought.engines.phases import SILENT
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.cuda.rollout import CudaRollout
from forethought.engines.torch.rollout import Rollout, RolloutSample
from forethought.models.causal_lm import CausalLM
from forethought.models.costs import Cost, CostModel
from tiny_training import tiny_dense, tiny_v3

VOCABULARY, PADDED = 61, 64
PROMPTS = [[5, 9, 2], [7, 8], list(range(1, 42)), [30, 31, 32, 33, 34]]
SAMPLES, MAX_TOKENS = 6, 20
PLAIN = SamplingParameters(1.0, 1.0)
KINDS = {"dense": tiny_dense, "v3": tiny_v3}


class Heard:
    """Adds up what it hears."""

    def __init__(self, costs: CostModel) -> None:
        self._costs = costs
        self.work: defaultdict[str, Cost] = defaultdict(Cost)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def phase(self, name, work=None, *, calls=1):
        self.calls[name] += calls
        if work is not None:
            # When it is over: what is asked for may not be known before.
            return _Later(lambda: self.count(name, work))
        return nullcontext()

    def count(self, name, work):
        self.work[name] += work(self._costs)


class _Later:
    def __init__(self, then):
        self._then = then

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._then()


@pytest.fixture(params=KINDS)
def network(request: pytest.FixtureRequest) -> CausalLM:
    return KINDS[request.param](PADDED)


def heard(network: CausalLM) -> Heard:
    return Heard(CostModel(network.config, vocabulary=VOCABULARY))


def contexts(groups: list[list[RolloutSample]], first: int) -> list[list[int]]:
    """Of each sample, how many tokens each of its decoded tokens saw. ``first``: the number of the
    sample's token that the first step draws."""
    return [
        [len(prompt) + at for at in range(first, len(sample.ids))]
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for sample in group
    ]


@pytest.mark.parametrize("rows", [3, 64])
def test_the_plain_rollout_counts_every_token(network, rows):
    found = heard(network)
    rollout = Rollout(network, ends=(3, 11, 17), vocabulary=VOCABULARY, rows=rows, phases=found)
    groups = rollout.sample(PROMPTS, SAMPLES, range(len(PROMPTS)), PLAIN, MAX_TOKENS)
    costs = CostModel(network.config, vocabulary=VOCABULARY)
    # The first token of a sample comes from its prompt; each later one sees it, and all before.
    seen = contexts(groups, 1)
    wanted = sum(costs.decode(1, context).flops for each in seen for context in each)
    assert found.work["decode"].flops == pytest.approx(wanted, rel=1e-12)
    drawn = sum(len(sample.ids) for group in groups for sample in group)
    assert found.work["sampling"].bytes == costs.draw(drawn).bytes
    if rows == 64:
        lengths = [len(prompt) for prompt in PROMPTS]
        assert found.work["prefill"] == costs.prefill(lengths, len(lengths))
        assert found.calls["prefill"] == 1
        steps = max(len(each) for each in seen)
        assert (found.calls["decode"], found.calls["sampling"]) == (steps, steps + 1)
        # The weights are read once a step, not once a token.
        assert found.work["decode"].bytes < sum(
            costs.decode(1, context).bytes for each in seen for context in each
        )


@pytest.mark.parametrize("rows", [3, 64])
def test_the_fast_rollout_counts_every_token(network, rows):
    found = heard(network)
    rollout = CudaRollout(network, ends=(3, 11, 17), vocabulary=VOCABULARY, rows=rows, phases=found)
    groups = rollout.sample(PROMPTS, SAMPLES, range(len(PROMPTS)), PLAIN, MAX_TOKENS)
    costs = CostModel(network.config, vocabulary=VOCABULARY)
    # The step that draws a sample's first token computes the prompt's last one.
    seen = contexts(groups, 0)
    wanted = sum(costs.decode(1, context).flops for each in seen for context in each)
    assert found.work["decode and sampling"].flops == pytest.approx(wanted, rel=1e-12)
    lengths = [len(prompt) - 1 for prompt in PROMPTS]
    assert found.work["prefill"].flops == costs.prefill(lengths).flops
    assert found.calls["decode and sampling"] >= max(len(each) for each in seen)


def test_nobody_listens_by_default(network):
    def never(costs: CostModel) -> Cost:
        raise AssertionError("nobody asked for it")

    with SILENT.phase("decode", never):
        SILENT.count("decode", never)
    quiet = Rollout(network, ends=(3,), vocabulary=VOCABULARY)
    loud = Rollout(network, ends=(3,), vocabulary=VOCABULARY, phases=heard(network))
    samples = [
        rollout.sample(PROMPTS, 2, range(len(PROMPTS)), PLAIN, MAX_TOKENS)
        for rollout in (quiet, loud)
    ]
    assert [[one.ids for one in group] for group in samples[0]] == [
        [one.ids for one in group] for group in samples[1]
    ]
