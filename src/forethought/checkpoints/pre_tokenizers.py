"""The pre-tokenizers known here: llama.cpp's names for them, and the JSON of ``tokenizers``.

A byte-level BPE first cuts a text into words, then merges bytes inside each word. A GGUF names the
cutting rule (``tokenizer.ggml.pre``), a Hugging Face folder spells it out in ``tokenizer.json``.
A wrong rule gives fluent text and wrong ids, so nothing is guessed: a rule that is not in this
table is refused.

Sources: the ``tokenizer.json`` files of the models that gave the rules their names, and the
regular expressions of llama.cpp's ``llama-vocab.cpp``. Compared code point by code point the two
agree, except for letters and digits newer than Unicode 15, and for ``other_spaces`` below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

from forethought.errors import ModelError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# The originals ignore case; llama.cpp spells it out, and so do some files.
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CONTRACTIONS_SPELLED: Final = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS: Final = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
# Characters that Unicode normalisation would change are escaped, so that no editor can.
_LETTERS_DEEPSEEK_LLM: Final = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ"
    "\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_MAIN_DEEPSEEK_V3: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
    r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One rule: regular expressions that isolate their matches, one after the other.

    ``gpt2_words``: after them GPT-2's own expression, which ``tokenizers`` has built in.
    ``ignore_merges``: a word that is a token is taken whole, whatever the merges say; llama.cpp
    ties this to the name. ``other_spaces``: white space that llama.cpp cuts off where the original
    does not: it replaces white space beyond ASCII before it matches, so that classes which list
    such characters miss them.
    """

    name: str
    splits: tuple[str, ...]
    gpt2_words: bool = False
    ignore_merges: bool = False
    other_spaces: str = ""


_DIGIT: Final = r"\p{N}"
_SPACES_FROM_0800: Final = (
    "\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + ("\u2028\u2029\u202f\u205f\u3000")
)
_TABLE: Final = {
    rule.name: rule
    for rule in (
        PreTokenizer("gpt-2", (), gpt2_words=True),
        PreTokenizer("smollm", (_DIGIT,), gpt2_words=True),
        PreTokenizer("qwen2", (_WORDS % "",)),
        PreTokenizer("llama-bpe", (_WORDS % "{1,3}",), ignore_merges=True),
        # The words of Llama 3 with merges obeyed: what a vocabulary trained on them has.
        PreTokenizer("smaug-bpe", (_WORDS % "{1,3}",)),
        PreTokenizer(
            "deepseek-llm",
            (
                r"[\r\n]",
                _LETTERS_DEEPSEEK_LLM,
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-퟿]+",
                _DIGIT,
            ),
            other_spaces=_SPACES_FROM_0800,
        ),
        PreTokenizer(
            "deepseek-coder",
            (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT),
            other_spaces=_SPACES_FROM_0800,
        ),
        PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _MAIN_DEEPSEEK_V3)),
    )
}
# Other names that GGUF files carry for the same rules: R1's distills of Qwen, early Llama 3 files.
_ALIASES: Final = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}

KNOWN_PRE: Final = (*_TABLE, *_ALIASES)
"""Every ``tokenizer.ggml.pre`` that is understood."""


def pre_tokenizer(pre: str | None, where: str = "the GGUF") -> PreTokenizer:
    """The rule behind a ``tokenizer.ggml.pre``. Raises ModelError for one that is not known."""
    rule = _TABLE.get(_ALIASES.get(pre or "", pre or ""))
    if rule is None:
        raise ModelError(
            f"{where} has the pre-tokenizer {pre!r}, and forethought knows "
            f"{', '.join(KNOWN_PRE)}: run this model with the llama.cpp engine."
        )
    return rule


def pre_tokenizer_json(pre: str) -> dict[str, JSON]:
    """The ``pre_tokenizer`` of a ``tokenizer.json`` for a ``tokenizer.ggml.pre``."""
    rule = pre_tokenizer(pre)
    steps: list[JSON] = [
        {"type": "Digits", "individual_digits": True}
        if regex == _DIGIT
        else {
            "type": "Split",
            "pattern": {"Regex": regex},
            "behavior": "Isolated",
            "invert": False,
        }
        for regex in rule.splits
    ]
    last: dict[str, JSON] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": rule.gpt2_words,
    }
    return {"type": "Sequence", "pretokenizers": [*steps, last]} if steps else last


