import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.problems.answers import plain


@pytest.mark.parametrize(
    "text",
    ["5", " 5\n", "5.", "5。", "**5**", "**5.**", "**5**.", "$5$", "`5`", '"5"', "'5'", "“5。”",
     "‘5’", "「5」", "` 5 `"],
)  # fmt: skip
def test_what_stands_around_a_short_answer_is_taken_off(text):
    assert plain(text) == "5"


@pytest.mark.parametrize(
    ("text", "left"),
    [("5..", "5."), ("**5.**.", "5."), ("``5``", "`5`"), ("$5", "$5"), ("5$", "5$"), ("$$", "$$"),
     ("**", "**"), ('"', '"'), ("", ""), (".", ""), ("“5", "“5"), ("-5", "-5"), ("[5]", "[5]")],
)  # fmt: skip
def test_one_pair_and_one_full_stop_are_taken_off_and_nothing_else(text, left):
    assert plain(text) == left


def test_a_text_of_more_than_400_characters_is_no_final_answer():
    assert plain("5" * 400) == "5" * 400
    assert plain("5" * 401) is None
    assert plain("5" + " " * 400) is None


@given(st.text(max_size=80))
def test_it_only_ever_takes_away_at_the_ends(text):
    left = plain(text)
    assert left is not None
    assert left in text
    assert left == left.strip()
