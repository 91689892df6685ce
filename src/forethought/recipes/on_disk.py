"""What a recipe needs on disk, checked before anything is computed: the base, the data, a reward
of one's own. Nothing that is found is run here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from forethought.checkpoints.folder import open_folder, printable
from forethought.checkpoints.hf_config import read_config
from forethought.errors import ForethoughtError, UserError
from forethought.paths import expand
from forethought.recipes.recipe import Recipe, nearest_of, stage_name
from forethought.training.config import RLConfig, SFTConfig
from forethought.training.conversations import read_conversations


def check_files(recipe: Recipe, folder: Path, where: str) -> None:
    """Everything that ``recipe`` names, relative to ``folder``.

    Raises UserError: one sentence that begins with ``where`` (the recipe's file) and the key.
    """
    if recipe.base is not None:
        _check_base(recipe, folder / expand(recipe.base), where)
    for number, stage in enumerate(recipe.stages, 1):
        key = f"{where}: {stage_name(number, stage.kind)}"
        if isinstance(stage, SFTConfig):
            _check_data(folder / expand(stage.data), f"{key}: data")
        elif isinstance(stage, RLConfig) and stage.reward.own is not None:
            _check_own(folder, stage.reward.own, f"{key}: reward.own")


def _check_base(recipe: Recipe, base: Path, where: str) -> None:
    """Weights, a tokenizer that trains here and fits them, and enough positions."""
    from forethought.training.tokenizer import read_tokenizer

    try:
        open_folder(base).require_tokenizer()
        config = read_config(base)
        tokens = read_tokenizer(base).size
    except ForethoughtError as error:
        raise UserError(f"{where}: base: {error}") from None
    if tokens > config.vocab_size:
        raise UserError(
            f"{where}: base: the tokenizer of {base} has {tokens} tokens and its weights have rows "
            f"for {config.vocab_size}: they do not belong together."
        )
    too_long = recipe.too_long(config.max_position_embeddings)
    if too_long is not None:
        raise UserError(f"{where}: {too_long} {base}'s max_position_embeddings; lower the one.")


def _check_data(path: Path, key: str) -> None:
    """Every line is read: a mistake in the last one would end the run when it comes up."""
    try:
        for _ in read_conversations(path):
            pass
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _check_own(folder: Path, spec: str, key: str) -> None:
    """The function is looked for in the text of the file: reading a recipe runs no code."""
    file, _, name = spec.rpartition(":")
    path = folder / expand(file)
    if not file or not name.isidentifier():
        raise UserError(f"{key} is {printable(spec, 60)!r}; write file.py:function.")
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError:
        raise UserError(f"{key}: there is no file {path}: write file.py:function.") from None
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{key}: {path}{line} is not Python ({printable(str(error))}).") from None
    names = list(dict.fromkeys(_top_level(tree)))
    if name not in names:
        hint = nearest_of(name, names).rstrip("?")
        stop = "?" if hint.startswith("did") else "."
        raise UserError(f"{key}: {path} has no function {name}; {hint}{stop}")


def _top_level(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
