"""Small random models of every architecture as transformers saves them, with a small tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 330  # more rows than the tokenizer has tokens
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DENSE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_DEEPSEEK = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "rope_theta": 10000.0,
}
_V2 = {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _DENSE),
    "llama-tied-llama3": (
        "Llama",
        {**_DENSE, "tie_word_embeddings": True, "rope_parameters": _LLAMA3},
    ),
    "llama-biases": ("Llama", {**_DENSE, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2", {**_DENSE, "head_dim": 16}),
    "qwen2-yarn-tied": (
        "Qwen2",
        {
            **_DENSE,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 10000.0,
            },
        },
    ),
    "qwen3": ("Qwen3", _DENSE),
    "deepseek_v3": ("DeepseekV3", _DEEPSEEK),
    "deepseek_v3-yarn-tied": (
        "DeepseekV3",
        {**_DEEPSEEK, "rope_parameters": _YARN, "tie_word_embeddings": True},
    ),
    "deepseek_v3-halves": ("DeepseekV3", {**_DEEPSEEK, "rope_interleave": False}),
    "deepseek_v2": ("DeepseekV2", {**_DEEPSEEK, **_V2}),
    "deepseek_v2-lite": (
        "DeepseekV2",
        {**_DEEPSEEK, **_V2, "q_lora_rank": None, "num_hidden_layers": 27},
    ),
}


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE of about 300 tokens with Qwen2's pre-tokenizer and two special tokens."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [split, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then that is the thing"], trainer)
    return str(tokenizer.to_str())


def make(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Any:
    """Save a model and its tokenizer to `folder` and return the model.

    Weights are larger than at the start of a training, so that greedy text has some life.
    """
    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(
        **{**settings, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **changes}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.normal_(1.0 if "norm" in key else 0.0, 0.2)
            else:
                tensor.normal_(0, 0.15)
        for key, tensor in model.named_buffers():
            if "e_score_correction_bias" in key:
                tensor.normal_(0, 0.05)
    save(model, folder)
    return model


def save(model: Any, folder: Path) -> None:
    """The folder that transformers would have saved, tokenizer included."""
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_json()),
        bos_token="<|begin|>",
        eos_token="<|end|>",
    ).save_pretrained(folder)


def first_difference_is_a_tie(
    model: Any, prompt: list[int], theirs: list[int], count: int, tolerance: float = 1e-4
) -> bool:
    """Whether `theirs` are transformers' own greedy tokens, up to a tie of the two best logits."""
    ids = [*prompt]
    with torch.no_grad():
        step = model(torch.tensor([ids]), use_cache=True)
        for position in range(count):
            logits = step.logits[0, -1]
            best = int(logits.argmax())
            if position >= len(theirs) or theirs[position] != best:
                two = logits.topk(2)
                chosen = theirs[position] if position < len(theirs) else -1
                close = float(two.values[0] - two.values[1]) <= tolerance
                return close and chosen in two.indices.tolist()
            if best == model.config.eos_token_id:
                return len(theirs) == position + 1
            step = model(
                torch.tensor([[best]]), past_key_values=step.past_key_values, use_cache=True
            )
    return len(theirs) == count
