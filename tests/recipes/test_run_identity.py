"""What makes two runs the same: a refusal to resume names the key that differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.errors import UserError
from forethought.recipes.reading import LoadedRecipe, read_recipe
from forethought.recipes.run import run_identity
from forethought.training.run_folder import RunFolder
from recipes.recipe_text import GOOD, changed


def read(folder: Path, text: str) -> LoadedRecipe:
    (folder / "r.toml").write_text(text)
    return read_recipe(str(folder / "r.toml"))


def test_a_changed_recipe_is_refused_by_the_key_that_changed(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    RunFolder.create(tmp_path / "run", run_identity(recipe, 1), recipe.text).close()
    other = read(tmp_path, changed("group_size = 4", "group_size = 8"))
    with pytest.raises(UserError, match=r"recipe\.stages\[2\]\.group_size was 4 and is 8") as said:
        RunFolder.resume(tmp_path / "run", run_identity(other, 1))
    assert "recipe_digest was" in str(said.value)
    assert str(said.value).count("recipe.") == 1
    RunFolder.resume(tmp_path / "run", run_identity(read(tmp_path, GOOD + "\n# same"), 1)).close()


def test_what_is_there_already_is_not_said_twice(tmp_path: Path) -> None:
    identity = run_identity(read(tmp_path, GOOD), 1)
    assert identity["seed"] == 0
    assert identity["isolated"] is None
    assert not {"recipe.seed", "recipe.threads", "recipe.device", "recipe.name"} & set(identity)
    assert identity["recipe.dtype"] == "float32"
