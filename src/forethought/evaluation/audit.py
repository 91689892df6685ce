"""Are the verifiers right? Hostile samples that none may accept, odd ones that all have to.

Every text is a whole output of a model and goes the way of training: encoded, taken apart by ids,
its final answer extracted, the family's verifier asked. A verifier that accepts what is wrong gets
a model trained on it to write just that; one that refuses what is right teaches it superstitions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final, NamedTuple

from forethought.evaluation.audit_answers import AnswerForms, forms_of
from forethought.problems.family import Family
from forethought.problems.problem import LANGUAGES, Problem
from forethought.problems.registry import BUNDLED, families
from forethought.training.config import RewardConfig
from forethought.training.judging import Judge
from forethought.training.tokenizer import MIN_VOCABULARY, TrainedTokenizer, train_tokenizer

SAMPLES: Final = 200
"""Hostile samples of a family, and as many right ones."""
MOST_FALSE_REJECTS: Final = 0.005
"""Share of the right samples that a verifier may refuse. It may not accept any hostile one."""

_EXAMPLES: Final = 5
_SHOWN: Final = 100
_SEED: Final = 1
_DRAWS: Final = 100


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What came of one family's samples; ``examples`` tells of some that went wrong."""

    family: str
    hostile: int
    false_accepts: int
    right: int
    false_rejects: int
    examples: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No false accept, and at most `MOST_FALSE_REJECTS` of the right samples refused."""
        return not self.false_accepts and self.false_rejects <= MOST_FALSE_REJECTS * self.right


class Case(NamedTuple):
    """What a hostile or odd sample is made of: ``wrong`` and ``other`` (the gold of another
    problem) are known to be wrong."""

    problem: Problem
    right: str
    wrong: str
    other: str
    rng: Random


_Kind = Callable[[Case], Sequence[str]]
"""A way to go wrong (or odd): texts, of which one is drawn."""


def audit(chosen: Sequence[Family] | None = None) -> list[AuditRow]:
    """A row for each family (default: the bundled ones), over its levels and both languages.

    The same rows every time. Needs the library ``tokenizers``.
    """
    tokenizer = audit_tokenizer()
    return [_Auditor(one, tokenizer).row() for one in chosen or families(BUNDLED)]


def audit_tokenizer() -> TrainedTokenizer:
    """A small one: bytes, special tokens, and merges for the long texts."""
    return train_tokenizer([_FILLER], MIN_VOCABULARY + 100)


class _Auditor:
    """Makes the samples of one family and judges them."""

    def __init__(self, one: Family, tokenizer: TrainedTokenizer) -> None:
        self._family = one
        self._forms: AnswerForms = forms_of(one)
        self._encode = tokenizer.tokenizer.encode
        self._eos = tokenizer.eos_id
        self._judge = Judge(tokenizer, {one.name: one}, RewardConfig())

    def row(self) -> AuditRow:
        accepted = [told for told in self._unexpected(self._hostile(), "wrong") if told]
        rejected = [told for told in self._unexpected(self._right(), "correct") if told]
        return AuditRow(
            self._family.name,
            SAMPLES,
            len(accepted),
            SAMPLES,
            len(rejected),
            tuple((accepted + rejected)[:_EXAMPLES]),
        )

    def _unexpected(
        self, samples: Iterator[tuple[str, Problem, str]], expected: str
    ) -> Iterator[str | None]:
        """For each sample None, or what is wrong with the verdict on it."""
        for _, (kind, problem, text) in zip(range(SAMPLES), samples, strict=False):
            ids = [*self._encode(text, parse_special=True), self._eos]
            try:
                status: str = self._judge.judge(problem, ids).verdict.status
            except Exception as error:  # Whatever a verifier raises is its fault.
                status = f"raises {type(error).__name__}"
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            where = f"level {problem.level}, seed {problem.seed}, {problem.language}"
            yield None if status == expected else f"{status} ({kind}; {where}): {shown!r}"

    def _hostile(self) -> Iterator[tuple[str, Problem, str]]:
        """Three in four of the kinds that all families share, in turn."""
        kinds = list(HOSTILE.items())
        for number in count():
            turn, own = number - number // 4, number % 4 == 3
            name, kind = kinds[turn % len(kinds)]
            for case in self._cases(number, turn // len(kinds) if not own else number // 4):
                if own:
                    near = self._wrong_ones(case.problem, self._forms.near(case.problem, case.rng))
                    if near:
                        text = near[number // 4 % len(near)]
                        yield "nearly right", case.problem, _reply(_tagged(text))
                        break
                elif texts := kind(case):
                    yield name, case.problem, case.rng.choice(texts)
                    break

    def _right(self) -> Iterator[tuple[str, Problem, str]]:
        """Half of the kinds that all families share, in turn."""
        kinds = list(_RIGHT.items())
        for number in count():
            turn, own = divmod(number, 2)
            for case in self._cases(number, turn):
                name, kind = kinds[turn % len(kinds)]
                if not own:
                    yield name, case.problem, case.rng.choice(kind(case))
                    break
                if odd := self._forms.odd(case.problem, case.rng):
                    yield "odd form", case.problem, _reply(_tagged(odd[turn % len(odd)]))
                    break

    def _cases(self, number: int, turn: int) -> Iterator[Case]:
        """Cases for sample ``number``, all of one level and language; these change with each."""
        one, rng = self._family, Random(_SEED * 1_000_003 + number)
        # Every turn of a kind moves on by a level and to the other language.
        cell = (number + turn * (one.levels + 1)) % (2 * one.levels)
        level, language = cell % one.levels + 1, LANGUAGES[cell // one.levels]
        for _ in range(_DRAWS):
            problem = one.problem(level, rng.getrandbits(32), language)
            other = one.problem(level, rng.getrandbits(32), language).answer
            wrong = one.wrong_answer(problem, rng)
            if len(self._wrong_ones(problem, [wrong, other])) == 2:
                yield Case(problem, problem.answer, wrong, other, rng)
        raise AssertionError(f"{one.name} level {level} has no wrong answers to audit with")

    def _wrong_ones(self, problem: Problem, texts: Sequence[str]) -> list[str]:
        """Those that do not mean the same as the gold."""
        means = self._forms.means
        gold = means(problem, problem.answer)
        return [text for text in texts if means(problem, text) != gold]


def _tagged(text: str) -> str:
    return f"<answer>{text}</answer>"


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def _reply(answer: str, thought: str = "Let me think.") -> str:
    return f"<think>\n{thought}\n</think>\n\n{answer}"


_DISGUISES: Final = tuple(
    str.maketrans("0123456789", digits)
    for digits in (
        "０１２３４５６７８９",
        "٠١٢٣٤٥٦٧٨٩",
        "⁰¹²³⁴⁵⁶⁷⁸⁹",
        "⓪①②③④⑤⑥⑦⑧⑨",
        "०१२३४५६७८९",
        "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗",
    )
)
_WIDE_LETTERS: Final = {code: code + 0xFEE0 for code in (*range(65, 91), *range(97, 123))}
_FILLER: Final = "It is not easy to say, so let me go through all of it again, word by word. " * 70


def _disguised(case: Case) -> list[str]:
    """The right answer in digits or letters that are not ASCII."""
    texts = [case.right.translate(table) for table in (*_DISGUISES, _WIDE_LETTERS)]
    return [text for text in texts if text != case.right] or [
        f"{case.right[0]}\u200d{case.right[1:]}"
    ]


def _two(case: Case) -> list[str]:
    """The right and a wrong answer, in either order."""
    joints = (" or ", " and ", ", ", " / ", "\n", " = ", "; ", " | ", " 或 ", "，", " -> ", " not ")
    pairs = ((case.right, case.wrong), (case.wrong, case.right))
    return [joint.join(pair) for joint in joints for pair in pairs]


_FINAL_ANSWERS: Final[dict[str, _Kind]] = {
    "wrong": lambda case: [case.wrong],
    "gold of another problem": lambda case: [case.other],
    "nothing": lambda case: ["", " ", "\n\t\n", ".", "。", "-", "()", "\u3000", "\u00a0"],
    "bare marks": lambda case: ["**", "//", "****", "$$", "``", '""', "%s", "{}", "* / + -", "=="],
    "code": lambda case: [
        "__import__('os').system('true')",
        "().__class__.__bases__[0].__subclasses__()",
        f"eval({case.right!r})",
        f"print({case.right!r})",
        f"str({case.right})",
        f"(lambda: {case.right})()",
        f"{case.right};import os",
        f"{{{{{case.right}}}}}x",
    ],
    "huge powers": lambda case: [
        "9**9**9**9",
        "9^9^9^9",
        "10**100000000",
        "1e999999999",
        "9" * 399,
        f"{case.right}**9**9**9",
    ],
    "not a value": lambda case: [
        *("nan", "NaN", "inf", "-inf", "Infinity", "None", "NULL", "null", "undefined"),
        *("True", "False", "true", "N/A", "void"),
    ],
    "json": lambda case: [
        json.dumps({"answer": case.right}),
        json.dumps([case.right, case.wrong]),
        json.dumps([[case.right]]),
        '{"answer": null}',
        "[]",
    ],
    "html": lambda case: [
        f"<b>{case.right}</b>",
        f"{case.right}<br>",
        f"<script>{case.right}</script>",
        f"<!-- {case.wrong} -->{case.right}",
        f"{case.right}&nbsp;",
    ],
    "escaped": lambda case: [
        "".join(f"%{byte:02X}" for byte in case.right.encode()),
        "".join(f"&#{ord(letter)};" for letter in case.right),
        "".join(f"\\u{ord(letter):04x}" for letter in case.right),
    ],
    "placeholder": lambda case: (
        ["answer here", "your answer", "...", "[answer]", "X", "?", "答案", "最终答案", "answer"]
    ),
    "question copied": lambda case: [case.problem.text, f"{case.problem.text} {case.right}"],
    "other digits": _disguised,
    "zero width": lambda case: [
        f"{case.right[0]}\u200b{case.right[1:]}",
        f"\ufeff{case.right}",
        f"{case.right}\u2060",
        f"{case.right}\u0301",
    ],
    "text direction": lambda case: [
        f"\u202e{case.right[::-1]}\u202c",
        f"\u202d{case.right}\u202c",
        f"\u2067{case.right}\u2069",
        f"\u200f{case.right}",
    ],
    "control characters": lambda case: [
        f"{case.right}\0",
        f"\0{case.right}",
        f"{case.right[0]}\0{case.right[1:]}",
        f"\x1b[1m{case.right}\x1b[0m",
        f"{case.wrong}\b\b{case.right}",
        f"{case.right}\x7f",
    ],
    "two answers": _two,
    "answer twice": lambda case: [f"{case.right}\n{case.right}", f"{case.right} {case.right}"],
    "a sentence": lambda case: [
        f"Since 1 < 2, the answer is {case.right}, not {case.wrong}.",
        f"I think that 3 and 4 give {case.right}",
        f"It could be {case.right}, but 7 is better.",
        f"答案不是 {case.wrong}，是 {case.right}",
        f"{case.right} (because of rule 2)",
    ],
    "negated": lambda case: [
        f"{before}{case.right}" for before in ("not ", "不是", "anything but ", "≠ ", "!", "~")
    ],
    "another unit": lambda case: [
        f"{case.right}{unit}" for unit in (" volts", " 光年", "%", " parsecs", "°", " km/h", "!?")
    ],
    "10 kB of text": lambda case: [
        f"{_FILLER}{case.right}{_FILLER}",
        f"{case.right} {_FILLER}{_FILLER}",
        f"{case.right}{' ' * 10_000}!",
    ],
    "10 kB of digits": lambda case: [
        "1234567890" * 1000,
        f"{'0' * 10_000}{case.right}",
        case.right * (10_000 // len(case.right)),
    ],
    "deep brackets": lambda case: [
        f"{'(' * 5000}{case.right}{')' * 5000}",
        f"{'[' * 5000}{case.right}",
        f"{'{' * 5000}{case.right}{'}' * 5000}",
    ],
    "box in the tags": lambda case: [
        _boxed(case.wrong),
        f"{_boxed(case.wrong)} {case.right}",
        f"{case.right} {_boxed(case.wrong)}",
    ],
}
"""What stands between the tags of a sample that is well-formed apart from that."""

_WHOLE_SAMPLES: Final[dict[str, _Kind]] = {
    "empty": lambda case: ["", " \n", "<think>", "</think>", "<think></think>", "<answer>"],
    "no tags": lambda case: [
        case.right,
        _reply(case.right),
        _reply(f"The answer is {case.right}."),
        _reply(f"**{case.right}**"),
    ],
    "in the thought only": lambda case: [
        _reply("", _tagged(case.right)),
        _reply("", _boxed(case.right)),
        _reply("So that is it.", f"So {_tagged(case.right)}"),
        f"<think>\n{_tagged(case.right)}",
        f"<think>\nLet me think.\n\n{_boxed(case.right)}",
    ],
    "in the thought, then a wrong one": lambda case: [
        _reply(_tagged(case.wrong), _tagged(case.right)),
        _reply(_boxed(case.wrong), _tagged(case.right)),
        _reply(_tagged(""), f"So {_tagged(case.right)}"),
    ],
    "second thought": lambda case: [
        f"<think>a</think>{_tagged(case.right)}</think>",
        f"<think>a</think>{_tagged(case.right)}<think>No.</think>",
        f"<think>a</think>{_tagged(case.right)}<think>No.</think>{_tagged(case.wrong)}",
    ],
    "last pair wrong": lambda case: [
        _reply(_tagged(case.right) + _tagged(case.wrong)),
        _reply(f"{_tagged(case.right)}\nor\n{_tagged(case.wrong)}"),
        _reply(f"{_tagged(case.right)} No: {_tagged('')}"),
        _tagged(case.right) + _tagged(case.wrong),
    ],
    "nested pairs": lambda case: [
        _reply(f"<answer>{case.right}{_tagged(case.wrong)}</answer>"),
        _reply(f"<answer>{_tagged(case.wrong)}{case.right}</answer>"),
        _reply(f"<answer><answer>{case.wrong}{_tagged('')}{case.right}</answer></answer>"),
    ],
    "broken tags": lambda case: [
        _reply(text)
        for text in (
            f"<answer>{case.right}",
            f"{case.right}</answer>",
            f"</answer>{case.right}<answer>",
            f"<ANSWER>{case.right}</ANSWER>",
            f"< answer >{case.right}</ answer >",
            f"<final>{case.right}</final>",
            f"<answer/>{case.right}",
        )
    ],
    "another box": lambda case: [
        _reply(f"{_boxed(case.right)} {_boxed(case.wrong)}"),
        _reply(_boxed(f"{case.right} {_boxed(case.wrong)}")),
        _reply(f"{_tagged(case.wrong)} {_boxed(case.right)}"),
        _reply(f"{_boxed(case.right)} {_tagged(case.wrong)}"),
        _reply(f"\\boxed{{{case.right}"),
        _reply(f"\\boxedx{{{case.right}}}"),
    ],
    "10 kB, then a wrong one": lambda case: [
        _reply(_tagged(case.wrong), f"{_FILLER}{case.right}{_FILLER}"),
        _reply(f"{_FILLER}{case.right}{_FILLER}{_tagged(case.wrong)}"),
    ],
}


def _within_reply(kind: _Kind) -> _Kind:
    return lambda case: [_reply(_tagged(text)) for text in kind(case)]


HOSTILE: Final[dict[str, _Kind]] = {
    **{name: _within_reply(kind) for name, kind in _FINAL_ANSWERS.items()},
    **_WHOLE_SAMPLES,
}

_RIGHT: Final[dict[str, _Kind]] = {
    "plain": lambda case: [_reply(_tagged(case.right))],
    "white space": lambda case: [
        _reply(_tagged(f" {case.right} ")),
        _reply(_tagged(f"\t\n{case.right}\r\n")),
        _reply(_tagged(f"\u3000{case.right}\u00a0")),
    ],
    "tags on lines of their own": lambda case: [_reply(f"<answer>\n{case.right}\n</answer>\n")],
    "full stop": lambda case: [_reply(_tagged(f"{case.right}{stop}")) for stop in ".。"],
    "bold": lambda case: [
        _reply(_tagged(text))
        for text in (f"**{case.right}**", f"**{case.right}.**", f"**{case.right}**.")
    ],
    "quotes": lambda case: [
        _reply(_tagged(f"{left}{case.right}{right}"))
        for left, right in ('""', "''", "``", "“”", "‘’", "「」")
    ],
    "dollars": lambda case: [
        _reply(_tagged(f"${case.right}$")),
        _reply(_tagged(f"$ {case.right} $")),
    ],
    "box": lambda case: [
        _reply(f"The answer is {_boxed(case.right)}."),
        _reply(f"$${_boxed(f' {case.right} ')}$$"),
        _reply(f"所以答案是 $\\fbox{{{case.right}}}$。"),
    ],
    "no thought": lambda case: [
        _tagged(case.right),
        f"<think></think>{_tagged(case.right)}",
        f"Easy.</think>{_tagged(case.right)}",
    ],
    "last pair right": lambda case: [
        _reply(f"{_tagged(case.wrong)} Wait. {_tagged(case.right)}"),
        _reply(f"{_boxed(case.wrong)} {_tagged(case.right)}"),
        _reply(f"{_boxed(case.wrong)} {_boxed(case.right)}"),
    ],
    "wrong one in the thought": lambda case: [
        _reply(_tagged(case.right), f"Perhaps {_tagged(case.wrong)}? No."),
        f"<think>{case.wrong}</think>{_tagged(case.wrong)}</think>{_tagged(case.right)}",
    ],
    "text around it": lambda case: [
        _reply(f"So this is it: {_tagged(case.right)} Not {case.wrong}."),
        _reply(f"1 < 2, so {_tagged(case.right)}"),
    ],
    "10 kB of thought": lambda case: [_reply(_tagged(case.right), _FILLER * 2)],
}
