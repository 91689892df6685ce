"""What a model writes may not drive the terminal."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.cli import ask, models
from forethought.cli.terminal import print_json, size, visible

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x90q\x9c\u202eevil\u2066\x08\x7f\rover\x1bc"


@given(st.text(st.one_of(st.characters(), st.sampled_from(HOSTILE + "\n\t"))))
def test_nothing_that_controls_is_left(text: str) -> None:
    shown = visible(text)
    for character in shown:
        if character not in "\n\t":
            assert unicodedata.category(character) != "Cc"
            assert unicodedata.bidirectional(character) not in (
                "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"
            )  # fmt: skip
    assert visible(shown) == shown


@given(st.text(), st.integers(0, 100))
def test_ordinary_text_stays(text: str, cut: int) -> None:
    plain = "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] in "LNPSM")
    assert visible(plain[:cut]) + visible(plain[cut:]) == plain


@given(st.text(st.sampled_from(HOSTILE), max_size=20), st.integers(0, 20))
def test_splitting_a_sequence_does_not_let_it_through(text: str, cut: int) -> None:
    joined = visible(text[:cut]) + visible(text[cut:])
    assert not any(ord(c) < 32 and c not in "\n\t" for c in joined)
    assert "\x9b" not in joined
    assert "\u202e" not in joined


def test_line_endings_of_windows_are_line_endings() -> None:
    assert visible("a\r\nb\rc") == "a\nb\u240dc"


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 999, 1000, 9_900, 98_362_432, 4_700_000_000, 4 * 10**14)] == [
        "0 B", "999 B", "1.0 kB", "9.9 kB", "98 MB", "4.7 GB", "400.0 TB"
    ]  # fmt: skip


class Screen(io.StringIO):
    """A stdout that a person sees."""

    def isatty(self) -> bool:
        return True


def printed(stream: io.StringIO, patch: pytest.MonkeyPatch, write: Any, *args: Any) -> str:
    with patch.context() as inside:
        inside.setattr(sys, "stdout", stream)
        write(*args)
    return stream.getvalue()


def raw_prompt(text: str) -> None:
    model = SimpleNamespace(name="m", prompt=lambda question, **options: SimpleNamespace(text=text))
    ask._print_prompt(model, "q", {})  # type: ignore[arg-type]


def test_the_raw_prompt_does_not_drive_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(Screen(), monkeypatch, raw_prompt, HOSTILE) == visible(HOSTILE)
    assert printed(io.StringIO(), monkeypatch, raw_prompt, HOSTILE) == HOSTILE


@pytest.mark.parametrize("write", [print_json, models._print_json])
def test_json_on_a_terminal_is_plain_ascii(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"answer": HOSTILE + "é"}
    shown = printed(Screen(), monkeypatch, write, value)
    assert shown.isascii()
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == value
    piped = printed(io.StringIO(), monkeypatch, write, value)
    assert "é" in piped
    assert json.loads(piped) == value


def test_json_of_ask_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forethought.cli.sample_json.sample_object", lambda *a, **k: {"x": HOSTILE})
    asked = SimpleNamespace(ids=False, logprobs=None, n=1)
    model = SimpleNamespace(name="m")
    shown = printed(Screen(), monkeypatch, ask._print_json, model, [None], None, asked)
    assert shown.isascii()
    assert json.loads(shown) == {"x": HOSTILE}
