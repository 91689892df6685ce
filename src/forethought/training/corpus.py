"""Documents such as a base model meets: worked problems as people write them, good and bad.

Document i is a function of (seed, i) alone, so a corpus has no size and a cursor is one number.
No held-out problem is ever in it, and bare families appear as question and answer only.

The base model should be able to think in the form that RL asks for, and should do so carelessly:
its documents guess, slip, give up and break off. What is learnt by RL is which of its own ways of
working hold up (DeepSeek-R1 section 2.2 begins from a base model of web text for the same reason).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count, cycle, islice
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from forethought.errors import ModelError
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem
from forethought.problems.registry import Setting
from forethought.problems.registry import families as families_by_name
from forethought.problems.stream import ProblemStream
from forethought.training.config import CorpusConfig
from forethought.training.fast_encode import WordCache
from forethought.training.prompting import Encode, Prompter, reply_text
from forethought.training.side_process import SideProcess, available, packed
from forethought.training.tokenizer import TrainedTokenizer

_Made = TypeVar("_Made")

_CHUNK: Final = 256
"""Documents that a worker makes at a time."""


@dataclass(frozen=True)
class CorpusSpec:
    """Everything that decides what the documents are; small and picklable, for workers."""

    families: tuple[str, ...]
    levels: dict[str, tuple[int, ...]]
    weights: dict[str, float]
    language: Language | None
    config: CorpusConfig
    seed: int
    settings: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    folder: Path = Path()
    """What own families' paths are relative to."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text, whole unless ``ended`` is False; with a ``question`` it is the reply to that."""

    text: str
    question: str | None = None
    ended: bool = True

    def ids(
        self, tokenizer: TrainedTokenizer, prompter: Prompter, encode: Encode | None = None
    ) -> tuple[int, ...]:
        """As tokens: BOS, the prompt of its question if it has one, the text, EOS if it ends.
        ``encode``: another way to the ids that the tokenizer gives."""
        encode = encode or tokenizer.tokenizer.encode
        if self.question is None:
            before: tuple[int, ...] = (tokenizer.bos_id,)
            body = encode(self.text, parse_special=False)
        else:
            before = prompter.ids(self.question)
            body = encode(self.text, parse_special=True)
        return (*before, *body, *((tokenizer.eos_id,) if self.ended else ()))


@dataclass(frozen=True, slots=True)
class _Frame:
    """How a plain document is laid out: {q} the question, {w} the work, {a} the final answer."""

    worked: str
    terse: str
    joint: str
    """Between two steps."""


_FRAMES: Final[dict[Language, tuple[_Frame, ...]]] = {
    "en": (
        _Frame("Problem: {q}\nSolution: {w}\nAnswer: {a}", "Problem: {q}\nAnswer: {a}", " "),
        _Frame("Q: {q}\nA: {w} The answer is {a}.", "Q: {q}\nA: {a}", " "),
        _Frame("{q}\n\n{w}\n\nAnswer: {a}", "{q} {a}", "\n"),
    ),
    "zh": (
        _Frame("题目：{q}\n解：{w}\n答案：{a}", "题目：{q}\n答案：{a}", ""),
        _Frame("问：{q}\n答：{w}答案是 {a}。", "问：{q}\n答：{a}", ""),
        _Frame("{q}\n\n{w}\n\n答案：{a}", "{q} {a}", "\n"),
    ),
}
_GIVE_UP: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("I do not know.", "I give up.", "This is too hard."),
    "zh": ("我不知道。", "算不出来。", "太难了。"),
}
_NO_ANSWER: Final[dict[Language, str]] = {"en": "unknown", "zh": "不知道"}
_JOINTS: Final[dict[Language, str]] = {"en": " ", "zh": ""}
_SLIP: Final = 0.5
"""Chance that a step of a careless document goes wrong."""


