"""The project itself: what is installed, what is shipped, how the code may look."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SRC = REPOSITORY / "src"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
SOURCES = sorted(SRC.rglob("*.py"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return normal(found[0])


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


BASE = PROJECT["dependencies"]
EXTRAS = PROJECT["optional-dependencies"]


# -- dependencies


def constraints() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line}: not an exact version"
            found[normal(name)] = version
    return found


@pytest.mark.parametrize("requirement", [*BASE, *chain(*EXTRAS.values())])
def test_every_dependency_has_an_exact_version_that_fits(requirement: str) -> None:
    least = re.search(r">=([\d.]+)", requirement)
    assert least is not None, "a dependency needs a lower bound"
    exact = constraints()[requirement_name(requirement)]
    assert version_of(exact) >= version_of(least[1])


def test_dependencies_of_dependencies_have_exact_versions_too() -> None:
    exact = constraints()
    seen: set[str] = set()
    todo = [requirement_name(r) for r in [*BASE, *chain(*EXTRAS.values())]]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        assert name in exact, f"{name} has no line in constraints.txt"
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # torch, where the extra train is not installed
        for requirement in needed:
            if not _wanted_everywhere(requirement):
                continue
            todo.append(requirement_name(requirement))
    assert len(seen) > 30


def _wanted_everywhere(requirement: str) -> bool:
    """Whether it is needed here, without extras, and is no library of one platform."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if normal(parsed.name).startswith(("nvidia-", "cuda-", "triton")):
        return False
    return parsed.marker is None or parsed.marker.evaluate({"extra": ""})


def test_constraints_hold_nothing_of_one_platform() -> None:
    exact = constraints()
    assert "forethought" not in exact
    assert not [name for name in exact if name.startswith(("nvidia", "cuda", "triton"))]
    assert not [version for version in exact.values() if "+" in version]


def test_the_base_install_has_no_torch() -> None:
    names = {requirement_name(requirement) for requirement in BASE}
    assert names.isdisjoint({"torch", "numpy", "transformers", "tokenizers"})
    assert len(names) <= 8
    assert {requirement_name(requirement) for requirement in EXTRAS["train"]} == {
        "gguf",
        "matplotlib",
        "numpy",
        "safetensors",
        "tokenizers",
        "torch",
    }


# -- the wheel

LARGEST_GGUF = 24 << 20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network. Where the weights are not committed yet, a
    stand-in's take their place, of the size that they may have at most."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(REPOSITORY / name, tree)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SRC, tree / "src", ignore=unwanted)
    zoo = tree / "src" / "forethought" / "zoo"
    if not (zoo / "nano.gguf").exists():
        zoo.mkdir(exist_ok=True)
        (zoo / "nano.gguf").write_bytes(random.Random(0).randbytes(LARGEST_GGUF))
        (zoo / "nano.json").write_text("{}")
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps",
            "--no-build-isolation", "--no-index", "-w", str(folder), str(tree),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.stat().st_size < 26_000_000
    names = zipfile.ZipFile(wheel).namelist()
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    assert sum(size for name, size in sizes.items() if "/zoo/" not in name) <= 6 << 20
    assert {name for name in names if "/zoo/" in name} == {
        "forethought/zoo/nano.gguf",
        "forethought/zoo/nano.json",
    }
    assert sizes["forethought/zoo/nano.gguf"] <= LARGEST_GGUF
    assert "forethought/checkpoints/catalogue.json" in names
    assert "forethought/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"forethought"}
    assert not [name for name in names if name.endswith((".pth", ".pyc", ".so", ".safetensors"))]
    assert not [name for name in names if "test" in Path(name).name]
    modules = {str(path.relative_to(SRC)) for path in SOURCES}
    assert modules <= set(names)


def test_the_wheel_has_one_program_and_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "forethought = forethought.cli.main:main" in archive.read(points).decode()
    assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]


# -- importing


HEAVY = ("torch", "numpy", "tokenizers", "httpx", "huggingface_hub", "prompt_toolkit")


