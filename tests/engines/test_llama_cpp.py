"""The llama.cpp engine on a scripted model, whose greedy text is known, and on a real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import forethought as ft
from forethought.engines.llama_cpp import LlamaCppEngine
from forethought.engines.llama_server import LlamaServer, LoadOptions
from forethought.engines.model import Model
from forethought.engines.protocol import AnswerDelta, Event, Finished, Sample, ThoughtDelta
from forethought.errors import ModelError, UserError
from scripted_model import (
    ANSWER,
    CLOSE,
    EOS,
    THOUGHT,
    write_scripted_lora,
    write_scripted_model,
)

STORY = "Once upon a time there was a fox"


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


def test_thought_and_answer_apart_with_exact_ids(scripted: Model) -> None:
    (sample,) = check(list(scripted.stream("hi", temperature=0)))
    assert (sample.thought, sample.answer) == (THOUGHT, ANSWER)
    assert sample.ids == (*THOUGHT.encode(), CLOSE, *ANSWER.encode(), EOS)
    assert (sample.stop_reason, sample.thought_end) == ("stop", "closed")
    assert sample.usage.thought_tokens == len(THOUGHT) + 1
    assert sample.text == f"{THOUGHT}</think>{ANSWER}"
    assert sample.forced == ()


def test_ids_hidden_inside_a_character_are_found(scripted: Model) -> None:
    """llama.cpp sends one id for the four tokens of the emoji; all four must come out."""
    (sample,) = check(list(scripted.stream("hi", temperature=0, logprobs="sampling")))
    at = len(THOUGHT) + 1 + 3
    assert sample.ids is not None
    assert bytes(sample.ids[at : at + 4]) == "🎉".encode()
    assert sample.logprobs is not None
    assert sample.logprobs[at : at + 4] == (None, None, None, 0.0)


@pytest.mark.parametrize("n", [1, 3])
def test_at_the_budget_the_thought_is_closed_inside_it(scripted: Model, n: int) -> None:
    samples = check(list(scripted.stream("hi", temperature=0, max_thought=7, n=n)))
    assert len(samples) == n
    for sample in samples:
        assert sample.thought == "abc"
        assert sample.thought_end == "budget"
        assert sample.usage.thought_tokens <= 7
        assert sample.answer.endswith(ANSWER)
        assert sample.forced == ((3, 7),)


def test_the_closing_sentence_is_used_where_it_fits(scripted: Model) -> None:
    # the scripted thought is 8 tokens, so that only a minimum makes it long enough for a sentence
    (sample,) = scripted.samples("hi", temperature=0, min_thought=100, max_thought=110)
    assert sample.thought_end == "budget"
    assert "enough thinking" in sample.thought
    assert 50 < sample.usage.thought_tokens <= 110


@pytest.mark.parametrize("n", [1, 3])
def test_an_early_close_becomes_wait(scripted: Model, n: int) -> None:
    for sample in scripted.samples("hi", temperature=0, min_thought=12, n=n):
        assert sample.thought == f"{THOUGHT}Wait,{THOUGHT}"
        assert sample.answer == ANSWER
        assert sample.usage.thought_tokens >= 12
        assert CLOSE not in (sample.ids or ())[: sample.forced[0][1]]


def test_no_thought_at_all(scripted: Model) -> None:
    prompt = scripted.prompt("hi", max_thought=0)
    assert prompt.text is not None
    assert prompt.text.endswith("<think>\n\n</think>\n\n")
    (sample,) = check(list(scripted.stream("hi", temperature=0, max_thought=0)))
    assert sample.thought == ""
    assert sample.usage.thought_tokens == 0


def test_a_tag_in_the_answer_is_text(scripted: Model) -> None:
    (sample,) = check(list(scripted.stream("hi", temperature=0, max_thought=7)))
    assert sample.answer == f"{THOUGHT}</think>{ANSWER}"


@pytest.mark.parametrize("stop", ["Z", "YZ", "b"])
@pytest.mark.parametrize("n", [1, 2])
def test_stop_strings_act_in_the_answer_alone(scripted: Model, stop: str, n: int) -> None:
    for sample in check(list(scripted.stream("hi", temperature=0, stop=[stop], n=n))):
        assert sample.thought == THOUGHT
        expected = ANSWER.partition(stop)[0]
        assert sample.answer == expected
        assert sample.stop_reason == ("stop_string" if stop in ANSWER else "stop")


def test_stop_strings_in_bare_mode(scripted: Model) -> None:
    for n in (1, 2):
        options = {"template": "bare", "temperature": 0, "n": n}
        for sample in check(list(scripted.stream("a", stop=["de"], **options))):
            assert sample.answer == "bc"
            assert sample.stop_reason == "stop_string"
        for sample in check(list(scripted.stream("a", stop=["!"], max_tokens=99, **options))):
            assert sample.answer.endswith(ANSWER)
            assert sample.stop_reason == "stop"


def test_bare_sends_the_text_as_it_is(scripted: Model) -> None:
    prompt = scripted.prompt("hi?", template="bare")
    assert prompt.ids == tuple(b"hi?")
    assert not prompt.thinks
    (sample,) = scripted.samples("hi?", template="bare", max_tokens=6, seed=3)
    assert set(sample.answer) <= {"0", "1"}
    assert (sample.stop_reason, sample.thought_end) == ("length", "none")


def test_logprobs_of_a_fair_coin(scripted: Model) -> None:
    """Sampling logprobs follow temperature and filters; raw ones are the model's."""
    options = {"template": "bare", "max_tokens": 4, "seed": 1}
    hot = scripted.ask("hi?", logprobs="sampling", temperature=5.0, top_p=1.0, **options)
    cut = scripted.ask("hi?", logprobs="sampling", temperature=5.0, top_k=2, **options)
    raw = scripted.ask("hi?", logprobs="raw", temperature=5.0, top_p=1.0, **options)
    assert hot.logprobs is not None
    assert raw.logprobs is not None
    assert cut.logprobs is not None
    assert cut.logprobs[1:] == pytest.approx([-0.6931] * 3, abs=1e-3)
    assert hot.logprobs[-1] is not None
    assert hot.logprobs[-1] < -0.8  # temperature 5 spreads it over the vocabulary
    coin = [p for p, token in zip(raw.logprobs, raw.ids or (), strict=True) if token in (48, 49)]
    assert coin[1:] == pytest.approx([-0.6931] * len(coin[1:]), abs=1e-2)


