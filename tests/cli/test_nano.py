"""The bundled model, straight after install: no name, no network, no download."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.cli.outside import PULL
from forethought.cli.question import read_question
from forethought.errors import UserError
from forethought.problems.scope import in_scope
from nano_stand_in import FIGURES, is_here, source_root

from .conftest import Cli, environment, local, sentence

COUNTDOWN = "Use 19, 36, 55 and 7 to make 65."
CAPITAL = "What is the capital of France?"
OUTSIDE = f"forethought models pull {PULL}"


def reply(cli: Cli, *arguments: str, **variables: str) -> Any:
    done = cli("ask", *arguments, "--json", FORETHOUGHT_OFFLINE="1", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_question_straight_after_install(cli: Cli, home: Path) -> None:
    done = cli("ask", COUNTDOWN, "--max-tokens", "100", "--seed", "1", FORETHOUGHT_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().startswith("thinking:\n")
    assert done.stdout.strip()
    assert OUTSIDE not in done.stderr.decode()
    assert not (home / "models").exists()
    assert reply(cli, COUNTDOWN, "--max-tokens", "20")["model"] == "nano"


def test_the_question_is_put_as_in_training(cli: Cli) -> None:
    shown = cli("ask", COUNTDOWN, "--raw-prompt").stdout.decode()
    assert shown.rstrip("\n").endswith(f" User: {COUNTDOWN}. Assistant:<think>")
    assert shown.count("A conversation between User and Assistant.") == 1


def test_what_it_samples_with(cli: Cli) -> None:
    from forethought.checkpoints.catalogue import find
    from forethought.checkpoints.gguf_header import read_header
    from forethought.engines.persona import gguf_sampling

    header = read_header(source_root() / "forethought" / "zoo" / "nano.gguf")
    assert gguf_sampling(header, find("nano")).temperature == 0.6
    same = [COUNTDOWN, "--max-tokens", "30", "--seed", "5", "--reproducible", "--ids"]
    usual = reply(cli, *same)
    assert usual["ids"] == reply(cli, *same, "--temperature", "0.6", "--top-p", "0.95")["ids"]


def test_a_seed_says_what_comes(cli: Cli) -> None:
    same = [COUNTDOWN, "--max-tokens", "60", "--ids", "--temperature", "1.5"]
    first, again, other = (reply(cli, *same, "--seed", seed) for seed in ("3", "3", "4"))
    assert (first["seed"], other["seed"]) == (3, 4)
    assert first["ids"] == again["ids"]
    assert first["ids"] != other["ids"]
    assert "seed" in reply(cli, COUNTDOWN, "--max-tokens", "5")


def test_the_thought_has_a_budget(cli: Cli) -> None:
    for budget in (40, 16):
        found = reply(cli, COUNTDOWN, "--max-thought", str(budget), "--max-tokens", "120")
        assert 0 < found["usage"]["thought_tokens"] <= budget
        assert found["usage"]["answer_tokens"] > 0
    none = reply(cli, COUNTDOWN, "--max-thought", "0", "--max-tokens", "20")
    assert none["usage"]["thought_tokens"] == 0
    assert none["thought"] == ""
    done = cli("ask", COUNTDOWN, "--max-thought", "0", "--raw-prompt")
    assert done.stdout.decode().rstrip("\n").endswith("<think>\n\n</think>")


def test_sixteen_samples(cli: Cli) -> None:
    hot = ["--max-tokens", "40", "--temperature", "1.5"]
    found = reply(cli, COUNTDOWN, "-n", "16", "--seed", "10", *hot)["samples"]
    assert [sample["seed"] for sample in found] == list(range(10, 26))
    assert len({(sample["thought"], sample["answer"]) for sample in found}) > 1
    done = cli("ask", COUNTDOWN, "-n", "16", "--max-tokens", "40")
    assert "16 samples" in done.stderr.decode().splitlines()[-1]


def test_without_a_limit_its_context_is_one(cli: Cli) -> None:
    found = reply(cli, COUNTDOWN, "--seed", "2")
    assert found["usage"]["total_tokens"] <= 1024
    done = cli("ask", COUNTDOWN, "--ctx", "4096")
    assert done.returncode == 2
    assert "this model was trained for" in sentence(done)


# -- outside its families


@pytest.mark.parametrize("question", [CAPITAL, "你好吗？", "Write a poem about rain."])
def test_a_question_outside_is_told_and_answered(question: str, cli: Cli) -> None:
    done = cli("ask", question, "--max-tokens", "60", "--seed", "1")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.decode().splitlines() if OUTSIDE in line]
    assert len(notes) == 1
    assert notes[0].startswith("forethought: nano knows")
    assert done.stdout.strip()
    assert OUTSIDE.encode() not in done.stdout


def test_json_stays_json(cli: Cli) -> None:
    done = cli("ask", CAPITAL, "--max-tokens", "30", "--json")
    assert json.loads(done.stdout)["model"] == "nano"
    assert done.stderr.decode().count("\n") == 1
    assert OUTSIDE in done.stderr.decode()
    assert OUTSIDE not in cli("ask", CAPITAL, "--raw-prompt").stderr.decode()


def test_other_models_are_not_told(cli: Cli, smollm2_path: Path, tmp_path: Path) -> None:
    done = cli("ask", CAPITAL, "--max-tokens", "10", **local(smollm2_path))
    assert done.returncode == 0, done.stderr
    assert OUTSIDE not in done.stderr.decode()
    # not even a file of that name: what it knows is not known
    own = shutil.copy(source_root() / "forethought" / "zoo" / "nano.gguf", tmp_path / "nano.gguf")
    done = cli("ask", CAPITAL, "--max-tokens", "10", "-m", str(own))
    assert done.returncode == 0, done.stderr
    assert OUTSIDE not in done.stderr.decode()


def test_a_chat_tells_it_for_each_question(cli: Cli, smollm2_path: Path) -> None:
    lines = [CAPITAL, COUNTDOWN, "What is 17 + 4 * 3?", "/context", "And of Spain?", "/quit"]
    done = cli("chat", "--max-tokens", "20", "--seed", "1", stdin="\n".join(lines).encode())
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count(OUTSIDE) == 2
    # its template has a place for the newest question alone
    assert "earlier messages are not sent" in done.stdout.decode()
    lines = [CAPITAL, "/model smollm2:135m", CAPITAL, "/quit"]
    variables = {"FORETHOUGHT_MODELS": str(smollm2_path.parents[1])}
    done = cli("chat", "--max-tokens", "20", stdin="\n".join(lines).encode(), **variables)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count(OUTSIDE) == 1


def test_the_question_of_the_hint_is_one_that_it_knows() -> None:
    with pytest.raises(UserError, match="Ask one like this") as caught:
        read_question("", None)
    hint = re.search(r'forethought ask "(.+)"$', str(caught.value))
    assert hint is not None
    assert in_scope(hint[1])


# -- what its template has no place for


def test_a_system_prompt_is_not_ignored_in_silence(cli: Cli) -> None:
    done = cli("ask", COUNTDOWN, "--system", "Be brief.", "--max-tokens", "20")
    assert done.returncode == 0, done.stderr
    first = done.stderr.decode().splitlines()[0]
    assert first == (
        "forethought: the chat template of nano has no place for a system prompt: it is left out."
    )
    lines = f"/system Be brief.\n{COUNTDOWN}\n{COUNTDOWN}\n/quit\n".encode()
    done = cli("chat", "--max-tokens", "20", stdin=lines)
    assert done.stderr.decode().count("no place for a system prompt") == 1


def test_python_warns_of_it(cli: Cli, home: Path) -> None:
    code = (
        "import forethought as ft\n"
        "with ft.load(threads=1) as model:\n"
        "    assert model.name == 'nano' and len(model.families) == 14\n"
        f"    print(model.ask({COUNTDOWN!r}, system='Be brief.', max_tokens=10).ids)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning: the chat template of nano has no place" in done.stderr


# -- models, doctor


def test_show_tells_how_it_was_made(cli: Cli) -> None:
    done = cli("models", "show", "nano", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    card = json.loads((source_root() / "forethought" / "zoo" / "nano.json").read_text())
    for key in ("sha256", "recipe", "recipe_digest", "commit", "families", "shape", "figures"):
        assert row[key] == card[key], key
    assert row["parameters"] == card["parameters"]
    assert row["size_bytes"] == card["size"]
    assert row["verified"] is True
    assert row["source"] == "comes with forethought"
    assert row["license"] == "Apache-2.0"
    context = card["shape"]["max_position_embeddings"]
    assert row["context"] == row["trained_context"] == context
    text = cli("models", "show", "nano").stdout.decode()
    assert f"at a context of {context} tokens" in text
    for words in (card["commit"], card["sha256"], card["recipe"], "hidden_size", "Apache-2.0"):
        assert words in text
    if not is_here():
        assert re.search(r"figures: pass@1 +0\.5\n", text)
        assert FIGURES["countdown"]["pass@1"] in text  # type: ignore[index]
    assert cli("models", "show", "nano", "--params").returncode == 0
    other = cli("models", "show", "nano:q4_0")
    assert (other.returncode, other.stdout) == (2, b"")
    assert b"nano comes as Q8_0 only, not as Q4_0" in other.stderr


def test_it_cannot_be_removed_and_need_not_be_pulled(cli: Cli, home: Path) -> None:
    done = cli("models", "rm", "nano", "--yes")
    assert done.returncode == 2
    assert "comes with forethought" in sentence(done)
    done = cli("models", "pull", "nano")
    assert done.returncode == 0, done.stderr
    assert not (home / "models").exists()
    rows = json.loads(cli("models", "list", "--installed", "--json").stdout)["models"]
    assert [(row["name"], row["installed"]) for row in rows] == [("nano", True)]


Broken = Callable[[str, bytes | None], dict[str, str]]


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """Variables of a forethought one of whose two files is another (None: gone)."""

    def make(name: str, content: bytes | None) -> dict[str, str]:
        package = tmp_path / "site" / "forethought"
        package.mkdir(parents=True)
        whole = source_root() / "forethought"
        for item in whole.iterdir():
            if item.name not in ("zoo", "__pycache__"):
                (package / item.name).symlink_to(item)
        shutil.copytree(whole / "zoo", package / "zoo")
        (package / "zoo" / name).unlink()
        if content is not None:
            (package / "zoo" / name).write_bytes(content)
        return {"PYTHONPATH": str(package.parent)}

    return make


def test_a_changed_byte_is_what_doctor_and_show_find(cli: Cli, broken: Broken) -> None:
    data = bytearray((source_root() / "forethought" / "zoo" / "nano.gguf").read_bytes())
    data[-1] ^= 1
    variables = broken("nano.gguf", bytes(data))
    done = cli("models", "show", "nano", **variables)
    assert done.returncode == 1
    assert "SHA-256" in sentence(done)
    done = cli("doctor", "--json", **variables)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert not report["ok"]
    assert "SHA-256" in report["bundled"]["note"]
    assert "install forethought again" in cli("doctor", **variables).stdout.decode()


def _of_another_kind() -> bytes:
    """As long as the file, and no GGUF: what a proxy or a text-mode checkout leaves."""
    whole = source_root() / "forethought" / "zoo" / "nano.gguf"
    return b"PK" + bytes(whole.stat().st_size - 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nano.gguf", lambda: b"GGUF"),
        ("nano.gguf", _of_another_kind),
        ("nano.json", lambda: None),
    ],
    ids=["cut off", "of another kind", "gone"],
)
def test_what_is_cut_off_or_gone_is_said_in_one_sentence(
    name: str, content: Callable[[], bytes | None], cli: Cli, broken: Broken
) -> None:
    variables = broken(name, content())
    for arguments in (["ask", COUNTDOWN], ["ask", CAPITAL, "--json"], ["models", "show", "nano"]):
        done = cli(*arguments, **variables)
        assert done.returncode in (1, 2), arguments
        assert done.stdout == b""
        assert "install forethought again" in sentence(done)
    rows = json.loads(cli("models", "list", "--json", **variables).stdout)["models"]
    assert "install forethought again" in rows[0]["problem"]
    assert cli("doctor", **variables).returncode == 1


def test_asking_does_not_read_the_whole_file_first() -> None:
    """Neither hash nor copy at a start: `find` opens the card alone."""
    import forethought.checkpoints.bundled as bundled

    source = Path(bundled.__file__).read_text()
    assert os.fspath(bundled.ZOO).endswith("zoo")
    assert "import hashlib" in source.split("def verify")[1]
    assert "hashlib" not in source.split("def verify")[0]
