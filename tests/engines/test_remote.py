"""The remote engine against a real local server: dialects, what is sent, samples, cancel."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from forethought.dialogue.messages import Message, Prompt
from forethought.engines.protocol import (
    AnswerDelta,
    Budget,
    Event,
    Finished,
    Request,
    Sample,
    SamplingParameters,
    ThoughtDelta,
)
from forethought.engines.remote import RemoteEngine, refusal
from forethought.errors import ServerError, UserError
from openai_server import (
    PING,
    Hang,
    OpenAIServer,
    Reply,
    Sleep,
    chunk,
    error,
    event,
    fields,
    inline,
    json_reply,
    stream,
    usage,
)

PROMPT = Prompt((Message("user", "Are tomatoes fruits?"),))


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORETHOUGHT_API_KEY", "OPENAI_API_KEY", "DEEPSEEK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(
    *replies: Reply, thinks: Any = "unknown", server: Any = None, **request: Any
) -> tuple[list[Event], Sample]:
    """One question to a server that gives these replies; the events, and the one sample."""
    with OpenAIServer(*replies) as http:
        engine = RemoteEngine(http.base_url, "m", thinks=thinks, backoff=0.01)
        events = list(engine.submit(Request(PROMPT, **request)))
        engine.close()
        if server is not None:
            server.append(http)
    finished = [e.sample for e in events if isinstance(e, Finished)]
    assert len(finished) == 1
    return events, finished[0]


def shown(events: list[Event]) -> tuple[str, str]:
    return (
        "".join(e.text for e in events if isinstance(e, ThoughtDelta)),
        "".join(e.text for e in events if isinstance(e, AnswerDelta)),
    )


# -- dialects


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_separate_fields(name: str) -> None:
    reply = stream(
        fields(["Let me", " see.\n"], ["\n\nYes, ", "they \\boxed{are}."], name),
        tail=[usage(7, 12, 5)],
    )
    events, sample = ask(reply)
    assert sample.thought == "Let me see."
    assert sample.answer == "Yes, they \\boxed{are}."
    assert sample.final_answer == "are"
    assert sample.text == "<think>Let me see.\n</think>\n\nYes, they \\boxed{are}."
    assert shown(events) == (sample.thought, sample.answer)
    assert (sample.stop_reason, sample.thought_end) == ("stop", "closed")
    assert (sample.usage.prompt_tokens, sample.usage.thought_tokens) == (7, 5)
    assert (sample.usage.answer_tokens, sample.usage.total_tokens) == (7, 19)
    assert sample.ids is None
    assert sample.logprobs is None


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning": {"text": "Hm"}},
        {"reasoning": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
        {"reasoning_content": "Hm", "reasoning": "Hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]},
    ],
)
def test_structured_thoughts(delta: dict[str, Any]) -> None:
    _, sample = ask(stream([delta, {"content": [{"type": "text", "text": "Yes"}]}]))
    assert (sample.thought, sample.answer) == ("Hm", "Yes")


def test_a_delta_that_holds_both_sides() -> None:
    events, sample = ask(stream([{"content": "Yes", "reasoning": "Hm"}]))
    assert [type(e) for e in events] == [ThoughtDelta, AnswerDelta, Finished]
    assert (sample.thought, sample.answer) == ("Hm", "Yes")


def test_content_beside_a_separate_thought_is_plain() -> None:
    _, sample = ask(stream(fields(["a </think> b"], ["see <think> and </think>"])), thinks="native")
    assert sample.thought == "a </think> b"
    assert sample.answer == "see <think> and </think>"


def test_blank_content_around_a_separate_thought() -> None:
    deltas = [{"content": "\n"}, {"reasoning": "a"}, {"content": "\n"}, {"reasoning": "b"}]
    _, sample = ask(stream([*deltas, {"content": "Yes"}]), thinks="native")
    assert (sample.thought, sample.answer) == ("ab", "Yes")


@pytest.mark.parametrize("thinks", ["native", "prompted", "unknown"])
@pytest.mark.parametrize("start", ["<think>\n", "<think>"])
def test_inline_tags(thinks: str, start: str) -> None:
    pieces = list(f"{start}Okay, 2 < 3.\n</think>\n\nYes <answer>42</answer>")
    events, sample = ask(stream(inline(*pieces)), thinks=thinks)
    assert (sample.thought, sample.answer) == ("Okay, 2 < 3.", "Yes 42")
    assert sample.final_answer == "42"
    assert sample.text == "".join(pieces)
    assert shown(events) == (sample.thought, sample.answer)
    assert sample.thought_end == "closed"


def test_only_the_closing_tag_comes() -> None:
    events, sample = ask(stream(inline("Okay, ", "so</th", "ink>", "\n\nYes")), thinks="native")
    assert shown(events) == ("Okay, so", "Yes")
    assert (sample.thought, sample.answer) == ("Okay, so", "Yes")


def test_a_thinking_model_that_did_not_think_is_reclassified() -> None:
    events, sample = ask(stream(inline("Yes, ", "they are.")), thinks="native")
    assert (sample.thought, sample.answer) == ("", "Yes, they are.")
    assert sample.thought_end == "none"
    assert shown(events)[1] == "Yes, they are."


def test_cut_inside_an_assumed_thought_stays_thought() -> None:
    _, sample = ask(stream(inline("Okay, ", "so"), finish="length"), thinks="native")
    assert (sample.thought, sample.answer) == ("Okay, so", "")
    assert (sample.stop_reason, sample.thought_end) == ("length", "cut")


def test_a_model_that_does_not_think() -> None:
    _, sample = ask(stream(inline("<think>", " is a tag")), thinks="none")
    assert (sample.thought, sample.answer) == ("", "<think> is a tag")
    assert sample.thought_end == "none"


def test_length_inside_a_separate_thought() -> None:
    _, sample = ask(stream(fields(["a", "b"], []), finish="length", tail=[usage(3, 2)]))
    assert (sample.thought, sample.answer) == ("ab", "")
    assert (sample.stop_reason, sample.thought_end) == ("length", "cut")
    assert sample.usage.thought_tokens == 2


def test_pings_and_line_ends_and_cuts_inside_characters() -> None:
    data = b"".join(
        [PING, *(chunk({"content": c}) for c in "thé 🙂"), PING, chunk(finish="stop")]
    ).replace(b"\n", b"\r\n")
    steps = [data[i : i + 3] for i in range(0, len(data), 3)]
    _, sample = ask(Reply(steps))
    assert sample.answer == "thé 🙂"


def test_a_character_in_two_halves() -> None:
    halves = [
        '{"choices":[{"delta":{"content":"\\ud83d"}}]}',
        '{"choices":[{"delta":{"content":"\\ude42!\\ud83d"},"finish_reason":"stop"}]}',
    ]
    _, sample = ask(Reply([event(h) for h in halves]))
    assert sample.answer == "🙂!\ufffd"


def test_either_done_or_a_finish_reason_is_enough() -> None:
    assert ask(stream(inline("Yes"), finish=None))[1].stop_reason == "stop"
    assert ask(stream(inline("Yes"), done=False))[1].stop_reason == "stop"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
def test_a_server_that_does_not_stream(kind: str | None) -> None:
    message = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    payload = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }
    reply = json_reply(payload)
    events, sample = ask(Reply(reply.steps, content_type=kind))
    assert (sample.thought, sample.answer) == ("Hm", "Yes")
    assert shown(events) == ("Hm", "Yes")
    assert sample.usage.completion_tokens == 5


# -- usage and timings


def test_usage_without_a_split_is_split_by_characters() -> None:
    _, sample = ask(stream(fields(["aaaaaa"], ["bb"]), tail=[usage(3, 8)]))
    assert (sample.usage.thought_tokens, sample.usage.answer_tokens) == (6, 2)


def test_a_zero_beside_a_thought_is_not_believed() -> None:
    _, sample = ask(stream(fields(["aaaaaa"], ["bb"]), tail=[usage(3, 8, 0)]))
    assert sample.usage.thought_tokens == 6


def test_no_usage_no_guess() -> None:
    _, sample = ask(stream(fields(["aaaa"], ["bb"])))
    assert sample.usage.total_tokens == 0


def test_timings_are_of_the_wall_clock() -> None:
    deltas = [Sleep(0.1), {"reasoning": "a"}, Sleep(0.2), {"content": "b"}, Sleep(0.1)]
    _, sample = ask(stream(deltas, tail=[usage(1, 6)]))
    times = sample.timings
    assert times.first_token is not None
    assert times.first_answer is not None
    assert 0.1 <= times.first_token <= times.first_answer - 0.15 <= times.total - 0.2
    assert times.tokens_per_second == pytest.approx(5 / (times.total - times.first_token))


# -- what is sent


def test_the_request() -> None:
    servers: list[OpenAIServer] = []
    prompt = Prompt(
        (
            Message("system", "Be brief."),
            Message("user", "a"),
            Message("assistant", "b", thought="secret"),
            Message("user", "c \ud83d"),
        )
    )
    with OpenAIServer(stream(inline("d"))) as server:
        engine = RemoteEngine(server.base_url + "/", "m")
        request = Request(prompt, seed=7, budget=Budget(max_tokens=50), stop=("x",))
        assert engine.submit(request).wait()[0].seed == 7
        servers.append(server)
    (recorded,) = servers[0].chats
    assert recorded.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c \ud83d"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 7,
        "max_tokens": 50,
    }
    assert "authorization" not in recorded.headers


def test_filters_are_sent_when_on() -> None:
    servers: list[OpenAIServer] = []
    sampling = SamplingParameters(temperature=0, top_p=1.0, top_k=20, min_p=0.05)
    ask(stream(inline("d")), server=servers, sampling=sampling, budget=Budget(max_thought=9))
    body = servers[0].chats[0].body
    assert "top_p" not in body
    assert (body["temperature"], body["top_k"], body["min_p"]) == (0, 20, 0.05)
    assert body["thinking_budget_tokens"] == body["reasoning_budget_tokens"] == 9
    assert body["thinking_token_budget"] == 9


def test_a_filter_that_the_server_rejects_is_named() -> None:
    reply = error(400, "Unrecognized request argument supplied: top_k")
    with pytest.raises(UserError, match=r"does not accept --top-k 20 .*Unrecognized"):
        ask(reply, sampling=SamplingParameters(top_k=20))


def test_what_nobody_asked_for_is_left_out_when_rejected_and_stays_out() -> None:
    with OpenAIServer(
        error(400, "unknown field stream_options"),
        error(422, "extra inputs: seed, thinking_budget_tokens, reasoning_budget_tokens"),
        error(400, "thinking_token_budget is set but reasoning_config is not"),
        error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        stream(inline("d")),
    ) as server:
        engine = RemoteEngine(server.base_url, "m")
        request = Request(PROMPT, budget=Budget(max_tokens=50, max_thought=9))
        assert engine.submit(request).wait()[0].seed is None
        assert len(server.chats) == 5
        assert engine.submit(request).wait()[0].answer == "d"
        assert len(server.chats) == 6
    body = server.chats[-1].body
    assert set(body) == {
        "model", "messages", "stream", "temperature", "top_p", "max_completion_tokens",
    }  # fmt: skip
    assert body["max_completion_tokens"] == 50


def test_a_seed_that_was_asked_for_is_not_left_out() -> None:
    with pytest.raises(UserError, match="does not accept --seed 3"):
        ask(error(422, "extra inputs: seed"), seed=3)


# -- stop strings and budgets, on this side


def test_a_stop_string_acts_in_the_answer_only_and_hangs_up() -> None:
    with OpenAIServer(stream([*fields(["a END b"], ["one E", "ND two"]), Hang()])) as server:
        engine = RemoteEngine(server.base_url, "m")
        events = list(engine.submit(Request(PROMPT, stop=("END", "zzz"))))
        assert server.hung_up.wait(1)
    sample = events[-1].sample  # type: ignore[union-attr]
    assert (sample.thought, sample.answer, sample.stop_reason) == ("a END b", "one ", "stop_string")
    assert shown(events) == ("a END b", "one ")
    assert "stop" not in server.chats[0].body


def test_the_beginning_of_a_stop_string_that_never_ends_is_text() -> None:
    _, sample = ask(stream(inline("one EN")), stop=("END",))
    assert (sample.answer, sample.stop_reason) == ("one EN", "stop")


def test_a_thought_budget_the_server_ignores_ends_the_stream() -> None:
    with OpenAIServer(stream([*fields(["x "] * 60, []), Hang()])) as server:
        engine = RemoteEngine(server.base_url, "m")
        (sample,) = engine.submit(Request(PROMPT, budget=Budget(max_thought=20))).wait()
        assert server.hung_up.wait(1)
    assert (sample.stop_reason, sample.thought_end, sample.answer) == ("length", "cut", "")
    assert 20 < sample.thought.count("x") < 60


@pytest.mark.parametrize(("count", "end"), [(20, "budget"), (5, "closed")])
def test_a_thought_budget_the_server_keeps(count: int, end: str) -> None:
    _, sample = ask(stream(fields(["x "] * count, ["Yes"])), budget=Budget(max_thought=20))
    assert (sample.answer, sample.stop_reason, sample.thought_end) == ("Yes", "stop", end)


# -- n


def test_n_by_parallel_requests() -> None:
    with OpenAIServer(stream([Sleep(0.15), {"content": "d"}])) as server:
        engine = RemoteEngine(server.base_url, "m")
        samples = engine.submit(Request(PROMPT, n=12, seed=5)).wait()
        assert [s.index for s in samples] == list(range(12))
        assert [s.seed for s in samples] == list(range(5, 17))
        assert sorted(r.body["seed"] for r in server.chats) == list(range(5, 17))
        assert all("n" not in r.body for r in server.chats)
        assert 2 <= server.most_open <= 8


@pytest.mark.alone
def test_one_failed_sample_stops_the_others() -> None:
    replies = [error(400, "no"), stream([{"content": "a"}, Hang()])]
    with OpenAIServer(*replies) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT, n=3))
        start = time.monotonic()
        with pytest.raises(ServerError, match="HTTP 400: no"):
            handle.wait()
        assert time.monotonic() - start < 2


# -- cancel


def _until_text(handle: Any) -> Iterator[Event]:
    events = iter(handle)
    for item in events:
        if isinstance(item, AnswerDelta):
            return events
    raise AssertionError


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.alone
def test_cancel_hangs_up_and_keeps_what_came(n: int) -> None:
    with OpenAIServer(stream([*fields(["Hm"], ["Ye"]), Hang()])) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT, n=n))
        _until_text(handle)
        time.sleep(0.2)
        start = time.monotonic()
        handle.cancel()
        assert time.monotonic() - start < 0.5
        assert server.hung_up.wait(1)
        samples = handle.wait()
    assert len(samples) == n
    for sample in samples:
        assert (sample.thought, sample.answer) == ("Hm", "Ye")
        assert (sample.stop_reason, sample.thought_end) == ("cancelled", "closed")


@pytest.mark.parametrize("before", [True, False], ids=["before headers", "after headers"])
@pytest.mark.alone
def test_cancel_while_the_server_is_silent(before: bool) -> None:
    reply = Reply([], before=Hang()) if before else Reply([Hang()])
    with OpenAIServer(reply) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT, n=10))
        while len(server.chats) < 8:
            time.sleep(0.01)
        start = time.monotonic()
        handle.cancel()
        assert time.monotonic() - start < 0.7
        assert server.hung_up.wait(1)
        samples = handle.wait()
        assert len(samples) == 10
        assert {s.stop_reason for s in samples} == {"cancelled"}
        assert {s.thought_end for s in samples} == {"none"}
        time.sleep(0.1)
        assert len(server.chats) == 8


@pytest.mark.alone
def test_cancel_during_a_back_off_does_not_wait_for_it() -> None:
    with OpenAIServer(error(429, "slow down", Retry_After="30")) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT))
        while not server.chats:
            time.sleep(0.01)
        time.sleep(0.1)
        start = time.monotonic()
        handle.cancel()
        assert time.monotonic() - start < 0.5
        assert handle.wait()[0].stop_reason == "cancelled"


@pytest.mark.alone
def test_cancel_while_connecting_to_nowhere() -> None:
    # 192.0.2.0/24 is reserved for documentation (RFC 5737): nobody answers there.
    engine = RemoteEngine("http://192.0.2.1:9", "m", connect_timeout=5, backoff=5)
    handle = engine.submit(Request(PROMPT))
    time.sleep(0.1)
    start = time.monotonic()
    handle.cancel()
    assert time.monotonic() - start < 1
    assert handle.wait()[0].stop_reason == "cancelled"


def test_cancel_twice_and_after_the_end() -> None:
    with OpenAIServer(stream(inline("d"))) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT))
        (sample,) = handle.wait()
        handle.cancel()
        handle.cancel()
        assert handle.wait() == [sample]


def test_close_ends_what_runs() -> None:
    with OpenAIServer(stream([*inline("Ye"), Hang()])) as server:
        engine = RemoteEngine(server.base_url, "m")
        handle = engine.submit(Request(PROMPT))
        _until_text(handle)
        engine.close()
        assert server.hung_up.wait(1)
        assert handle.wait()[0].stop_reason == "cancelled"
        with pytest.raises(UserError, match="closed"):
            engine.submit(Request(PROMPT))


def test_answer_now_is_refused() -> None:
    with OpenAIServer(stream([*inline("Ye"), Hang()])) as server:
        handle = RemoteEngine(server.base_url, "m").submit(Request(PROMPT))
        with pytest.raises(UserError, match="answer now does not work with the server at http"):
            handle.answer_now()
        assert handle.asked == 0
        handle.cancel()


# -- what a remote server cannot do


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (Request(PROMPT, budget=Budget(min_thought=5)), "--min-thought"),
        (Request(PROMPT, logprobs="raw"), "--logprobs"),
        (Request(PROMPT, reproducible=True), "--reproducible"),
        (Request(PROMPT, prefix_ids=(1,)), "continuing a stopped sample"),
        (Request(Prompt(PROMPT.conversation, text="<think>")), "--template"),
        (Request(Prompt(PROMPT.conversation, ids=(1,))), "--template"),
        (Request(Prompt(PROMPT.conversation, starts_in_thought=True)), "continuing a thought"),
        (Request(Prompt((*PROMPT.conversation, Message("assistant", "")))), "continuing a thought"),
    ],
)
def test_refusals_name_the_option_and_the_limit(request_: Request, option: str) -> None:
    engine = RemoteEngine("http://127.0.0.1:9", "m")
    with pytest.raises(UserError, match=f"^{option} does not work with the server at .*: the|:"):
        engine.submit(request_)


def test_more_refusals() -> None:
    engine = RemoteEngine("http://127.0.0.1:9", "m")
    for option in ("--ids", "--raw-prompt", "--lora", "--something"):
        assert str(refusal(option, "http://x/v1")).startswith(f"{option} does not work")
    for bad in (
        Request(Prompt(())),
        Request(PROMPT, n=0),
        Request(PROMPT, budget=Budget(max_tokens=0)),
        Request(PROMPT, budget=Budget(max_thought=-1)),
    ):
        with pytest.raises(UserError):
            engine.submit(bad)
    caps = engine.capabilities
    assert not any(getattr(caps, name) for name in caps.__dataclass_fields__)
    assert (engine.name, engine.tokenizer, engine.context_length) == ("remote", None, None)


def test_importing_the_engine_does_not_load_httpx() -> None:
    code = "import sys, forethought.engines.remote; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