def test_seeds(scripted: Model) -> None:
    options = {"template": "bare", "max_tokens": 30}
    four = scripted.samples("hi?", n=4, seed=7, **options)
    again = scripted.samples("hi?", n=4, seed=7, **options)
    assert [s.ids for s in four] == [s.ids for s in again]
    assert [s.seed for s in four] == [7, 8, 9, 10]
    assert len({s.ids for s in four}) == 4
    alone = scripted.ask("hi?", seed=9, **options)
    assert alone.ids == four[2].ids
    drawn = scripted.ask("hi?", **options)
    assert drawn.seed is not None
    assert scripted.ask("hi?", seed=drawn.seed, **options).ids == drawn.ids


def test_n_above_the_slots_reloads_once_then_goes_in_batches(scripted_path: Path) -> None:
    notes: list[str] = []
    with ft.load(str(scripted_path), threads=1, context=256, report=notes.append) as model:
        samples = check(list(model.stream("hi?", n=20, template="bare", max_tokens=8, seed=1)))
        assert [s.index for s in samples] == list(range(20))
        assert all(s.usage.answer_tokens == 8 for s in samples)
        assert len(notes) == 1
        assert isinstance(model.engine, LlamaCppEngine)
        assert model.engine.server.options.slots == 16
        # each of 16 may still fill the context: nothing was divided
        assert model.engine.server.options.cells >= 16 * 8
        model.samples("hi?", n=16, template="bare", max_tokens=8)
        assert len(notes) == 1
        (long,) = model.samples("~?", template="bare", max_tokens=250, seed=1)
        assert long.usage.completion_tokens == 250


