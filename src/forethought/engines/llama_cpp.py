"""The llama.cpp engine: GGUF files on this machine, through the wheel ``xllamacpp``.

n samples of one request share one prefill (``n_cmpl``) and one unified cache: an n above the
loaded slots, or a prompt longer than the loaded context, reloads the model once; what still does
not fit side by side goes in batches. The context of a sample is never divided.

Seeds: sample i of a request uses ``seed + i``; a later phase of it (see
:mod:`forethought.engines.llama_sample`) a seed derived from that. The same lone request gives the
same sample. Side by side the last bits depend on the order in which phases arrive; with
``reproducible`` a sample is the same for every n and under load.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from forethought.dialogue.tags import ThinkTags
from forethought.engines.handle import StreamHandle
from forethought.engines.limits import LARGEST_SEED, Limits, RequestChecker, with_tag_ids
from forethought.engines.llama_loading import LlamaOptions, LoadedLlama
from forethought.engines.llama_sample import SampleRun
from forethought.engines.llama_server import Chunk, LlamaServer
from forethought.engines.llama_tokenizer import LlamaTokenizer
from forethought.engines.protocol import (
    Capabilities,
    PrefillProgress,
    Request,
    SamplingParameters,
)
from forethought.errors import ModelError

PROGRESS_FROM = 512
"""Prompt tokens from which progress is reported."""


class LlamaCppEngine:
    """Implements :class:`forethought.engines.protocol.Engine`."""

    name = "llama.cpp"

    def __init__(
        self,
        options: LlamaOptions,
        tags: ThinkTags | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._options = options
        self._loaded = LoadedLlama(options, report or (lambda _note: None))
        self._tokenizer = LlamaTokenizer(self._loaded, options.header)
        self._handles: weakref.WeakSet[StreamHandle] = weakref.WeakSet()
        self._tags = with_tag_ids(tags or ThinkTags(), self._tokenizer)
        self._checker = RequestChecker(
            options.path.name,
            self._tokenizer,
            len(self._tokenizer.vocabulary),
            self._tags,
            trained=options.header.context_length or 0,
        )

    # -- what it is

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            token_ids=True,
            logprobs=True,
            raw_prompt=True,
            min_thought=True,
            templates=True,
            reproducible=True,
            lora=True,
        )

    @property
    def tokenizer(self) -> LlamaTokenizer:
        return self._tokenizer

    @property
    def tags(self) -> ThinkTags:
        """The think tags, with their ids where the vocabulary has one token for them."""
        return self._tags

    @property
    def context_length(self) -> int:
        """Tokens one sample may hold at most, prompt included (a reload may be needed)."""
        return self._options.most_context

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self._options.path

    @property
    def server(self) -> LlamaServer:
        """The running llama.cpp, for probes and benchmarks."""
        return self._loaded.server

    def close(self) -> None:
        """Cancel what runs, and free the weights."""
        for handle in list(self._handles):
            handle.cancelled = True
        self._loaded.close()

    # -- asking

    def submit(self, request: Request) -> StreamHandle:
        """Start a request. Raises UserError for what does not fit, before anything is computed."""
        seed = self._checker.seed(request)
        limits = self._limits(request)
        request = replace(request, seed=seed)
        handle = StreamHandle(lambda handle: self._work(handle, request, limits, seed))
        self._handles.add(handle)
        return handle

    def _limits(self, request: Request) -> Limits:
        """Resolve the budget against the context; overflow is said with by how many tokens."""
        return self._checker.limits(request, self._options.most_context, self._default_tokens)

    def _default_tokens(self, prompt: int) -> int:
        """Up to what is loaded; a longer context is loaded when the prompt takes half of it."""
        max_tokens = self._loaded.context - prompt
        if max_tokens < self._loaded.context // 2:
            affordable = self._loaded.affordable_context()
            max_tokens = min(self._options.most_context - prompt, affordable - prompt)
            if max_tokens < 1:
                raise ModelError(
                    f"the prompt is {prompt} tokens and there is memory for {affordable}; "
                    "shorten it or free some memory."
                )
        return max_tokens

    # -- working

    def _work(self, handle: StreamHandle, request: Request, limits: Limits, seed: int) -> None:
        started = time.perf_counter()
        assert request.prompt.ids is not None
        with self._loaded.reserve(
            len(request.prompt.ids),
            limits.max_tokens,
            request.n,
            request.reproducible,
            lambda: handle.cancelled,
        ) as side_by_side:
            for first in range(0, request.n, side_by_side):
                runs = [
                    SampleRun(
                        index,
                        (seed + index) % (LARGEST_SEED + 1),
                        request,
                        limits,
                        self._tags,
                        self._tokenizer,
                        handle.emit,
                        started,
                    )
                    for index in range(first, min(first + side_by_side, request.n))
                ]
                self._run_together(handle, runs)

    def _run_together(self, handle: StreamHandle, runs: list[SampleRun]) -> None:
        """The first phase of all in one request, the rest of each by itself, side by side."""
        first = runs[0]
        in_order = first.seed + len(runs) - 1 <= LARGEST_SEED  # llama.cpp counts up, unwrapped
        limit = first.plan() if in_order else 0
        for run in runs[1:]:
            run.plan()
        if limit > 0 and not handle.cancelled:
            self._phase(handle, runs, limit)
        if len(runs) == 1:
            self._run_alone(handle, first)
            return
        problems: list[BaseException] = []

        def alone(run: SampleRun) -> None:
            try:
                self._run_alone(handle, run)
            except BaseException as error:
                problems.append(error)
                handle.cancelled = True

        threads = [threading.Thread(target=alone, args=(run,), daemon=True) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]

    def _run_alone(self, handle: StreamHandle, run: SampleRun) -> None:
        while run.done is None:
            if handle.cancelled:
                run.done = "cancelled"
                break
            if run.in_thought and run.asked_at != handle.asked:
                run.asked_at = handle.asked
                run.close_thought("asked")
            limit = run.plan()
            if limit > 0:
                self._phase(handle, [run], limit)
        run.finish()

    def _phase(self, handle: StreamHandle, runs: list[SampleRun], limit: int) -> None:
        """One completion request for one run, or for the common beginning of several."""
        first = runs[0]
        for run in runs:
            run.begin_phase()
        by_index = dict(enumerate(runs))
        alone = len(runs) == 1

        def on_chunk(chunk: Chunk) -> bool:
            if chunk.prefill is not None:
                if chunk.index == 0 and first.phases == 0:
                    handle.emit(PrefillProgress(*chunk.prefill))
                return handle.cancelled
            run = by_index[chunk.index]
            run.accept(chunk)
            if handle.cancelled:
                return True
            if any(run.in_thought and run.asked_at != handle.asked for run in runs):
                return True
            return first.settled if alone else all(run.settled for run in runs)

        self._loaded.server.complete(self._body(first, runs, limit), on_chunk)
        for run in runs:
            run.end_phase()

    def _body(self, first: SampleRun, runs: list[SampleRun], limit: int) -> dict[str, object]:
        request = first.request
        assert request.prompt.ids is not None
        prompt = [*request.prompt.ids, *first.ids]
        # A phase restarts llama.cpp's generator: without a seed of its own it would draw the same
        # numbers again.
        seed = (first.seed + 0x9E3779B1 * first.phases) % LARGEST_SEED
        body: dict[str, object] = {
            "prompt": prompt,
            "n_predict": limit,
            "seed": seed,
            "cache_prompt": True,
            "timings_per_token": True,
            "n_probs": 1,
            # The probability under the sampling distribution comes from candidates that are sorted
            # anyway; the raw one takes a softmax over the vocabulary more.
            "post_sampling_probs": request.logprobs != "raw",
            "return_progress": len(prompt) >= PROGRESS_FROM,
            **_sampling(request.sampling),
        }
        tags = self._tags
        kept = [
            text
            for text, token in ((tags.open, tags.open_id), (tags.close, tags.close_id))
            if token is not None
        ]
        if kept:
            body["preserved_tokens"] = kept
        if request.stop and not request.prompt.thinks:
            body["stop"] = list(request.stop)
        if len(runs) > 1:
            body["n_cmpl"] = len(runs)
        return body


def _sampling(parameters: SamplingParameters) -> dict[str, object]:
    """The order is that of vLLM and transformers; llama.cpp's own applies temperature last."""
    return {
        "temperature": parameters.temperature,
        "top_k": parameters.top_k,
        "top_p": parameters.top_p,
        "min_p": parameters.min_p,
        "repeat_penalty": 1.0,
        "samplers": ["temperature", "top_k", "top_p", "min_p"],
    }
