import re
from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._kinship import Step, chinese_names, english_names
from forethought.problems.families.family_relations import Fact, FamilyRelations, FamilyTask
from forethought.problems.problem import Problem

FAMILY = FamilyRelations()


MEN = ("father", "son", "brother", "husband")


class NotSoError(Exception):
    """Two named persons would have to be one, or somebody of another gender."""


class World:
    """Everybody whom the sentences name or imply: persons that must be one are made one."""

    def __init__(self, gender: dict[str, str]) -> None:
        self.same: dict[str, str] = {}
        self.slots: dict[str, dict[str, str]] = {}
        self.gender = dict(gender)
        self.older: set[tuple[str, str]] = set()
        self.named: set[str] = set()

    def find(self, person: str) -> str:
        while self.same.get(person, person) != person:
            person = self.same[person]
        return person

    def slot(self, person: str, slot: str) -> str:
        slots = self.slots.setdefault(self.find(person), {})
        return self.find(slots.setdefault(slot, f"?{len(self.same)}{slot}{self.find(person)}"))

    def unite(self, one: str, other: str) -> None:
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        if {one, other} <= self.named:
            raise NotSoError
        if one not in self.named:
            one, other = other, one
        self.same[other] = one
        for slot, person in self.slots.pop(other, {}).items():
            self.unite(self.slot(one, slot), person)

    def say(self, x: str, word: str, y: str) -> None:
        """x is the ... of y."""
        self.named |= {x, y}
        age, _, kind = word.rpartition(" ")
        if self.gender[x] != ("m" if kind in MEN else "f"):
            raise NotSoError
        if kind in ("husband", "wife") and self.gender[y] == self.gender[x]:
            raise NotSoError
        if kind in ("father", "mother"):
            self.unite(self.slot(y, kind), x)
        elif kind in ("son", "daughter"):
            self.unite(self.slot(x, {"m": "father", "f": "mother"}[self.gender[y]]), y)
        elif kind in ("brother", "sister"):
            self.unite(self.slot(x, "father"), self.slot(y, "father"))
            self.unite(self.slot(x, "mother"), self.slot(y, "mother"))
            self.older.add((x, y) if age == "older" else (y, x))
        else:
            self.unite(self.slot(x, "spouse"), y)
            self.unite(self.slot(y, "spouse"), x)

    def close(self) -> None:
        """Parents of one child are spouses; children of spouses are siblings."""
        for person in list(self.named):
            father, mother = self.slot(person, "father"), self.slot(person, "mother")
            self.unite(self.slot(father, "spouse"), mother)
            self.unite(self.slot(mother, "spouse"), father)
        for _ in self.named:
            self.older |= {(a, d) for a, b in self.older for c, d in self.older if b == c}

    def who(self, word: str, person: str) -> set[str]:
        """Everybody named or implied who is the ``word`` of a person."""
        person = self.find(person)
        age, _, kind = word.rpartition(" ")
        if kind in ("father", "mother"):
            return {self.slot(person, kind)}
        if kind in ("husband", "wife"):
            fits = self.gender.get(person) == ("f" if kind == "husband" else "m")
            return {self.slot(person, "spouse")} if fits else set()
        if kind in ("son", "daughter"):
            found = {
                one
                for one in self.named
                if person in (self.slot(one, "father"), self.slot(one, "mother"))
            }
        else:
            found = {one for one in self.named - {person} if self.alike(one, person)}
            if age:
                found = {
                    one
                    for one in found
                    if ((one, person) if age == "older" else (person, one)) in self.older
                }
        man = "m" if kind in ("son", "brother") else "f"
        return {one for one in found if self.gender[one] == man}

    def alike(self, one: str, other: str) -> bool:
        return self.slot(one, "father") == self.slot(other, "father")

    def reach(self, words: str, person: str) -> set[str]:
        persons = {self.find(person)}
        for word in words.split("'s "):
            persons = {other for one in persons for other in self.who(word, one)}
        return persons