def seconds(code: str) -> float:
    """Median of 7 runs of an interpreter."""
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(SRC)}, check=True
        )
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def test_importing_costs_next_to_nothing() -> None:
    for attempt in range(3):
        bare, ours = seconds("pass"), seconds("import forethought")
        # the interpreter's own start is not ours, and the machine may be busy
        if ours <= 0.150 or (attempt and ours - bare <= 0.050):
            return
    pytest.fail(f"import forethought takes {ours:.3f} s, an empty program {bare:.3f} s")


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, forethought; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    names = set(done.stdout.split())
    assert "forethought" in names
    assert names.isdisjoint(HEAVY)


# -- the code


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 600


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def dangers(tree: ast.AST) -> list[str]:
    """Ways in which data could become code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "builtins.eval", "builtins.exec"):
            found.append(called)
        if called in ("os.system", "os.popen", "torch.load", "subprocess.getoutput"):
            found.append(called)
        for keyword in node.keywords:
            if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
                found.append("shell=")
            if keyword.arg in ("trust_remote_code", "allow_pickle"):
                found.append(keyword.arg)
    return found


def test_no_data_becomes_code() -> None:
    assert len(SOURCES) > 40
    for path in SOURCES:
        assert dangers(ast.parse(path.read_text("utf-8"))) == [], path


@pytest.mark.parametrize(
    "code",
    ["eval(x)", "exec('')", "import os; os.system(x)", "subprocess.run(x, shell=True)",
     "import pickle", "from pickle import loads", "torch.load(x)"],
)  # fmt: skip
def test_data_that_becomes_code_would_be_noticed(code: str) -> None:
    assert dangers(ast.parse(code))


# -- make


needs_make = pytest.mark.skipif(
    shutil.which("make") is None or sys.platform == "win32", reason="needs make"
)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A tree in which everything is installed, by the stamps, and the program echoes."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy2(REPOSITORY / name, tmp_path / name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("forethought", "python"):
        (programs / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" {name} "$@" >> {tmp_path}/called\n'
        )
        (programs / name).chmod(0o755)
    for stamp in (".base", ".all"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in ("Q", "MAKEFLAGS")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    called = folder / "called"
    text = called.read_text() if called.exists() else ""
    called.unlink(missing_ok=True)
    return text.splitlines()


@needs_make
@pytest.mark.parametrize(
    "question",
    [
        "What's 2+2?",
        'Who said "cogito"?',
        "Is $5 more than $(echo 4)?",
        "`date` \\n $$HOME ${HOME} #x",
        "--version",
    ],
)
def test_make_ask_hands_the_question_over_as_it_is(question: str, clone: Path) -> None:
    assert make(clone, "ask", f"Q={question}") == ["forethought", "ask", "--yes", "--", question]


@needs_make
def test_make_asks_what_nano_knows_and_installs_nothing_twice(clone: Path) -> None:
    wanted = ["forethought", "ask", "--yes", "--", "Use 19, 36, 55 and 7 to make 65."]
    assert make(clone, "ask") == wanted
    parallel = ["-n", "3", "--dist", "worksteal", "-m", "not slow and not alone"]
    assert make(clone, "test", "WORKERS=3") == [
        *("python", "-m", "pytest", "-q", *parallel),
        *("python", "-m", "pytest", "-q", "-m", "alone and not slow"),
    ]


@needs_make
def test_make_bench_runs_the_scripts_and_not_their_helpers(clone: Path) -> None:
    (clone / "benchmarks").mkdir()
    for name in ("_helper.py", "check_baselines.py", "first.py", "second.py"):
        (clone / "benchmarks" / name).touch()
    ran = make(clone, "bench")
    assert ran[0::2] == ["python"] * 3
    assert sorted(ran[1:4:2]) == ["benchmarks/first.py", "benchmarks/second.py"]
    # What they found is checked when all of it is there.
    assert ran[5:] == ["benchmarks/check_baselines.py"]


@needs_make
def test_make_installs_torch_before_anything_that_needs_it(clone: Path) -> None:
    (clone / ".venv" / ".all").unlink()
    called = " ".join(make(clone, "test"))
    exact = constraints()["torch"]
    first, _, rest = called.partition(f"torch=={exact}")
    assert rest, called
    assert "[train" not in first
    assert ".[train,problems,dev]" in rest
    assert called.count("constraints.txt") == 2


def test_ci_runs_the_checks_and_the_tests() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text("utf-8")
    assert "set -euo pipefail" in text
    commands = [line for line in text.splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
