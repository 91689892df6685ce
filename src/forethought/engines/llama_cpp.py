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

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

from forethought.dialogue.tags import ThinkTags
from forethought.engines.handle import StreamHandle
from forethought.engines.llama_loading import LlamaOptions, LoadedLlama
from forethought.engines.llama_sample import (
    CLOSING,
    SHORT_CLOSING,
    WAIT,
    Forced,
    Limits,
    SampleRun,
)
from forethought.engines.llama_server import Chunk, LlamaServer
from forethought.engines.llama_tokenizer import LlamaTokenizer
from forethought.engines.protocol import (
    Capabilities,
    PrefillProgress,
    Request,
    SamplingParameters,
)
from forethought.errors import ModelError, UserError

LARGEST_SEED = 2**32 - 2
"""llama.cpp reads 2**32 - 1 as "draw one"."""
MAX_SAMPLES = 1024
"""Samples of one request."""
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
        self._tags = self._with_ids(tags or ThinkTags())
        self._forced_texts: dict[str, Forced] = {}

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
        if request.prompt.ids is None:
            raise UserError("the llama.cpp engine needs a prompt with token ids.")
        if not request.prompt.ids:
            raise UserError("the prompt is empty; write a question.")
        if not 1 <= request.n <= MAX_SAMPLES:
            raise UserError(f"n is {request.n}; it must be between 1 and {MAX_SAMPLES}.")
        seed = request.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little") >> 1
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"the seed {seed} is out of range; take 0 to {LARGEST_SEED}.")
        vocabulary = len(self._tokenizer.vocabulary)
        if any(not 0 <= token < vocabulary for token in request.prefix_ids):
            raise UserError(
                f"the text to continue has token ids that {self._options.path.name} does not "
                "have; it was written by another model."
            )
        limits = self._limits(request)
        request = replace(request, seed=seed)
        handle = StreamHandle(lambda handle: self._work(handle, request, limits, seed))
        self._handles.add(handle)
        return handle

    def _limits(self, request: Request) -> Limits:
        """Resolve the budget against the context; overflow is said with by how many tokens."""
        assert request.prompt.ids is not None
        prompt = len(request.prompt.ids)
        most = self._options.most_context
        budget = request.budget
        if prompt >= most:
            raise UserError(
                f"the prompt is {prompt} tokens and the context {most}: "
                f"{prompt - most + 1} too many; shorten it or raise --ctx."
            )
        room = most - prompt
        if budget.max_tokens is not None:
            if budget.max_tokens < 1:
                raise UserError(f"--max-tokens is {budget.max_tokens}; it must be at least 1.")
            if budget.max_tokens > room:
                raise UserError(
                    f"the prompt ({prompt} tokens) and --max-tokens {budget.max_tokens} need "
                    f"{prompt + budget.max_tokens} tokens, {budget.max_tokens - room} more than "
                    f"the context of {most}; lower --max-tokens or raise --ctx."
                )
            max_tokens = budget.max_tokens
        else:
            # Up to what is loaded; a longer context is loaded when the prompt takes half of it.
            max_tokens = self._loaded.context - prompt
            if max_tokens < self._loaded.context // 2:
                affordable = self._loaded.affordable_context()
                max_tokens = min(room, affordable - prompt)
                if max_tokens < 1:
                    raise ModelError(
                        f"the prompt is {prompt} tokens and there is memory for {affordable}; "
                        "shorten it or free some memory."
                    )
        none = Forced((), "")
        if not request.prompt.thinks:
            return Limits(max_tokens, 0, 0, none, none)
        most_thought = max_tokens - min(256, max_tokens // 4)
        wanted = budget.max_thought
        if wanted is not None and wanted < budget.min_thought:
            raise UserError(
                f"--max-thought {wanted} is below --min-thought {budget.min_thought}; "
                "raise the one or lower the other."
            )
        max_thought = most_thought if wanted is None else min(wanted, most_thought)
        if budget.min_thought > max_thought:
            raise UserError(
                f"--min-thought {budget.min_thought} leaves no room for an answer in "
                f"{max_tokens} tokens; at most {max_thought} may be thought."
            )
        closing = self._forced(CLOSING.format(close=self._tags.close))
        if len(closing.ids) * 2 > max_thought:
            closing = self._forced(SHORT_CLOSING.format(close=self._tags.close))
        in_thought = request.prompt.starts_in_thought or request.prompt.mid_thought
        close_at_once = bool(request.prefix_ids) and wanted == 0
        if in_thought and len(closing.ids) > max_thought and not close_at_once:
            least = len(closing.ids)
            if wanted is not None and wanted < least:
                raise UserError(
                    f"--max-thought {wanted} is too small: closing a thought alone takes {least} "
                    "tokens here; take at least that, or 0 for no thought at all."
                )
            raise UserError(
                f"{max_tokens} tokens are too few for a thought and an answer; "
                f"take --max-tokens {least * 4} or more."
            )
        wait = self._forced(WAIT) if budget.min_thought else none
        return Limits(max_tokens, max_thought, budget.min_thought, closing, wait)

    def _forced(self, text: str) -> Forced:
        found = self._forced_texts.get(text)
        if found is None:
            found = Forced(tuple(self._tokenizer.encode(text, parse_special=True)), text)
            self._forced_texts[text] = found
        return found

    def _with_ids(self, tags: ThinkTags) -> ThinkTags:
        opened = self._tokenizer.encode(tags.open, parse_special=True)
        closed = self._tokenizer.encode(tags.close, parse_special=True)
        return replace(
            tags,
            open_id=opened[0] if len(opened) == 1 else None,
            close_id=closed[0] if len(closed) == 1 else None,
        )

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