CHINESE = {
    "父亲": "father", "母亲": "mother", "儿子": "son", "女儿": "daughter", "丈夫": "husband",
    "妻子": "wife", "哥哥": "older brother", "弟弟": "younger brother", "姐姐": "older sister",
    "妹妹": "younger sister", "兄弟": "brother", "姐妹": "sister",
    "爷爷": "father's father", "奶奶": "father's mother", "外公": "mother's father",
    "外婆": "mother's mother", "孙子": "son's son", "孙女": "son's daughter",
    "外孙": "daughter's son", "外孙女": "daughter's daughter",
    "伯父": "father's older brother", "叔叔": "father's younger brother",
    "姑姑": "father's sister", "舅舅": "mother's brother", "姨妈": "mother's sister",
    "侄子": "brother's son", "侄女": "brother's daughter", "外甥": "sister's son",
    "外甥女": "sister's daughter", "堂兄弟": "father's brother's son",
    "堂姐妹": "father's brother's daughter",
    "表兄弟": "father's sister's son/mother's brother's son/mother's sister's son",
    "表姐妹": "father's sister's daughter/mother's brother's daughter/mother's sister's daughter",
    "伯母": "father's older brother's wife", "婶婶": "father's younger brother's wife",
    "姑父": "father's sister's husband", "舅妈": "mother's brother's wife",
    "姨父": "mother's sister's husband", "公公": "husband's father", "婆婆": "husband's mother",
    "岳父": "wife's father", "岳母": "wife's mother", "儿媳": "son's wife",
    "女婿": "daughter's husband", "嫂子": "older brother's wife",
    "弟媳": "younger brother's wife", "姐夫": "older sister's husband",
    "妹夫": "younger sister's husband", "大伯子": "husband's older brother",
    "小叔子": "husband's younger brother", "大姑子": "husband's older sister",
    "小姑子": "husband's younger sister", "大舅子": "wife's older brother",
    "小舅子": "wife's younger brother", "大姨子": "wife's older sister",
    "小姨子": "wife's younger sister",
}  # fmt: skip
FACT_WORDS = dict(list(CHINESE.items())[:10])

ENGLISH = {
    **{word: word for word in ("father", "mother", "son", "daughter", "brother", "sister")},
    "husband": "husband",
    "wife": "wife",
    "grandfather": "father's father/mother's father",
    "grandmother": "father's mother/mother's mother",
    "grandson": "son's son/daughter's son",
    "granddaughter": "son's daughter/daughter's daughter",
    "uncle": "father's brother/mother's brother/father's sister's husband/"
    "mother's sister's husband",
    "aunt": "father's sister/mother's sister/father's brother's wife/mother's brother's wife",
    "nephew": "brother's son/sister's son",
    "niece": "brother's daughter/sister's daughter",
    "cousin": "/".join(
        f"{parent}'s {sibling}'s {child}"
        for parent in ("father", "mother")
        for sibling in ("brother", "sister")
        for child in ("son", "daughter")
    ),
    "father-in-law": "husband's father/wife's father",
    "mother-in-law": "husband's mother/wife's mother",
    "son-in-law": "daughter's husband",
    "daughter-in-law": "son's wife",
    "brother-in-law": "husband's brother/wife's brother/sister's husband",
    "sister-in-law": "husband's sister/wife's sister/brother's wife",
}

SAYS = {
    "en": (
        r"(?P<x>[A-Z]\w+) is the (?P<word>{words}) of (?P<y>\w+)\.",
        r"(?P<x>[A-Z]\w+) is (?P<y>\w+)'s (?P<word>{words})\.",
        r"(?P<y>[A-Z]\w+)'s (?P<word>{words}) is (?P<x>\w+)\.",
    ),
    "zh": (
        r"(?P<x>\w\w)是(?P<y>\w\w)的(?P<word>{words})。",
        r"(?P<y>\w\w)的(?P<word>{words})是(?P<x>\w\w)。",
    ),
}
ASKS = {
    "en": (
        r"What is (?P<first>\w+) to (?P<last>\w+)\?",
        r"How is (?P<first>\w+) related to (?P<last>\w+)\?",
        r"Which relative of (?P<last>\w+) is (?P<first>\w+)\?",
        r"So (?P<first>\w+) is what to (?P<last>\w+)\?",
        r"(?P<first>\w+) is the \.\.\. of (?P<last>\w+)\.",
    ),
    "zh": (
        r"(?P<first>\w\w)是(?P<last>\w\w)的什么",
        r"对(?P<last>\w\w)来说，(?P<first>\w\w)是什么",
        r"(?P<last>\w\w)的哪位亲属是(?P<first>\w\w)？",
    ),
}


