"""Knights tell the truth, knaves lie: who is what?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import ClassVar, Final, NamedTuple

from forethought.problems.answers import plain
from forethought.problems.families._knights_claims import Claim, claimed, code, kind_word, village
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong


class KnightsTask(NamedTuple):
    """Who says what, and the set of knights that is the only one to fit."""

    sayings: tuple[int, ...]
    """Their places in the `village` of so many persons, in the order in which the text has them."""
    knights: int
    asked: tuple[int, ...]
    """All persons in the order in which the answer names them."""
    names: tuple[int, ...]


_PERSONS: Final = (2, 3, 3, 4)
_SIMPLE: Final = ("is", "same", "differ", "and", "or")


@cache
def _drawable(level: int) -> tuple[tuple[int, ...], ...]:
    """What each person can say at a level."""
    persons = _PERSONS[level - 1]
    return tuple(
        tuple(
            at
            for at, saying in enumerate(village(persons).sayings)
            if saying.speaker == speaker and (level > 2 or saying.claim.form in _SIMPLE)
        )
        for speaker in range(persons)
    )


_NAME_LISTS: Final[dict[Language, str]] = {
    "en": "Alice Bob Carol Dave Ella Fred Gina Hugo Iris John Kate Liam Mia Nick Pam Sam",
    "zh": "小明 小红 小刚 小丽 小华 小强 小芳 小军 小梅 小龙 小燕 小东 小玉 小伟 小雪 小杰",
}
_NAMES: Final = {language: tuple(names.split()) for language, names in _NAME_LISTS.items()}
_PHRASES: Final[dict[Language, tuple[tuple[str, str], ...]]] = {
    # The puzzle and a saying in it.
    "en": (
        ("{said} Knights tell the truth, knaves lie. Fill in: {form}", '{name}: "{claim}."'),
        (
            "Everybody is a knight, who always tells the truth, or a knave, who always lies. "
            "{said} Who is what? Answer as {form} with knight or knave.",
            '{name} says: "{claim}."',
        ),
        (
            "On an island live knights, who never lie, and knaves, who always lie. {said} "
            "What is each of them? Write knight or knave for each question mark: {form}",
            '{name} says, "{claim}."',
        ),
        (
            "Whatever a knight says is true and whatever a knave says is false. {said} "
            "Replace each ? by knight or knave: {form}",
            '{name}: "{claim}."',
        ),
    ),
    "zh": (
        ("{said}骑士说真话，无赖说假话。请填写：{form}", "{name}：“{claim}。”"),
        (
            "每个人要么是总说真话的骑士，要么是总说假话的无赖。{said}"
            "他们各是什么人？按 {form} 的格式回答，填骑士或无赖。",
            "{name}说：“{claim}。”",
        ),
        (
            "岛上住着从不说谎的骑士和只会说谎的无赖。{said}每个人是什么身份？"
            "把问号换成骑士或无赖：{form}",
            "{name}说：“{claim}。”",
        ),
        (
            "骑士的话都是真的，无赖的话都是假的。{said}请在问号处写骑士或无赖：{form}",
            "{name}：“{claim}。”",
        ),
    ),
}


# A clause of an answer: "Alice: knight", "Bob is a knave", and what divides it from the next.
_CLAUSE: Final = re.compile(
    rf"(?:and\s+|和|而)?({'|'.join(_NAMES['en'] + _NAMES['zh'])})\s*(?::|：|=|-|–|→|is\b|是|为)\s*"
    r"(?:a\s+|the\s+)?(knight|knave|骑士|无赖)(?:\s*[,，;；、.。]\s*|\s+|(?=[和而])|$)",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class KnightsKnaves(Family):
    """Persons who are knights (truthful) or knaves (liars) say things about each other; exactly one
    assignment fits.

    Sayings are drawn uniformly, again until one assignment is the only one. Their forms are "B is a
    knight", "B and C are of the same kind", "of different kinds", "both ... and ...", "at least
    one", and from level 3 also "if ..., then ..." and "exactly so many of us are knights"; the
    speaker may be among those spoken of. What fits to every assignment or to none is never said.
    Level 1: 2 persons and 2 or 3 sayings, whoever says them. Level 2: 3 persons, each says one
    thing. Level 3: as level 2 with all forms, asked for in any order. Level 4: as level 3 with 4.

    Canonical: the sayings, with the persons renamed such that their list is the least of all
    renamings; no names, no order of the persons or of the sayings. A final answer is each person's
    kind ("Alice: knight, Bob: knave"), in any order and in the words of either language.

    Styles: "steps" supposes that a person is a knight and draws the conclusions until they are
    against each other or all is settled. A slip takes a claim for its contrary. "check" then goes
    through the sayings, and starts again if one does not fit.
    """

    name: ClassVar[str] = "knights_knaves"
    levels: ClassVar[int] = 4
    bare: ClassVar[bool] = True
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> KnightsTask:
        pools = _drawable(level)
        persons = len(pools)
        sayable = village(persons).sayable
        sayings: list[int] = []
        fitting = 0
        while not fitting or fitting & (fitting - 1):
            speakers = pools
            if level == 1:
                speakers = tuple(pools[rng.random() < 0.5] for _ in range(2 + (rng.random() < 0.5)))
            sayings = [pool[int(rng.random() * len(pool))] for pool in speakers]
            fitting = -1 if len(set(sayings)) == len(sayings) else 0
            for saying in sayings:
                fitting &= sayable[saying]
        asked = list(range(persons))
        if level > 2:
            rng.shuffle(asked)
        names: list[int] = []
        while len(names) < persons:
            name = int(rng.random() * 16)
            if name not in names:
                names.append(name)
        return KnightsTask(tuple(sayings), fitting.bit_length() - 1, tuple(asked), tuple(names))

    def canonical(self, task: KnightsTask) -> str:
        persons = len(task.asked)
        known = village(persons)
        # The least list begins with the least saying of all, so that only the renamings which make
        # one of the sayings that one can lead to it.
        least = min(known.least[at] for at in task.sayings)
        orders = {
            order for at in task.sayings if known.least[at] == least for order in known.to_least[at]
        }
        rows = [known.renamed[order] for order in orders]
        first = min(sorted([row[at] for at in task.sayings]) for row in rows)
        return f"{persons}: {'; '.join(code(persons, at) for at in first)}"

    def phrase(self, task: KnightsTask, rng: Random, language: Language) -> str:
        names = _names(task, language)
        phrases = _PHRASES[language]
        text, saying_text = phrases[int(rng.random() * len(phrases))]
        known = village(len(names)).sayings
        said = []
        for at in task.sayings:
            speaker, claim = known[at]
            words = claimed(claim, names, speaker, language)
            words = words[0].upper() + words[1:]
            said.append(saying_text.format(name=names[speaker], claim=words))
        form = ("，" if language == "zh" else ", ").join(
            f"{names[person]}{'：' if language == 'zh' else ': '}?" for person in task.asked
        )
        return text.format(said=("" if language == "zh" else " ").join(said), form=form)

    def answer(self, task: KnightsTask, language: Language) -> str:
        return _written(task, task.knights, language)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        if answer == problem.answer:
            return CORRECT
        task = _task(problem)
        kinds = _read(plain(answer) or "", _names(task, problem.language))
        if kinds is None:
            return wrong("not one kind for each person")
        right = all(bool(task.knights >> person & 1) == knight for person, knight in kinds.items())
        return CORRECT if right else wrong("not these kinds")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """The kinds of one or more persons exchanged."""
        task = _task(problem)
        flipped = rng.randrange(1, 1 << len(task.asked))
        return _written(task, task.knights ^ flipped, problem.language)

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = _task(problem)
        thought = _Thought(task, problem.language, rng, slip)
        knights = thought.suppose(thought.everything)
        if style == "check" and not thought.fits(knights):
            thought.slip = 0.0
            knights = thought.suppose(thought.everything)
        written = None if knights is None else _written(task, knights, problem.language)
        return Worked(tuple(thought.steps), written)


def _task(problem: Problem) -> KnightsTask:
    assert isinstance(problem.task, KnightsTask)
    return problem.task


def _names(task: KnightsTask, language: Language) -> list[str]:
    names = _NAMES[language]
    return [names[name] for name in task.names]


def _written(task: KnightsTask, knights: int, language: Language) -> str:
    names = _names(task, language)
    colon, comma = ("：", "，") if language == "zh" else (": ", ", ")
    return comma.join(
        f"{names[person]}{colon}{kind_word(bool(knights >> person & 1), language)}"
        for person in task.asked
    )


def _read(text: str, names: list[str]) -> dict[int, bool] | None:
    """Which persons an answer calls knights; None unless it names each person once."""
    persons = {name.lower(): person for person, name in enumerate(names)}
    kinds: dict[int, bool] = {}
    position = 0
    while position < len(text):
        clause = _CLAUSE.match(text, position)
        person = persons.get(clause[1].lower()) if clause else None
        if clause is None or person is None or person in kinds:
            return None
        kinds[person] = clause[2].lower() in ("knight", "骑士")
        position = clause.end()
    return kinds if len(kinds) == len(names) else None


class _Thought:
    """A thought that supposes and concludes. Sets of possibilities are bit masks."""

    def __init__(self, task: KnightsTask, language: Language, rng: Random, slip: float) -> None:
        self.steps: list[str] = []
        self.slip = slip
        self._rng = rng
        self._language = language
        self._zh = language == "zh"
        self._names = _names(task, language)
        self._persons = range(len(self._names))
        known = village(len(self._names))
        self._sayings = [(*known.sayings[at], known.true[at]) for at in task.sayings]
        possibilities = range(1 << len(self._names))
        self.everything = (1 << len(possibilities)) - 1
        self._knight = [
            sum(1 << one for one in possibilities if one >> person & 1) for person in self._persons
        ]
        """For each person the possibilities in which it is a knight."""
        self._wording = rng.randrange(2)

    def suppose(self, possible: int) -> int | None:
        """The knights of the first possibility that stands up to all sayings, None if none does.

        What is settled in ``possible`` has been thought through before.
        """
        open_persons = [p for p in self._persons if self._settled(p, possible) is None]
        if not open_persons:
            return possible.bit_length() - 1
        person = open_persons[0]
        for knight in (True, False):
            self._say_supposition(person, knight)
            chosen = self._knight[person] if knight else ~self._knight[person]
            followed = self._follow(possible & chosen, open_persons)
            knights = self.suppose(followed) if followed else None
            if knights is not None:
                return knights
        return None

    def _settled(self, person: int, possible: int) -> bool | None:
        """Whether the person is a knight in all possibilities (True) or in none (False)."""
        if not possible & ~self._knight[person]:
            return True
        return None if possible & self._knight[person] else False

    def _follow(self, possible: int, open_persons: list[int]) -> int:
        """What is left after what all those say who were open and now are settled; 0: nothing."""
        heard: set[int] = set()
        going = True
        while going:
            going = False
            for at, (speaker, claim, true) in enumerate(self._sayings):
                knight = self._settled(speaker, possible)
                if at in heard or speaker not in open_persons or knight is None:
                    continue
                going = True
                heard.add(at)
                truth = knight != (self.slip > 0.0 and self._rng.random() < self.slip)
                following = possible & (true if truth else ~true)
                self._say_conclusion(speaker, knight, claim, truth)
                if not following:
                    self._say_contradiction()
                    return 0
                self._say_settled(possible, following, claim)
                possible = following
        return possible

    def fits(self, knights: int | None) -> bool:
        """Goes through the sayings up to the first that does not fit."""
        if knights is None:
            self.steps.append(
                "等等，都不行，重新来。" if self._zh else "Wait, nothing fits. Again."
            )
            return False
        for speaker, claim, true in self._sayings:
            knight = bool(knights >> speaker & 1)
            holding = bool(true >> knights & 1)
            words = self._person_is(speaker, knight)
            quoted = claimed(claim, self._names, None, self._language)
            if self._zh:
                words = f"{words}，“{quoted}”是{'真' if holding else '假'}的"
                self.steps.append(
                    f"检查：{words}。" if knight == holding else f"等等，{words}，不对。重新来。"
                )
            else:
                words = f'{words}, "{quoted}" is {"true" if holding else "false"}'
                self.steps.append(
                    f"Check: {words}." if knight == holding else f"Wait, {words}. Again."
                )
            if knight != holding:
                return False
        return True

    def _person_is(self, person: int, knight: bool) -> str:
        kind = kind_word(knight, self._language)
        return f"{self._names[person]}{'是' if self._zh else ' is a '}{kind}"

    def _say_supposition(self, person: int, knight: bool) -> None:
        words = self._person_is(person, knight)
        if self._zh:
            self.steps.append(f"{'假设' if knight else '那么'}{words}。")
        else:
            self.steps.append(f"{('Suppose', 'Say')[self._wording] if knight else 'So'} {words}.")

    def _say_conclusion(self, speaker: int, knight: bool, claim: Claim, truth: bool) -> None:
        name = self._names[speaker]
        words = self._denied(claim) if not truth else ""
        words = words or claimed(claim, self._names, None, self._language)
        if self._zh:
            self.steps.append(f"{name}说{'真' if knight else '假'}话：{words}。")
        else:
            self.steps.append(f"{name} {'tells the truth' if knight else 'lies'}: {words}.")

    def _denied(self, claim: Claim) -> str:
        """The contrary of a claim."""
        if claim.form == "is":
            return self._person_is(claim.one, not claim.knight)
        if claim.form in ("same", "differ"):
            claim = claim._replace(form="differ" if claim.form == "same" else "same")
            return claimed(claim, self._names, None, self._language)
        words = claimed(claim, self._names, None, self._language)
        return f"并非“{words}”" if self._zh else f"it is false that {words}"

    def _say_settled(self, before: int, after: int, claim: Claim) -> None:
        found = [
            self._person_is(person, bool(self._settled(person, after)))
            for person in self._persons
            if self._settled(person, before) is None and self._settled(person, after) is not None
        ]
        if found and claim.form != "is":
            comma = "，" if self._zh else ", "
            self.steps.append(f"{'所以' if self._zh else 'So '}{comma.join(found)}{self._stop()}")

    def _say_contradiction(self) -> None:
        if self._zh:
            self.steps.append(("矛盾。", "这不可能。")[self._wording])
        else:
            self.steps.append(("That is a contradiction.", "That cannot be.")[self._wording])

    def _stop(self) -> str:
        return "。" if self._zh else "."
