"""Many requests at once: shared prompts, queues, cancels, errors, and the end of the process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_checkpoints import tokenizer_json

from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DenseConfig
from forethought.dialogue.messages import Prompt
from forethought.dialogue.tags import ThinkTags
from forethought.engines.handle import StreamHandle
from forethought.engines.limits import RequestChecker
from forethought.engines.model import Model
from forethought.engines.protocol import (
    AnswerDelta,
    Budget,
    PrefillProgress,
    Request,
    SamplingParameters,
)
from forethought.engines.torch.engine import TorchEngine, TorchOptions
from forethought.engines.torch.job import Job, Vocabulary
from forethought.engines.torch.row import Row
from forethought.errors import ModelError, UserError
from forethought.models.loading import build

BAD, BAD_ID = "a prompt without numbers", 320
"""An id that no text has, and no sample: its row of the embedding can be spoilt for one prompt."""


def engine_of(model: Model) -> TorchEngine:
    assert isinstance(model.engine, TorchEngine)
    return model.engine


def lively(rows: int = 64, positions: int = 4096) -> TorchEngine:
    """A random network that seldom ends its text."""
    import json

    config = DenseConfig(
        model_type="llama",
        vocab_size=330,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        rope_theta=1e4,
        initializer_range=0.15,
    )
    network = build(config, generator=torch.Generator().manual_seed(3))
    tokenizer = HFTokenizer(json.loads(tokenizer_json()), "tiny")
    options = TorchOptions("tiny", context=512, most_context=positions, threads=1, rows=rows)
    return TorchEngine(network, tokenizer, options)


@pytest.fixture(scope="module")
def engine() -> Iterator[TorchEngine]:
    made = lively()
    yield made
    made.close()


def asked(
    engine: TorchEngine, text: str = "the cat sat", tokens: int = 20, **fields: object
) -> Request:
    ids = tuple(engine.tokenizer.encode(text, parse_special=False))
    if text == BAD:
        ids = (BAD_ID,)
    prompt = Prompt((), text, ids, thinks=False, exact=True)
    values = {
        "sampling": SamplingParameters(1.0, 1.0),
        "budget": Budget(max_tokens=tokens),
        "seed": 1,
        "logprobs": "sampling",
        **fields,
    }
    return Request(prompt, **values)  # type: ignore[arg-type]


@contextmanager
def counted_prompts(engine: TorchEngine) -> Iterator[list[int]]:
    """The lengths of the prompts (and parts of prompts) that are computed meanwhile."""
    program, seen = engine._program, list[int]()
    hidden = program.hidden

    def counting(ids_BT, positions_BT, cache):  # type: ignore[no-untyped-def]
        if cache._batch == 1 and ids_BT.shape[1] > 1:
            seen.append(ids_BT.shape[1])
        return hidden(ids_BT, positions_BT, cache)

    program.hidden = counting  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del program.hidden  # type: ignore[attr-defined]


def until_tokens(handle: object, count: int) -> None:
    """Read events until so many tokens came."""
    seen = 0
    for event in handle:  # type: ignore[attr-defined]
        seen += isinstance(event, AnswerDelta)
        if seen >= count:
            return


# -- sharing


@pytest.mark.parametrize("n", [1, 5, 16])
def test_samples_share_one_prefill_and_their_steps(engine: TorchEngine, n: int) -> None:
    request = asked(engine, n=n)
    assert request.prompt.ids is not None
    before = engine.steps
    with counted_prompts(engine) as prompts:
        samples = engine.submit(request).wait()
    assert prompts == [len(request.prompt.ids)]
    assert engine.steps - before == 19  # the first token comes with the prompt
    assert len({sample.ids for sample in samples}) == n
    assert all(sample.usage.prompt_tokens == prompts[0] for sample in samples)


def test_more_samples_than_rows_go_in_order() -> None:
    engine = lively(rows=3)
    try:
        request = asked(engine, n=8, tokens=6)
        finished = [e.sample.index for e in engine.submit(request) if hasattr(e, "sample")]
        assert sorted(finished) == list(range(8))
        assert engine.steps < 8 * 5
        alone = lively()
        ids = [sample.ids for sample in alone.submit(request).wait()]
        assert ids == [sample.ids for sample in engine.submit(request).wait()]
        alone.close()
    finally:
        engine.close()


def test_a_long_prompt_tells_how_far_it_is(engine: TorchEngine) -> None:
    request = asked(engine, "the cat sat on the mat " * 200, tokens=3)
    assert request.prompt.ids is not None
    total = len(request.prompt.ids)
    assert total > 1024
    with counted_prompts(engine) as parts:
        events = list(engine.submit(request))
    progress = [event for event in events if isinstance(event, PrefillProgress)]
    assert [event.processed for event in progress] == [*range(512, total, 512), total]
    assert {event.total for event in progress} == {total}
    assert sum(parts) == total


# -- side by side


def test_requests_of_different_lengths_side_by_side(engine: TorchEngine) -> None:
    """From many threads; each is what it is alone, and they share steps."""
    requests = [
        asked(engine, "the cat " * (1 + 7 * at), tokens=10 + 9 * at, seed=at, n=1 + at % 3)
        for at in range(6)
    ]
    before = engine.steps
    alone = [[sample.ids for sample in engine.submit(request).wait()] for request in requests]
    apart = engine.steps - before
    together: dict[int, list[tuple[int, ...] | None]] = {}

    def ask(at: int) -> None:
        together[at] = [sample.ids for sample in engine.submit(requests[at]).wait()]

    before = engine.steps
    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[at] for at in range(len(requests))] == alone
    assert engine.steps - before < apart


def test_different_sampling_side_by_side(engine: TorchEngine) -> None:
    settings = [
        SamplingParameters(0.0, 1.0),
        SamplingParameters(1.0, 1.0),
        SamplingParameters(0.6, 0.95),
        SamplingParameters(1.3, 1.0, top_k=5),
    ]
    requests = [asked(engine, sampling=each, tokens=40) for each in settings]
    alone = [engine.submit(request).wait()[0].ids for request in requests]
    handles = [engine.submit(request) for request in requests]
    assert [handle.wait()[0].ids for handle in handles] == alone


# -- cancelling and closing


@pytest.mark.parametrize("n", [1, 3])
def test_cancel_computes_at_most_one_further_step(engine: TorchEngine, n: int) -> None:
    before = engine.steps
    handle = engine.submit(asked(engine, tokens=3000, n=n))
    until_tokens(handle, 10 * n)
    handle.cancel()
    at_return = engine.steps
    time.sleep(0.15)
    assert engine.steps - at_return <= 1
    samples = handle.wait()
    assert {sample.stop_reason for sample in samples} == {"cancelled"}
    computed = engine.steps - before
    for sample in samples:
        assert 10 <= len(sample.ids or ()) <= computed + 1


def test_leaving_a_handle_cancels_it(engine: TorchEngine) -> None:
    with engine.submit(asked(engine, tokens=3000)) as handle:
        until_tokens(handle, 2)
    before = engine.steps
    time.sleep(0.1)
    assert engine.steps - before <= 1


@pytest.mark.alone
def test_a_queued_request_is_cancelled_at_once() -> None:
    engine = lively(rows=1)
    try:
        first = engine.submit(asked(engine, tokens=4000))
        until_tokens(first, 1)
        queued = engine.submit(asked(engine, n=3))
        started = time.perf_counter()
        queued.cancel()
        assert time.perf_counter() - started < 2
        samples = queued.wait()
        assert [sample.stop_reason for sample in samples] == ["cancelled"] * 3
        assert all(sample.ids == () for sample in samples)
        before = engine.steps
        time.sleep(0.1)
        assert engine.steps > before  # the first goes on
        first.cancel()
    finally:
        engine.close()


def test_cancelling_one_leaves_the_others_what_they_are(engine: TorchEngine) -> None:
    request = asked(engine, tokens=60, seed=5)
    alone = engine.submit(request).wait()[0].ids
    other = engine.submit(asked(engine, tokens=3000, n=2))
    kept = engine.submit(request)
    until_tokens(kept, 5)
    other.cancel()
    assert kept.wait()[0].ids == alone


def test_closing_ends_what_runs_and_what_waits() -> None:
    engine = lively(rows=2)
    running = engine.submit(asked(engine, tokens=4000, n=2))
    until_tokens(running, 4)
    waiting = engine.submit(asked(engine, n=2))
    started = time.perf_counter()
    engine.close()
    assert time.perf_counter() - started < 5
    for handle in (running, waiting):
        assert {sample.stop_reason for sample in handle.wait()} == {"cancelled"}
    steps = engine.steps
    time.sleep(0.1)
    assert engine.steps == steps
    engine.close()  # twice is once
    with pytest.raises(ModelError, match="closed"):
        engine.submit(asked(engine))


def test_a_closed_engine_lets_go_of_the_weights() -> None:
    import gc
    import weakref

    engine = lively()
    engine.submit(asked(engine)).wait()
    program = weakref.ref(engine._program)
    engine.close()
    gc.collect()
    assert program() is None


def test_closing_right_after_asking_leaves_nobody_waiting() -> None:
    for _ in range(10):
        engine = lively()
        handle = engine.submit(asked(engine))
        engine.close()
        error = ended(handle)
        assert error is None or "closed" in str(error)


def test_many_short_samples_then_a_long_one_do_not_multiply() -> None:
    engine = lively()
    engine.submit(asked(engine, tokens=2, n=32)).wait()
    many = engine._scheduler._cache
    assert many.rows >= 32
    ids = asked(engine).prompt.ids
    assert ids is not None
    long = replace(asked(engine), prompt=replace(asked(engine).prompt, ids=(ids * 200)[:300]))
    engine.submit(long).wait()
    cache = engine._scheduler._cache
    assert cache.rows * cache.capacity < 32 * 300


def test_ids_of_another_model_are_refused() -> None:
    engine = lively()
    wrong = replace(asked(engine), prompt=replace(asked(engine).prompt, ids=(1, 10**6)))
    with pytest.raises(UserError, match="another model"):
        engine.submit(wrong)


# -- errors


def ended(handle: StreamHandle, seconds: float = 5) -> BaseException | None:
    """What a handle raises; it must end."""
    caught: list[BaseException | None] = []

    def wait() -> None:
        try:
            handle.wait()
            caught.append(None)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "the request never ended"
    return caught[0]


@pytest.mark.parametrize("n", [1, 3])
def test_an_error_in_one_request_leaves_the_others(n: int) -> None:
    engine = lively()
    engine._program._embedding._weight_VD[BAD_ID] = float("nan")  # type: ignore[attr-defined]
    good = asked(engine, tokens=300, seed=4)
    alone = engine.submit(good).wait()[0].ids
    running = engine.submit(good)
    until_tokens(running, 3)
    error = ended(engine.submit(asked(engine, BAD, n=n)))
    assert isinstance(error, ModelError)
    assert "\n" not in str(error)
    assert running.wait()[0].ids == alone
    assert engine.submit(good).wait()[0].ids == alone
    engine.close()


def test_an_error_that_nobody_foresaw_ends_what_runs_and_the_next_goes_on() -> None:
    engine = lively()
    hidden = engine._program.hidden
    calls = 0

    def failing(*args):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("something broke")
        return hidden(*args)

    engine._program.hidden = failing  # type: ignore[method-assign]
    error = ended(engine.submit(asked(engine, n=2)))
    assert isinstance(error, ModelError)
    assert "something broke" in str(error)
    assert len(engine.submit(asked(engine)).wait()) == 1
    engine.close()


# -- rows


def test_what_is_stored_is_always_a_prefix_of_what_is_known(engine: TorchEngine) -> None:
    """A closing tag of several tokens that comes too early is taken back, and its places with it.

    The scheduler's part is played here: each computed token is written down at its place.
    """
    tokenizer = engine.tokenizer
    tag = tokenizer.encode("</think>", parse_special=True)
    assert len(tag) > 3
    script = [*tokenizer.encode("the cat", parse_special=False), *tag]
    script += [
        *tokenizer.encode(" sat on the mat and that is the thing", parse_special=False),
        *tag,
    ]
    script += tokenizer.encode(" then", parse_special=False)
    tags = ThinkTags()
    checker = RequestChecker("tiny", tokenizer, 300, tags, trained=512)
    prompt = Prompt((), "x", (5, 6, 7), starts_in_thought=True)
    request = Request(
        prompt, budget=Budget(max_tokens=160, max_thought=120, min_thought=25), seed=1
    )
    limits = checker.limits(request, 400, lambda _: 160)
    job = Job(StreamHandle(lambda _: None), request, limits, 1, 0.0)
    vocabulary = Vocabulary(tokenizer, tags, tokenizer.vocabulary, frozenset(), 300)
    row = Row(job, 0, vocabulary)
    row.stored = 3
    written = [5, 6, 7]
    comes = iter(script)
    forced = 0
    while row.sample.done is None:
        if row.wants_token:
            token = next(comes, None)
            if token is None:
                break
            row.take(token, None)
        else:
            forced += 1
        assert written[: row.stored] == row.known[: row.stored]
        del written[row.stored :]
        written.append(row.next_id())
        row.stored += 1
    assert forced > 0
    assert "Wait," in b"".join(tokenizer.pieces(row.sample.ids)).decode()


# -- the end of the process

EXITS = {
    "after use": "model.ask('hi', temperature=0)",
    "while it runs": "h = model.submit('hi?', n=4, template='bare'); next(iter(h))",
    "in an error": "h = model.submit('hi?', n=4, template='bare'); next(iter(h)); 1 / 0",
}


@pytest.fixture(scope="module")
def exits(scripted_path: Path) -> dict[str, SimpleNamespace]:
    """Each way to end, in a process of its own; all at once, since each waits for its imports."""
    program = """
        import forethought as ft
        model = ft.load({path!r}, engine="torch", threads=2)
        {line}
        print("done", flush=True)
    """
    running = {
        name: subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(program).format(path=str(scripted_path), line=line),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, line in EXITS.items()
    }
    found = {}
    for name, process in running.items():
        try:
            out, err = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        found[name] = SimpleNamespace(code=process.returncode, out=out, err=err)
    return found


@pytest.mark.parametrize("name", EXITS)
def test_the_process_ends_cleanly(exits: dict[str, SimpleNamespace], name: str) -> None:
    """A thread that the interpreter's end meets inside torch would take the process down."""
    ending = exits[name]
    assert "terminate called" not in ending.err
    if name == "in an error":
        assert "ZeroDivisionError" in ending.err
        assert ending.code == 1
    else:
        assert (ending.code, ending.out, ending.err) == (0, "done\n", "")


def test_async_twins(scripted_torch: Model) -> None:
    import asyncio

    async def run() -> None:
        one, two = await asyncio.gather(
            scripted_torch.aask("hi?", template="bare", seed=1, max_tokens=9),
            scripted_torch.aask("hi?", template="bare", seed=1, max_tokens=9),
        )
        assert one.ids == two.ids
        task = asyncio.create_task(scripted_torch.aask("hi?", template="bare", max_tokens=400))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