@pytest.mark.slow
def test_a_prompt_above_the_loaded_context_reloads(smollm2_path: Path) -> None:
    notes: list[str] = []
    with ft.load("smollm2:135m", threads=1, report=notes.append) as model:
        assert isinstance(model.engine, LlamaCppEngine)
        loaded = model.engine.server.options.cells
        model.ask("fox", template="bare", max_tokens=2)
        assert model.request("fox").budget.max_tokens is None
        with model.submit("fox", template="bare"):
            pass  # filling the context is no reason to load a longer one
        assert notes == []
        sample = model.ask("fox " * (loaded + 50), template="bare", max_tokens=3)
        assert sample.usage.prompt_tokens > loaded
        assert sample.usage.answer_tokens == 3
        assert len(notes) == 1
        assert model.engine.server.options.cells > loaded


def test_overflow_says_by_how_many_tokens(scripted: Model) -> None:
    with pytest.raises(UserError, match=r"the prompt is 601 tokens and the context 512: 90 too"):
        scripted.ask("a" * 600 + "?", template="bare")
    with pytest.raises(UserError, match=r"need 523 tokens, 11 more than"):
        scripted.ask("hi?", template="bare", max_tokens=520)


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
        ({"top_k": -1}, "--top-k"),
        ({"min_p": 2.0}, "--min-p"),
        ({"stop": [""]}, "stop string is empty"),
    ],
)
def test_impossible_options_are_one_sentence(
    scripted: Model, options: ft.engines.model.AskOptions, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        scripted.samples("hi", **options)
    assert "\n" not in str(caught.value)


def test_seeds_wrap(scripted: Model) -> None:
    last = 2**32 - 2
    options = {"template": "bare", "max_tokens": 12}
    pair = scripted.samples("hi?", n=2, seed=last, **options)
    assert [s.seed for s in pair] == [last, 0]
    assert pair[1].ids == scripted.ask("hi?", seed=0, **options).ids


def test_a_stop_string_keeps_the_final_answer(scripted: Model) -> None:
    """The scripted model writes no answer tags: they come in the prefix that it continues."""
    start = [*b"abc", CLOSE, *b"<answer>42</answer>\n"]
    sample = scripted.ask("hi", temperature=0, prefix_ids=start, stop=["de"])
    assert (sample.final_answer, sample.stop_reason) == ("42", "stop_string")
    assert sample.answer == "42\nabc"
    boxed = [*b"abc", CLOSE, *b"\\boxed{7}\n"]
    assert scripted.ask("hi", temperature=0, prefix_ids=boxed, stop=["c"]).final_answer == "7"


def test_a_stop_at_the_answers_closing_tag(tmp_path: Path) -> None:
    from forethought.engines.limits import Forced, Limits
    from forethought.engines.llama_sample import SampleRun
    from forethought.engines.llama_server import Chunk
    from forethought.engines.protocol import Request

    class NoTokenizer:
        def pieces(self, ids: list[int]) -> list[bytes]:
            return []

    none = Forced((), "")
    run = SampleRun(
        0, 1,
        Request(ft.Prompt((), "x", (1,), starts_in_thought=False), stop=("</answer>",)),
        Limits(99, 90, 0, none, none), ft.dialogue.tags.ThinkTags(),
        NoTokenizer(),  # type: ignore[arg-type]
        lambda _event: None, 0.0,
    )  # fmt: skip
    for token, text in enumerate(["It is ", "<answer>", "42", "</", "answer", "> and", " more"]):
        run.accept(Chunk(0, text, token, text.encode(), 0.0))
    sample = run.finish()
    assert (sample.stop_reason, sample.final_answer) == ("stop_string", "42")
    assert sample.answer == "It is 42"


def test_models_that_do_not_think_show_no_answer_tags(scripted: Model) -> None:
    from dataclasses import replace

    prompt = replace(scripted.prompt("hi", template="bare"), exact=False)
    start = [*b"<answer>4", *b"2</answer>", ord("~")]
    sample = scripted.ask(prompt, temperature=0, prefix_ids=start)
    assert sample.final_answer == "42"
    assert sample.answer == "42~"


@pytest.mark.parametrize("n", [1, 3])
def test_answer_now_before_the_first_token(scripted: Model, n: int) -> None:
    handle = scripted.submit("hi", temperature=0, n=n)
    handle.answer_now()
    for sample in handle.wait():
        assert sample.stop_reason == "stop"
        assert sample.answer.endswith(ANSWER)
        assert sample.thought_end in ("asked", "closed")  # it may have been quicker


def test_no_thought_after_a_stopped_one(scripted: Model) -> None:
    """``/budget 0`` and ``/continue``: the stopped thought stays a thought and is closed."""
    sample = scripted.ask("hi", temperature=0, prefix_ids=list(b"abc"), max_thought=0)
    assert sample.thought == "abc"
    assert sample.thought_end == "budget"
    assert sample.answer.endswith(ANSWER)
    edited = scripted.ask("hi", temperature=0, continue_thought="abc", max_thought=0)
    assert edited.thought == ""
    assert edited.usage.thought_tokens == 0


def test_a_minimum_after_a_stopped_thought_repeats_nothing(scripted: Model) -> None:
    events = list(scripted.stream("hi", temperature=0, prefix_ids=list(b"abcde"), min_thought=12))
    thought, _, _ = deltas(events, 0)
    (sample,) = [e.sample for e in events if isinstance(e, Finished)]
    assert sample.thought == f"{THOUGHT}Wait,{THOUGHT}"
    assert f"abcde{thought}" == sample.thought


def test_a_reload_that_fails_leaves_the_old_load(scripted_path: Path) -> None:
    with ft.load(str(scripted_path), threads=1, context=256) as model:
        before = model.ask("hi", temperature=0).ids
        aside = scripted_path.with_suffix(".aside")
        scripted_path.rename(aside)
        engine = model.engine
        assert isinstance(engine, LlamaCppEngine)
        try:
            with pytest.raises(UserError, match="no model file"):
                model.samples("hi", n=3, temperature=0)
        finally:
            aside.rename(scripted_path)
        with pytest.raises(ModelError, match="closed"):
            model.ask("hi")
    with ft.load(str(scripted_path), threads=1, context=256) as model:
        engine = model.engine
        assert isinstance(engine, LlamaCppEngine)
        good = engine.server.options
        bad = LoadOptions(tmp := scripted_path.with_name("gone.gguf"), cells=256)
        assert not tmp.exists()
        with pytest.raises(UserError, match=r"gone\.gguf"):
            engine._loaded._reload(good, bad)
        assert model.ask("hi", temperature=0).ids == before


def test_closing_ends_what_runs(smollm2_path: Path) -> None:
    model = ft.load(str(smollm2_path), threads=1, context=512)
    handle = model.submit(STORY, template="bare")
    started = time.perf_counter()
    model.close()
    assert time.perf_counter() - started < 5
    assert handle.wait()[0].stop_reason == "cancelled"
    with pytest.raises(ModelError, match="closed"):
        model.ask(STORY, template="bare")


def test_requests_wait_for_cells_instead_of_failing(scripted_path: Path) -> None:
    """Four slots, but each request may fill the whole cache: one after the other."""
    options = {"template": "bare"}
    with ft.load(str(scripted_path), threads=1, context=256) as model:
        model.samples("hi?", n=4, max_tokens=4, **options)
        engine = model.engine
        assert isinstance(engine, LlamaCppEngine)
        each = engine.server.options.cells - 40
        handles = [
            model.submit("hi?", max_tokens=min(each, 200), seed=seed, **options)
            for seed in range(3)
        ]
        for handle in handles:
            (sample,) = handle.wait()
            assert sample.usage.completion_tokens == min(each, 200)


def test_answer_now_closes_the_thought(smollm2: Model) -> None:
    handle = smollm2.submit(
        "Tell me everything about foxes.", seed=1, max_tokens=260, max_thought=200
    )
    seen = 0
    for event in handle:
        seen += isinstance(event, ThoughtDelta)
        if seen == 6:
            handle.answer_now()
    (sample,) = handle.wait()
    assert sample.thought_end == "asked"
    assert sample.usage.thought_tokens < 60
    assert sample.answer


@pytest.mark.alone
def test_cancel_costs_at_most_one_token(smollm2: Model) -> None:
    engine = smollm2.engine
    assert isinstance(engine, LlamaCppEngine)
    for n in (1, 3):
        before = engine.server.metrics()["tokens_predicted_total"]
        handle = smollm2.submit(STORY, template="bare", max_tokens=300, n=n, seed=1)
        arrived = 0
        for event in handle:
            arrived += isinstance(event, AnswerDelta)
            if arrived == 8 * n:
                handle.cancel()
        # after cancel() returned, nothing but the token under way
        time.sleep(0.3)
        computed = engine.server.metrics()["tokens_predicted_total"] - before
        samples = handle.wait()
        kept = sum(sample.usage.completion_tokens for sample in samples)
        assert {sample.stop_reason for sample in samples} == {"cancelled"}
        assert kept >= 8 * n
        assert computed <= kept + n  # one step of n samples is one token each


def test_leaving_the_stream_early_cancels(smollm2: Model) -> None:
    engine = smollm2.engine
    assert isinstance(engine, LlamaCppEngine)
    stream = smollm2.stream(STORY, template="bare", max_tokens=300)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    before = engine.server.metrics()["n_decode_total"]
    time.sleep(0.3)
    assert engine.server.metrics()["n_decode_total"] - before <= 1


def test_a_stopped_thought_goes_on_as_if_never_stopped(smollm2: Model) -> None:
    """Greedy, reproducible: the prefix's ids and nothing else decide what follows."""
    question = "Why do leaves fall?"
    budget = {"max_tokens": 80, "max_thought": 64}
    whole = smollm2.ask(question, temperature=0, **budget)
    assert whole.ids is not None
    for cut in (1, 7, 40):
        rest = smollm2.ask(question, temperature=0, prefix_ids=whole.ids[:cut], **budget)
        assert rest.ids == whole.ids
        assert rest.thought == whole.thought
        assert rest.answer == whole.answer


def test_an_edited_thought_goes_on(smollm2: Model) -> None:
    prompt = smollm2.prompt("How many legs has a spider?", continue_thought="A spider has eight")
    assert prompt.mid_thought
    assert prompt.text is not None
    assert prompt.text.endswith("<think>\nA spider has eight")
    sample = smollm2.ask(prompt, temperature=0, max_tokens=16)
    assert sample.thought.startswith(" ")


def check_independence(model: Model) -> None:
    """The same samples four at once, one by one, and in two requests side by side."""
    options = {"template": "bare", "max_tokens": 24, "temperature": 1.0}
    together = model.samples(STORY, n=4, seed=5, **options)
    alone = [model.ask(STORY, seed=5 + index, **options) for index in range(4)]
    assert [s.ids for s in together] == [s.ids for s in alone]
    first = model.submit(STORY, n=2, seed=5, **options)
    second = model.submit(STORY, n=2, seed=7, **options)
    assert [s.ids for s in first.wait() + second.wait()] == [s.ids for s in together]


def test_samples_do_not_depend_on_n_or_load(smollm2: Model) -> None:
    check_independence(smollm2)


@pytest.mark.slow
def test_samples_of_two_threads_do_not_depend_on_n_or_load(smollm2_path: Path) -> None:
    with ft.load(str(smollm2_path), slots=4, threads=2, reproducible=True) as model:
        check_independence(model)


def test_greedy_equals_raw_llama_cpp(smollm2_path: Path) -> None:
    """Twenty prompts, character for character against the raw xllamacpp server."""
    import xllamacpp

    subjects = ["fox", "sea", "king", "clock", "road", "tree", "bread", "river", "song", "stone"]
    prompts = [f"The {word} was" for word in subjects]
    prompts += [f"Write a line about a {word}." for word in subjects]
    raw: list[str] = []
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_path)
    params.n_ctx, params.n_parallel, params.fit_params = 512, 1, False
    params.verbosity, params.warmup = -1, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    for prompt in prompts:
        parts: list[str] = []
        server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": 16,
                "temperature": 0.0,
                "stream": True,
                "cache_prompt": False,
            },
            lambda chunk, parts=parts: parts.append(chunk["choices"][0]["text"]) and False,
        )
        raw.append("".join(parts))
    del server
    with ft.load(str(smollm2_path), threads=1, context=512) as model:
        ours = [
            model.ask(prompt, template="bare", temperature=0, max_tokens=16).answer
            for prompt in prompts
        ]
    assert ours == raw