def read(problem: Problem) -> tuple[list[tuple[str, str, str]], str, str]:
    """The facts (x is the ... of y), the first and the last person, from the text alone."""
    words = "|".join(FACT_WORDS if problem.language == "zh" else FACT_WORDS.values())
    facts = []
    for pattern in SAYS[problem.language]:
        for found in re.finditer(pattern.format(words=words), problem.text):
            word = found["word"]
            facts.append((found["x"], FACT_WORDS.get(word, word), found["y"]))
    (asked,) = filter(None, (re.search(one, problem.text) for one in ASKS[problem.language]))
    return facts, asked["first"], asked["last"]


def worlds(facts: list[tuple[str, str, str]]) -> list[World]:
    """The worlds in which the facts hold: one for each choice of genders that they leave open."""
    persons = {person for x, _, y in facts for person in (x, y)}
    told = {x: "m" if word.split()[-1] in MEN else "f" for x, word, _ in facts}
    untold = sorted(persons - set(told))
    found = []
    for genders in product("mf", repeat=len(untold)):
        world = World(told | dict(zip(untold, genders, strict=True)))
        try:
            for fact in facts:
                world.say(*fact)
            world.close()
        except NotSoError:
            continue
        found.append(world)
    return found


def test_family_relations_keep_the_contract_of_a_family():
    check_contract(FAMILY, 80)


def test_the_answer_is_the_only_one_in_every_world_in_which_the_text_is_true():
    seen = set()
    for problem in problems_of(FAMILY, 200):
        facts, first, last = read(problem)
        assert len(facts) == len(problem.task.facts)
        possible = worlds(facts)
        assert possible, problem
        words = CHINESE if problem.language == "zh" else ENGLISH
        for world in possible:
            right = {
                word
                for word, ways in words.items()
                if any(first in world.reach(way, last) for way in ways.split("/"))
            }
            if right & {"哥哥", "弟弟", "姐姐", "妹妹"}:
                right -= {"兄弟", "姐妹"}
            assert right == {problem.answer}, problem
        seen.add(problem.answer)
    assert len(seen) > 50


def test_levels_have_their_lengths_and_relations():
    near = {"father", "mother", "son", "daughter", "brother", "sister", "grandfather"}
    near |= {"grandmother", "grandson", "granddaughter"}
    second = near | {"uncle", "aunt", "nephew", "niece"}
    expected = {1: (near, {2}), 2: (second, {2, 3}), 3: (second | {"cousin"}, {3, 4})}
    expected[4] = (set(ENGLISH), {3, 4, 5})
    for level, (words, lengths) in expected.items():
        problems = [FAMILY.problem(level, seed, "en") for seed in range(600)]
        assert {problem.answer for problem in problems} - {"husband", "wife"} <= words
        assert {len(problem.task.facts) for problem in problems} == lengths
        assert all(
            len(set(problem.task.names)) == len(problem.task.genders) for problem in problems
        )
    assert any(problem.answer.endswith("in-law") for problem in problems)


def test_no_relation_of_a_level_comes_most_of_the_time():
    for level in range(1, 5):
        counts = Counter(FAMILY.problem(level, seed, "zh").answer for seed in range(500))
        assert counts.most_common(1)[0][1] < 150


def test_every_level_has_different_problems_that_are_held_out():
    for level in range(1, 5):
        problems = [FAMILY.problem(level, seed) for seed in range(1200)]
        assert len({one.canonical for one in problems if one.held_out}) >= 5


def grandmother(**changes: object) -> Problem:
    """Anna is the mother of Ben. Ben is the father of Cleo."""
    facts = (Fact("parent", "", False), Fact("parent", "", False))
    way = (Step("parent", "m"), Step("parent", "f"))
    task = FamilyTask(facts, ("f", "m", "f"), way, (0, 1, 2), (0, 1))._replace(**changes)
    return Problem("family_relations", 1, 0, "en", "?", "", FAMILY.canonical(task), task)


