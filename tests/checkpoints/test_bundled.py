"""The model that comes with forethought: found, checked, and damaged in every way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from forethought.checkpoints import bundled, catalogue, pull, resolve
from forethought.checkpoints.catalogue import BundledSource
from forethought.errors import ModelError, UserError

DATA = b"GGUF, as good as any"
CARD = {
    "format": 1,
    "name": "nano",
    "parameters": 7,
    "shape": {"hidden_size": 2, "model_type": "deepseek_v3"},
    "recipe": "nano-zero",
    "recipe_digest": "a" * 64,
    "seed": 1,
    "commit": "b" * 40,
    "families": ["countdown", "sorting"],
    "languages": ["en"],
    "size": len(DATA),
    "sha256": hashlib.sha256(DATA).hexdigest(),
    "figures": {"pass@1": 0.5},
}
NANO = catalogue.find("nano")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundled, "ZOO", tmp_path)
    (tmp_path / "nano.gguf").write_bytes(DATA)
    (tmp_path / "nano.json").write_text(json.dumps(CARD))
    return tmp_path


def test_it_is_the_first_of_the_catalogue_and_the_default() -> None:
    from forethought.engines.load import DEFAULT_MODEL

    assert catalogue.catalogue().names()[0] == NANO.name == DEFAULT_MODEL
    assert NANO.sources == (BundledSource("nano.gguf", "Q8_0"),)
    assert NANO.thinks == "native"
    assert NANO.sampling is not None
    assert NANO.sampling.temperature == 0.6


def test_it_is_found_where_it_lies(zoo: Path) -> None:
    found = bundled.verify(NANO)
    assert found is not None
    assert (found.path, found.size, found.quant) == (zoo / "nano.gguf", len(DATA), "Q8_0")
    assert found.source == "comes with forethought"
    assert found.sha256 == CARD["sha256"]
    resolved = resolve.resolve("nano")
    assert (resolved.kind, resolved.path, resolved.entry) == ("file", found.path, NANO)
    assert resolve.resolve("nano:q8_0").path == found.path
    assert pull.pull("nano") == found.path
    card = bundled.card_of(NANO)
    assert card is not None
    assert card.families == ("countdown", "sorting")


def test_nothing_is_downloaded_or_copied(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETHOUGHT_OFFLINE", "1")
    root = tmp_path / "models"
    assert pull.pull("nano", root=root) == zoo / "nano.gguf"
    assert resolve.resolve("nano", root=root).path == zoo / "nano.gguf"
    assert not root.exists()


def test_other_models_are_not_bundled(zoo: Path) -> None:
    smol = catalogue.find("smollm2:135m")
    assert bundled.find(smol) is bundled.verify(smol) is bundled.card_of(smol) is None


def test_another_quantisation_is_refused(zoo: Path) -> None:
    with pytest.raises(UserError, match="Q8_0 only, not as Q4_0"):
        resolve.resolve("nano:q4_0")
    with pytest.raises(UserError, match="Q8_0 only, not as Q4_0"):
        bundled.verify(NANO, "Q4_0")


def test_a_changed_byte_is_found_by_its_hash_alone(zoo: Path) -> None:
    (zoo / "nano.gguf").write_bytes(DATA[:-1] + b"!")
    assert bundled.find(NANO) is not None
    with pytest.raises(ModelError, match="SHA-256") as caught:
        bundled.verify(NANO)
    _one_sentence(caught.value)


def test_a_file_that_is_cut_off_or_gone_is_found_at_once(zoo: Path) -> None:
    (zoo / "nano.gguf").write_bytes(DATA[:-1])
    with pytest.raises(ModelError, match=r"19 bytes instead of 20.*install forethought again"):
        resolve.resolve("nano")
    (zoo / "nano.gguf").unlink()
    with pytest.raises(ModelError, match="No such file") as caught:
        bundled.find(NANO)
    _one_sentence(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("parameters", "7"),
        ("parameters", True),
        ("size", -1),
        ("sha256", "A" * 64),
        ("recipe_digest", "ab"),
        ("families", []),
        ("families", "countdown"),
        ("families", [1]),
        ("figures", [0.5]),
        ("figures", {"pass@1": None}),
        ("commit", ""),
        ("shape", {"hidden_size": [2]}),
    ],
)
def test_a_card_that_is_none_is_said(key: str, value: object, zoo: Path) -> None:
    (zoo / "nano.json").write_text(json.dumps({**CARD, key: value}))
    with pytest.raises(ModelError, match=r"nano\.json: not a card") as caught:
        bundled.find(NANO)
    _one_sentence(caught.value)


@pytest.mark.parametrize("key", [key for key in CARD if key != "format"])
def test_a_card_that_lacks_something_is_said(key: str, zoo: Path) -> None:
    (zoo / "nano.json").write_text(json.dumps({k: v for k, v in CARD.items() if k != key}))
    with pytest.raises(ModelError, match=r"nano\.json: not a card"):
        bundled.card_of(NANO)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{"])
def test_a_card_that_is_no_json_is_said(content: bytes, zoo: Path) -> None:
    (zoo / "nano.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"nano\.json: not a card"):
        bundled.find(NANO)


@pytest.mark.skipif(
    not (bundled.ZOO / "nano.gguf").is_file(), reason="the weights are not committed yet"
)
def test_the_bundled_file_is_whole_and_small() -> None:
    found = bundled.verify(NANO)
    assert found is not None
    assert found.size <= 24 << 20


def _one_sentence(error: Exception) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.endswith("or choose another model with -m.")
