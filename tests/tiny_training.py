"""Networks of width 16, a tokenizer and problems small enough to train on within a test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, ClassVar

import torch

from forethought.checkpoints.network_config import DeepseekConfig, DenseConfig
from forethought.models.causal_lm import CausalLM
from forethought.models.deepseek_v3 import DeepseekV3
from forethought.models.dense import DenseLM
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong
from forethought.training.config import OptimizerConfig
from forethought.training.optimizer import MasterAdamW
from forethought.training.tokenizer import TrainedTokenizer, train_tokenizer

_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.0,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def tiny_v3(
    vocabulary: int,
    *,
    mtp: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> DeepseekV3:
    """Two layers of eight experts behind a dense one, and the MTP module if asked for.
    ``changes``: of the config."""
    config = DeepseekConfig(**{"vocab_size": vocabulary, **_V3, **changes})
    network = DeepseekV3(config, mtp=mtp)
    _randomise(network, seed)
    return network.to(dtype)


def tiny_dense(
    vocabulary: int,
    *,
    width: int = 16,
    layers: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> DenseLM:
    """A Qwen3 with grouped queries."""
    config = DenseConfig(
        model_type="qwen3",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 2,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        qk_norm=True,
    )
    network = DenseLM(config)
    _randomise(network, seed)
    return network.to(dtype)


@torch.no_grad()
def _randomise(network: CausalLM, seed: int) -> None:
    """Matrices of unit gain, norms around 1, selection biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.parameters():
        if tensor.dim() >= 2:
            tensor.normal_(0.0, tensor.shape[-1] ** -0.5, generator=generator)
        else:
            tensor.uniform_(0.7, 1.3, generator=generator)
    for name, tensor in network.named_buffers():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(0.0, 0.1, generator=generator)


def optimizer_of(network: torch.nn.Module, **options: Any) -> MasterAdamW:
    options.setdefault("learning_rate", 1e-3)
    return MasterAdamW(network.named_parameters(), OptimizerConfig(**options))


@lru_cache
def tiny_tokenizer() -> TrainedTokenizer:
    """Bytes, the special tokens and a few dozen merges; its size is no multiple of 64."""
    texts = ["Which digit is shown: 7? <answer>7</answer> The answer is seven.\n\n"] * 8
    texts += ["Problem: wait, check the answer again. Solution: but\n"] * 8
    return train_tokenizer(texts, vocab_size=300)


@dataclass(frozen=True)
class ShownDigit(Family):
    """Which digit is shown? Levels 1 to 3 show one of 3, 6 or 10 digits."""

    name: ClassVar[str] = "shown_digit"
    levels: ClassVar[int] = 3

    def draw(self, rng: Random, level: int) -> tuple[int, int]:
        return rng.randrange((3, 6, 10)[level - 1]), rng.randrange(1000)

    def canonical(self, task: tuple[int, int]) -> str:
        return str(task)

    def phrase(self, task: tuple[int, int], rng: Random, language: Language) -> str:
        return str(task[0])

    def answer(self, task: tuple[int, int], language: Language) -> str:
        return str(task[0])

    def verify(self, problem: Problem, answer: str) -> Verdict:
        return CORRECT if answer == problem.answer else wrong("another digit")

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        return Worked((f"It is {problem.answer}.",), problem.answer)
