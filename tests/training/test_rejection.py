"""Rejection sampling: what is kept, rounds, and going on where a run stopped."""

from __future__ import annotations

import pytest
import torch

from forethought.engines.protocol import SamplingParameters
from forethought.models.causal_lm import CausalLM
from forethought.problems.problem import CORRECT, Problem, Verdict, wrong
from forethought.problems.stream import ProblemStream
from forethought.training.batches import TokenSequence
from forethought.training.config import OptimizerConfig, RejectionConfig, RewardConfig
from forethought.training.judging import Judge, Judged
from forethought.training.policy import Policy, noise_seed
from forethought.training.prompting import Prompter, reply_text
from forethought.training.rejection import RejectionSampler
from forethought.training.stage import TrainingStopped
from forethought.training.supervised import Supervised
from tiny_training import ShownDigit, optimizer_of, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
PROMPTER = Prompter(TOKENIZER, "chat")
STREAM = ProblemStream([ShownDigit()], 2, levels={"shown_digit": (1,)})
SEED, MAX_TOKENS = 9, 20
GROUP = 12
"""Samples of a problem: with so many every kind of reply comes, whatever a CPU's rounding made of
the training (about 3 in 7 are right, 2 in 7 wrong, 2 in 7 right without the form)."""


class OneDigit:
    """Right is any answer of one of the digits 0, 1 and 2."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return CORRECT if answer in ("0", "1", "2") else wrong("no such digit")


def judge() -> Judge:
    return Judge(TOKENIZER, {"shown_digit": OneDigit()}, RewardConfig())


_TRAINED: dict[str, torch.Tensor] = {}


def network() -> CausalLM:
    """A network that has learnt the form: some replies are right, some of these lack the form.

    Both kinds are a good share of what it learns: how they are shared out in the end differs from
    CPU to CPU, for so short a training at so high a rate carries rounding far.
    """
    made = tiny_v3(TOKENIZER.padded_size)
    if not _TRAINED:
        texts = [*(reply_text("x", digit) for digit in "01245"), *["<answer>1</answer>"] * 2]
        data = []
        for digit in "012":
            prompt = PROMPTER.ids(digit)
            for text in texts:
                body = TOKENIZER.tokenizer.encode(text, parse_special=True)
                data.append(TokenSequence((*prompt, *body, TOKENIZER.eos_id), len(prompt)))
        optimizer = optimizer_of(made)
        trainer = Supervised(
            made,
            optimizer,
            vocabulary=TOKENIZER.size,
            micro_batch_tokens=4096,
            balance=config().balance,
        )
        for _ in range(60):
            trainer.step(data, 0.02)
        _TRAINED.update({name: tensor.clone() for name, tensor in made.state_dict().items()})
    made.load_state_dict(_TRAINED)
    return made


def config(**options) -> RejectionConfig:
    options = {"steps": 3, "rounds": 2, "problems": 6, "group_size": GROUP, "keep": 2, **options}
    return RejectionConfig(
        optimizer=OptimizerConfig(learning_rate=1e-3),
        batch_conversations=4,
        max_tokens=MAX_TOKENS,
        micro_batch_tokens=100,
        **options,
    )


def stage(net: CausalLM, **options) -> RejectionSampler:
    policy = Policy(net, TOKENIZER, PROMPTER)
    return RejectionSampler(policy, optimizer_of(net), config(**options), STREAM, judge(), SEED)


def drawn(net: CausalLM, first: int) -> list[tuple[TokenSequence, Judged]]:
    """What a round that begins at this problem samples, in order."""
    policy = Policy(net, TOKENIZER, PROMPTER)
    problems = [STREAM[first + at] for at in range(6)]
    groups = policy.sample(
        problems,
        GROUP,
        [noise_seed(SEED, first + at) for at in range(6)],
        SamplingParameters(temperature=1.0, top_p=1.0),
        MAX_TOKENS,
        rows=256,
    )
    return [
        (policy.sequence(problem, sample), judge().judge(problem, sample.ids))
        for problem, group in zip(problems, groups, strict=True)
        for sample in group
    ]


def expected(found: list[tuple[TokenSequence, Judged]]) -> list[TokenSequence]:
    kept = []
    for at in range(0, len(found), GROUP):
        good = [s for s, one in found[at : at + GROUP] if one.accuracy and one.format]
        kept += good[:2]
    return kept


def test_what_is_right_and_well_formed_is_kept_so_many_of_each_problem():
    net = network()
    found = drawn(net, 0)
    one = stage(net)
    result = one.step()
    assert one._kept == expected(found)
    assert result.metrics["kept"] == len(one._kept)
    right = sum(judged.accuracy for _, judged in found)
    assert result.metrics["reward_accuracy"] == pytest.approx(right / (6 * GROUP))
    assert 0 < right < 6 * GROUP
    assert any(judged.accuracy and not judged.format for _, judged in found)
    # The limit was reached by a problem at least, and no truncated sample is learnt from.
    assert len(one._kept) < sum(judged.reward == 2 for _, judged in found)
    assert all(sequence.ids[-1] == TOKENIZER.eos_id for sequence in one._kept)
    assert all(sequence.targets == len(sequence.ids) - sequence.prompt for sequence in one._kept)


def test_every_round_samples_further_problems_with_the_newest_weights():
    net = network()
    one = stage(net)
    assert one.steps == 6
    sampled = []
    for _ in range(3):
        result = one.step()
        sampled.append("sampling" in result.phases)
    found = drawn(net, 6)
    result = one.step()
    sampled.append("sampling" in result.phases)
    assert one._kept == expected(found)
    assert sampled == [True, False, False, True]
    assert result.tokens > result.metrics["tokens"]


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_a_run_goes_on_bit_for_bit(stop):
    whole_net, first_net, again_net = network(), network(), network()
    whole = stage(whole_net)
    results = [whole.step() for _ in range(6)]
    first = stage(first_net)
    for _ in range(stop):
        first.step()
    tensors, facts = first.state()
    again = stage(again_net)
    again_net.load_state_dict(first_net.state_dict())
    again.load(tensors, facts)
    got = [again.step() for _ in range(6 - stop)]
    assert [one.metrics for one in got] == [one.metrics for one in results[stop:]]
    state = again_net.state_dict()
    for name, tensor in whole_net.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_nothing_right_stops_and_changes_nothing():
    class Never:
        def verify(self, problem: Problem, answer: str) -> Verdict:
            return wrong("never")

    net = network()
    policy = Policy(net, TOKENIZER, PROMPTER)
    strict = Judge(TOKENIZER, {"shown_digit": Never()}, RewardConfig())
    one = RejectionSampler(policy, optimizer_of(net), config(), STREAM, strict, SEED)
    with pytest.raises(TrainingStopped, match="none of 72 samples was right and well formed"):
        one.step()
    assert one.number == 0
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, _TRAINED[name]), name


def test_more_kept_than_sampled_is_refused():
    with pytest.raises(ValueError, match="keep 13 is more than the group_size 12"):
        config(keep=13)
