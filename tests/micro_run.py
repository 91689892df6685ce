"""A whole run in seconds: pretraining and RL of a network of width 32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from forethought.recipes.reading import LoadedRecipe, read_recipe
from forethought.training.monitor import FilmFrame

RECIPE = """
name = "micro"
seed = 3
threads = 1
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 16
moe_intermediate_size = 16
n_routed_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 256
initializer_range = 0.1
[tokenizer]
vocab_size = 420
documents = 300
[problems]
families = ["sorting", "chained_arithmetic"]
levels = { sorting = [1], chained_arithmetic = [1] }
[evaluation]
problems = 8
max_tokens = 32
film = 3
[[stages]]
kind = "pretrain"
steps = 8
batch_tokens = 512
save_every = 3
optimizer = { learning_rate = 1e-2, warmup_steps = 2, decay_steps = 3 }
corpus = { think = 0.6, max_document_tokens = 120 }
[[stages]]
kind = "rl"
steps = 6
problems_per_rollout = 4
group_size = 4
minibatches = 2
max_tokens = 24
save_every = 2
evaluate_every = 4
reward = { own = "reward.py:shorter" }
loss = { preset = "paper" }
reference_every = 3
optimizer = { learning_rate = 2e-3 }
"""

REWARD = '''
def shorter(problem, reply):
    """Anything with a gradient: replies differ in length long before one is right."""
    return -0.01 * len(reply.answer) + 0.1 * len(set(reply.answer))
'''


def write_recipe(folder: Path, text: str = RECIPE) -> LoadedRecipe:
    """The recipe and its reward in ``folder``, read."""
    (folder / "reward.py").write_text(REWARD)
    path = folder / "micro.toml"
    path.write_text(text)
    return read_recipe(str(path))


class StopAt:
    """A monitor that asks to stop after so many optimiser steps, over all stages."""

    def __init__(self, steps: int | None = None) -> None:
        self._left = steps
        self.stages: list[tuple[str, int, int]] = []
        self.frames: list[FilmFrame] = []

    def begin(self, stage: str, first: int, steps: int) -> None:
        self.stages.append((stage, first, steps))

    def step(self, *args: object, **named: object) -> None:
        if self._left is not None:
            self._left -= 1

    def evaluation(
        self, stage: str, step: int, metrics: object, frames: list[FilmFrame], **_: object
    ) -> None:
        self.frames += frames

    def thought(self, *args: object) -> None: ...
    def saved(self, *args: object) -> None: ...

    def stopping(self) -> bool:
        return self._left is not None and self._left <= 0


def outcome(run: Path) -> dict[str, Any]:
    """What two equal runs have in common, to the bit: metrics, film, weights, tokenizer."""
    return {
        "metrics": (run / "metrics.jsonl").read_text(),
        "film": (run / "film.jsonl").read_text(),
        "tokenizer": (run / "tokenizer.json").read_bytes(),
        "weights": {
            name: tensor.view(torch.uint8).numpy().tobytes()
            for name, tensor in load_file(run / "model.safetensors").items()
        },
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
