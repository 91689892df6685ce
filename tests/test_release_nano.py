"""From a finished run to the two files that are bundled, and whether they are the run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from forethought.checkpoints.bundled import Card, read_card
from forethought.checkpoints.gguf_header import read_header
from forethought.problems.registry import BUNDLED
from nano_stand_in import COMMIT, FIGURES, RELEASE, REPOSITORY, train


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release_nano = script(RELEASE)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("stand-in"))


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, for a test to change."""
    return shutil.copytree(run, tmp_path / "another-name")


def released(run: Path, zoo: Path) -> Card:
    card = release_nano.release(run, {"pass@1": 0.5}, COMMIT, zoo)
    assert isinstance(card, Card)
    return card


def test_both_files_say_the_same(run: Path, tmp_path: Path) -> None:
    card = released(run, tmp_path / "zoo")
    data = (tmp_path / "zoo" / "nano.gguf").read_bytes()
    assert (card.size, card.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert read_card((tmp_path / "zoo" / "nano.json").read_bytes()) == card
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["nano.gguf", "nano.json"]
    header = read_header(tmp_path / "zoo" / "nano.gguf")
    assert header.parameter_count == card.parameters
    assert header.quantisation == "Q8_0"
    assert set(card.families) == set(BUNDLED)
    assert (card.recipe, card.seed, card.commit) == ("stand-in", 1, COMMIT)
    assert card.languages == ("en", "zh")
    assert card.shape["hidden_size"] == 64
    assert card.shape["q_lora_rank"] == 32
    assert card.figures == {"pass@1": 0.5}


def test_the_same_run_gives_the_same_bytes(run: Path, changed: Path, tmp_path: Path) -> None:
    for folder, zoo in ((run, "one"), (changed, "two")):
        released(folder, tmp_path / zoo)
    released(run, tmp_path / "two")  # over what is there
    for name in ("nano.gguf", "nano.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_figures_inside_figures_get_a_name_of_both(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(FIGURES))
    wanted = {"pass@1": 0.5, "countdown / pass@1": "0.25 ± 0.01"}
    assert release_nano.figures_of(file) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"a": null}', '{"a": NaN}', '{"a": true}', '{"a": {"b": [1]}}', '{"a": ""}'],
)
def test_figures_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match=r"figures\.json"):
        release_nano.figures_of(file)


@pytest.mark.parametrize("commit", ["0123", COMMIT + "+", None])
def test_a_commit_of_a_changed_tree_is_refused(commit: str | None) -> None:
    with pytest.raises(SystemExit, match="--commit HASH"):
        release_nano.commit_of({"commit": commit}, None)
    assert release_nano.commit_of({"commit": commit}, COMMIT) == COMMIT
    assert release_nano.commit_of({"commit": COMMIT}, None) == COMMIT


def test_an_unfinished_run_is_refused(changed: Path, tmp_path: Path) -> None:
    (changed / "done.json").unlink()
    with pytest.raises(SystemExit, match="no finished run"):
        released(changed, tmp_path / "zoo")


def test_a_run_of_other_families_is_refused(changed: Path, tmp_path: Path) -> None:
    from forethought.recipes.reading import read_recipe

    recipe = changed / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"sudoku4"', '"sorting"').replace(
        '"sorting", "calendar_clock"', '"calendar_clock"'))  # fmt: skip
    record = json.loads((changed / "run.json").read_text())
    record["identity"]["recipe_digest"] = read_recipe(str(recipe)).digest
    (changed / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="sudoku4"):
        released(changed, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_a_recipe_that_is_not_the_runs_is_refused(changed: Path, tmp_path: Path) -> None:
    recipe = changed / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 1\n", "seed = 2\n", 1))
    with pytest.raises(SystemExit, match="is not the recipe"):
        released(changed, tmp_path / "zoo")


def test_the_question_has_the_ids_of_training(run: Path, tmp_path: Path) -> None:
    import forethought as ft
    from forethought.training.prompting import Prompter
    from forethought.training.tokenizer import read_tokenizer

    released(run, tmp_path / "zoo")
    tokenizer = read_tokenizer(run)
    prompter = Prompter(tokenizer, "r1-zero")
    opening = tuple(tokenizer.tokenizer.encode("<think>\n", parse_special=True))
    with ft.load(str(tmp_path / "zoo" / "nano.gguf"), threads=1) as model:
        for question in ("Use 19, 36, 55 and 7 to make 65.", "解方程：3x + 5 = 20。"):
            assert model.prompt(question).ids == (*prompter.ids(question), *opening)


@pytest.mark.slow
def test_parity_of_the_run_with_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    released(run, tmp_path / "zoo")
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # its helper replaces it
    parity = script(REPOSITORY / "benchmarks" / "nano_parity.py")
    saved: dict[str, object] = {}
    monkeypatch.setattr(parity, "save", lambda name, result: saved.update({name: result}))
    monkeypatch.setattr(
        sys, "argv",
        ["nano_parity.py", str(run), "sorting", "countdown", "--greedy", "2", "--problems", "4",
         "--samples", "2", "--threads", "1", "--bundled", str(tmp_path / "zoo" / "nano.gguf")],
    )  # fmt: skip
    parity.main()
    result = saved["nano_parity"]
    assert isinstance(result, dict)
    assert result["greedy"]["problems"] == 2
    assert all(place["gap"] <= 1e-3 for places in result["greedy"]["differ"].values()
               for place in places)  # fmt: skip
    assert result["greedy"]["tokens"] > 100
    assert result["pass_at_1"]["problems"] == 4
    assert abs(result["pass_at_1"]["difference"]) <= 1


def test_the_error_of_paired_differences() -> None:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    out = sys.stdout
    try:
        parity = script(REPOSITORY / "benchmarks" / "nano_parity.py")
    finally:
        sys.stdout = out
        sys.path.pop(0)
    # by hand: mean 0.25, deviations ±0.25 and 0.75 of four
    assert parity.standard_error([0.0, 0.0, 0.0, 1.0]) == pytest.approx(0.25)
    assert parity.standard_error([1.0]) == 0.0
