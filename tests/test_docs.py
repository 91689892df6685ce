"""What the documents say is true: every command runs, every link and table is right."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from forethought.engines.llama_cpp import LlamaCppEngine
from forethought.engines.model import Model
from forethought.errors import UserError
from nano_stand_in import source_root

REPOSITORY = Path(__file__).parents[1]
SRC = REPOSITORY / "src"
DOCUMENTS = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")], key=lambda path: str(path)
)
RUNNABLE = ("sh", "console", "python")
# Other languages that a fenced block may have. None of them is something to type; `py` is a file
# that is shown.
INERT = ("", "toml", "text", "py")

MINUTES = "takes four minutes; a slow test runs it"
ALLOWED_REASONS = (
    MINUTES,
    "creates a virtual environment and installs packages",
    "installs packages",
    "installs packages and runs the tests",
    "downloads a model",
    "needs a server that listens",
    "needs servers that listen",
    "needs these files and downloads",
    "takes the path of a model file on your disk",
    "needs a model with an MTP module",
    "needs an NVIDIA GPU",
    "needs two GPUs",
    "needs bubblewrap and files of others",
)
NOT_RUN = 18
"""Blocks that no test runs. Whoever adds one has to count it here."""

TRAIN = "forethought train my-task.toml --out runs/my\n"
"""What a reader typed before the blocks that name this run."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- not run: (.+?) -->\n\Z")


class Block(NamedTuple):
    """A fenced block: where it is, its language, its text, and why it is not run."""

    file: str
    line: int
    language: str
    text: str
    not_run: str | None


def blocks_of(text: str, file: str = "") -> list[Block]:
    found = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        mark = MARK.search(before)
        line = before.count("\n") + 1
        found.append(Block(file, line, fence[1], fence[2], mark[1] if mark else None))
    return found


BLOCKS = [
    block
    for path in DOCUMENTS
    for block in blocks_of(path.read_text("utf-8"), str(path.relative_to(REPOSITORY)))
]


def _parameter(block: Block) -> object:
    generations = len(re.findall(r"forethought ask|ft\.load|forethought chat", block.text))
    # torch takes seconds to start; the README runs it once
    most = 0 if "networks-and-checkpoints" in block.file else 1
    # so does a run that is made again or asked afterwards, the audit of all families, and a step
    # through a network of 135 million
    runs = len(re.findall(r"forethought (?:train|ask -m runs)", block.text))
    again = "forethought train" in block.text and TRAIN not in block.text
    trains_again = again and "--dry-run" not in block.text
    long = runs > 1 or trains_again or re.search(r"problems audit|loss\.backward", block.text)
    slow = long or (generations > most and block.file != "README.md")
    return pytest.param(
        block,
        id=f"{Path(block.file).name}:{block.line}",
        marks=[pytest.mark.slow] if slow else [],
    )


EXPORT = "forethought models export smollm2:135m smollm2-folder"
"""What a reader typed before the blocks that name this folder."""


@pytest.fixture(scope="session")
def exported(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "smollm2-folder"
    _, *arguments = EXPORT.split()[:-1]
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "forethought", *arguments, str(folder)]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return folder


EXAMPLES = REPOSITORY / "docs" / "examples"
TRAINS = r'train my-task.toml --out runs/my\b|out="runs/my"'


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the example's recipe."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", *TRAIN.split()]
    subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=True)
    return folder / "runs" / "my"


