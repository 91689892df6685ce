"""``forethought report``: the real program on runs that a test made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from evaluation.synthetic_run import SyntheticRun

from .conftest import SRC, Cli, sentence
from .test_startup import loaded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = SyntheticRun(tmp_path_factory.mktemp("run") / "tiny", pretrain=20, rl=20, every=10)
    return made.make()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SyntheticRun(tmp_path_factory.mktemp("run") / "begun").one_step()


def test_the_page_is_where_it_says(run: Path, cli: Cli) -> None:
    done = cli("report", str(run))
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.decode().rstrip("\n"))
    assert page == run / "report" / "report.html"
    assert page.read_text().startswith("<!doctype html>")
    said = done.stderr.decode()
    assert said.startswith("tiny: finished; held-out pass@1 ")
    assert said.count("\n") == 1


def test_json_has_the_figures_and_the_paths(begun: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("report", str(begun), "--out", str(tmp_path / "out"), "--no-open", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert found["page"] == str(tmp_path / "out" / "report.html")
    assert found["pictures"] == [str(tmp_path / "out" / "loss.png")]
    assert all(Path(path).is_file() for path in [found["page"], *found["pictures"]])
    assert [(stage["stage"], stage["steps"]) for stage in found["stages"]] == [
        ("pretrain", 1),
        ("rl", 0),
    ]
    assert (found["finished"], found["last"]) == (False, None)


def test_a_mistake_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    done = cli("report", str(tmp_path))
    assert done.returncode == 2
    assert "holds no run" in sentence(done)
    assert cli("report").returncode == 2


def test_without_the_extra_it_says_what_to_install(run: Path, cli: Cli, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    done = cli("report", str(run), PYTHONPATH=os.pathsep.join([str(site), str(SRC)]))
    assert done.returncode == 2
    assert "pip install 'forethought[train]'" in sentence(done)


def test_reporting_loads_no_torch(begun: Path, home: Path, tmp_path: Path) -> None:
    code, names = loaded(["report", str(begun), "--out", str(tmp_path / "out")], home)
    assert code == 0
    assert names.isdisjoint({"torch", "transformers", "httpx", "huggingface_hub", "xllamacpp"})
    code, names = loaded(["report", "--help"], home)
    assert code == 0
    assert names.isdisjoint({"matplotlib", "numpy", "pydantic", "jinja2"})