def test_the_canonical_form_forgets_names_order_and_who_is_called_a_spouse():
    one = grandmother().canonical
    assert one == "f parent m parent ?"
    assert grandmother(names=(7, 3, 4), order=(1, 0)).canonical == one
    assert grandmother(genders=("f", "m", "m")).canonical == one
    assert grandmother(genders=("f", "f", "m")).canonical != one
    said = [
        grandmother(facts=(Fact("spouse", "", turned), Fact("parent", "", False))).canonical
        for turned in (False, True)
    ]
    assert said[0] == said[1] == "f spouse m parent ?"
    turned = (Fact("parent", "", False), Fact("parent", "", True))
    assert grandmother(facts=turned).canonical == "f parent ? parent f"


@pytest.mark.parametrize(
    "answer",
    ["grandmother", "Grandmother.", " GRANDMA ", "the grandmother", "a grandmother",
     "Cleo's grandmother", "Anna is Cleo's grandmother.", "Anna is the grandmother of Cleo",
     "paternal grandmother", "奶奶", "祖母。", "**grandmother**", "`grandma`", "granny",
     "the grandmother of Cleo", "her grandmother", "Cleo的奶奶"],
)  # fmt: skip
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(grandmother(), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", ".", "mother", "grandfather", "maternal grandmother", "外婆", "姥姥", "外祖母", "爷爷",
     "grandmother or grandfather", "grandmother, mother", "grandmother grandmother",
     "Cleo is Anna's grandmother", "Ben's grandmother", "Anna is the grandmother of Ben",
     "Anna's grandmother", "great-grandmother", "grandmother-in-law", "not grandmother",
     "grandmother" + " " * 400, "the the grandmother", "grandparent", "奶奶或外婆", "奶奶姥姥",
     "the", "Anna is ", "Cleo's ", "\x00"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(grandmother(), answer).correct


def test_chinese_words_are_exact():
    older = (Step("parent", "m"), Step("sibling", "m", "older"))
    assert chinese_names(older) == ("伯父", "伯伯", "大伯")
    assert chinese_names((older[0], older[1]._replace(age=""))) == ()
    assert english_names((older[0], older[1]._replace(age="")))[0] == "uncle"
    assert chinese_names((older[0]._replace(gender=""), older[1])) == ()
    assert chinese_names((Step("sibling", "m"),)) == ("兄弟",)
    assert chinese_names((Step("sibling", "m", "older"),)) == ("哥哥", "兄长", "兄弟")
    sibling = grandmother(way=(Step("sibling", "m", "older"),))
    for answer, right in {"哥哥": True, "兄弟": True, "弟弟": False, "older brother": True,
                          "younger brother": False, "brother": True}.items():  # fmt: skip
        assert FAMILY.verify(sibling, answer).correct == right
    in_law = grandmother(way=(Step("spouse", "f"), Step("parent", "f")))
    for answer in ("mother-in-law", "mother in law", "岳母", "丈母娘"):
        assert FAMILY.verify(in_law, answer).correct
    assert not FAMILY.verify(in_law, "婆婆").correct


@given(st.text(max_size=60))
def test_no_text_makes_the_kinship_verifier_raise(text):
    FAMILY.verify(grandmother(), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.1 < share_right(FAMILY, "steps", 0.5) < 0.7
    assert share_right(FAMILY, "check", 0.5) == 1.0


def test_thoughts_follow_the_chain():
    problem = FAMILY.problem(2, 39, "en")
    assert FAMILY.worked(problem, Random(0), style="check").steps == (
        "Cleo is Ben's wife.",
        "Henry is Cleo's son.",
        "Then Ben is Henry's father.",
        "Check: a mother's husband is a father.",
    )
    repaired = {
        FAMILY.worked(problem, Random(seed), style="check", slip=0.6).steps[-1]
        for seed in range(20)
    }
    assert "Wait, a mother's husband is a father, so Ben is Henry's father." in repaired
    chinese = FAMILY.problem(2, 39, "zh")
    assert FAMILY.worked(chinese, Random(0), style="check").steps == (
        "建国的妻子是美玲。",
        "美玲的儿子是家豪。",
        "那么家豪的父亲是建国。",
        "检查：母亲的丈夫是父亲。",
    )


def test_thoughts_of_the_first_level_are_short():
    for seed in range(200):
        problem = FAMILY.problem(1, seed)
        assert sum(map(len, FAMILY.worked(problem, Random(seed)).steps)) <= 100
