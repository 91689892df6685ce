"""Words that look back are counted, whole and in any case, in both languages."""

from __future__ import annotations

import pytest

from forethought.training.reflection import CHINESE, ENGLISH, reflection_words


@pytest.mark.parametrize("word", [*ENGLISH, *CHINESE])
def test_every_word_counts_once(word):
    assert reflection_words(f"so {word}, 5") == 1


@pytest.mark.parametrize(
    ("thought", "count"),
    [
        ("", 0),
        ("7 + 5 = 12. That is it.", 0),
        ("Wait, let me CHECK. But wait.", 4),
        ("The waiter checked a button on the errors.", 0),
        ("等等，不对。再算一次，检查：对。", 4),
        ("等等等等", 2),
        ("wait等等", 1),
        ("wait, 等等", 2),
    ],
)
def test_words_are_whole(thought, count):
    assert reflection_words(thought) == count


def test_the_ten_words_of_the_paper():
    assert len(ENGLISH) == 10
    assert len(set(CHINESE)) == len(CHINESE)
