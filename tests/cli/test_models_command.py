"""``forethought models``, ``paths`` and ``doctor``: what is on disk, and what the machine has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from forethought.cli.doctor import older

from .conftest import Cli


@pytest.fixture
def stocked(tmp_path: Path, scripted_path: Path) -> Path:
    """A models folder with one model in it."""
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(scripted_path.read_bytes())
    (folder / "tiny.gguf.json").write_text(
        json.dumps(
            {"name": "smollm2:135m", "source": "the test", "sha256": "ab", "size": 1,
             "date": "", "quant": "F32", "license": "Apache-2.0", "files": ["tiny.gguf"]}
        )
    )  # fmt: skip
    return tmp_path / "models"


def test_the_list_has_the_catalogue_and_what_is_on_disk(cli: Cli, stocked: Path) -> None:
    done = cli("models", "list", "--json", "--ctx", "1024", FORETHOUGHT_MODELS=str(stocked))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["context"] == 1024
    rows = {row["name"]: row for row in report["models"]}
    assert {"smollm2:135m", "qwen3:0.6b", "deepseek-r1:1.5b", "deepseek-r1:671b"} <= set(rows)
    here = rows["smollm2:135m"]
    assert here["installed"]
    assert here["memory_bytes"] > here["size_bytes"] > 0
    assert here["quant"] == "F32"
    assert not rows["qwen3:0.6b"]["installed"]
    assert all(list(row)[:4] == list(here)[:4] for row in rows.values())
    text = cli("models", "list", "--installed", FORETHOUGHT_MODELS=str(stocked)).stdout.decode()
    # the head, what comes with forethought, what is on disk
    assert len(text.splitlines()) == 3
    assert "smollm2:135m" in text
    assert "\x1b" not in text


def test_a_damaged_file_does_not_hide_the_others(cli: Cli, stocked: Path) -> None:
    (stocked / "broken.gguf").write_bytes(b"GGUF")
    done = cli("models", "list", "--json", FORETHOUGHT_MODELS=str(stocked))
    rows = {row["name"]: row for row in json.loads(done.stdout)["models"]}
    assert "broken.gguf" in rows["broken"]["problem"]
    assert "damaged" in cli("models", "list", FORETHOUGHT_MODELS=str(stocked)).stdout.decode()


def test_show_tells_the_memory_before_loading(cli: Cli, stocked: Path, scripted_path: Path) -> None:
    done = cli("models", "show", "smollm2:135m", "--json", FORETHOUGHT_MODELS=str(stocked))
    row = json.loads(done.stdout)
    assert row["path"] == str(stocked / "smollm2-135m" / "tiny.gguf")
    assert row["thinks"] == "prompted"
    assert row["sha256"] == "ab"
    small = json.loads(cli("models", "show", str(scripted_path), "--json", "--ctx", "100").stdout)
    large = json.loads(cli("models", "show", str(scripted_path), "--json", "--ctx", "200").stdout)
    assert small["memory"]["cache"] * 2 == large["memory"]["cache"]
    text = cli("models", "show", "smollm2:135m", FORETHOUGHT_MODELS=str(stocked)).stdout.decode()
    assert "at a context of" in text


def test_rm_wants_a_word(cli: Cli, stocked: Path) -> None:
    variables = {"FORETHOUGHT_MODELS": str(stocked)}
    refused = cli("models", "rm", "smollm2:135m", **variables)
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.decode()
    assert (stocked / "smollm2-135m" / "tiny.gguf").exists()
    done = cli("models", "rm", "smollm2", "--yes", "--json", **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["freed_bytes"] > 0
    assert not (stocked / "smollm2-135m").exists()


def test_pull_of_what_is_here_downloads_nothing(cli: Cli, stocked: Path) -> None:
    done = cli("models", "pull", "smollm2:135m", "--json", FORETHOUGHT_MODELS=str(stocked))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["installed"]


def test_paths_have_sizes(cli: Cli, stocked: Path, home: Path) -> None:
    rows = {
        row["name"]: row
        for row in json.loads(cli("paths", "--json", FORETHOUGHT_MODELS=str(stocked)).stdout)
    }
    assert set(rows) == {"config", "data", "models", "cache", "history"}
    total = sum(f.stat().st_size for f in stocked.rglob("*") if f.is_file())
    assert rows["models"] == {
        "name": "models", "path": str(stocked), "exists": True, "bytes": total
    }  # fmt: skip
    assert rows["config"]["path"] == str(home / "config.toml")
    text = cli("paths").stdout.decode()
    assert all(row["name"] in text for row in rows.values())


def test_doctor_reports_and_passes(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"]
    versions = {check["name"]: check for check in report["versions"]}
    for name in ("python", "xllamacpp", "jinja2", "httpx", "huggingface_hub", "rich",
                 "prompt_toolkit", "typer", "torch", "safetensors", "tokenizers", "gguf",
                 "sqlite"):  # fmt: skip
        assert set(versions[name]) == {"name", "version", "floor", "ok", "note"}
    assert report["machine"]["cpu_cores"] >= 1
    assert report["machine"]["memory_bytes"] > 1 << 28
    assert report["machine"]["disk_free_bytes"] > 0
    assert report["model"]["name"] == "nano"
    assert report["model"]["source"] == "comes with forethought"
    assert report["bundled"] == {"name": "nano", "ok": True, "note": ""}
    assert not report["offline"]
    assert json.loads(cli("doctor", "--json", FORETHOUGHT_OFFLINE="1").stdout)["offline"]
    assert "All is well." in cli("doctor").stdout.decode()


def test_doctor_fails_below_a_floor(cli: Cli, tmp_path: Path) -> None:
    fake = tmp_path / "site" / "jinja2-3.1.5.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: jinja2\nVersion: 3.1.5\n")
    source = Path(__file__).resolve().parents[2] / "src"
    done = cli("doctor", PYTHONPATH=os.pathsep.join([str(fake.parent), str(source)]))
    assert done.returncode == 1
    line = next(x for x in done.stdout.decode().splitlines() if x.startswith("jinja2"))
    assert "TOO OLD" in line


def test_versions_compare_by_their_numbers() -> None:
    assert older("2.9.1", "2.10")
    assert older("3.1.5", "3.1.6")
    assert not older("2.11.0+cpu", "2.11")
    assert not older("3.10", "3.10.0")
    assert not older("2026.10.11549", "2026.10.11549")
    assert older("", "1")
