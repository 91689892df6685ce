import re
from collections import Counter
from itertools import permutations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_contract import check_contract, problems_of, share_right
from forethought.problems.families._knights_claims import village
from forethought.problems.families.knights_knaves import KnightsKnaves, KnightsTask
from forethought.problems.problem import Problem

FAMILY = KnightsKnaves()
Kinds = dict[str, bool]

IS = r"([A-Z]\w*) (?:is|am) a (knight|knave)"
ENGLISH = (
    (rf"{IS}", lambda k, a, v: k[a] == v),
    (r"(\w+) and (\w+) are of the same kind", lambda k, a, b: k[a] == k[b]),
    (r"(\w+) and (\w+) are of different kinds", lambda k, a, b: k[a] != k[b]),
    (r"(\w+) and (\w+) are both (knight|knave)s", lambda k, a, b, v: k[a] == k[b] == v),
    (r"At least one of (\w+) and (\w+) is a (knight|knave)", lambda k, a, b, v: v in (k[a], k[b])),
    (rf"{IS} and {IS}", lambda k, a, v, b, w: k[a] == v and k[b] == w),
    (rf"{IS} or {IS}, or both", lambda k, a, v, b, w: k[a] == v or k[b] == w),
    (rf"If {IS}, then {IS}", lambda k, a, v, b, w: k[a] != v or k[b] == w),
    (
        r"Exactly (one|two|three) of us (?:is a knight|are knights)",
        lambda k, n: sum(k.values()) == n,
    ),
)
WEN = r"(我|小\w)"
SHI = rf"{WEN}是(骑士|无赖)"
CHINESE = (
    (SHI, lambda k, a, v: k[a] == v),
    (rf"{WEN}和{WEN}是同一种人", lambda k, a, b: k[a] == k[b]),
    (rf"{WEN}和{WEN}不是同一种人", lambda k, a, b: k[a] != k[b]),
    (rf"{WEN}和{WEN}都是(骑士|无赖)", lambda k, a, b, v: k[a] == k[b] == v),
    (rf"{WEN}和{WEN}中至少有一个是(骑士|无赖)", lambda k, a, b, v: v in (k[a], k[b])),
    (rf"{SHI}，{SHI}", lambda k, a, v, b, w: k[a] == v and k[b] == w),
    (rf"{SHI}或{SHI}，或两者都对", lambda k, a, v, b, w: k[a] == v or k[b] == w),
    (rf"如果{SHI}，那么{SHI}", lambda k, a, v, b, w: k[a] != v or k[b] == w),
    (r"我们当中恰好有(一|两|三)个骑士", lambda k, n: sum(k.values()) == n),
)  # fmt: skip
MEANS = {"knight": True, "knave": False, "骑士": True, "无赖": False}
MEANS |= {"one": 1, "two": 2, "three": 3, "一": 1, "两": 2, "三": 3}
QUOTED = {"en": r'(\w+)(?::| says:| says,) "([^"]*)\."', "zh": r"(小\w)说?：“([^”]*)。”"}


def is_true(claim: str, speaker: str, kinds: Kinds, language: str) -> bool:
    """Whether a claim that is made in these words is true."""
    found = []
    for pattern, means in ENGLISH if language == "en" else CHINESE:
        match = re.fullmatch(pattern, claim)
        if match:
            read = [speaker if word in ("I", "me", "我") else word for word in match.groups()]
            found.append(means(kinds, *(MEANS.get(word, word) for word in read)))
    (one,) = found
    return one


def solutions(problem: Problem) -> list[Kinds]:
    """Who can be what, from the text alone."""
    names = [
        part.split("：" if problem.language == "zh" else ":")[0]
        for part in re.split("[,，] ?", problem.answer)
    ]
    said = re.findall(QUOTED[problem.language], problem.text)
    assert len(said) == len(problem.task.sayings)
    fitting = []
    for chosen in product((True, False), repeat=len(names)):
        kinds = dict(zip(names, chosen, strict=True))
        if all(
            is_true(claim, speaker, kinds, problem.language) == kinds[speaker]
            for speaker, claim in said
        ):
            fitting.append(kinds)
    return fitting


def test_knights_and_knaves_keep_the_contract_of_a_family():
    assert FAMILY.bare
    check_contract(FAMILY, 80)