def test_a_users_tags_stay_text(smollm2: Model, scripted: Model) -> None:
    prompt = scripted.prompt("what is <think> and </think>, <|A|>?")
    assert prompt.ids is not None
    assert list(prompt.ids).count(CLOSE) == 0
    real = smollm2.prompt("say <|im_end|> please")
    assert real.ids is not None
    assert list(real.ids).count(2) == 2  # the template's own two, none of the user's


def test_events_and_waiting_agree(scripted: Model) -> None:
    handle = scripted.submit("hi", temperature=0)
    batches = [event for batch in handle.batches() for event in batch]
    assert handle.wait() == [batches[-1].sample]  # type: ignore[union-attr]
    assert list(handle) == []


def test_async_twins(scripted: Model) -> None:
    import asyncio

    async def run() -> None:
        sample = await scripted.aask("hi", temperature=0)
        assert sample.answer == ANSWER
        events = [event async for event in scripted.astream("hi", temperature=0)]
        assert check(events)[0].thought == THOUGHT
        one, two = await asyncio.gather(
            scripted.aask("hi?", template="bare", seed=1, max_tokens=9),
            scripted.aask("hi?", template="bare", seed=1, max_tokens=9),
        )
        assert one.ids == two.ids
        task = asyncio.create_task(scripted.aask("hi?", template="bare", max_tokens=400))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    path = write_scripted_model(tmp_path / "odd.gguf", architecture="llamo")
    with pytest.raises(ModelError, match="'llamo'"):
        LlamaServer(LoadOptions(path, cells=256))


