"""A place where the package has its bundled model, also before its weights are committed.

Where `zoo/nano.gguf` is in the source tree, that is the tree itself. Else it is a folder in which
everything of the package is a link, but for a zoo of its own: a network of width 64 with random
weights, made by `forethought train` and `benchmarks/data/release_nano.py` as the real one is.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from forethought.problems.registry import BUNDLED

REPOSITORY = Path(__file__).parents[1]
SRC = REPOSITORY / "src"
RELEASE = REPOSITORY / "benchmarks" / "data" / "release_nano.py"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIGURES = {"pass@1": 0.5, "countdown": {"pass@1": "0.25 ± 0.01"}}

RECIPE = f"""
name = "stand-in"
seed = 1
threads = 1
prompt = "r1-zero"
[model]
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 2
q_lora_rank = 32
kv_lora_rank = 32
qk_nope_head_dim = 16
qk_rope_head_dim = 16
v_head_dim = 32
moe_intermediate_size = 32
n_routed_experts = 4
num_experts_per_tok = 2
num_nextn_predict_layers = 0
max_position_embeddings = 1024
[tokenizer]
vocab_size = 420
documents = 200
[problems]
families = {json.dumps(list(BUNDLED))}
[evaluation]
problems = 2
max_tokens = 8
film = 1
[[stages]]
kind = "pretrain"
steps = 1
batch_tokens = 512
optimizer = {{ learning_rate = 1e-3 }}
"""


def train(folder: Path) -> Path:
    """A run in ``folder``: its last form, as every run leaves it."""
    (folder / "stand-in.toml").write_text(RECIPE)
    _run(["-m", "forethought", "train", "stand-in.toml", "--out", "run"], folder)
    return folder / "run"


def release(run: Path, zoo: Path, *more: str) -> None:
    """nano.gguf and nano.json of a run, in ``zoo``."""
    zoo.mkdir(exist_ok=True)
    figures = zoo.parent / "figures.json"
    figures.write_text(json.dumps(FIGURES))
    options = ["--figures", str(figures), "--commit", COMMIT, "--zoo", str(zoo), *more]
    _run([str(RELEASE), str(run), *options], zoo.parent)


def _run(arguments: list[str], folder: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("FORETHOUGHT_")
    }
    environment |= {"PYTHONPATH": str(SRC), "FORETHOUGHT_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def is_here() -> bool:
    """Whether the source tree has the real files."""
    return (SRC / "forethought" / "zoo" / "nano.gguf").is_file()


@cache
def source_root() -> Path:
    """What to put on PYTHONPATH for a forethought that has its bundled model."""
    if is_here():
        return SRC
    place = Path(tempfile.mkdtemp(prefix="stand-in-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    package = place / "forethought"
    package.mkdir()
    for item in (SRC / "forethought").iterdir():
        if item.name not in ("zoo", "__pycache__"):
            (package / item.name).symlink_to(item)
    release(train(place), package / "zoo")
    return place
