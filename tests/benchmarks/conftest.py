"""A finished run of a very small network, for scripts that read one."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.recipes.reading import read_recipe
from forethought.recipes.run import train

RECIPE = """
name = "micro"
seed = 3
threads = 1
[model]
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 2
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 16
moe_intermediate_size = 16
n_routed_experts = 4
num_experts_per_tok = 2
num_nextn_predict_layers = 0
max_position_embeddings = 512
initializer_range = 0.1
[tokenizer]
vocab_size = 500
documents = 300
[problems]
families = ["letter_counting", "chained_arithmetic", "countdown", "base_conversion"]
levels = { letter_counting = [1], chained_arithmetic = [1, 2] }
[problems.settings.countdown]
largest = 9
lowest_target = 1
highest_target = 20
operators = "+-"
[evaluation]
problems = 6
max_tokens = 40
film = 0
[[stages]]
kind = "pretrain"
steps = 150
batch_tokens = 1024
save_every = 100
optimizer = { learning_rate = 1e-2, warmup_steps = 5, decay_steps = 60 }
corpus = { think = 0.9, hasty = 1.0, terse = 0.0, max_document_tokens = 160 }
[[stages]]
kind = "rl"
steps = 8
problems_per_rollout = 16
group_size = 4
minibatches = 2
max_tokens = 40
save_every = 100
rows = 64
optimizer = { learning_rate = 2e-3 }
"""


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = folder / "micro.toml"
    path.write_text(RECIPE)
    out = folder / "micro"
    train(read_recipe(str(path)), out)
    return out