def derive_pre(tokenizer_json: Mapping[str, JSON], where: str = "tokenizer.json") -> str:
    """The ``tokenizer.ggml.pre`` of a ``tokenizer.json``, recognised by its structure.

    Raises ModelError, with the reason, for what llama.cpp would tokenise differently: a
    normaliser, another model than byte-level BPE, a pre-tokenizer outside the table.
    """
    model = _byte_level_bpe(tokenizer_json, where)
    normalizer = tokenizer_json.get("normalizer")
    if not _does_nothing(normalizer):
        kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
        raise ModelError(
            f"{where} normalises text ({kind}) before it tokenises, and llama.cpp does not, so "
            "the ids would differ: such a tokenizer cannot go into a GGUF; train without a "
            "normaliser, or keep the folder and the torch engine."
        )
    splits: list[str] = []
    gpt2_words = _walk(tokenizer_json.get("pre_tokenizer"), splits, where)
    ignores = bool(model.get("ignore_merges"))
    found = [
        rule
        for rule in _TABLE.values()
        if rule.gpt2_words is gpt2_words and rule.splits == tuple(splits)
    ]
    for rule in found:
        if rule.ignore_merges is ignores:
            return rule.name
    if found:
        raise ModelError(
            f"{where} has the pre-tokenizer {found[0].name} with ignore_merges, which llama.cpp "
            "cannot combine: this tokenizer cannot go into a GGUF."
        )
    raise _unknown(where, splits or ["nothing"])


def require_byte_level(tokenizer_json: Mapping[str, JSON], where: str = "tokenizer.json") -> None:
    """Raise ModelError, saying what it is instead, unless this is a byte-level BPE."""
    _byte_level_bpe(tokenizer_json, where)


def _byte_level_bpe(tokenizer_json: Mapping[str, JSON], where: str) -> dict[str, JSON]:
    model = tokenizer_json.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ModelError(f"{where} has no vocabulary: copy the file again.")
    # Old files do not name the kind; the merges do.
    kind = model.get("type", "BPE" if "merges" in model else None)
    odd = [
        name
        for name in ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(name)
    ]
    steps = _steps(tokenizer_json.get("pre_tokenizer"))
    if kind != "BPE" or odd or not any(step.get("type") == "ByteLevel" for step in steps):
        what = f"a {kind}" if kind != "BPE" else f"a BPE with {odd[0]}" if odd else "a BPE"
        raise ModelError(
            f"{where} is {what} tokenizer, and forethought reads byte-level BPE (GPT-2, Llama 3, "
            "Qwen, DeepSeek) only: choose another model, or run its GGUF with llama.cpp."
        )
    return model


def _does_nothing(normalizer: JSON) -> bool:
    if not isinstance(normalizer, dict):
        return normalizer is None
    inner = normalizer.get("normalizers")
    return normalizer.get("type") == "Sequence" and isinstance(inner, list) and not inner


def _steps(node: JSON) -> list[dict[str, JSON]]:
    """The steps of a pre-tokenizer, sequences in it opened."""
    if not isinstance(node, dict):
        return []
    inner = node.get("pretokenizers")
    if node.get("type") == "Sequence" and isinstance(inner, list):
        return [step for part in inner for step in _steps(part)]
    return [node]


def _walk(node: JSON, splits: list[str], where: str) -> bool:
    """Collect the expressions in canonical writing; whether GPT-2's own follows them."""
    *before, last = _steps(node)
    for step in before:
        splits.append(_expression(step, where))
    if last.get("type") != "ByteLevel":
        raise _unknown(where, [*splits, str(last.get("type"))])
    if last.get("add_prefix_space", True):
        raise ModelError(
            f"{where} puts a space before every text (add_prefix_space), and llama.cpp does not "
            "for this kind of vocabulary: this tokenizer cannot go into a GGUF."
        )
    return bool(last.get("use_regex", True))


def _expression(step: dict[str, JSON], where: str) -> str:
    pattern = step.get("pattern")
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return _DIGIT
    if (
        step.get("type") == "Split"
        and step.get("behavior") == "Isolated"
        and not step.get("invert")
        and isinstance(pattern, dict)
        and isinstance(regex := pattern.get("Regex"), str)
    ):
        # Files differ in whether a line break is itself in the class or its escape.
        regex = regex.replace("\r", r"\r").replace("\n", r"\n")
        return regex.replace(_CONTRACTIONS_SPELLED, _CONTRACTIONS)
    raise _unknown(where, [str(step.get("type")), str(step.get("behavior", ""))])


def _unknown(where: str, seen: list[str]) -> ModelError:
    shown = " then ".join(part for part in seen if part)
    return ModelError(
        f"{where} has a pre-tokenizer that llama.cpp has no name for here ({shown[:200]}); known "
        f"are {', '.join(_TABLE)}: this tokenizer cannot go into a GGUF."
    )


@cache
def byte_characters() -> tuple[str, ...]:
    """GPT-2's printable character of each byte (openai/gpt-2, ``encoder.py``)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


@cache
def _byte_of_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_characters())}


def token_to_bytes(token: str) -> bytes:
    """The bytes that a byte-level token spells; characters outside the table are themselves."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return b"".join(
            bytes((table[character],)) if character in table else character.encode()
            for character in token
        )
