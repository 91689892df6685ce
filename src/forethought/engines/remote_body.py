"""The body of a chat completion request, and what a server turned out not to accept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from forethought.engines.protocol import Request
from forethought.engines.remote_address import Address
from forethought.errors import ForethoughtError, UserError

_BUDGET_NAMES = ("thinking_budget_tokens", "reasoning_budget_tokens", "thinking_token_budget")
"""llama-server's two names and vLLM's. Servers that know none of them ignore all (LM Studio,
Ollama) or reject them (OpenAI), and a rejected one is left out from then on."""


class Dialect:
    """What one server turned out not to accept; shared by an engine's requests, thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped: frozenset[str] = frozenset()
        self._renamed = False

    @property
    def dropped(self) -> frozenset[str]:
        return self._dropped

    @property
    def renamed(self) -> bool:
        return self._renamed

    def learn(self, dropped: frozenset[str], renamed: bool) -> None:
        """A body without these was accepted."""
        with self._lock:
            self._dropped |= dropped
            self._renamed |= renamed


class RequestBody:
    """The JSON body of one sample's request, and how it changes when a server rejects a part.

    Parts nobody asked for (usage, a drawn seed, names of the thought budget) are left out when the
    server's error names them. Parts the user asked for are never left out silently.
    """

    def __init__(
        self,
        request: Request,
        *,
        model: str,
        seed: int,
        address: Address,
        dialect: Dialect,
        explain: Callable[[int, str], ForethoughtError | None],
    ) -> None:
        self._address = address
        self._dialect = dialect
        self._explain = explain
        self._dropped = dialect.dropped
        self._renamed = dialect.renamed
        self._learned = False
        sampling, budget = request.sampling, request.budget
        body: dict[str, Any] = {
            "model": model,
            # Thoughts of earlier turns stay here: R1's template cuts them, and DeepSeek's API
            # answered 400 to them.
            "messages": [
                {"role": message.role, "content": message.content}
                for message in request.prompt.conversation
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "seed": seed,
        }
        # Off is every server's default, and a parameter that is not sent cannot be rejected.
        if sampling.top_p < 1.0:
            body["top_p"] = sampling.top_p
        if sampling.top_k > 0:
            body["top_k"] = sampling.top_k
        if sampling.min_p > 0.0:
            body["min_p"] = sampling.min_p
        if budget.max_tokens is not None:
            body["max_tokens"] = budget.max_tokens
        if budget.max_thought is not None:
            body.update(dict.fromkeys(_BUDGET_NAMES, budget.max_thought))
        # ``stop`` is never sent: most servers match it inside the thought too, where it would cut
        # the reasoning. ``n`` is not sent either: LM Studio and Ollama ignore it without a word,
        # llama-server counts the usage of one choice only; parallel requests work everywhere,
        # and servers that share prefixes lose nothing.
        self._body = body
        self._droppable = {"stream_options", *_BUDGET_NAMES} | (
            {"seed"} if request.seed is None else set()
        )

    @property
    def sends_seed(self) -> bool:
        """Whether the server was given the seed, so that it may be reported."""
        return not {"seed"} & self._droppable & self._dropped

    def encode(self) -> bytes:
        body = {
            key: value
            for key, value in self._body.items()
            if key not in self._dropped & self._droppable
        }
        if self._renamed and "max_tokens" in body:
            body["max_completion_tokens"] = body.pop("max_tokens")
        # ASCII with escapes: half a surrogate pair in a question must not be an error here.
        return json.dumps(body).encode("ascii")

    def rejected(self, status: int, message: str) -> bool:
        """Whether the body changed so that it is worth sending again. Raises for an option that
        the user set and the server does not take, and for a model it does not have."""
        sent = self._droppable & self._body.keys() - self._dropped
        named = {key for key in sent if key in message}
        if named:
            self._dropped |= named
            self._learned = True
            return True
        if "max_completion_tokens" in message and "max_tokens" in self._body and not self._renamed:
            self._renamed = self._learned = True
            return True
        for key in ("top_k", "min_p", "top_p", "seed", "temperature"):
            if key in self._body and key in message:
                option = "--" + key.replace("_", "-")
                raise UserError(
                    f"the server at {self._address.place} does not accept {option} "
                    f"{self._body[key]:g} (HTTP {status}: {message})."
                )
        return False

    def explain(self, status: int, message: str) -> ForethoughtError | None:
        """A better sentence than the server's own, if there is one."""
        return self._explain(status, message)

    def accepted(self) -> None:
        """The server took this body: later ones of this engine begin like it."""
        if self._learned:
            self._dialect.learn(self._dropped, self._renamed)
            self._learned = False
