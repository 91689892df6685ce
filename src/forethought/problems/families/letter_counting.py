"""How often a letter occurs in a word or a phrase."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from string import ascii_lowercase, digits
from typing import ClassVar, Final, NamedTuple

from forethought.problems.answers import plain, whole_number
from forethought.problems.families._common_words import COMMON_WORDS
from forethought.problems.family import Family, Worked
from forethought.problems.problem import Language, Problem, Verdict, wrong


class LetterCountingTask(NamedTuple):
    """Lower-case words and one letter."""

    words: tuple[str, ...]
    letter: str


_PHRASES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        'How many times does the letter {letter} occur in "{text}"?',
        'Count the letter {letter} in "{text}".',
        'How many {letter}\'s are there in "{text}"?',
        'How often do you find the letter {letter} in "{text}"? Answer with a number.',
        'In "{text}", how many of the letters are {letter}?',
    ),
    "zh": (
        '"{text}" 中有几个字母 {letter}？',
        '字母 {letter} 在 "{text}" 中出现几次？',
        '数一数 "{text}" 里有多少个 {letter}。',
        '在 "{text}" 中能找到几个 {letter}？请用数字回答。',
    ),
}

_DIGIT_PHRASES: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "How many times does the digit {letter} occur in {text}?",
        "Count the digit {letter} in {text}.",
        "How often do you find the digit {letter} in {text}? Answer with a number.",
        "In {text}, how many of the digits are {letter}?",
    ),
    "zh": (
        "{text} 中有几个数字 {letter}？",
        "数字 {letter} 在 {text} 中出现几次？",
        "数一数 {text} 里有多少个 {letter}。",
    ),
}

_SHORT_WORDS: Final = tuple(word for word in COMMON_WORDS if 3 <= len(word) <= 5)
_LONG_WORDS: Final = tuple(word for word in COMMON_WORDS if 6 <= len(word) <= 10)
_CONSONANTS: Final = "bcdfghjklmnprstvwz"
_VOWELS: Final = "aeiou"


def _invented(rng: Random, length: int) -> str:
    """A pronounceable word of few different letters, so that letters recur."""
    random = rng.random
    kinds = [
        _CONSONANTS[int(random() * 18)] + _CONSONANTS[int(random() * 18)],
        _VOWELS[int(random() * 5)] + _VOWELS[int(random() * 5)],
    ]
    first = random() < 0.25
    return "".join([kinds[(at + first) % 2][random() < 0.5] for at in range(length)])


def _word(rng: Random, short: bool) -> str:
    """A common or an invented word, with equal chance."""
    if rng.random() < 0.5:
        words = _SHORT_WORDS if short else _LONG_WORDS
        return words[int(rng.random() * len(words))]
    return _invented(rng, 3 + int(rng.random() * 3) if short else 6 + int(rng.random() * 5))


def _number(rng: Random, short: bool) -> str:
    """As many digits as a word has letters, of at most three different ones."""
    kinds = [str(int(rng.random() * 10)) for _ in range(3)]
    length = 3 + int(rng.random() * 3) if short else 6 + int(rng.random() * 5)
    return "".join([kinds[int(rng.random() * 3)] for _ in range(length)])


@dataclass(frozen=True)
class LetterCounting(Family):
    """Count one letter in one or more words of lower-case letters.

    Level 1: a word of 3 to 5 letters. Level 2: a word of 6 to 10 letters. Level 3: 2 or 3 words,
    level 4: 4 to 6 words, each short (3 to 5) or long (6 to 10) with equal chance. A word is a
    common English one or, with equal chance, an invented one of at most two consonants and two
    vowels in turn. The letter is that of a random place in the words, or (one in eight) any of
    a to z, which may not occur. With ``digits`` the words are numbers of as many digits, at most
    three different ones, and a digit is counted: each is a token then, as a very small model needs.

    Canonical: the letter and the words as they stand. The final answer is a whole number.

    Styles: "steps" spells the words with a running count; a slip miscounts or skips a letter.
    "check" then spells them again with the hits in brackets and, where that gives another count,
    takes that one.
    """

    name: ClassVar[str] = "letter_counting"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    digits: bool = False

    def draw(self, rng: Random, level: int) -> LetterCountingTask:
        word = _number if self.digits else _word
        if level <= 2:
            words: tuple[str, ...] = (word(rng, level == 1),)
        else:
            count = rng.choice((2, 3) if level == 3 else (4, 5, 6))
            words = tuple([word(rng, rng.random() < 0.5) for _ in range(count)])
        letters = "".join(words)
        if rng.random() < 0.125:
            letters = digits if self.digits else ascii_lowercase
        return LetterCountingTask(words, letters[int(rng.random() * len(letters))])

    def canonical(self, task: LetterCountingTask) -> str:
        return f"{task.letter} in {' '.join(task.words)}"

    def phrase(self, task: LetterCountingTask, rng: Random, language: Language) -> str:
        phrases = (_DIGIT_PHRASES if self.digits else _PHRASES)[language]
        phrase = phrases[int(rng.random() * len(phrases))]
        return phrase.format(letter=task.letter, text=" ".join(task.words))

    def answer(self, task: LetterCountingTask, language: Language) -> str:
        return str(_count(task))

    def verify(self, problem: Problem, answer: str) -> Verdict:
        bare = plain(answer)
        if bare is None:
            return wrong("too long for one number")
        return whole_number(bare, _count(_task(problem)), stop=False)

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        right = _count(_task(problem))
        return str(rng.choice([n for n in range(max(0, right - 2), right + 3) if n != right]))

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task, zh = _task(problem), problem.language == "zh"
        stop = "。" if zh else "."
        steps: list[str] = []
        count = 0
        for word in task.words:
            places, count = _counted(word, task.letter, count, rng, slip)
            steps.append(places + stop)
        if style == "check":
            found, marked = (
                _count(task),
                " / ".join(_marked(word, task.letter) for word in task.words),
            )
            steps.append(f"检查：{marked}：{found}。" if zh else f"Check: {marked}: {found}.")
            if found != count:
                steps.append(
                    f"等等，是 {found}，不是 {count}。" if zh else f"Wait, {found}, not {count}."
                )
            count = found
        words = ("所以有 {} 个。", "一共 {} 个。") if zh else ("So {}.", "In all {}.")
        steps.append(rng.choice(words).format(count))
        return Worked(tuple(steps), str(count))


def _task(problem: Problem) -> LetterCountingTask:
    assert isinstance(problem.task, LetterCountingTask)
    return problem.task


def _count(task: LetterCountingTask) -> int:
    return "".join(task.words).count(task.letter)


def _counted(word: str, letter: str, count: int, rng: Random, slip: float) -> tuple[str, int]:
    """The word spelled with the running count ("b 0, e 1, e 2"), and the count after it."""
    slips_at = rng.randrange(len(word)) if slip > 0.0 and rng.random() < slip else -1
    places: list[str] = []
    for at, one in enumerate(word):
        hit = one == letter
        if at == slips_at:
            if rng.random() < 0.5:
                continue
            hit = not hit
        count += hit
        places.append(f"{one} {count}")
    return ", ".join(places), count


def _marked(word: str, letter: str) -> str:
    return " ".join([f"({one})" if one == letter else one for one in word])
