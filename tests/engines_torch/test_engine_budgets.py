"""Thoughts, answers, budgets and stops on a model whose greedy text is known.

What is asked of `scripted_either` holds for the llama.cpp engine and for ours alike.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from forethought.engines.model import AskOptions, Model
from forethought.engines.protocol import AnswerDelta, Event, Finished, Sample, ThoughtDelta
from forethought.errors import UserError
from scripted_model import ANSWER, CLOSE, EOS, THOUGHT


def deltas(events: list[Event], index: int) -> tuple[str, str, tuple[int, ...]]:
    """Joined thought, joined answer, joined ids of one sample."""
    mine = [e for e in events if isinstance(e, ThoughtDelta | AnswerDelta) and e.index == index]
    return (
        "".join(e.text for e in mine if isinstance(e, ThoughtDelta)),
        "".join(e.text for e in mine if isinstance(e, AnswerDelta)),
        tuple(token for e in mine for token in e.ids),
    )


def check(events: list[Event]) -> list[Sample]:
    """What holds for every stream: deltas add up to the samples, counts to the ids."""
    samples = [e.sample for e in events if isinstance(e, Finished)]
    for sample in samples:
        thought, answer, ids = deltas(events, sample.index)
        assert thought == sample.thought
        assert answer == sample.answer
        assert ids == sample.ids
        assert sample.ids is not None
        assert sample.usage.completion_tokens == len(sample.ids)
        assert sample.timings.total > 0
    return sorted(samples, key=lambda sample: sample.index)


@pytest.mark.parametrize("n", [1, 3])
def test_thought_and_answer_apart_with_exact_ids(scripted_either: Model, n: int) -> None:
    samples = check(list(scripted_either.stream("hi", temperature=0, n=n)))
    assert [sample.index for sample in samples] == list(range(n))
    for sample in samples:
        assert (sample.thought, sample.answer) == (THOUGHT, ANSWER)
        assert sample.ids == (*THOUGHT.encode(), CLOSE, *ANSWER.encode(), EOS)
        assert (sample.stop_reason, sample.thought_end) == ("stop", "closed")
        assert sample.usage.thought_tokens == len(THOUGHT) + 1
        assert sample.usage.answer_tokens == len(ANSWER.encode()) + 1
        assert sample.text == f"{THOUGHT}</think>{ANSWER}"
        assert sample.forced == ()


def test_usage_counts_the_prompt(scripted_either: Model) -> None:
    sample = scripted_either.ask("hello", temperature=0)
    prompt = scripted_either.prompt("hello")
    assert prompt.ids is not None
    assert sample.usage.prompt_tokens == len(prompt.ids) == len("hello") + 5


@pytest.mark.parametrize("n", [1, 3])
def test_at_the_budget_the_thought_is_closed_inside_it(scripted_either: Model, n: int) -> None:
    samples = check(list(scripted_either.stream("hi", temperature=0, max_thought=7, n=n)))
    assert len(samples) == n
    for sample in samples:
        assert (sample.thought, sample.thought_end) == ("abc", "budget")
        assert sample.usage.thought_tokens <= 7
        assert sample.answer == f"{THOUGHT}</think>{ANSWER}"  # a tag in the answer is text
        assert sample.forced == ((3, 7),)


def test_the_closing_sentence_is_used_where_it_fits(scripted_either: Model) -> None:
    (sample,) = scripted_either.samples("hi", temperature=0, min_thought=100, max_thought=110)
    assert sample.thought_end == "budget"
    assert "enough thinking" in sample.thought
    assert 50 < sample.usage.thought_tokens <= 110


@pytest.mark.parametrize("n", [1, 3])
def test_an_early_close_becomes_wait(scripted_either: Model, n: int) -> None:
    for sample in scripted_either.samples("hi", temperature=0, min_thought=12, n=n):
        assert sample.thought == f"{THOUGHT}Wait,{THOUGHT}"
        assert sample.answer == ANSWER
        assert sample.usage.thought_tokens >= 12
        assert CLOSE not in (sample.ids or ())[: sample.forced[0][1]]


def test_no_thought_at_all(scripted_either: Model) -> None:
    (sample,) = check(list(scripted_either.stream("hi", temperature=0, max_thought=0)))
    assert sample.thought == ""
    assert sample.usage.thought_tokens == 0
    assert sample.thought_end == "none"
    assert sample.answer.endswith(ANSWER)


@pytest.mark.parametrize("stop", ["Z", "YZ", "b"])
@pytest.mark.parametrize("n", [1, 2])
def test_stop_strings_act_in_the_answer_alone(scripted_either: Model, stop: str, n: int) -> None:
    for sample in check(list(scripted_either.stream("hi", temperature=0, stop=[stop], n=n))):
        assert sample.thought == THOUGHT
        assert sample.answer == ANSWER.partition(stop)[0]
        assert sample.stop_reason == ("stop_string" if stop in ANSWER else "stop")


def test_stop_strings_in_bare_mode(scripted_either: Model) -> None:
    for n in (1, 2):
        options: AskOptions = {"template": "bare", "temperature": 0, "n": n}
        for sample in check(list(scripted_either.stream("a", stop=["de"], **options))):
            assert sample.answer == "bc"
            assert sample.stop_reason == "stop_string"
        stream = scripted_either.stream("a", stop=["!"], max_tokens=99, **options)
        for sample in check(list(stream)):
            assert sample.answer.endswith(ANSWER)
            assert sample.stop_reason == "stop"


def test_bare_sends_the_text_as_it_is(scripted_either: Model) -> None:
    prompt = scripted_either.prompt("hi?", template="bare")
    assert prompt.ids == tuple(b"hi?")
    assert not prompt.thinks
    (sample,) = scripted_either.samples("hi?", template="bare", max_tokens=6, seed=3)
    assert set(sample.answer) <= {"0", "1"}
    assert (sample.stop_reason, sample.thought_end) == ("length", "none")
    assert len(sample.ids or ()) == 6


@pytest.mark.parametrize(
    ("tokens", "thought", "answer"),
    [(12, "abcde", "abc"), (10, "abcd", "ab"), (17, THOUGHT, ANSWER)],
)
def test_max_tokens_ends_the_sample(
    scripted_either: Model, tokens: int, thought: str, answer: str
) -> None:
    """A quarter is left for the answer, so that a long thought is closed before."""
    (sample,) = check(list(scripted_either.stream("hi", temperature=0, max_tokens=tokens)))
    assert sample.stop_reason == "length"
    assert len(sample.ids or ()) == tokens
    assert (sample.thought, sample.answer) == (thought, answer)


def test_logprobs_of_a_fair_coin(scripted_either: Model) -> None:
    """Sampling logprobs follow temperature and filters; raw ones are the model's."""
    options: AskOptions = {"template": "bare", "max_tokens": 4, "seed": 1, "temperature": 5.0}
    hot = scripted_either.ask("hi?", logprobs="sampling", top_p=1.0, **options)
    cut = scripted_either.ask("hi?", logprobs="sampling", top_k=2, **options)
    raw = scripted_either.ask("hi?", logprobs="raw", top_p=1.0, **options)
    assert hot.logprobs is not None
    assert raw.logprobs is not None
    assert cut.logprobs is not None
    assert cut.logprobs[1:] == pytest.approx([-0.6931] * 3, abs=1e-3)
    assert hot.logprobs[-1] is not None
    assert hot.logprobs[-1] < -0.8  # temperature 5 spreads it over the vocabulary
    coin = [p for p, token in zip(raw.logprobs, raw.ids or (), strict=True) if token in (48, 49)]
    assert coin[1:] == pytest.approx([-0.6931] * len(coin[1:]), abs=1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_thought": 3}, "too small: closing a thought alone takes 4"),
        ({"max_thought": 5, "min_thought": 9}, "below --min-thought"),
        ({"max_thought": -1}, "must be 0 or more"),
        ({"min_thought": 400}, "leaves no room"),
        ({"max_tokens": 0}, "at least 1"),
        ({"max_tokens": 4}, "too few for a thought"),
        ({"n": 0}, "between 1 and 1024"),
        ({"seed": -1}, "out of range"),
        ({"seed": 2**32 - 1}, "out of range"),
        ({"prefix_ids": [99999]}, "written by another model"),
        ({"temperature": -0.1}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"stop": [""]}, "stop string is empty"),
    ],
)
def test_impossible_options_are_one_sentence(
    scripted_either: Model, options: AskOptions, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        scripted_either.samples("hi", **options)
    assert "\n" not in str(caught.value)


def test_overflow_says_by_how_many_tokens(scripted_either: Model) -> None:
    with pytest.raises(UserError, match=r"the prompt is 601 tokens and the context 512: 90 too"):
        scripted_either.ask("a" * 600 + "?", template="bare")
    with pytest.raises(UserError, match=r"need 523 tokens, 11 more than"):
        scripted_either.ask("hi?", template="bare", max_tokens=520)


def test_a_stop_string_keeps_the_final_answer(scripted_either: Model) -> None:
    """The scripted model writes no answer tags: they come in the prefix that it continues."""
    start = [*b"abc", CLOSE, *b"<answer>42</answer>\n"]
    sample = scripted_either.ask("hi", temperature=0, prefix_ids=start, stop=["de"])
    assert (sample.final_answer, sample.stop_reason) == ("42", "stop_string")
    assert sample.answer == "42\nabc"
    boxed = [*b"abc", CLOSE, *b"\\boxed{7}\n"]
    again = scripted_either.ask("hi", temperature=0, prefix_ids=boxed, stop=["c"])
    assert again.final_answer == "7"


def test_models_that_do_not_think_show_no_answer_tags(scripted_either: Model) -> None:
    prompt = replace(scripted_either.prompt("hi", template="bare"), exact=False)
    start = [*b"<answer>4", *b"2</answer>", ord("~")]
    sample = scripted_either.ask(prompt, temperature=0, prefix_ids=start)
    assert sample.final_answer == "42"
    assert sample.answer == "42~"


@pytest.mark.parametrize("n", [1, 3])
def test_answer_now_before_the_first_token(scripted_either: Model, n: int) -> None:
    handle = scripted_either.submit("hi", temperature=0, n=n)
    handle.answer_now()
    for sample in handle.wait():
        assert sample.stop_reason == "stop"
        assert sample.answer.endswith(ANSWER)
        assert sample.thought_end in ("asked", "closed")  # it may have been quicker


def test_no_thought_after_a_stopped_one(scripted_either: Model) -> None:
    """``/budget 0`` and ``/continue``: the stopped thought stays a thought and is closed."""
    sample = scripted_either.ask("hi", temperature=0, prefix_ids=list(b"abc"), max_thought=0)
    assert sample.thought == "abc"
    assert sample.thought_end == "budget"
    assert sample.answer.endswith(ANSWER)
    edited = scripted_either.ask("hi", temperature=0, continue_thought="abc", max_thought=0)
    assert edited.thought == ""
    assert edited.usage.thought_tokens == 0


def test_a_minimum_after_a_stopped_thought_repeats_nothing(scripted_either: Model) -> None:
    events = list(
        scripted_either.stream("hi", temperature=0, prefix_ids=list(b"abcde"), min_thought=12)
    )
    thought, _, _ = deltas(events, 0)
    (sample,) = [e.sample for e in events if isinstance(e, Finished)]
    assert sample.thought == f"{THOUGHT}Wait,{THOUGHT}"
    assert f"abcde{thought}" == sample.thought


@pytest.mark.parametrize("cut", range(len(THOUGHT) + len(ANSWER.encode()) + 1))
def test_a_prefix_goes_on_as_if_never_stopped(scripted_torch: Model, cut: int) -> None:
    """Cut anywhere, inside the emoji and right before the end too."""
    whole = scripted_torch.ask("hi", temperature=0, logprobs="raw")
    assert whole.ids is not None
    events = list(
        scripted_torch.stream("hi", temperature=0, prefix_ids=whole.ids[:cut], logprobs="raw")
    )
    (rest,) = [e.sample for e in events if isinstance(e, Finished)]
    assert rest.ids == whole.ids
    assert (rest.thought, rest.answer, rest.text) == (whole.thought, whole.answer, whole.text)
    assert rest.usage == whole.usage
    assert rest.forced == (((0, cut),) if cut else ())
    assert rest.logprobs is not None
    assert whole.logprobs is not None
    assert rest.logprobs == (*[None] * cut, *whole.logprobs[cut:])
    assert deltas(events, 0)[2] == whole.ids[cut:]


def test_a_budget_that_cuts_a_character_spoils_no_answer(scripted_torch: Model) -> None:
    """After ``Z`` comes an emoji of four tokens, of which the budget lets two pass."""
    sample = scripted_torch.ask("hi", temperature=0, prefix_ids=[*b"abcZ"], max_thought=10)
    assert sample.ids is not None
    assert bytes(sample.ids[4:6]) == "🎉".encode()[:2]
    assert sample.thought_end == "budget"
    assert sample.thought.rstrip("\N{REPLACEMENT CHARACTER}") == "abcZ"
    assert sample.answer == f"{THOUGHT}</think>{ANSWER}"


def test_forced_tokens_have_no_logprobs(scripted_torch: Model) -> None:
    sample = scripted_torch.ask("hi", temperature=0, max_thought=7, logprobs="sampling")
    assert sample.logprobs is not None
    assert sample.logprobs[3:7] == (None,) * 4
    assert all(value == 0.0 for value in (*sample.logprobs[:3], *sample.logprobs[7:]))


def test_every_token_of_a_character_has_its_logprob(scripted_torch: Model) -> None:
    (sample,) = check(list(scripted_torch.stream("hi", temperature=0, logprobs="sampling")))
    assert sample.logprobs == (0.0,) * len(sample.ids or ())
    assert not scripted_torch.ask("hi", temperature=0).logprobs


def test_ending_a_turn_inside_a_thought_leads_to_an_answer(scripted_torch: Model) -> None:
    """`~` is followed by the end of the turn: inside a thought that is no end."""
    start = [*b"ab", ord("~")]
    sample = scripted_torch.ask("hi", temperature=0, prefix_ids=start, logprobs="raw")
    assert sample.thought.startswith("ab~")
    assert sample.thought_end == "ended"
    assert sample.answer.endswith(ANSWER)
    assert EOS not in (sample.ids or ())[: sample.usage.thought_tokens]
    thinking = scripted_torch.ask("hi", temperature=0, prefix_ids=start, min_thought=6)
    assert thinking.thought == f"ab~Wait,{THOUGHT}"
    assert thinking.thought_end == "closed"


def test_answer_now_in_the_middle_of_a_thought(scripted_torch: Model) -> None:
    """A thought that would fill the context: after ``,`` comes ``a`` again and again."""
    handle = scripted_torch.submit("hi", temperature=0, min_thought=300, n=2, max_tokens=480)
    seen = 0
    for event in handle:
        seen += isinstance(event, ThoughtDelta)
        if seen == 12:
            handle.answer_now()
    for sample in handle.wait():
        assert sample.thought_end == "asked"
        assert sample.usage.thought_tokens < 300
        assert sample.answer.endswith(ANSWER)


def test_a_users_tags_stay_text(scripted_torch: Model) -> None:
    prompt = scripted_torch.prompt("what is <think> and </think>, <|A|>?")
    assert prompt.ids is not None
    assert list(prompt.ids).count(CLOSE) == 0
