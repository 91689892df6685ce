"""Chains of kinship: what is the first person to the last?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from random import Random
from typing import ClassVar, Final, NamedTuple

from forethought.problems.answers import plain
from forethought.problems.families._kinship import (
    KINDS,
    Age,
    Gender,
    Step,
    StepKind,
    Way,
    chinese_names,
    english_names,
    joined,
    right_answers,
    usual_name,
    usual_names,
)
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, Language, Problem, Verdict, wrong

# Chains. Person number i + 1 reaches person number i by the kind of fact number i.


class Fact(NamedTuple):
    """What the earlier person of a link is to the later one; ``turned`` if the text says what the
    later one is to the earlier, so that it tells the gender of the later one only."""

    kind: StepKind
    age: Age
    turned: bool


class FamilyTask(NamedTuple):
    """A chain of persons, of whom every fact links two neighbours, the first person asked for."""

    facts: tuple[Fact, ...]
    genders: tuple[Gender, ...]
    way: Way
    """From the last person to the first, with the genders that the text tells."""
    names: tuple[int, ...]
    """Places in the lists of names of a gender, all different."""
    order: tuple[int, ...]
    """The facts in the order in which the text has them."""


class _End(NamedTuple):
    """The last person of an unfinished chain: the way from there to the first, the gender and
    whether the text tells it so far, and whether a parent and a spouse are in the chain."""

    way: Way
    gender: Gender
    known: bool
    has_parent: bool
    has_spouse: bool


_TURNED_KIND: Final[dict[StepKind, StepKind]] = {
    "parent": "child",
    "child": "parent",
    "sibling": "sibling",
    "spouse": "spouse",
}
_TURNED_AGE: Final[dict[Age, Age]] = {"older": "younger", "younger": "older", "": ""}
_OTHER: Final[dict[Gender, Gender]] = {"m": "f", "f": "m", "": ""}
_KINDS_OF_FACTS: Final[tuple[tuple[StepKind, Age], ...]] = (
    ("parent", ""),
    ("child", ""),
    ("sibling", "older"),
    ("sibling", "younger"),
    ("spouse", ""),
)

_NEAR: Final = {kinds for kinds in KINDS if len(kinds) == 1 or kinds[0] == kinds[1]}
_UNCLES: Final = _NEAR | {("parent", "sibling"), ("sibling", "child")}
_COUSINS: Final = _UNCLES | {("parent", "sibling", "child")}
_NAMEABLE: Final = (_NEAR, _UNCLES, _COUSINS, set(KINDS))
"""For each level, the relations of the first person to any later one."""
_LINKS: Final = ((2,), (2, 3), (3, 4), (3, 4, 5))


@cache
def _continuations(end: _End, level: int) -> tuple[tuple[tuple[Fact, _End], ...], ...]:
    """The facts that can follow, each with the next person, a tuple for each kind. Whatever the
    first person is to the next one has an exact word in both languages."""
    found: dict[StepKind, list[tuple[Fact, _End]]] = {}
    for kind, age in _KINDS_OF_FACTS:
        # A second parent or spouse might have to be the one who is there already.
        if (kind == "child" and end.has_parent) or (kind == "spouse" and end.has_spouse):
            continue
        for turned in (False, True):
            known = end.known or not turned or kind == "spouse"
            step = Step(kind, end.gender if known else "", age)
            way = joined(step, end.way)
            if tuple(one.kind for one in way) not in _NAMEABLE[level - 1]:
                continue
            if not (english_names(way) and chinese_names(way)):
                continue
            genders: tuple[Gender, ...] = (_OTHER[end.gender],) if kind == "spouse" else ("m", "f")
            has_parent = kind == "parent" or (kind == "sibling" and end.has_parent)
            for gender in genders:
                tells = turned or kind == "spouse"
                following = _End(way, gender, tells, has_parent, kind == "spouse")
                found.setdefault(kind, []).append((Fact(kind, age, turned), following))
    return tuple(map(tuple, found.values()))


def _step(task: FamilyTask, at: int, fact: Fact) -> Step:
    """The step to person number ``at``, whose gender is "" if the text does not tell it."""
    before = task.facts[at - 1] if at else None
    known = (
        not fact.turned
        or fact.kind == "spouse"
        or (before is not None and (before.turned or before.kind == "spouse"))
    )
    return Step(fact.kind, task.genders[at] if known else "", fact.age)


_NAME_LISTS: Final[dict[tuple[Language, Gender], str]] = {
    ("en", "m"): "Adam Ben Carl Dan Eric Frank George Henry Ivan Jack Leo Max Noah Oscar Paul Tom",
    ("en", "f"): "Anna Beth Cleo Dora Emma Fay Grace Helen Ida Jane Lucy Mary Nora Olga Rose Tina",
    ("zh", "m"): "志强 建国 国华 明远 子轩 浩然 伟杰 家豪 俊峰 文博 永康 海涛 天佑 宏伟 晓东 立新",
    ("zh", "f"): "秀英 丽华 美玲 雅婷 婉清 雪梅 春燕 玉兰 晓红 静怡 思琪 佳慧 淑芬 月娥 桂芳 欣然",
}
_NAMES: Final = {key: tuple(names.split()) for key, names in _NAME_LISTS.items()}

_SENTENCES: Final[dict[Language, tuple[str, ...]]] = {
    "en": ("{x} is the {word} of {y}.", "{x} is {y}'s {word}.", "{y}'s {word} is {x}."),
    "zh": ("{x}是{y}的{word}。", "{y}的{word}是{x}。"),
}
_QUESTIONS: Final[dict[Language, tuple[str, ...]]] = {
    "en": (
        "{facts} What is {first} to {last}?",
        "{facts} How is {first} related to {last}?",
        "{facts} Which relative of {last} is {first}?",
        "{facts} So {first} is what to {last}? Answer with one kinship word.",
        "Read about a family. {facts} {first} is the ... of {last}. Which word is missing?",
    ),
    "zh": (
        "{facts}{first}是{last}的什么人？",
        "{facts}请问{first}是{last}的什么亲属？",
        "{facts}对{last}来说，{first}是什么亲属？",
        "{facts}{last}的哪位亲属是{first}？用一个称谓回答。",
        "已知一家人的关系：{facts}问：{first}是{last}的什么人？",
    ),
}


@dataclass(frozen=True)
class FamilyRelations(Family):
    """A chain of persons, facts about neighbours, and the question what the first is to the last.

    A fact is father or mother, son or daughter, older or younger brother or sister, husband or
    wife of. A text may state a fact from either side ("Ann is the mother of Ben" or "Ben is the son
    of Ann"). All persons differ, siblings share both parents, spouses share their children. What
    the first person is to any later one has an exact word in English and in Chinese, from the
    genders and ages that the text tells. Each link's kind (parent, child, sibling, spouse) is drawn
    uniformly from those for which this can hold, then uniformly the rest of the fact.

    Level 1: 2 facts; parents, children, siblings, spouses, grandparents, grandchildren.
    Level 2: 2 or 3 facts; also uncles, aunts, nephews, nieces. Level 3: 3 or 4 facts in any order;
    also cousins. Level 4: 3 to 5 facts in any order; also in-laws and the spouses of uncles and
    aunts.

    Canonical: along the chain, each person's gender as far as the text tells it, and the facts; no
    names, no order of the sentences. A final answer is the word in either language, with synonyms,
    perhaps in a phrase ("Ann is Ben's mother"). Chinese words tell the father's side from the
    mother's and, for uncles and in-laws, older from younger; a sibling or cousin whose age is not
    known is 兄弟, 姐妹, 堂兄弟 and so on.

    Styles: "steps" says what the first person is to each later one. A slip says another relation.
    "check" then goes over them by rules such as "a father's mother is a grandmother".
    """

    name: ClassVar[str] = "family_relations"
    levels: ClassVar[int] = 4
    styles: ClassVar[tuple[str, ...]] = ("steps", "check")

    def draw(self, rng: Random, level: int) -> FamilyTask:
        links = _LINKS[level - 1]
        count = links[int(rng.random() * len(links))]
        drawn = _draw_chain(rng, level, count)
        while drawn is None:
            drawn = _draw_chain(rng, level, count)
        facts, genders, way = drawn
        names: list[int] = []
        while len(names) <= count:
            name = int(rng.random() * 16)
            if name not in names:
                names.append(name)
        order = list(range(count))
        if level > 2:
            rng.shuffle(order)
        return FamilyTask(facts, genders, way, tuple(names), tuple(order))

    def canonical(self, task: FamilyTask) -> str:
        parts = []
        for at, fact in enumerate(task.facts):
            step = _step(task, at, fact)
            parts.append(f"{step.gender or '?'} {step.age}{step.kind}")
        last = task.facts[-1]
        tells = last.turned or last.kind == "spouse"
        return f"{' '.join(parts)} {task.genders[-1] if tells else '?'}"

    def phrase(self, task: FamilyTask, rng: Random, language: Language) -> str:
        sentences, questions = _SENTENCES[language], _QUESTIONS[language]
        sentence = sentences[int(rng.random() * len(sentences))]
        persons = _persons(task, language)
        facts = [_stated(task, at, persons, language, sentence) for at in task.order]
        return questions[int(rng.random() * len(questions))].format(
            facts=(" " if language == "en" else "").join(facts), first=persons[0], last=persons[-1]
        )

    def answer(self, task: FamilyTask, language: Language) -> str:
        return usual_name(task.way, language)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        task = _task(problem)
        right = right_answers(task.way)
        if answer in right:
            return CORRECT
        bare = plain(answer)
        if bare is None:
            return wrong("not one word of kinship")
        persons = _persons(task, problem.language)
        word = _word_of(bare.lower(), persons[0].lower(), persons[-1].lower())
        if word in right or word.replace(" in law", "-in-law") in right:
            return CORRECT
        return wrong("not the relation")

    def wrong_answer(self, problem: Problem, rng: Random) -> str:
        """Another relation."""
        right = right_answers(_task(problem).way)
        return rng.choice([one for one in usual_names(problem.language) if one not in right])

    def worked(
        self, problem: Problem, rng: Random, *, style: str = "steps", slip: float = 0.0
    ) -> Worked:
        task = _task(problem)
        thought = _Thought(task, problem.language, rng)
        way = thought.follow(rng, slip)
        if style == "check":
            way = thought.check()
        return Worked(tuple(thought.steps), usual_name(way, problem.language))


def _task(problem: Problem) -> FamilyTask:
    assert isinstance(problem.task, FamilyTask)
    return problem.task


def _draw_chain(
    rng: Random, level: int, count: int
) -> tuple[tuple[Fact, ...], tuple[Gender, ...], Way] | None:
    """Facts, genders and the way to the first; None if after some facts nothing can follow."""
    genders: list[Gender] = ["m" if rng.random() < 0.5 else "f"]
    end = _End((), genders[0], False, False, False)
    facts = []
    for _ in range(count):
        kinds = _continuations(end, level)
        if not kinds:
            return None
        choices = kinds[int(rng.random() * len(kinds))]
        fact, end = choices[int(rng.random() * len(choices))]
        facts.append(fact)
        genders.append(end.gender)
    return tuple(facts), tuple(genders), end.way


@cache
def _found_ways(gender: Gender) -> tuple[Way, ...]:
    """All the ways to a person of this gender that the chains of the highest level have."""
    ways: set[Way] = set()
    waiting = [_End((), gender, False, False, False)]
    seen = set(waiting)
    while waiting:
        for _, end in chain.from_iterable(_continuations(waiting.pop(), len(_NAMEABLE))):
            if end not in seen:
                seen.add(end)
                waiting.append(end)
                ways.add(end.way)
    return tuple(sorted(ways))


def _persons(task: FamilyTask, language: Language) -> list[str]:
    return [
        _NAMES[language, gender][name]
        for gender, name in zip(task.genders, task.names, strict=True)
    ]


def _stated(
    task: FamilyTask, at: int, persons: list[str], language: Language, sentence: str
) -> str:
    """Fact number ``at`` as the text has it."""
    fact = task.facts[at]
    x, y = persons[at], persons[at + 1]
    if fact.turned:
        return sentence.format(x=y, y=x, word=_fact_word(fact, task.genders[at + 1], language))
    return sentence.format(x=x, y=y, word=_fact_word(fact, task.genders[at], language))


@cache
def _fact_word(fact: Fact, gender: Gender, language: Language) -> str:
    """The word with which a text states a fact about a person of this gender."""
    kind, age = fact.kind, fact.age
    if fact.turned:
        kind, age = _TURNED_KIND[kind], _TURNED_AGE[age]
    word = usual_name((Step(kind, gender, age),), language)
    return f"{age} {word}" if language == "en" and age else word


def _word_of(text: str, first: str, last: str) -> str:
    """What is left of "Ann is the mother of Ben", "Ben's mother" or "the mother"."""
    for start in (f"{first} is ", f"{first}是"):
        text = text.removeprefix(start)
    for end in (f" of {last}", f" to {last}"):
        text = text.removesuffix(end)
    for start in (f"{last}'s ", f"{last}’s ", f"{last}的", "the ", "a ", "an ", "his ", "her "):
        if text.startswith(start):
            return text.removeprefix(start)
    return text


def _link_word(step: Step, language: Language) -> str:
    """What one calls the person whom a step reaches, perhaps of unknown gender."""
    if step.gender:
        return usual_name((step,), language)
    if language == "en":
        return step.kind
    if step.age:
        return "哥哥姐姐" if step.age == "older" else "弟弟妹妹"
    return {"parent": "父母", "child": "子女", "sibling": "兄弟姐妹", "spouse": "配偶"}[step.kind]


class _Thought:
    """A thought that follows the chain: its steps, and the ways that it holds for right."""

    def __init__(self, task: FamilyTask, language: Language, rng: Random) -> None:
        self.steps: list[str] = []
        self._task = task
        self._language = language
        self._zh = language == "zh"
        self._persons = _persons(task, language)
        self._sentence = _SENTENCES[language][self._zh or 1]
        self._so = rng.choice(("So", "Then") if language == "en" else ("所以", "那么"))
        self._held: list[Way] = []

    def follow(self, rng: Random, slip: float) -> Way:
        """Says each fact in order and what the first person is to the next one."""
        way: Way = ()
        for at, fact in enumerate(self._task.facts):
            stated = _stated(self._task, at, self._persons, self._language, self._sentence)
            self.steps.append(stated)
            following = joined(_step(self._task, at, fact), way)
            if not (english_names(following) and chinese_names(following)):
                following = way  # Nothing has a name after a slip: the thought stays where it is.
            if at and slip and rng.random() < slip:
                following = rng.choice(_found_ways(self._task.genders[0]))
            way = following
            self._held.append(way)
            if at:
                self.steps.append(f"{self._so}{'' if self._zh else ' '}{self._relation(at, way)}")
        return way

    def check(self) -> Way:
        """Says the rule for each link, and where it does not lead to what was held, repairs it."""
        way: Way = (_step(self._task, 0, self._task.facts[0]),)
        for at in range(1, len(self._task.facts)):
            step = _step(self._task, at, self._task.facts[at])
            rule = self._rule(step, way)
            way = joined(step, way)
            right = usual_name(way, self._language)
            if right == usual_name(self._held[at], self._language):
                self.steps.append(f"检查：{rule}。" if self._zh else f"Check: {rule}.")
            elif self._zh:
                self.steps.append(f"等等，{rule}，所以{self._relation(at, way)}")
            else:
                self.steps.append(f"Wait, {rule}, so {self._relation(at, way)}")
        return way

    def _relation(self, at: int, way: Way) -> str:
        return self._sentence.format(
            x=self._persons[0], y=self._persons[at + 1], word=usual_name(way, self._language)
        )

    def _rule(self, step: Step, way: Way) -> str:
        """Such as "a father's mother is a grandmother"."""
        link = _link_word(step, self._language)
        relation = usual_name(way, self._language)
        result = usual_name(joined(step, way), self._language)
        if self._zh:
            return f"{link}的{relation}是{result}"
        return f"{_with_article(link)}'s {relation} is {_with_article(result)}"


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
