"""Pretraining: which documents a step takes, and going on where a run stopped."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.models.causal_lm import CausalLM
from forethought.training import pretrain
from forethought.training.config import CorpusConfig, OptimizerConfig, PretrainConfig
from forethought.training.corpus import CorpusSpec, documents
from forethought.training.pretrain import Pretrainer
from forethought.training.prompting import Prompter
from forethought.training.stage import TrainingStopped
from forethought.training.supervised import Supervised
from tiny_training import optimizer_of, tiny_dense, tiny_tokenizer, tiny_v3

TOKENIZER = tiny_tokenizer()
PROMPTER = Prompter(TOKENIZER, "chat")
CORPUS = CorpusConfig()
SPEC = CorpusSpec(
    ("corpus_family.py:Marked",), {}, {}, None, CORPUS, seed=5, folder=Path(__file__).parent
)
BATCH_TOKENS = 300


def config(**options: Any) -> PretrainConfig:
    options.setdefault("steps", 8)
    options.setdefault("batch_tokens", BATCH_TOKENS)
    rate = OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay_steps=4)
    return PretrainConfig(optimizer=rate, micro_batch_tokens=120, **options)


def stage(network: CausalLM, **options: Any) -> Pretrainer:
    made = config(**options)
    return Pretrainer(network, optimizer_of(network), made, SPEC, TOKENIZER, PROMPTER)


def network() -> CausalLM:
    return tiny_v3(TOKENIZER.padded_size, mtp=True)


def test_steps_take_whole_documents_in_order_and_none_twice(ahead):
    one = stage(tiny_dense(TOKENIZER.padded_size))
    results = [one.step() for _ in range(6)]
    counts = [result.metrics["documents"] for result in results]
    with documents(SPEC, 0) as found:
        lengths = [len(d.ids(TOKENIZER, PROMPTER)) - 1 for d in islice(found, sum(counts) + 1)]
    start = 0
    for count, result in zip(counts, results, strict=True):
        own = lengths[start : start + count]
        assert result.tokens == result.metrics["tokens"] == sum(own) <= BATCH_TOKENS
        # The next one would not have fitted.
        assert sum(own) + lengths[start + count] > BATCH_TOKENS
        start += count
    assert one.state()[1]["next_document"] == start


def test_a_document_longer_than_a_step_has_one_of_its_own():
    one = stage(tiny_dense(TOKENIZER.padded_size), batch_tokens=5)
    results = [one.step() for _ in range(3)]
    assert [result.metrics["documents"] for result in results] == [1, 1, 1]
    assert one.state()[1]["next_document"] == 3


def test_a_document_is_cut_at_its_limit_and_then_has_no_end():
    spec = CorpusSpec(SPEC.families, {}, {}, None, CORPUS, seed=5, folder=SPEC.folder)
    made = config(corpus=CorpusConfig(max_document_tokens=20))
    net = tiny_dense(TOKENIZER.padded_size)
    one = Pretrainer(net, optimizer_of(net), made, spec, TOKENIZER, PROMPTER)
    batch = one._batch()
    assert max(len(sequence.ids) for sequence in batch) == 20
    cut = [sequence for sequence in batch if len(sequence.ids) == 20]
    assert all(TOKENIZER.eos_id not in sequence.ids for sequence in cut)


def test_the_end_token_of_documents_is_trained():
    torch.manual_seed(0)
    net = tiny_dense(TOKENIZER.padded_size)

    def surprise() -> float:
        """Minus the log-probability of the end tokens of the first documents."""
        total = []
        with documents(SPEC, 0) as found, torch.no_grad():
            for document in islice(found, 10):
                ids = document.ids(TOKENIZER, PROMPTER)
                if document.ended:
                    logits = net(torch.tensor([ids[:-1]]))[0, -1]
                    total.append(-float(logits.log_softmax(-1)[TOKENIZER.eos_id]))
        return sum(total) / len(total)

    before = surprise()
    one = stage(net, steps=40)
    losses = [one.step().metrics["loss"] for _ in range(40)]
    assert losses[-1] < losses[0] - 1
    assert surprise() < before - 1


@pytest.fixture(params=[False, True], ids=["as it comes", "read ahead"])
def ahead(request, monkeypatch) -> bool:
    """Whether the next step's documents are read while a step is under way, as on a GPU."""
    monkeypatch.setattr(pretrain, "Supervised", partial(Supervised, fixed_sizes=request.param))
    return request.param


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_goes_on_bit_for_bit(stop, ahead):
    whole_net = network()
    whole = stage(whole_net)
    expected = [whole.step() for _ in range(6)]

    first_net = network()
    first = stage(first_net)
    for _ in range(stop):
        first.step()
    tensors, facts = first.state()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {name: tensor.clone() for name, tensor in first_net.state_dict().items()}
    first.step()
    first.close()

    again_net = network()
    again = stage(again_net)
    again.step()  # Whatever it did before is forgotten.
    again_net.load_state_dict(weights)
    again.load(saved, facts)
    assert again.number == stop
    got = [again.step() for _ in range(6 - stop)]
    assert [one.metrics for one in got] == [one.metrics for one in expected[stop:]]
    state = again_net.state_dict()
    for name, tensor in whole_net.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert again.state()[1] == whole.state()[1]
    assert again.resumable


def test_a_spike_stops_before_the_step_and_its_documents_come_again(ahead):
    net = network()
    one = stage(net)
    done = [one.step().metrics["documents"] for _ in range(2)]
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    one._guard.load({"loss_mean": 0.01, "loss_count": 20})
    with pytest.raises(TrainingStopped, match="times the recent mean"):
        one.step()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert one.state()[1]["next_document"] == sum(done)
    assert one.number == 2

    one._guard.load({"loss_mean": 100.0, "loss_count": 20})
    fresh_net = network()
    fresh_net.load_state_dict(weights)
    fresh = stage(fresh_net)
    fresh.load(*one.state())
    assert one.step().metrics == fresh.step().metrics


def test_a_network_without_numbers_stops():
    net = network()
    with torch.no_grad():
        net.model.norm.weight.fill_(math.nan)
    one = stage(net)
    with pytest.raises(TrainingStopped, match="the loss is nan"):
        one.step()
    assert one.state()[1] == {"number": 0, "next_document": 0, "loss_mean": 0.0, "loss_count": 0}