def test_a_lora_changes_the_text(scripted_path: Path, tmp_path: Path) -> None:
    lora = write_scripted_lora(tmp_path / "lora.gguf", after="c", comes="h")
    with ft.load(str(scripted_path), threads=1, context=256, lora=lora) as model:
        sample = model.ask("hi", temperature=0)
    assert (sample.thought, sample.answer) == ("abch", ANSWER)


def test_a_lora_that_does_not_fit(scripted_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA file"):
        ft.load(str(scripted_path), threads=1, lora=tmp_path / "none.gguf")
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(ModelError, match="LoRA"):
        ft.load(str(scripted_path), threads=1, lora=junk)


def test_the_port_wants_a_key_of_this_process(scripted: Model) -> None:
    import socket

    assert isinstance(scripted.engine, LlamaCppEngine)
    server = scripted.engine.server
    assert server.address[0] == "127.0.0.1"
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"GET /props HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b" 401 " in connection.recv(4096).split(b"\r\n")[0]
    with socket.create_connection(server.address) as connection:
        connection.sendall(
            b"GET /health HTTP/1.0\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
        )
        assert b"access-control-allow-origin: http://evil" not in connection.recv(4096).lower()


def test_load_refuses_what_cannot_be(scripted_path: Path) -> None:
    for options, words in (
        ({"context": 99999}, "trained for"),
        ({"context": 0}, "--ctx"),
        ({"threads": 0}, "--threads"),
        ({"gpu_layers": -1}, "--gpu-layers"),
        ({"device": "cpu"}, "--device is not possible with llama.cpp"),
        ({"dtype": "int8"}, "--dtype is not possible with llama.cpp"),
        ({"speculate": True}, "--speculate is not possible with llama.cpp"),
        ({"engine": "remote"}, "needs the URL"),
        ({"engine": "vllm"}, "no engine"),
    ):
        with pytest.raises(UserError, match=words):
            ft.load(str(scripted_path), **options)  # type: ignore[arg-type]
