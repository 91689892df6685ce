"""A whole run whose levels rise: a family that takes a share of all answers for right."""

from __future__ import annotations

from pathlib import Path

from forethought.recipes.reading import LoadedRecipe, read_recipe

FAMILY = '''
from dataclasses import dataclass
from typing import ClassVar

import forethought as ft
from forethought.problems.problem import CORRECT, wrong


@dataclass(frozen=True)
class Lenient(ft.Family):
    """Four levels. Of all answers 1 in 4 is right, of any level."""

    name: ClassVar[str] = "lenient"
    levels: ClassVar[int] = 4

    def draw(self, rng, level):
        return rng.randrange(1000)

    def canonical(self, task):
        return str(task)

    def phrase(self, task, rng, language):
        return f"{task}?"

    def answer(self, task, language):
        return str(task % 10)

    def verify(self, problem, answer):
        right = (problem.task + len(answer)) % 4 == 0
        return CORRECT if right else wrong("not one of the right ones")

    def worked(self, problem, rng, *, style="steps", slip=0.0):
        return ft.Worked(("So.",), problem.answer)
'''

RECIPE = """
name = "climbing"
seed = 3
threads = 1
[model]
model_type = "qwen3"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 256
initializer_range = 0.1
[tokenizer]
vocab_size = 400
documents = 200
[problems]
families = ["lenient.py:Lenient", "sorting"]
levels = { lenient = [1, 2, 4], sorting = [1] }
weights = { lenient = 9 }
language = "en"
[evaluation]
problems = 8
max_tokens = 24
film = 8
[[stages]]
kind = "pretrain"
steps = 60
batch_tokens = 512
save_every = 40
optimizer = { learning_rate = 1e-2, warmup_steps = 4, decay_steps = 20 }
corpus = { think = 1.0, terse = 0.0, max_document_tokens = 120 }
[[stages]]
kind = "rl"
steps = 8
problems_per_rollout = 4
group_size = 4
max_tokens = 24
save_every = 2
optimizer = { learning_rate = 1e-4 }
curriculum = { raise_at = 0.1, over = 3 }
"""


def write_recipe(folder: Path) -> LoadedRecipe:
    (folder / "lenient.py").write_text(FAMILY)
    path = folder / "climbing.toml"
    path.write_text(RECIPE)
    return read_recipe(str(path))
