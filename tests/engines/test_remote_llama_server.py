"""The remote engine against a server we did not write: llama.cpp's own, in a second process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forethought.dialogue.messages import Message, Prompt
from forethought.engines.protocol import (
    AnswerDelta,
    Budget,
    Request,
    SamplingParameters,
    ThoughtDelta,
)
from forethought.engines.remote import RemoteEngine
from forethought.errors import ServerError, UserError

KEY = "sk-of-this-test"

_SERVER = """
import os, sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 4096, 4
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.fit_params = False
params.port = 0
params.api_keys = [sys.argv[2]]
if sys.argv[3]:
    params.chat_template = sys.argv[3]
try:
    params.verbosity = 0
except AttributeError:
    pass
server = xllamacpp.Server(params)
print("ADDRESS", server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""

# A template that thinks, in Qwen3's manner: llama.cpp finds the tags by rendering it with and
# without a thought, and then separates the sides and keeps a budget.
_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


def _model() -> Path:
    named = os.environ.get("FORETHOUGHT_TEST_MODEL")
    if named:
        return Path(named)
    from forethought.paths import models_dir

    found = sorted(models_dir().rglob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("no SmolLM2-135M: set FORETHOUGHT_TEST_MODEL, or pull smollm2:135m")
    return found[0]


def _serve(template: str) -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(_model()), KEY, template],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("ADDRESS "):
                yield line.split()[1]
                break
        else:
            pytest.fail("the server did not start")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    yield from _serve("")


@pytest.fixture(scope="module")
def thinking() -> Iterator[str]:
    yield from _serve(_THINKING)


def question(text: str, **request: object) -> Request:
    request.setdefault("sampling", SamplingParameters(temperature=0))
    return Request(Prompt((Message("user", text),)), **request)  # type: ignore[arg-type]


def test_an_answer_with_exact_usage(plain: str) -> None:
    engine = RemoteEngine(plain, api_key=KEY)
    request = question("Say hello.", budget=Budget(max_tokens=24))
    handle = engine.submit(request)
    events = list(handle)
    (sample,) = handle.wait()
    assert sample.answer
    assert sample.answer == "".join(e.text for e in events if isinstance(e, AnswerDelta))
    assert sample.thought == ""
    assert sample.thought_end == "none"
    assert 0 < sample.usage.answer_tokens <= 24
    assert sample.usage.prompt_tokens > 5
    assert sample.timings.first_token is not None
    assert engine.submit(request).wait()[0].answer == sample.answer


def test_length(plain: str) -> None:
    engine = RemoteEngine(plain, api_key=KEY)
    (sample,) = engine.submit(question("Write a long story.", budget=Budget(max_tokens=8))).wait()
    assert (sample.stop_reason, sample.usage.answer_tokens) == ("length", 8)


def test_n_samples_differ(plain: str) -> None:
    engine = RemoteEngine(plain, api_key=KEY)
    request = question(
        "Tell me a story.",
        n=3,
        seed=11,
        sampling=SamplingParameters(temperature=1.0, top_k=40, min_p=0.01),
        budget=Budget(max_tokens=16),
    )
    samples = engine.submit(request).wait()
    assert [s.seed for s in samples] == [11, 12, 13]
    assert len({s.answer for s in samples}) == 3


def test_a_stop_string(plain: str) -> None:
    engine = RemoteEngine(plain, api_key=KEY)
    free = engine.submit(question("Say hello.", budget=Budget(max_tokens=24))).wait()[0].answer
    word = free.split()[2]
    request = question("Say hello.", budget=Budget(max_tokens=24), stop=(word,))
    (sample,) = engine.submit(request).wait()
    assert sample.answer == free[: free.index(word)]
    assert sample.stop_reason == "stop_string"


@pytest.mark.alone
def test_cancel_frees_the_server(plain: str) -> None:
    engine = RemoteEngine(plain, api_key=KEY)
    handle = engine.submit(question("Write a long story.", budget=Budget(max_tokens=2000)))
    next(iter(handle))
    start = time.monotonic()
    handle.cancel()
    assert time.monotonic() - start < 1
    (sample,) = handle.wait()
    assert sample.stop_reason == "cancelled"
    assert sample.answer
    (after,) = engine.submit(question("Say hello.", budget=Budget(max_tokens=4))).wait()
    assert after.answer


def test_a_separate_thought_and_a_budget_the_server_keeps(thinking: str) -> None:
    engine = RemoteEngine(thinking, api_key=KEY, thinks="native")
    request = question("Are tomatoes fruits?", budget=Budget(max_tokens=60, max_thought=12), seed=1)
    handle = engine.submit(request)
    events = list(handle)
    (sample,) = handle.wait()
    assert sample.thought
    assert sample.answer
    assert sample.thought == "".join(e.text for e in events if isinstance(e, ThoughtDelta))
    assert sample.thought_end == "budget"
    assert sample.usage.completion_tokens <= 60


def test_wrong_key_and_too_long_a_question(plain: str) -> None:
    with pytest.raises(UserError, match="refused the API key"):
        RemoteEngine(plain, "m", api_key="wrong").submit(question("hi")).wait()
    with pytest.raises(ServerError, match=r"HTTP 400.*context"):
        RemoteEngine(plain, "m", api_key=KEY).submit(question("word " * 20_000)).wait()
