"""Make the bundled model of a finished run: `zoo/nano.gguf` (q8_0) and its card, `zoo/nano.json`.

    python benchmarks/data/release_nano.py RUN_FOLDER --figures results.json [--commit HASH]

The GGUF is what `forethought models export RUN_FOLDER --quantize q8_0` writes, llama.cpp's own
tokenizer compared first, under the name "nano". The card has its size and SHA-256, the shape, the
recipe and commit that made it, and the figures: a JSON object of numbers or short texts by name
(or of such objects), as `forethought models show nano` will print them, in this order. The same
run and figures give the same bytes. Prints what to commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from forethought.checkpoints.bundled import FORMAT, ZOO, read_card
from forethought.checkpoints.export import export_gguf
from forethought.checkpoints.folder import read_json
from forethought.checkpoints.hf_config import read_config
from forethought.checkpoints.network_tensors import count_parameters
from forethought.engines.llama_vocabulary import open_llama_tokenizer
from forethought.errors import ForethoughtError
from forethought.problems.registry import BUNDLED
from forethought.recipes.reading import read_recipe

NAME: Final = "nano"
MOST: Final = 24 << 20
"""Bytes that a bundled GGUF may have."""
SHAPE: Final = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def figures_of(path: Path) -> dict[str, int | float | str]:
    """The figures in a file. SystemExit with a sentence where they are none."""
    try:
        found: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise SystemExit(f"{path} holds no JSON object of figures by name.")
    return _flat(path, found, "")


def _flat(path: Path, found: dict[str, Any], prefix: str) -> dict[str, int | float | str]:
    """Figures inside figures get a name of both: "countdown / pass@1"."""
    flat: dict[str, int | float | str] = {}
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(path, value, f"{name} / ")
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, str) and value) and not (number and math.isfinite(value)):
            raise SystemExit(f"{path}: {name} is {value!r}; a figure is a number or a short text.")
        flat[name] = value
    return flat


def identity_of(run: Path) -> dict[str, Any]:
    """What the run was made with. SystemExit where it is not finished."""
    if not (run / "done.json").is_file():
        raise SystemExit(f"{run} is no finished run: it has no done.json.")
    identity = read_json(run / "run.json").get("identity")
    if not isinstance(identity, dict):
        raise SystemExit(f"{run / 'run.json'} has no identity.")
    return identity


def commit_of(identity: dict[str, Any], given: str | None) -> str:
    """The commit that trained it: as given, or as the run noted it if its tree was clean."""
    commit = str(given if given is not None else identity.get("commit"))
    if COMMIT.fullmatch(commit) is None:
        raise SystemExit(
            f"The commit is {commit!r}, which is no whole hash of a clean tree: say --commit HASH."
        )
    return commit


def release(run: Path, figures: dict[str, int | float | str], commit: str | None, zoo: Path) -> Any:
    """Write both files into ``zoo``; the card, read back."""
    identity = identity_of(run)
    trained_by = commit_of(identity, commit)
    recipe = read_recipe(str(run / "recipe.toml"))
    problems = recipe.recipe.problems
    if recipe.digest != identity["recipe_digest"]:
        raise SystemExit(f"{run / 'recipe.toml'} is not the recipe that {run} was made with.")
    if set(problems.families) != set(BUNDLED):
        missing = ", ".join(sorted(set(BUNDLED) ^ set(problems.families)))
        raise SystemExit(
            f"The model must know the bundled families, all of them and no others ({missing}): "
            "forethought tells people so when a question is of none."
        )
    config = read_config(run)
    zoo.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=zoo) as place:
        made = Path(place) / f"{NAME}.gguf"
        export_gguf(run, made, "q8_0", name=NAME, open_llama_tokenizer=open_llama_tokenizer)
        data = made.read_bytes()
        if len(data) > MOST:
            raise SystemExit(f"The GGUF has {len(data)} bytes, and at most {MOST} are bundled.")
        kept = config.model_dump()
        card = {
            "format": FORMAT,
            "name": NAME,
            "parameters": count_parameters(config).total,
            "shape": {key: kept[key] for key in SHAPE if kept.get(key) is not None},
            "recipe": recipe.recipe.name,
            "recipe_digest": recipe.digest,
            "seed": recipe.recipe.seed,
            "commit": trained_by,
            "families": list(problems.families),
            "languages": [problems.language] if problems.language else ["en", "zh"],
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "figures": figures,
        }
        text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        found = read_card(text.encode())
        made.replace(zoo / f"{NAME}.gguf")
        (zoo / f"{NAME}.json").write_text(text, encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--figures", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit", metavar="HASH")
    parser.add_argument("--zoo", type=Path, default=ZOO, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        card = release(chosen.run, figures_of(chosen.figures), chosen.commit, chosen.zoo)
    except ForethoughtError as error:
        raise SystemExit(str(error)) from None
    print(f"{card.name}: {card.parameters:,} parameters, {card.size:,} bytes, {card.sha256}")
    print(f"git add {chosen.zoo / NAME}.gguf {chosen.zoo / NAME}.json")


if __name__ == "__main__":
    main()
