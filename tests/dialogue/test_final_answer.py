"""The final answer: pairs, boxes, and a megabyte of hostility."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.dialogue.final_answer import final_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("no answer here", None),
        ("<answer> 5 </answer>", "5"),
        ("<answer>4</answer> no: <answer>5</answer>", "5"),
        ("<answer>5</answer> and <answer>open", "5"),
        ("<answer>5</answer> stray </answer>", "5"),
        ("</answer>", None),
        ("<answer>open", None),
        ("<answer><answer>5</answer></answer>", "5"),
        (r"<answer>\boxed{5}</answer>", r"\boxed{5}"),
        (r"so \boxed{4}, no, \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{a \\} b}", r"a \\"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{1 \boxed{2}}", "2"),
        (r"\boxed 5", "5"),
        (r"$\boxed 5$.", "5"),
        (r"\boxed 5.", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxedfoo{5}", None),
        (r"\boxed", None),
        (r"\boxed $", None),
        ("} } \\boxed{5} {", "5"),
    ],
)
def test_cases(text, expected):
    assert final_answer(text) == expected


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(["\\boxed{", "\\fbox {", "{", "}", "\\{", "\\}", "1", " "])))
def test_boxes_are_matched_as_by_counting_braces(parts):
    text = "".join(parts)
    expected = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[match.end() :]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                expected = text[match.end() :][: brace.start()].strip()
                break
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    "unit", [r"\boxed{", r"\boxed", r"\boxed ", r"\boxed-", "<answer>", "</answer>", "{", "\\", " "]
)
def test_a_hostile_megabyte_is_linear(unit):
    text = unit * (1_000_000 // len(unit))
    for hostile in (text, r"\boxed{" + text, text + "}", text + "</answer>"):
        start = time.process_time()
        final_answer(hostile)
        assert time.process_time() - start < 2
