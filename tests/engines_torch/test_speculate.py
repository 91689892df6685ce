"""Self-speculation with the MTP module: the same text, fewer steps."""

from __future__ import annotations

import json
from functools import cache as cached

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel

from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DeepseekConfig
from forethought.dialogue.messages import Prompt
from forethought.engines.protocol import Budget, Request, Sample, SamplingParameters
from forethought.engines.torch.engine import TorchEngine, TorchOptions
from forethought.models import build
from forethought.models.deepseek_v3 import DeepseekV3

GREEDY = SamplingParameters(temperature=0)
CYCLE = [ord(letter) for letter in "abcdefgh ijklm"]


@cached
def tokenizer() -> HFTokenizer:
    """Bytes alone: id = place of the byte in the alphabet; one merge that nothing here uses."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate(alphabet)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[])
    whole = tokenizers.Tokenizer(model)
    whole.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    return HFTokenizer(json.loads(whole.to_str()), "bytes")


def config() -> DeepseekConfig:
    return DeepseekConfig(
        model_type="deepseek_v3",
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        rms_norm_eps=1e-6,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        rope_theta=10000.0,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    )


@cached
def trained_weights() -> dict[str, torch.Tensor]:
    """A network, and its MTP module, that have learnt to repeat CYCLE, with slips."""
    network = build(config(), mtp=True, generator=torch.Generator().manual_seed(0))
    assert isinstance(network, DeepseekV3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(70):
        start = torch.randint(len(CYCLE), (8, 1), generator=generator)
        ids_BT = torch.tensor(CYCLE)[(start + torch.arange(34)) % len(CYCLE)]
        hidden = network.hidden(ids_BT[:, :-1])
        main = F.cross_entropy(network.logits(hidden).flatten(0, 1), ids_BT[:, 1:].flatten())
        ahead = network.mtp_logits(ids_BT[:, 1:-1], hidden[:, :-1])
        further = F.cross_entropy(ahead.flatten(0, 1), ids_BT[:, 2:].flatten())
        optimizer.zero_grad()
        (main + 0.5 * further).backward()
        optimizer.step()
    return network.state_dict()


def engine(*, speculate: bool, trained: bool) -> TorchEngine:
    network = build(config(), mtp=True, generator=torch.Generator().manual_seed(7))
    if trained:
        network.load_state_dict(trained_weights())
    options = TorchOptions("tiny", context=256, most_context=256, threads=1, speculate=speculate)
    return TorchEngine(network, tokenizer(), options)


def ask(
    made: TorchEngine, ids: tuple[int, ...], count: int = 60, sampling: SamplingParameters = GREEDY,
    n: int = 1, stop: tuple[str, ...] = (),
) -> list[Sample]:  # fmt: skip
    prompt = Prompt((), text=None, ids=ids, starts_in_thought=False, thinks=False, exact=True)
    budget = Budget(max_tokens=count)
    return made.submit(Request(prompt, n, sampling, budget, stop=stop, seed=1)).wait()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_greedy_text_is_identical(trained: bool, length: int) -> None:
    ids = tuple((CYCLE * 3)[:length])
    plain = ask(engine(speculate=False, trained=trained), ids)[0]
    made = engine(speculate=True, trained=trained)
    guessed = ask(made, ids)[0]
    assert guessed.ids == plain.ids
    assert guessed.text == plain.text
    assert guessed.usage == plain.usage
    assert made.acceptance is not None


def test_right_guesses_save_steps() -> None:
    plain, guessing = (engine(speculate=flag, trained=True) for flag in (False, True))
    ids = tuple(CYCLE * 2)
    a, b = ask(plain, ids), ask(guessing, ids)
    assert a[0].ids == b[0].ids
    assert plain.acceptance is None
    assert guessing.acceptance is not None
    assert guessing.acceptance > 0.9
    assert plain.steps == 59  # the first token comes with the prompt
    assert guessing.steps < 0.6 * plain.steps


def test_the_last_token_is_not_overrun() -> None:
    for count in (1, 2, 3, 4, 5):
        made = engine(speculate=True, trained=True)
        sample = ask(made, tuple(CYCLE), count)[0]
        assert sample.stop_reason == "length"
        assert sample.ids is not None
        assert len(sample.ids) == count


def test_the_context_can_be_filled() -> None:
    made = engine(speculate=True, trained=True)
    sample = ask(made, tuple(CYCLE), 256 - len(CYCLE))[0]
    assert sample.usage.completion_tokens == 256 - len(CYCLE)


def test_what_cannot_be_guessed_is_computed_plainly() -> None:
    made = engine(speculate=True, trained=True)
    drawn = ask(made, tuple(CYCLE), 20, SamplingParameters(temperature=1.0))
    several = ask(made, tuple(CYCLE), 20, n=3)
    assert made.acceptance is None
    assert len(drawn) == 1
    assert len({sample.ids for sample in several}) == 1


def test_a_stop_string_inside_an_accepted_pair_ends_it() -> None:
    plain, guessing = (engine(speculate=flag, trained=True) for flag in (False, True))
    text = ask(plain, tuple(CYCLE), 40)[0].text
    for stop in (text[10:12], text[11:13]):
        a = ask(plain, tuple(CYCLE), 40, stop=(stop,))[0]
        b = ask(guessing, tuple(CYCLE), 40, stop=(stop,))[0]
        assert (a.answer, a.ids, a.stop_reason) == (b.answer, b.ids, b.stop_reason)
