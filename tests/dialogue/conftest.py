"""A small tokenizer with the habits that matter: control and user-defined texts."""

from collections.abc import Callable, Sequence

import pytest


class TableTokenizer:
    """Longest match on a table of special texts, bytes otherwise.

    Control texts are parsed with ``parse_special`` only, user-defined ones always, as llama.cpp
    does. ``>\\n`` is one ordinary token. ``calls`` holds the texts encoded.
    """

    def __init__(self, control: Sequence[str], user_defined: Sequence[str]) -> None:
        texts = [*control, *user_defined]
        self.special = {text: 1000 + i for i, text in enumerate(texts)}
        self._control = set(control)
        self._longest_first = sorted(texts, key=len, reverse=True)
        self.calls: list[str] = []
        self.asked_for_specials = 0

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        self.calls.append(text)
        ids: list[int] = []
        at = 0
        while at < len(text):
            for special in self._longest_first:
                allowed = parse_special or special not in self._control
                if allowed and text.startswith(special, at):
                    ids.append(self.special[special])
                    at += len(special)
                    break
            else:
                if text.startswith(">\n", at):
                    ids.append(256)
                    at += 2
                else:
                    ids.extend(text[at].encode())
                    at += 1
        return ids

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        texts = {i: text.encode() for text, i in self.special.items()}
        texts[256] = b">\n"
        return [texts.get(i) or bytes([i]) for i in ids]

    def special_texts(self) -> Sequence[str]:
        self.asked_for_specials += 1
        return list(self.special)


def _r1_tokenizer() -> TableTokenizer:
    """R1-like: roles and tags are user-defined, BOS and EOS control."""
    return TableTokenizer(
        control=["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|im_end|>", "    "],
        user_defined=["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<a><a>", "[x", "x["],
    )


@pytest.fixture
def r1_tokenizer() -> TableTokenizer:
    return _r1_tokenizer()


@pytest.fixture(scope="session")
def make_r1_tokenizer() -> Callable[[], TableTokenizer]:
    return _r1_tokenizer