@pytest.fixture
def place(tmp_path: Path, _isolated_home: Path, smollm2_path: Path) -> dict[str, str]:
    """The environment of a reader: the programs on PATH, the model on disk, no network."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in {"forethought": "-m forethought", "python": "", "python3": ""}.items():
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("FORETHOUGHT_")
    }
    return kept | {
        "PATH": f"{programs}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(source_root()),
        "FORETHOUGHT_HOME": str(home),
        "FORETHOUGHT_MODELS": str(smollm2_path.parents[1]),
        "FORETHOUGHT_OFFLINE": "1",
        "FORETHOUGHT_THREADS": "1",
        # a small model sometimes repeats itself to the end of the context
        "FORETHOUGHT_MAX_TOKENS": "96",
    }


def run(
    command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _commands_with_output(text: str) -> list[tuple[str, str]]:
    """The commands of a console block (lines that begin with ``$ ``) and what each prints."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        else:
            command, output = found[-1]
            found[-1] = (command, output + line + "\n")
    return found


def _matches(pattern: str, output: str) -> bool:
    """``...`` stands for anything, as in doctests."""
    parts = [re.escape(part) for part in pattern.strip("\n").split("...")]
    return re.fullmatch(".*".join(parts), output.strip("\n"), re.DOTALL) is not None


