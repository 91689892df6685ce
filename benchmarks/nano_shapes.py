"""How fast llama.cpp draws from small DeepSeek-V3 networks: which shape a bundled model may have.

    python benchmarks/nano_shapes.py [--rounds 5] [--threads 2]

Random weights, a tokenizer of 4,096 entries, q8_0 (`forethought export`'s own writer). Each round
asks every shape in turn for 512 tokens after a prompt of 64, through the raw server of the wheel
`xllamacpp`, greedily, with no end token; the first token is not counted. Medians of the rounds.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import forethought as ft
from _machine import save
from forethought.checkpoints.export import export_gguf
from forethought.checkpoints.network_tensors import count_parameters
from forethought.checkpoints.save_folder import save_folder
from forethought.engines.llama_cpp import LlamaCppEngine
from forethought.recipes.reading import read_recipe
from forethought.recipes.workshop import network_of, tokenizer_of

PROMPT: Final = 64
NEW: Final = 512
HERE: Final = Path(__file__).parent

SHAPES: Final[dict[str, dict[str, int]]] = {
    "d384 L4 E16k2 m256": {},
    "d384 L5 E16k2 m192": {"num_hidden_layers": 5, "moe_intermediate_size": 192},
    "d384 L6 E16k2 m160": {"num_hidden_layers": 6, "moe_intermediate_size": 160},
    "d384 L6 E8k2 m288": {
        "num_hidden_layers": 6,
        "n_routed_experts": 8,
        "moe_intermediate_size": 288,
    },
    "d320 L6 E16k2 m192": {
        "hidden_size": 320,
        "num_attention_heads": 5,
        "num_hidden_layers": 6,
        "moe_intermediate_size": 192,
    },
    "d256 L8 E16k2 m192": {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "moe_intermediate_size": 192,
    },
}
"""What differs from the recipe's own: width, layers, experts, experts used, their width."""


def recipe_text(changes: dict[str, int]) -> str:
    model = {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "q_lora_rank": 192,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "moe_intermediate_size": 256,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 1024,
        **changes,
    }
    lines = "\n".join(f"{key} = {value}" for key, value in model.items())
    return f"""
name = "shape"
seed = 1
[model]
{lines}
rope_theta = 10000.0
initializer_range = 0.02
[tokenizer]
documents = 4000
vocab_size = 4096
[problems]
families = ["countdown", "word_problems", "family_relations", "calendar_clock"]
[[stages]]
kind = "pretrain"
steps = 1
batch_tokens = 1024
[stages.optimizer]
learning_rate = 1e-3
"""


def one_round(native: Any, ids: list[int], tokens: int) -> float:
    """Tokens a second after the first."""
    marks: list[float] = []

    def callback(chunk: Any) -> bool:
        marks.append(time.perf_counter())
        return False

    body = {
        "prompt": ids,
        "n_predict": tokens,
        "stream": True,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
    }
    native.handle_completions(body, callback)
    return (tokens - 1) / (marks[-1] - marks[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=NEW)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    arguments = parser.parse_args()
    names = arguments.shapes.split(",")
    if unknown := set(names) - set(SHAPES):
        parser.error(f"no such shape: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        files, millions, mib = {}, {}, {}
        for name in names:
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            (place / "recipe.toml").write_text(recipe_text(SHAPES[name]), encoding="utf-8")
            files[name], millions[name] = made(place)
            mib[name] = files[name].stat().st_size / 2**20
            print(f"{name}: made", file=sys.stderr)
        speeds: dict[str, list[float]] = {name: [] for name in names}
        models = {
            name: ft.load(str(files[name]), threads=arguments.threads, context=1024)
            for name in names
        }
        ids = [100 + (37 * at) % 3000 for at in range(PROMPT)]
        for turn in range(arguments.rounds + 1):
            for name, model in models.items():
                assert isinstance(model.engine, LlamaCppEngine)
                speed = one_round(model.engine.server._native, ids, arguments.tokens)
                if turn:  # the first warms up
                    speeds[name].append(speed)
        for model in models.values():
            model.close()
    print(f"{'shape':24}{'million parameters':>20}{'MiB':>8}{'tokens/s':>10}{'lowest':>9}")
    found = {}
    for name in names:
        middle, lowest = statistics.median(speeds[name]), min(speeds[name])
        print(f"{name:24}{millions[name]:>20.2f}{mib[name]:>8.1f}{middle:>10.0f}{lowest:>9.0f}")
        found[name] = {
            "millions": round(millions[name], 2),
            "mib": round(mib[name], 2),
            "tokens_per_second": round(middle, 1),
            "rounds": [round(one, 1) for one in speeds[name]],
        }
    save("nano_shapes", {"shapes": found, "tokens": arguments.tokens})


def made(place: Path) -> tuple[Path, float]:
    """A GGUF of random weights, and how many millions of parameters it has."""
    loaded = read_recipe(str(place / "recipe.toml"))
    tokenizer = tokenizer_of(loaded, place)
    network = network_of(loaded, tokenizer)
    save_folder(
        place / "model",
        network.config,
        network.checkpoint_tensors(),
        tokenizer_files=tokenizer.files,
    )
    target = place / "model.gguf"
    export_gguf(place / "model", target, "q8_0")
    return target, count_parameters(network.config).total / 1e6


if __name__ == "__main__":
    main()
