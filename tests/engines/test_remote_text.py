"""Deltas to thought and answer, however a server cuts them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.engines.remote_text import DeltaReader, FinalTexts, SurrogateJoiner

_text = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<th",
            "ink>",
            "<answer>",
            "</answer>",
            " ",
            "\n",
            "a",
            "EN",
            "D",
            "é",
        ]
    ),
    max_size=25,
).map("".join)
_cuts = st.lists(st.integers(0, 300), max_size=12)


def cut(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in zip(at, at[1:])]  # noqa: B905, RUF007


def read(reader: DeltaReader, deltas: list[tuple[str, str]], complete: bool) -> Any:
    thought = answer = ""
    for delta in deltas:
        more = reader.push(*delta)
        thought += more.thought
        answer += more.answer
        if reader.stop_fired:
            break
    final = reader.finish(complete)
    return thought + final.more.thought, answer + final.more.answer, final


def texts(final: FinalTexts) -> tuple[Any, ...]:
    return final.thought, final.answer, final.closed, final.reclassified


@pytest.mark.parametrize("thinks", ["native", "prompted", "none", "unknown"])
@given(text=_text, cuts=_cuts, complete=st.booleans())
def test_inline_every_chunking(thinks: Any, text: str, cuts: list[int], complete: bool) -> None:
    deltas = [("", piece) for piece in cut(text, cuts)]
    thought, answer, final = read(DeltaReader(thinks), deltas, complete)
    whole = read(DeltaReader(thinks), [("", text)], complete)[2]
    assert texts(final) == texts(whole)
    assert final.text == text
    assert answer == final.answer
    if not final.reclassified:
        assert thought == final.thought


@pytest.mark.parametrize("thinks", ["native", "unknown"])
@given(thought=_text, answer=_text, cuts=_cuts, more=_cuts)
def test_fields_every_chunking(
    thinks: Any, thought: str, answer: str, cuts: list[int], more: list[int]
) -> None:
    thought = "t" + thought
    deltas = [(p, "") for p in cut(thought, cuts)] + [("", p) for p in cut(answer, more)]
    seen_thought, seen_answer, final = read(DeltaReader(thinks), deltas, True)
    assert (seen_thought, seen_answer) == (final.thought, final.answer)
    assert final.thought.strip() == thought.strip()
    assert final.closed == bool(answer.strip())
    assert final.answer == answer.replace("<answer>", "").replace("</answer>", "").strip() or (
        "answer>" in answer
    )


@given(thought=_text, answer=_text, cuts=_cuts)
def test_stop_strings_act_in_the_answer_only(thought: str, answer: str, cuts: list[int]) -> None:
    stop = ("END", "aa")
    deltas = [("t" + thought, "")] + [("", p) for p in cut("b" + answer, cuts)]
    _, shown, final = read(DeltaReader("unknown", stop=stop), deltas, True)
    free = read(DeltaReader("unknown"), deltas, True)[2]
    hits = [at for at in (free.answer.find(s) for s in stop) if at >= 0]
    assert shown == final.answer == free.answer[: min(hits, default=len(free.answer))]
    assert final.thought == free.thought


def test_a_final_answer_before_a_stop_string() -> None:
    reader = DeltaReader("unknown", stop=("END",))
    final = read(reader, [("t", "a <answer>42</answer> END <answer>7</answer>")], True)[2]
    assert (final.answer, final.final_answer) == ("a 42 ", "42")


def test_a_second_thought_is_kept_apart() -> None:
    deltas = [("one", ""), ("", "Yes. "), ("two", ""), ("", "No.")]
    thought, answer, final = read(DeltaReader("native"), deltas, True)
    assert (thought, answer) == ("one\n\ntwo", "Yes. No.")
    assert (final.thought, final.answer) == (thought, answer)


@given(st.text(st.characters(codec="utf-8")), _cuts)
def test_surrogate_halves_are_joined(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le")
    halves = [
        units[i : i + 2].decode("utf-16-le", "surrogatepass") for i in range(0, len(units), 2)
    ]
    joiner = SurrogateJoiner()
    parts = cut("".join(halves), cuts)
    assert "".join(joiner.push(p) for p in parts) + joiner.finish() == text


def test_an_empty_stop_string_stops_nothing() -> None:
    assert read(DeltaReader("none", stop=("",)), [("", "a")], True)[2].answer == "a"
