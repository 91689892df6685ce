"""Fine-tuning: what of a conversation is trained, which come when, and going on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.dialogue.messages import Message
from forethought.errors import UserError
from forethought.models.causal_lm import CausalLM
from forethought.training.batches import TokenSequence
from forethought.training.config import OptimizerConfig, SFTConfig
from forethought.training.sft import FineTuner, conversation, shuffled_batch
from tiny_training import optimizer_of, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()


def written(path: Path, contents: list[str]) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{at}?"},
                {"role": "assistant", "content": content, "thought": "wait"},
            ]
        }
        for at, content in enumerate(contents)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def network() -> CausalLM:
    return tiny_v3(TOKENIZER.padded_size)


def tuner(net: CausalLM, data: Path, **options) -> FineTuner:
    options = {"batch_conversations": 3, "max_length": 60, "steps": 8, **options}
    rate = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    config = SFTConfig(optimizer=rate, data=data.name, micro_batch_tokens=50, **options)
    return FineTuner(net, optimizer_of(net), config, TOKENIZER, data, seed=11)


def test_replies_thoughts_and_end_tokens_are_trained_and_nothing_else():
    encode = TOKENIZER.tokenizer.encode
    found = conversation(
        TOKENIZER,
        [
            Message("system", "Be brief."),
            Message("user", "One?"),
            Message("assistant", "1", "wait"),
            Message("user", "Two?"),
            Message("assistant", "2"),
        ],
    )
    assert found.mask is not None
    trained = [i for i, kept in zip(found.ids, found.mask, strict=True) if kept]
    first = [
        TOKENIZER.think_id,
        *encode("\nwait\n", parse_special=False),
        TOKENIZER.end_think_id,
        *encode("\n\n1", parse_special=False),
        TOKENIZER.eos_id,
    ]
    assert trained == [*first, *encode("2", parse_special=False), TOKENIZER.eos_id]
    assert found.targets == len(trained)
    assert not found.mask[0]


def test_long_conversations_are_left_out_and_counted_never_cut(tmp_path):
    contents = ["1", "2" * 100, "3", "4" * 60, "5"]
    data = written(tmp_path / "data.jsonl", contents)
    one = tuner(network(), data)
    lengths = [sequence.inputs for sequence in one._data]
    assert one.left_out == 2
    assert len(lengths) == 3
    assert max(lengths) <= 60
    assert all(sequence.ids[-1] == TOKENIZER.eos_id for sequence in one._data)
    assert all(sequence.mask[-1] for sequence in one._data)
    assert one.step().metrics["left_out"] == 2
    longest = max(len(sequence.ids) for sequence in one._data)
    assert tuner(network(), data, max_length=longest).left_out == 2
    with pytest.raises(UserError, match="none of 5 conversations"):
        tuner(network(), data, max_length=longest - 1)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "no conversation"),
        ([{"messages": [{"role": "user", "content": "1?"}]}], "line 1"),
        ([{"messages": [{"role": "judge", "content": "1?"}]}], "line 1"),
        (["no json"], "line 1"),
    ],
)
def test_data_without_a_conversation_is_refused(tmp_path, lines, says):
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    )
    with pytest.raises(UserError, match=says):
        tuner(network(), data)


def test_data_that_is_all_too_long_is_refused(tmp_path):
    data = written(tmp_path / "data.jsonl", ["1" * 100])
    with pytest.raises(UserError, match="none of 1 conversations has a reply and at most"):
        tuner(network(), data)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        tuner(network(), tmp_path / "missing.jsonl")


def test_a_run_goes_on_bit_for_bit(tmp_path):
    data = written(tmp_path / "data.jsonl", [str(at) for at in range(7)])
    whole_net, first_net, again_net = network(), network(), network()
    whole = tuner(whole_net, data)
    expected = [whole.step() for _ in range(6)]
    first = tuner(first_net, data)
    for _ in range(4):
        first.step()
    again = tuner(again_net, data)
    again_net.load_state_dict(first_net.state_dict())
    again.load(*first.state())
    got = [again.step() for _ in range(2)]
    assert [one.metrics for one in got] == [one.metrics for one in expected[4:]]
    state = again_net.state_dict()
    for name, tensor in whole_net.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert again.state()[1] == whole.state()[1]


def test_training_makes_the_replies_likelier(tmp_path):
    data = written(tmp_path / "data.jsonl", ["seven"] * 3)
    one = tuner(network(), data, steps=30)
    losses = [one.step().metrics["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] / 2


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_every_epoch_has_each_conversation_once_in_another_order(count, size, seed):
    data = [TokenSequence((at, at)) for at in range(count)]
    walk = [
        one.ids[0] for step in range(6 * count) for one in shuffled_batch(data, step, size, seed)
    ]
    epochs = [walk[at : at + count] for at in range(0, len(walk) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count >= 6:
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Counter(map(len, (shuffled_batch(data, 3, size, seed),))) == {size: 1}