class Corpus:
    """Documents by number."""

    def __init__(self, spec: CorpusSpec) -> None:
        self._spec = spec
        families = families_by_name(spec.families, folder=spec.folder, settings=spec.settings)
        self._families: dict[str, Family] = {one.name: one for one in families}
        self._problems = ProblemStream(
            families,
            spec.seed,
            levels=spec.levels,
            weights=spec.weights,
            language=spec.language,
        )

    def __getitem__(self, index: int) -> Document:
        """The document number ``index`` (from 0)."""
        problem = self._problems[index]
        rng = Random((self._spec.seed << 40) ^ index ^ (1 << 39))
        family = self._families[problem.family]
        config = self._spec.config
        kind = rng.random()
        if family.bare and kind < config.bare_think:
            guessed = rng.random() < config.hasty
            answer = family.guess(problem, rng) if guessed else problem.answer
            return self._in_think_form(problem, [], answer)
        if family.bare or kind < config.terse:
            return self._terse(problem, rng)
        thinks = kind < config.terse + config.think
        if thinks and config.hasty and rng.random() < config.hasty:
            return self._in_think_form(problem, [], family.guess(problem, rng))
        worked, came_to, ended = self._worked(family, problem, rng)
        if thinks:
            return self._in_think_form(problem, worked, came_to)
        return self._plain(problem, worked, came_to, ended, rng)

    def _terse(self, problem: Problem, rng: Random) -> Document:
        frame = rng.choice(_FRAMES[problem.language])
        return Document(frame.terse.replace("{q}", problem.text).replace("{a}", problem.answer))

    def _worked(
        self, family: Family, problem: Problem, rng: Random
    ) -> tuple[list[str], str | None, bool]:
        """Steps, the final answer (None: it gave up), and whether the document has an end."""
        config = self._spec.config
        fate = rng.random()
        wrong = fate < config.wrong
        styles = family.styles
        style = "check" if "check" in styles and rng.random() < config.check else ""
        if not style:
            plain = [name for name in styles if name != "check"] or list(styles)
            style = rng.choice(plain)
        if wrong and rng.random() >= config.slip:
            # No work at all, and then a wrong answer.
            steps: list[str] = []
            answer: str | None = family.wrong_answer(problem, rng)
        else:
            slip = _SLIP if wrong else 0.0
            made = self._in_languages(family, problem, rng, style, slip)
            steps, answer = list(made.steps), made.answer
        if config.wrong <= fate < config.wrong + config.given_up:
            steps = [
                *steps[: rng.randrange(len(steps) + 1)],
                rng.choice(_GIVE_UP[problem.language]),
            ]
            return steps, None, True
        if 0 <= fate - config.wrong - config.given_up < config.unfinished:
            return steps[: rng.randrange(1, len(steps) + 1)], None, False
        return steps, answer, True

    def _in_languages(
        self, family: Family, problem: Problem, rng: Random, style: str, slip: float
    ) -> Worked:
        """A worked thought; now and then it goes over to the other language on the way."""
        mixed = rng.random() < self._spec.config.mixed
        seed = rng.getrandbits(48)
        first = family.worked(problem, Random(seed), style=style, slip=slip)
        if not mixed:
            return first
        other: Language = "zh" if problem.language == "en" else "en"
        second = family.worked(
            replace(problem, language=other), Random(seed), style=style, slip=slip
        )
        at = rng.randrange(len(first.steps) + 1)
        return Worked(first.steps[:at] + second.steps[at:], first.answer)

    def _in_think_form(self, problem: Problem, steps: list[str], answer: str | None) -> Document:
        thought = _JOINTS[problem.language].join(steps) or "..."
        return Document(reply_text(thought, answer or _NO_ANSWER[problem.language]), problem.text)

    def _plain(
        self, problem: Problem, steps: list[str], answer: str | None, ended: bool, rng: Random
    ) -> Document:
        frame = rng.choice(_FRAMES[problem.language])
        work = frame.joint.join(steps)
        if answer is None:
            head, _, _ = frame.worked.partition("{w}")
            return Document(head.replace("{q}", problem.text) + work, ended=ended)
        text = frame.worked.replace("{q}", problem.text).replace("{w}", work)
        return Document(text.replace("{a}", answer))


@contextmanager
def documents(spec: CorpusSpec, first: int, *, workers: int = 0) -> Iterator[Iterator[Document]]:
    """Documents from number ``first`` on, in order, made by ``workers`` processes (0: by this
    one); what comes does not depend on how many."""
    with _made_by(workers, _Documents(spec), first) as made:
        yield made


@contextmanager
def encoded_documents(
    spec: CorpusSpec,
    first: int,
    tokenizer: TrainedTokenizer,
    prompter: Prompter,
    *,
    workers: int = 0,
) -> Iterator[Iterator[tuple[int, ...]]]:
    """:func:`documents` as token ids. Workers tokenise what they make: a GPU trains on tokens
    faster than one process writes them."""
    with _made_by(workers, _Encoded(_Documents(spec), tokenizer, prompter), first) as made:
        yield made


@contextmanager
def _made_by(
    workers: int, make: Callable[[range], list[_Made]], first: int
) -> Iterator[Iterator[_Made]]:
    """What ``make`` makes of the numbers from ``first`` on, one by one. Raises ModelError where a
    worker ends."""
    if workers < 1 or not available():
        yield chain.from_iterable(make(range(at, at + 1)) for at in count(first))
        return
    function = packed(make)
    with ExitStack() as stack:
        helpers = [
            stack.enter_context(SideProcess[range, list[_Made]](function)) for _ in range(workers)
        ]
        yield chain.from_iterable(_chunks(helpers, first))


def _chunks(
    helpers: Sequence[SideProcess[range, list[_Made]]], first: int
) -> Iterator[list[_Made]]:
    """Each helper makes every so manyth chunk, and has one more to go on with."""
    turns = cycle(helpers)
    ahead = zip(cycle(helpers), count(first, _CHUNK), strict=False)
    try:
        for helper, start in islice(ahead, 2 * len(helpers)):
            helper.send(range(start, start + _CHUNK))
        for helper in turns:
            made = helper.receive()
            _, start = next(ahead)
            helper.send(range(start, start + _CHUNK))
            yield made
    except (OSError, EOFError):
        raise ModelError(
            f"a process that makes documents ended with code {helper.close()}: what it wrote is "
            "above; with workers = 0 this process makes them itself."
        ) from None


class _Documents:
    """Makes documents by their numbers; its copies do too."""

    def __init__(self, spec: CorpusSpec) -> None:
        self._spec = spec
        self._corpus: Corpus | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"_spec": self._spec, "_corpus": None}

    def __call__(self, numbers: range) -> list[Document]:
        if self._corpus is None:
            self._corpus = Corpus(self._spec)
        return [self._corpus[number] for number in numbers]


class _Encoded:
    """Makes documents by their numbers, as token ids; its copies do too."""

    def __init__(self, make: _Documents, tokenizer: TrainedTokenizer, prompter: Prompter) -> None:
        self._make, self._tokenizer, self._prompter = make, tokenizer, prompter
        self._encode: Encode | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_encode": None}

    def __call__(self, numbers: range) -> list[tuple[int, ...]]:
        if self._encode is None:
            self._encode = WordCache(self._tokenizer).encode
            self._prompter = self._prompter.encoding_by(self._tokenizer, self._encode)
        return [
            one.ids(self._tokenizer, self._prompter, self._encode) for one in self._make(numbers)
        ]
