"""What the installed llama.cpp wheel can do, asked of the wheel itself.

The engine is built on these answers, some of them surprising. A test compares them with
:data:`EXPECTED`, so that a new version of the wheel that changes one is noticed before a user does.
``python -m forethought.engines.llama_probe MODEL.gguf`` prints the table.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forethought.engines.llama_server import Chunk, LlamaServer, LoadOptions
from forethought.errors import ModelError

EXPECTED: dict[str, bool] = {
    "port_needs_key": True,
    "port_health_is_open": True,
    "tokenize_gives_ids": True,
    "stream_carries_ids": True,
    "stream_ids_inside_characters": False,
    "stream_counts_hidden_tokens": True,
    "stream_shows_end_of_sequence_id": True,
    "logprob_raw": True,
    "logprob_sampling": True,
    "samples_share_prefill": True,
    "sample_seed_is_seed_plus_index": True,
    "finished_samples_keep_cache": False,
    "continuation_reuses_cache": True,
    "samples_above_slots_refused": True,
    "slots_share_whole_context": True,
    "overlong_prompt_refused": True,
    "cancel_costs_at_most_one_token": True,
    "callback_errors_swallowed": True,
    "gil_free_while_generating": True,
    "prefill_progress": True,
    "completion_thought_budget_without_load_option": False,
}
"""Answers of xllamacpp 2026.10.11549."""

QUESTIONS: dict[str, str] = {
    "port_needs_key": "its HTTP port answers 401 without the key",
    "port_health_is_open": "/health answers without the key",
    "tokenize_gives_ids": "/tokenize works over the port (the Python class has no tokenizer)",
    "stream_carries_ids": "each chunk has the id of its token",
    "stream_ids_inside_characters": "tokens that end inside a UTF-8 character get chunks too",
    "stream_counts_hidden_tokens": "the running count includes the tokens without a chunk",
    "stream_shows_end_of_sequence_id": "the end-of-sequence token has a chunk, without text",
    "logprob_raw": "log-probabilities of the model",
    "logprob_sampling": "probabilities under the sampling distribution (greedy: 1)",
    "samples_share_prefill": "n_cmpl: the prompt is computed once",
    "sample_seed_is_seed_plus_index": "sample i of n equals the one sample of seed + i",
    "finished_samples_keep_cache": "all but the first of n keep their cache for a continuation",
    "continuation_reuses_cache": "continuing a lone sample computes one or two tokens",
    "samples_above_slots_refused": "n above the slots is an error, not a smaller n",
    "slots_share_whole_context": "with kv_unified one sample may use the whole cache",
    "overlong_prompt_refused": "a prompt longer than the context is an error, not a cut",
    "cancel_costs_at_most_one_token": "returning True from the callback stops within a token",
    "callback_errors_swallowed": "an exception in the callback vanishes",
    "gil_free_while_generating": "Python threads run while it generates",
    "prefill_progress": "long prompts report progress",
    "completion_thought_budget_without_load_option": (
        "/completion honours reasoning_budget_tokens when generation_prompt comes with the request"
    ),
}


class _Probe:
    def __init__(self, path: Path) -> None:
        self.server = LlamaServer(LoadOptions(path, cells=512, slots=3, threads=1))
        self.prompt = [int(token) for token in self.tokens("Once upon a time there was a fox")]

    def tokens(self, text: str) -> list[Any]:
        answer = self.server.post("/tokenize", {"content": text, "add_special": False})
        return list(answer["tokens"])

    def run(
        self,
        *,
        stop_after: int | None = None,
        prompt: list[int] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        **fields: object,
    ) -> list[Chunk]:
        chunks: list[Chunk] = []

        def take(chunk: Chunk) -> bool:
            chunks.append(chunk)
            if on_chunk is not None:
                on_chunk(chunk)
            return stop_after is not None and len(chunks) >= stop_after

        body: dict[str, object] = {
            "prompt": prompt or self.prompt,
            "n_predict": 8,
            "temperature": 0.0,
            "n_probs": 1,
            "post_sampling_probs": True,
            "timings_per_token": True,
            "ignore_eos": True,
            **fields,
        }
        self.server.complete(body, take)
        return chunks

    def ids(self, chunks: list[Chunk], index: int = 0) -> list[int]:
        return [c.token_id for c in chunks if c.index == index and c.token_id is not None]

    def refused(self, **fields: Any) -> bool:
        try:
            self.run(**fields)
        except ModelError:
            return True
        return False

    def http_status(self, path: str) -> int:
        import socket

        with socket.create_connection(self.server.address, timeout=10) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return int(connection.recv(4096).split(b" ")[1])


def _beat(beats: list[int], done: threading.Event) -> None:
    while not done.is_set():
        beats[0] += 1
        time.sleep(0.001)


def probe(path: Path) -> dict[str, bool]:
    """The answers for the wheel installed here, with any GGUF that has a byte-level vocabulary.

    Takes about a second with a small model. Raises what loading raises.
    """
    p = _Probe(path)
    found: dict[str, bool] = {}
    try:
        _ask_port(p, found)
        _ask_stream(p, found)
        _ask_samples(p, found)
        _ask_control(p, found)
    finally:
        p.server.close()
    return {name: found[name] for name in EXPECTED}


def _ask_port(p: _Probe, found: dict[str, bool]) -> None:
    found["port_needs_key"] = p.http_status("/props") == 401
    found["port_health_is_open"] = p.http_status("/health") == 200
    found["tokenize_gives_ids"] = len(p.prompt) > 1


def _ask_stream(p: _Probe, found: dict[str, bool]) -> None:
    plain = p.run()
    found["stream_carries_ids"] = len(p.ids(plain)) == 8
    emoji = p.run(grammar='root ::= "🎉" "x"+', n_predict=12)
    shown = sum(1 for c in emoji if c.token_id is not None)
    counted = max(c.predicted for c in emoji)
    found["stream_ids_inside_characters"] = shown == counted
    found["stream_counts_hidden_tokens"] = counted == 12
    ended = p.run(grammar='root ::= "x"', n_predict=8, ignore_eos=False)
    with_id = [c for c in ended if c.token_id is not None]
    found["stream_shows_end_of_sequence_id"] = (
        ended[-1].finish == "stop" and len(with_id) == 2 and with_id[-1].text == ""
    )
    raw = p.run(post_sampling_probs=False, n_predict=2)
    found["logprob_raw"] = all(
        c.logprob is not None and c.logprob <= 0 for c in raw if c.token_id is not None
    )
    found["logprob_sampling"] = all(c.logprob == 0.0 for c in plain if c.token_id is not None)
    long = p.run(prompt=(p.prompt * 100)[:400], return_progress=True, n_predict=1)
    found["prefill_progress"] = any(c.prefill is not None for c in long)


def _ask_samples(p: _Probe, found: dict[str, bool]) -> None:
    warm: dict[str, Any] = {"temperature": 1.5, "n_predict": 6}
    together = p.run(n_cmpl=3, seed=11, cache_prompt=False, **warm)
    alone = p.run(seed=12, **warm)
    found["sample_seed_is_seed_plus_index"] = p.ids(together, 1) == p.ids(alone)
    before = p.server.metrics()["prompt_tokens_total"]
    together = p.run(n_cmpl=3, seed=5, cache_prompt=False, **warm)
    computed = p.server.metrics()["prompt_tokens_total"] - before
    found["samples_share_prefill"] = computed <= len(p.prompt) + 3
    second = p.ids(together, 1)
    found["finished_samples_keep_cache"] = p.run(prompt=[*p.prompt, *second], n_predict=1)[
        -1
    ].cached >= len(p.prompt) + len(second) - 2 and second != p.ids(together, 0)
    found["samples_above_slots_refused"] = p.refused(n_cmpl=4)
    lone = p.ids(p.run(seed=3, **warm))
    again = p.run(prompt=[*p.prompt, *lone], n_predict=1)
    found["continuation_reuses_cache"] = again[-1].cached >= len(p.prompt) + len(lone) - 2
    found["slots_share_whole_context"] = not p.refused(prompt=(p.prompt * 100)[:400], n_predict=1)
    found["overlong_prompt_refused"] = p.refused(prompt=(p.prompt * 200)[:600], n_predict=1)


def _ask_control(p: _Probe, found: dict[str, bool]) -> None:
    p.run(stop_after=5, n_predict=400)
    before = p.server.metrics()["n_decode_total"]
    time.sleep(0.2)
    found["cancel_costs_at_most_one_token"] = p.server.metrics()["n_decode_total"] - before <= 1

    native: Any = p.server._native

    def failing(_message: object) -> bool:
        raise RuntimeError("from the callback")

    try:
        native.handle_completions(
            {"prompt": p.prompt, "n_predict": 2, "stream": True, "ignore_eos": True}, failing
        )
        found["callback_errors_swallowed"] = True
    except RuntimeError:
        found["callback_errors_swallowed"] = False

    beats = [0]
    done = threading.Event()
    threading.Thread(target=_beat, args=(beats, done), daemon=True).start()
    started = time.perf_counter()
    p.run(n_predict=60)
    spent = time.perf_counter() - started
    done.set()
    found["gil_free_while_generating"] = beats[0] > spent / 0.001 / 10

    budget = p.run(
        n_predict=24,
        generation_prompt="<think>",
        reasoning_budget_tokens=4,
        reasoning_budget_start_tag="<think>",
        reasoning_budget_end_tags=["</think>"],
        reasoning_budget_message="STOP",
        preserved_tokens=["</think>"],
    )
    text = "".join(c.text for c in budget)
    found["completion_thought_budget_without_load_option"] = "STOP" in text


def main() -> int:
    """Print what was asked, answered and expected; exit 1 if an answer changed."""
    answers = probe(Path(sys.argv[1]))
    changed = 0
    for name, answer in answers.items():
        mark = " " if answer == EXPECTED[name] else "!"
        changed += mark == "!"
        sys.stdout.write(f"{mark} {'yes' if answer else 'no ':<4} {QUESTIONS[name]}\n")
    sys.stdout.write(json.dumps(answers) + "\n")
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