def test_the_answer_is_the_only_one_that_fits_to_the_text():
    for problem in problems_of(FAMILY, 150):
        (kinds,) = solutions(problem)
        zh = problem.language == "zh"
        words = ("无赖", "骑士") if zh else ("knave", "knight")
        assert problem.answer == ("，" if zh else ", ").join(
            f"{name}{'：' if zh else ': '}{words[kinds[name]]}" for name in kinds
        )


def test_levels_have_their_persons_and_sayings():
    for level, (persons, counts) in enumerate([(2, {2, 3}), (3, {3}), (3, {3}), (4, {4})], 1):
        forms = Counter()
        for seed in range(300):
            task = FAMILY.problem(level, seed).task
            assert sorted(task.asked) == list(range(persons))
            assert len(set(task.names)) == persons
            assert len(task.sayings) in counts
            said = [village(persons).sayings[at] for at in task.sayings]
            forms.update(one.claim.form for one in said)
            if level > 1:
                assert [one.speaker for one in said] == list(range(persons))
            else:
                assert task.asked == (0, 1)
        assert ("if" in forms) == ("count" in forms) == (level > 2)
        assert {"is", "same", "differ", "and", "or"} <= set(forms)


def test_all_assignments_come_about_equally_often():
    kinds = Counter(FAMILY.problem(1, seed).task.knights for seed in range(2000))
    assert all(400 < kinds[knights] < 600 for knights in range(4))


def test_every_level_has_different_problems_that_are_held_out():
    for level in range(1, 5):
        problems = [FAMILY.problem(level, seed) for seed in range(1500)]
        assert len({one.canonical for one in problems if one.held_out}) >= 10


def other_orders(task: KnightsTask, rng: Random) -> list[KnightsTask]:
    """The same puzzle with persons and sayings in every order."""
    persons = len(task.asked)
    known = village(persons)
    found = []
    for number, order in enumerate(permutations(range(persons))):
        sayings = [known.renamed[number][at] for at in task.sayings]
        rng.shuffle(sayings)
        knights = sum(1 << order[p] for p in range(persons) if task.knights >> p & 1)
        asked = tuple(rng.sample(range(persons), persons))
        names = tuple(rng.sample(range(16), persons))
        found.append(KnightsTask(tuple(sayings), knights, asked, names))
    return found


def test_the_canonical_form_forgets_names_and_the_order_of_persons_and_sayings():
    for problem in problems_of(FAMILY, 25):
        task, persons = problem.task, len(problem.task.asked)
        for other in other_orders(task, Random(problem.seed)):
            assert FAMILY.canonical(other) == FAMILY.canonical(task)
            again = Problem("", 1, 0, "en", FAMILY.phrase(other, Random(0), "en"),
                            FAMILY.answer(other, "en"), "", other)  # fmt: skip
            assert len(solutions(again)) == 1
        # And it is the least of all renamings, found without the shortcut.
        rows = village(persons).renamed
        least = min(sorted(row[at] for at in task.sayings) for row in rows)
        assert FAMILY.canonical(task) == FAMILY.canonical(task._replace(sayings=tuple(least)))


def test_different_puzzles_have_different_canonical_forms():
    known = village(2)
    forms = {
        FAMILY.canonical(KnightsTask((a, b), 0, (0, 1), (0, 1)))
        for a in range(len(known.sayings))
        for b in range(a)
    }
    renamings = Counter(
        min(tuple(sorted((row[a], row[b]))) for row in known.renamed)
        for a in range(len(known.sayings))
        for b in range(a)
    )
    assert len(forms) == len(renamings)


def alice_and_bob(language: str = "en") -> Problem:
    """Alice is a knight, Bob a knave."""
    said = [f"{one.speaker} {one.claim.form} {one.claim.one}" for one in village(2).sayings]
    task = KnightsTask((said.index("0 is 1"),), 1, (0, 1), (0, 1))
    return Problem("knights_knaves", 1, 0, language, "?", FAMILY.answer(task, language), "", task)