@pytest.mark.parametrize(
    "block",
    [_parameter(b) for b in BLOCKS if b.language in RUNNABLE and b.not_run is None],
)
def test_what_a_reader_can_type_works(
    block: Block, place: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if "smollm2-folder" in block.text and EXPORT not in block.text:
        (folder / "smollm2-folder").symlink_to(request.getfixturevalue("exported"))
    if re.search(r"my[-_](task|reward)", block.text):
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    if re.search(r"(?<!out )runs/my\b", block.text) and not re.search(TRAINS, block.text):
        shutil.copytree(request.getfixturevalue("trained"), folder / "runs" / "my")
    before = set(folder.rglob("*"))
    if block.language == "python":
        (folder / "example.py").write_text(block.text)
        done = run([sys.executable, "example.py"], place, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    if block.language == "console":
        for command, output in _commands_with_output(block.text):
            done = run(["bash", "-euo", "pipefail", "-c", command], place, folder)
            assert done.returncode == 0, done.stderr
            assert _matches(output, done.stdout), done.stdout
        return
    done = run(["bash", "-euo", "pipefail", "-c", block.text], place, folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "does nothing" not in done.stderr  # a FORETHOUGHT_ variable that nothing reads
    assert done.stdout.strip() or set(folder.rglob("*")) - before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_takes_minutes_works(place: dict[str, str], tmp_path: Path) -> None:
    """In one folder, each line once: documents share the run that they talk of."""
    lines = [
        line for block in BLOCKS if block.not_run == MINUTES for line in block.text.split("\n")
    ]
    for line in dict.fromkeys(filter(None, lines)):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=place,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_wrong_command_would_be_noticed(place: dict[str, str], tmp_path: Path) -> None:
    wrong = "forethought paths | cat\nforethought ask --maximal-thought 3 hello | cat\n"
    done = run(["bash", "-euo", "pipefail", "-c", wrong], place, tmp_path)
    assert done.returncode == 2
    assert "--maximal-thought" in done.stderr


def test_every_block_is_run_or_says_why_not() -> None:
    assert {block.language for block in BLOCKS} <= {*RUNNABLE, *INERT}
    kept_out = [block for block in BLOCKS if block.not_run is not None]
    for block in kept_out:
        assert block.not_run in ALLOWED_REASONS, block
        assert block.language in RUNNABLE, block
    assert len(kept_out) == NOT_RUN, [f"{block.file}:{block.line}" for block in kept_out]
    marks = sum(path.read_text("utf-8").count("<!-- not run:") for path in DOCUMENTS)
    assert marks == NOT_RUN, "a mark does not stand directly before a block"
    for block in BLOCKS:
        if block.language in INERT:
            assert not re.search(r"^(\$ )?(forethought|make|pip|uv) ", block.text, re.M), block


def test_commands_that_are_not_run_still_have_options_that_exist() -> None:
    from forethought.cli.main import build

    asked = re.compile(
        r"forethought (ask|chat|train|report|models (?:pull|rm|show|export)"
        r"|problems (?:list|show|verify|audit)) (.*)"
    )
    import typer.main

    group = typer.main.get_command(build())
    for block in BLOCKS:
        for verb, rest in asked.findall(block.text):
            command = group
            for name in verb.split():
                command = command.commands[name]  # type: ignore[attr-defined]
            known = {option for parameter in command.params for option in parameter.opts}
            known |= {
                option for parameter in command.params for option in parameter.secondary_opts
            } | {"--help", "-h"}
            given = re.findall(r"(?<=\s)(--?[a-z][\w-]*)", " " + re.split(r"[|<>#]", rest)[0])
            assert set(given) <= known, (block.file, block.line, given)


def test_the_options_that_prose_names_exist() -> None:
    known = set()
    for verb in ("ask", "chat", "models list", "models pull", "models show", "models rm", "paths"):
        done = subprocess.run(
            [sys.executable, "-m", "forethought", *verb.split(), "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(SRC)},
        )
        known |= set(re.findall(r"--[a-z][\w-]*", done.stdout))
    text = (REPOSITORY / "docs" / "ask-and-watch-it-think.md").read_text("utf-8")
    named = set(re.findall(r"`(?:ask )?(--[a-z][\w-]*)", text))
    assert len(named) > 15
    assert named <= known, named - known


# -- links


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert not target.startswith("http"), f"{target}: a link out of the repository"
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert linked.is_relative_to(REPOSITORY), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), target


# -- generated tables


def make_tables() -> ModuleType:
    path = REPOSITORY / "docs" / "make_tables.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list(make_tables().TABLES))
def test_generated_tables_are_those_of_the_code(name: str) -> None:
    tables = make_tables()
    assert name in tables.TABLES
    file, make = tables.TABLES[name]
    text = (REPOSITORY / "docs" / file).read_text("utf-8")
    assert len(make().splitlines()) > 9
    assert tables.filled(text, name, make()) == text, "run: python docs/make_tables.py"


def test_the_metrics_of_a_run_stand_in_the_table(trained: Path) -> None:
    meant = set(make_tables().MEANINGS["metrics"])
    lines = (trained / "metrics.jsonl").read_text("utf-8").splitlines()
    written = {re.sub(r"/.*", "/FAMILY", key) for line in lines for key in json.loads(line)}
    assert len(written) > 30
    assert written <= meant, written - meant
    names = {name.partition("/")[0] for name in meant}
    said = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(node.value)
    assert names <= said, names - said


def test_the_files_of_a_run_are_those_of_the_table(trained: Path) -> None:
    text = (REPOSITORY / "docs" / "train-a-reasoning-model.md").read_text("utf-8")
    section = text.split("## The files of a run")[1].split("```")[0]
    named = {name.strip("/") for row in re.findall(r"^\| (`.*?) \|", section, re.M)
             for name in re.findall(r"`([^`]+)`", row)}  # fmt: skip
    there = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    assert named - {"report", "profile"} <= there
    others = {"generation_config.json", "tokenizer_config.json", "chat_template.jinja"}
    assert there - named == others


def test_the_picture_is_of_the_program() -> None:
    picture = (REPOSITORY / "docs" / "ask.svg").read_text("utf-8")
    for sign in ("forethought", "thinking:", "tokens/s", "stopped:"):
        assert sign in picture.replace("&#160;", " ")
    loaded = set(re.findall(r"(?:href|src)=|url\((?!#)|@font-face|@import", picture))
    assert not loaded, "the picture loads something"


# -- sentences and limits


def test_troubleshooting_quotes_sentences_of_the_program() -> None:
    said = " ".join(_joined_texts(ast.parse(path.read_text("utf-8"))) for path in SRC.rglob("*.py"))
    text = (REPOSITORY / "docs" / "ask-and-watch-it-think.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| \S", text.split("## Troubleshooting")[1], re.MULTILINE)
    assert len(rows) > 20
    for quoted in rows:
        for part in quoted.split("..."):
            assert part.strip() in said, quoted


MISTAKES = (
    ("group_size = 4", "group_sise = 4"),
    ("group_size = 4", "group_size = 1"),
    ("group_size = 4", "group_size = 4\nminibatches = 3"),
    ("group_size = 4", "group_size = 4\ntop_p = 0.9"),
    ("max_tokens = 48\nfilm = 4", "max_tokens = 4800"),
    ("group_size = 4", 'group_size = 4\nloss = { kl = "k3" }'),
    ("group_size = 4", "group_size = 4\ncurriculum = { start_levels = 2 }"),
    ('"sorting"]', '"sortin"]'),
    ("sorting = [1]", "sorting = [5]"),
    ("[model]", "[model]\nvocab_size = 400"),
    ('kind = "pretrain"', 'kind = "rl"'),
)
"""What the rows of "What a mistake looks like" change in my-task.toml."""


def test_the_sentences_about_mistakes_are_those_of_the_program(tmp_path: Path) -> None:
    from forethought.recipes.reading import read_recipe

    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    recipe = (EXAMPLES / "my-task.toml").read_text("utf-8")
    text = (REPOSITORY / "docs" / "train-a-reasoning-model.md").read_text("utf-8")
    section = text.split("## What a mistake looks like")[1]
    rows = re.findall(r"^\| .* \| `([^`]+)` \|$", section, re.MULTILINE)
    path = tmp_path / "wrong.toml"
    for (old, new), sentence in zip(MISTAKES, rows, strict=True):
        changed = recipe.replace(old, new)
        if 'kind = "pretrain"' in old:
            changed = recipe[: recipe.index("[[stages]]")] + recipe[recipe.rindex("[[stages]]") :]
        assert changed != recipe, old
        path.write_text(changed)
        with pytest.raises(UserError) as refused:
            read_recipe(str(path))
        assert str(refused.value).removeprefix(f"{path}: ") == sentence


def test_the_recipe_of_the_guide_is_one(tmp_path: Path) -> None:
    from forethought.recipes.reading import read_recipe

    text = (REPOSITORY / "docs" / "train-a-reasoning-model.md").read_text("utf-8")
    (block,) = [block for block in blocks_of(text) if block.language == "toml"]
    path = tmp_path / "mine.toml"
    path.write_text(block.text)
    assert [stage.kind for stage in read_recipe(str(path)).recipe.stages] == ["pretrain", "rl"]


def _joined_texts(tree: ast.AST) -> str:
    """Every text of a module, f-strings with their values left out as ``...``."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append(
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "..."
                    for part in node.values
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return "\n".join(texts)


def limits() -> dict[str, tuple[str, str, str]]:
    """Rows of the limits of SECURITY.md by where they are in the code."""
    text = (REPOSITORY / "SECURITY.md").read_text("utf-8").split("## Limits")[1]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+) \| `([^`]+)` \|$", text, re.MULTILINE)
    return {where: (what, default, value) for what, default, value, where in rows}


UNITS = {
    "": 1,
    "tokens": 1,
    "characters": 1,
    "bytes": 1,
    "s": 1,
    "KiB": 1 << 10,
    "MB": 10**6,
    "MiB": 1 << 20,
}


def test_the_limits_are_those_of_the_code() -> None:
    rows = limits()
    assert len(rows) > 25
    for where, (_, default, value) in rows.items():
        number, _, unit = default.replace(",", "").partition(" ")
        assert float(number) * UNITS[unit] == float(value), where
        if where == "-n":
            continue
        module, _, name = where.rpartition(".")
        assert float(getattr(importlib.import_module(module), name)) == float(value), where


def test_the_limit_of_samples_is_that_of_the_engine(scripted: Model) -> None:
    most = int(limits()["forethought.engines.limits.MAX_SAMPLES"][2])
    with pytest.raises(UserError, match=f"between 1 and {most}"):
        scripted.samples("hello", n=most + 1, max_tokens=1, template="bare")


def _answer(model: Model, path: str, key: str | None) -> tuple[int, list[str]]:
    """Status and header lines that llama.cpp's port gives a web page of a foreign origin."""
    engine = model.engine
    assert isinstance(engine, LlamaCppEngine)
    lines = [f"GET {path} HTTP/1.0", "Host: localhost", "Origin: http://attacker.invalid"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    with socket.create_connection(engine.server.address, timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        head = connection.recv(1 << 16).partition(b"\r\n\r\n")[0].decode()
    first, *rest = head.split("\r\n")
    return int(first.split()[1]), rest


def test_the_port_is_closed_as_security_says(scripted: Model) -> None:
    engine = scripted.engine
    assert isinstance(engine, LlamaCppEngine)
    assert engine.server.address[0] == "127.0.0.1"
    statuses = {"/health": 200, "/metrics": 401, "/v1/models": 401, "/props": 401, "/": 404}
    for path, wanted in statuses.items():
        status, headers = _answer(scripted, path, None)
        assert status == wanted, path
        origins = [
            line.partition(":")[2].strip() for line in headers if "allow-origin" in line.lower()
        ]
        assert set(origins) <= {""}, path
    assert _answer(scripted, "/metrics", engine.server.key)[0] == 200
    assert _answer(scripted, "/slots", engine.server.key)[0] == 501
    assert _answer(scripted, "/metrics", "guessed")[0] == 401


LIMIT_NAME = re.compile(r"(MAX_|LARGEST_|TRIES|LIMIT$).*|.*(_SECONDS|_TIMEOUT_S)")
NOT_A_LIMIT = {
    "forethought.cli.ask.MAX_SEED",
    "forethought.cli.settings.MAX_SEED",  # LARGEST_SEED of the engine, said before it is loaded
    "forethought.recipes.measure._ENOUGH_SECONDS",  # the same, for a dry run
    "forethought.training.losses.MAX_LOG_RATIO",  # of numerics
    # where a measurement stops, not a limit on input
    "forethought.engines.threads._SECONDS",
    "forethought.recipes.ceilings._SECONDS",
    "forethought.recipes.tracing._SECONDS",
}


def test_no_limit_is_missing() -> None:
    found = set()
    for path in SRC.rglob("*.py"):
        module = ".".join(path.relative_to(SRC).with_suffix("").parts)
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and LIMIT_NAME.fullmatch(target.id):
                    found.add(f"{module}.{target.id}")
    assert len(found) > 20
    assert found - set(limits()) - NOT_A_LIMIT == set()


# -- what may not stand in a document

UNWANTED = re.compile(
    r"/(?:root|home|tmp|opt|mnt|work|Users)/|pypi|huggingface\.co|hf-mirror|crates\.io|npmjs"
    r"|download\.pytorch|field_notes|DESIGN\.md|\bissues? #?\d+|(?<!\w)#\d+\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    "path",
    [
        *DOCUMENTS,
        *(REPOSITORY / "docs").glob("*.py"),
        REPOSITORY / "docs" / "ask.svg",
        REPOSITORY / "Makefile",
        REPOSITORY / "constraints.txt",
        REPOSITORY / ".ci" / "run",
    ],
    ids=lambda path: path.name,
)
def test_no_document_names_a_machine_a_registry_or_a_ticket(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.suffix == ".svg":
        text = re.sub(r"#[0-9a-f]{6}\b|url\(#[\w-]+\)|&#160;", "", text)
    assert UNWANTED.search(text) is None, UNWANTED.search(text)


def test_what_may_not_stand_there_would_be_noticed() -> None:
    for wrong in ("see /home/me/x", "from " + ".".join(["pypi", "org"]), "fixes #12", "issue 4"):
        assert UNWANTED.search(wrong)
