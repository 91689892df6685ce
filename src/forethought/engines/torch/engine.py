"""The torch engine: our own networks behind the one protocol, on CPU and CUDA.

A sample is a function of (weights, prompt, parameters, seed, index): the noise of each draw depends
on (seed, index, position) alone. Its bits depend on the number of rows that are computed together
(the bucket) and on nothing else that neighbours do; with ``reproducible`` there is one bucket.
Across buckets the tokens are the same unless a draw falls within about 1e-5 of a boundary.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import NetworkConfig
from forethought.checkpoints.network_tensors import cache_bytes_per_token
from forethought.dialogue.tags import ThinkTags
from forethought.engines.handle import StreamHandle
from forethought.engines.limits import RequestChecker, with_tag_ids
from forethought.engines.machine import available_memory
from forethought.engines.protocol import Capabilities, Request
from forethought.engines.torch.job import Job, Vocabulary
from forethought.engines.torch.kernels import Precision
from forethought.engines.torch.programs import Program, make_program
from forethought.engines.torch.sampler import check_sampling
from forethought.engines.torch.scheduler import Scheduler, raise_error
from forethought.engines.torch.speculate import Acceptance
from forethought.errors import ModelError
from forethought.models.causal_lm import CausalLM

MOST_ROWS = 64
"""Samples computed side by side; more wait for a row."""
_RESERVE = 256 << 20
"""Bytes that stay free beside the cache: activations, logits, the program itself."""


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How a network is run. ``context``: tokens of one sample that a request may fill unasked;
    ``most_context``: that the network was trained for. ``share`` keeps the network's parameters
    where they are, for whoever trains them too."""

    name: str
    context: int
    most_context: int
    precision: Precision = "float32"
    threads: int | None = None
    rows: int = MOST_ROWS
    share: bool = False
    speculate: bool = False
    """Guess with the network's MTP module where one greedy sample runs alone."""
    reproducible: bool = False
    """Every request is reproducible, whatever it says itself."""


class TorchEngine:
    """Implements :class:`forethought.engines.protocol.Engine`.

    Takes over ``network`` (unless ``options.share``): its weights are laid out anew, and it must
    not be used again. ``ends``: ids that end a turn.
    """

    name = "torch"

    def __init__(
        self,
        network: CausalLM,
        tokenizer: HFTokenizer,
        options: TorchOptions,
        *,
        ends: Sequence[int] = (),
        tags: ThinkTags | None = None,
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._config: NetworkConfig = network.config
        self._tags = with_tag_ids(tags or ThinkTags(), tokenizer)
        size = min(tokenizer.size, network.config.vocab_size)
        self._checker = RequestChecker(
            options.name,
            tokenizer,
            network.config.vocab_size,
            self._tags,
            trained=network.config.max_position_embeddings,
        )
        self._program = make_program(network, options.precision, share=options.share)
        vocabulary = Vocabulary(
            tokenizer,
            self._tags,
            tokenizer.vocabulary,
            frozenset(token for token in ends if token < size),
            size,
        )
        self._scheduler = Scheduler(
            self._program,
            vocabulary,
            rows=options.rows,
            threads=options.threads,
            room=self._has_room,
            speculate=options.speculate,
        )
        self._handles: weakref.WeakSet[StreamHandle] = weakref.WeakSet()
        self._closed = False

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
            lora=False,
        )

    @property
    def tokenizer(self) -> HFTokenizer:
        return self._tokenizer

    @property
    def tags(self) -> ThinkTags:
        """The think tags, with their ids where the vocabulary has one token for them."""
        return self._tags

    @property
    def context_length(self) -> int:
        """Tokens one sample may hold at most, prompt included."""
        return self._options.most_context

    @property
    def program(self) -> Program:
        """The network as it is computed, for whoever scores text while no request runs (it keeps
        buffers), under `torch.inference_mode`."""
        return self._program

    @property
    def steps(self) -> int:
        """Decode steps computed so far, prompts not counted; for benchmarks."""
        return self._scheduler.steps

    @property
    def acceptance_counts(self) -> Acceptance:
        """How many guesses there were, and how many were right."""
        return self._scheduler.acceptance

    @property
    def acceptance(self) -> float | None:
        """Share of the MTP module's guesses that were right; None where there were none."""
        return self._scheduler.acceptance.rate

    def close(self) -> None:
        """Cancel what runs, and let go of the weights."""
        if self._closed:
            return
        self._closed = True
        for handle in list(self._handles):
            handle.cancelled = True
        self._scheduler.close()
        del self._program

    # -- asking

    def submit(self, request: Request) -> StreamHandle:
        """Start a request. Raises UserError for what does not fit, before anything is computed;
        ModelError after :meth:`close`."""
        if self._closed:
            raise ModelError("the model was closed; load it again to ask it something.")
        seed = self._checker.seed(request)
        check_sampling(request.sampling)
        limits = self._checker.limits(request, self._options.most_context, self._default_tokens)
        always = self._options.reproducible
        request = replace(request, seed=seed, reproducible=request.reproducible or always)

        def work(handle: StreamHandle) -> None:
            job = Job(handle, request, limits, seed, time.perf_counter())
            self._scheduler.add(job)
            job.ended.wait()
            raise_error(job)

        handle = StreamHandle(work)
        self._handles.add(handle)
        return handle

    def _default_tokens(self, prompt: int) -> int:
        """Up to the usual context; a prompt that takes half of it gets what the network allows."""
        left = self._options.context - prompt
        if left < self._options.context // 2:
            left = self._options.most_context - prompt
        return left

    def _has_room(self, rows: int, tokens: int) -> bool:
        """Whether the cache of this many rows fits into what is free now."""
        if self._program.device.type != "cpu":
            import torch

            free = torch.cuda.mem_get_info(self._program.device)[0]
        else:
            free = available_memory()
        width = 2 if self._options.precision == "bfloat16" else 4
        need = rows * tokens * cache_bytes_per_token(self._config, width)
        return need <= self._scheduler.cache_bytes + max(0, free - _RESERVE)