@pytest.mark.parametrize(
    "answer",
    ["Alice: knight, Bob: knave", "Bob: knave, Alice: knight", "alice: Knight; BOB: KNAVE.",
     "Alice is a knight and Bob is a knave.", "Alice is a knight, and Bob is a knave",
     "Alice = knight, Bob = knave", "Alice: knight\nBob: knave\n", "Alice：骑士，Bob：无赖。",
     "Alice是骑士，Bob是无赖", "Alice是骑士和Bob是无赖", "Alice: 骑士 Bob: knave",
     "**Alice: knight, Bob: knave**",
     "`Alice: knight; Bob: knave`", "Alice - knight, Bob - knave",
     "Alice: a knight, Bob: the knave",
     "Alice is knight. Bob is knave."],
)  # fmt: skip
def test_odd_forms_of_a_right_answer_are_right(answer):
    assert FAMILY.verify(alice_and_bob(), answer).correct


@pytest.mark.parametrize(
    "answer",
    ["", ".", "Alice: knight", "Bob: knave", "Alice: knight, Bob: knight",
     "Alice: knave, Bob: knave",
     "Alice: knight, Bob: knave, Bob: knave", "Alice: knight, Bob: knave, Bob: knight",
     "Alice: knight, Bob: knave, Carol: knave", "Alice: knight, Carol: knave", "knight, knave",
     "Alice: knight or knave, Bob: knave", "Alice: not knight, Bob: knave",
     "小明：骑士，小红：无赖",
     "Alice is not a knight and Bob is a knave", "Alice: knight, Bob: knave" + " " * 400,
     "Alice and Bob are knights", "Alice: knightly, Bob: knave", "Alice: knightBob: knave",
     "Alice: knight, Bob: ?", "Alice: knight, Bob: \N{KELVIN SIGN}nave",
     "Malice: knight, Bob: knave",
     "Alice: knight, Bob: knave or Alice: knave, Bob: knight", "Alice: knight, Bob: knave; done",
     "Alice knight, Bob knave", "\x00"],
)  # fmt: skip
def test_hostile_answers_are_wrong(answer):
    assert not FAMILY.verify(alice_and_bob(), answer).correct


def test_an_answer_in_chinese_is_read():
    assert alice_and_bob("zh").answer == "小明：骑士，小红：无赖"
    for answer in ("小红：无赖，小明：骑士", "小明是骑士，小红是无赖。",
                   "小明: knight, 小红: knave",
                   "小明为骑士；小红为无赖", "小明是骑士而小红是无赖"):  # fmt: skip
        assert FAMILY.verify(alice_and_bob("zh"), answer).correct
    for answer in (
        "小红：骑士，小明：无赖",
        "小明：骑士",
        "小明不是骑士，小红是无赖",
        "小明小红：骑士",
    ):
        assert not FAMILY.verify(alice_and_bob("zh"), answer).correct


@given(st.text(max_size=60))
def test_no_text_makes_the_knights_verifier_raise(text):
    FAMILY.verify(alice_and_bob(), text)


@given(st.text("AliceBob: knightve,", max_size=60))
def test_no_text_like_an_answer_makes_the_knights_verifier_raise(text):
    FAMILY.verify(alice_and_bob(), text)


def test_slips_lead_astray_unless_they_are_looked_for():
    assert 0.1 < share_right(FAMILY, "steps", 0.3) < 0.8
    assert share_right(FAMILY, "check", 0.5) == 1.0


def test_thoughts_suppose_and_conclude():
    problem = FAMILY.problem(2, 1, "en")
    assert FAMILY.worked(problem, Random(1)).steps == (
        "Suppose Hugo is a knight.",
        "Hugo tells the truth: Nick is a knight.",
        "Nick tells the truth: Hugo is a knight and Ella is a knave.",
        "So Ella is a knave.",
        "Ella lies: Hugo and Nick are of different kinds.",
        "That is a contradiction.",
        "So Hugo is a knave.",
        "Hugo lies: Nick is a knave.",
        "Nick lies: it is false that Hugo is a knight and Ella is a knave.",
        "Suppose Ella is a knight.",
        "Ella tells the truth: Hugo and Nick are of the same kind.",
    )
    said = {
        step.split()[0]
        for seed in range(20)
        for step in FAMILY.worked(problem, Random(seed), style="check", slip=0.5).steps
    }
    assert {"Check:", "Wait,", "That"} <= said
