"""A small recipe as TOML, for tests to change."""

from __future__ import annotations

GOOD = """\
name = "tiny"
threads = 1

[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 2
q_lora_rank = 32
kv_lora_rank = 32
qk_nope_head_dim = 32
qk_rope_head_dim = 16
v_head_dim = 32
moe_intermediate_size = 32
n_routed_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 512

[tokenizer]
vocab_size = 500

[problems]
families = ["sorting", "countdown"]
levels.sorting = [1, 2]

[evaluation]
problems = 4
max_tokens = 32

[[stages]]
kind = "pretrain"
steps = 10
batch_tokens = 512
micro_batch_tokens = 256
corpus.max_document_tokens = 64
optimizer.learning_rate = 1e-3

[[stages]]
kind = "rl"
steps = 4
problems_per_rollout = 4
group_size = 4
minibatches = 2
max_tokens = 32
micro_batch_tokens = 256
optimizer.learning_rate = 1e-4
"""


def changed(old: str, new: str) -> str:
    """`GOOD` with its one ``old`` replaced."""
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)
