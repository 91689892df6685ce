"""The ladder by itself: what is drawn from it, and what makes it rise."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forethought.problems.stream import LEVEL_BITS, ProblemStream
from forethought.training.config import CurriculumConfig
from forethought.training.curriculum import Curriculum, LevelResult
from tiny_training import ShownDigit

DRAWS = 1 << LEVEL_BITS
LADDERS = {"sorting": (1, 2, 4), "gsm8k": (1,), "clock": (2, 3)}


def curriculum(**keys: object) -> Curriculum:
    return Curriculum(CurriculumConfig(**keys), LADDERS)  # type: ignore[arg-type]


def shares(one: Curriculum, family: str) -> dict[int, float]:
    """Of each level, over every number that may be drawn."""
    counted = Counter(one.level(family, draw) for draw in range(DRAWS))
    return {level: count / DRAWS for level, count in counted.items()}


def group(level: int, right: int, judged: int = 8, family: str = "sorting") -> LevelResult:
    return LevelResult(family, level, right, judged)


def test_the_start_is_what_is_easiest():
    assert curriculum().newest() == {"sorting": 1, "gsm8k": 1, "clock": 2}
    assert curriculum(start_levels=2).newest() == {"sorting": 2, "gsm8k": 1, "clock": 3}
    assert curriculum(start_levels=9).newest() == {"sorting": 4, "gsm8k": 1, "clock": 3}
    assert shares(curriculum(), "clock") == {2: 1.0}


def test_draws_are_of_the_newest_level_by_its_share_and_of_the_others_evenly():
    near = 2 / DRAWS
    three = shares(curriculum(start_levels=3, newest=0.4), "sorting")
    assert three == {
        1: pytest.approx(0.3, abs=near),
        2: pytest.approx(0.3, abs=near),
        4: pytest.approx(0.4, abs=near),
    }
    two = shares(curriculum(start_levels=2, newest=0.75), "sorting")
    assert two == {1: pytest.approx(0.25, abs=near), 2: pytest.approx(0.75, abs=near)}
    assert shares(curriculum(start_levels=3, newest=1.0), "sorting") == {4: 1.0}
    # Too small a share for the bits is still some.
    assert shares(curriculum(start_levels=3, newest=1e-9), "sorting")[4] == 1 / DRAWS


def test_the_next_level_opens_when_the_newest_is_solved():
    one = curriculum(raise_at=0.75, over=2)
    one.hear([group(1, 8)])
    assert one.newest()["sorting"] == 1  # one group of two
    one.hear([group(1, 3)])
    assert one.newest()["sorting"] == 1  # 11 of 16
    one.hear([group(1, 8)])
    assert one.newest()["sorting"] == 1  # the first is forgotten: 11 of 16 again
    one.hear([group(1, 4)])
    assert one.newest() == {"sorting": 2, "gsm8k": 1, "clock": 2}  # 12 of 16
    # The new one is judged by its own groups.
    one.hear([group(1, 8), group(1, 8), group(2, 8), group(4, 8)])
    assert one.newest()["sorting"] == 2
    one.hear([group(2, 8)])
    assert one.newest()["sorting"] == 4
    one.hear([group(4, 8)] * 9)
    assert one.newest()["sorting"] == 4


def test_samples_count_not_groups_and_those_without_a_verdict_do_not():
    one = curriculum(raise_at=0.5, over=2)
    one.hear([group(1, 1, 1), group(1, 0, 0), group(1, 2, 7)])
    assert one.newest()["sorting"] == 1  # 3 of 8; the group of none said nothing
    one.hear([group(1, 5, 7)])
    assert one.newest()["sorting"] == 2  # 7 of 14


def test_a_share_of_exactly_raise_at_is_enough():
    for percent in range(1, 101):
        one = curriculum(raise_at=percent / 100, over=1)
        one.hear([group(1, percent - 1, 100)])
        assert one.newest()["sorting"] == 1
        one.hear([group(1, percent, 100)])
        assert one.newest()["sorting"] == 2


results = st.lists(
    st.builds(
        lambda family, level, judged, share: LevelResult(
            family, level, round(share * judged), judged
        ),
        st.sampled_from(sorted(LADDERS)),
        st.integers(1, 4),
        st.integers(0, 6),
        st.floats(0, 1),
    ),
    max_size=120,
)
keys = st.fixed_dictionaries(
    {
        "start_levels": st.integers(1, 4),
        "raise_at": st.floats(0.01, 1),
        "over": st.integers(1, 5),
        "newest": st.floats(0.01, 1),
    }
)


@given(keys, results)
def test_levels_only_rise_one_at_a_time_and_stay_on_the_ladder(keys, heard):
    one = curriculum(**keys)
    for result in heard:
        before = one.newest()
        one.hear([result])
        for family, level in one.newest().items():
            rungs = LADDERS[family]
            risen = rungs.index(level) - rungs.index(before[family])
            assert risen in (0, 1)
            if risen:
                assert (result.family, result.level) == (family, before[family])


@given(keys, results)
def test_it_rises_where_a_plain_count_says_so(keys, heard):
    one = curriculum(**keys)
    opened = {name: min(keys["start_levels"], len(rungs)) for name, rungs in LADDERS.items()}
    since: dict[str, list[LevelResult]] = {name: [] for name in LADDERS}
    for result in heard:
        name = result.family
        if result.level == LADDERS[name][opened[name] - 1] and result.judged:
            since[name].append(result)
            last = since[name][-keys["over"] :]
            share = sum(each.right for each in last) / sum(each.judged for each in last)
            full = len(last) == keys["over"]
            if full and share >= keys["raise_at"] and opened[name] < len(LADDERS[name]):
                opened[name] += 1
                since[name] = []
        one.hear([result])
        assert one.newest() == {n: LADDERS[n][at - 1] for n, at in opened.items()}


@given(keys, results, results)
def test_it_goes_on_from_its_facts_as_if_nothing_had_been(keys, before, after):
    one, again = curriculum(**keys), curriculum(**keys)
    one.hear(before)
    again.hear(after)  # Whatever it heard is forgotten.
    again.load(json.loads(json.dumps(one.facts())))
    assert again.facts() == one.facts()
    one.hear(after)
    again.hear(after)
    assert again.facts() == one.facts()


@given(keys, results, st.integers(0, DRAWS - 1))
def test_a_level_that_is_drawn_is_open(keys, heard, draw):
    one = curriculum(**keys)
    one.hear(heard)
    for family, newest in one.newest().items():
        drawn = one.level(family, draw)
        assert drawn in LADDERS[family]
        assert drawn <= newest


def test_a_stream_asks_for_the_level_and_is_otherwise_the_same():
    stream = ProblemStream([ShownDigit()], 5, levels={"shown_digit": (1, 3)})
    assert stream.ladders == {"shown_digit": (1, 3)}
    plain = [stream[at] for at in range(200)]
    evenly = [
        stream.problem(at, lambda _, bits: (1, 3)[bits * 2 >> LEVEL_BITS]) for at in range(200)
    ]
    assert evenly == plain
    asked: list[tuple[str, int]] = []

    def third(family: str, bits: int) -> int:
        asked.append((family, bits))
        return 3

    hard = [stream.problem(at, third) for at in range(200)]
    assert {problem.level for problem in hard} == {3}
    assert not any(problem.held_out for problem in hard)
    assert {family for family, _ in asked} == {"shown_digit"}
    assert all(0 <= bits < DRAWS for _, bits in asked)
    assert min(bits for _, bits in asked) < DRAWS // 8
    assert max(bits for _, bits in asked) > DRAWS * 7 // 8
    assert [stream.problem(at, third) for at in range(200)] == hard


@pytest.mark.parametrize(
    "keys",
    [
        {"start_levels": 0}, {"over": 0}, {"raise_at": 0.0}, {"raise_at": 1.1},
        {"newest": 0.0}, {"newest": 1.1}, {"raise_ta": 0.5},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(keys):
    with pytest.raises(ValidationError):
        CurriculumConfig(**keys)
