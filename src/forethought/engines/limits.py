"""The token limits of one request, resolved against the context: what fits, or a sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.tokenizer import Tokenizer
from forethought.engines.protocol import Request
from forethought.errors import UserError

WAIT = "Wait,"
CLOSING = "\nThat is enough thinking, I will answer now.\n{close}\n\n"
SHORT_CLOSING = "\n{close}\n\n"

LARGEST_SEED = 2**32 - 2
"""llama.cpp reads 2**32 - 1 as "draw one"; the other engines take the same range."""
MAX_SAMPLES = 1024
"""Samples of one request."""


@dataclass(frozen=True, slots=True)
class Forced:
    """Ids that are put into a sample without sampling, with their text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Token limits of one sample, resolved: ``closing`` fits into ``max_thought``."""

    max_tokens: int
    max_thought: int
    min_thought: int
    closing: Forced
    wait: Forced


def with_tag_ids(tags: ThinkTags, tokenizer: Tokenizer) -> ThinkTags:
    """The tags with their ids, where the vocabulary has one token for them."""
    opened = tokenizer.encode(tags.open, parse_special=True)
    closed = tokenizer.encode(tags.close, parse_special=True)
    return replace(
        tags,
        open_id=opened[0] if len(opened) == 1 else None,
        close_id=closed[0] if len(closed) == 1 else None,
    )


class RequestChecker:
    """Says what of a request is impossible, before anything is computed; resolves the rest.

    ``name``: the model's file or folder, for the sentences. ``vocabulary``: number of ids.
    """

    def __init__(
        self, name: str, tokenizer: Tokenizer, vocabulary: int, tags: ThinkTags, *, trained: int
    ) -> None:
        """``trained``: tokens of context that the network was trained for, which no option raises;
        0 where that is unknown."""
        self._name = name
        self._trained = trained
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._tags = tags
        self._forced_texts: dict[str, Forced] = {}

    def seed(self, request: Request) -> int:
        """Check all but the budget; the seed, drawn where none was given. Raises UserError."""
        if request.prompt.ids is None:
            raise UserError("a local engine needs a prompt with token ids.")
        if not request.prompt.ids:
            raise UserError("the prompt is empty; write a question.")
        if not 1 <= request.n <= MAX_SAMPLES:
            raise UserError(f"n is {request.n}; it must be between 1 and {MAX_SAMPLES}.")
        seed = request.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little") >> 1
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"the seed {seed} is out of range; take 0 to {LARGEST_SEED}.")
        if not 0 <= min(request.prompt.ids) <= max(request.prompt.ids) < self._vocabulary:
            raise UserError(
                f"the prompt has token ids that {self._name} does not have; it was made for "
                "another model."
            )
        if any(not 0 <= token < self._vocabulary for token in request.prefix_ids):
            raise UserError(
                f"the text to continue has token ids that {self._name} does not "
                "have; it was written by another model."
            )
        return seed

    def limits(self, request: Request, most: int, default: Callable[[int], int]) -> Limits:
        """Resolve the budget; overflow is said with by how many tokens. Raises UserError.

        ``most``: tokens one sample may hold. ``default``: from the prompt's length to the
        ``max_tokens`` of a request that names none.
        """
        assert request.prompt.ids is not None
        prompt = len(request.prompt.ids)
        budget = request.budget
        all_there_is = raise_it = ""
        if not self._trained or most < self._trained:
            raise_it = " or raise --ctx"
        else:
            all_there_is = f", all that {self._name} was trained for"
        if prompt >= most:
            raise UserError(
                f"the prompt is {prompt} tokens and the context {most}{all_there_is}: "
                f"{prompt - most + 1} too many; shorten it{raise_it}."
            )
        room = most - prompt
        if budget.max_tokens is not None:
            if budget.max_tokens < 1:
                raise UserError(f"--max-tokens is {budget.max_tokens}; it must be at least 1.")
            if budget.max_tokens > room:
                raise UserError(
                    f"the prompt ({prompt} tokens) and --max-tokens {budget.max_tokens} need "
                    f"{prompt + budget.max_tokens} tokens, {budget.max_tokens - room} more than "
                    f"the context of {most}{all_there_is}; lower --max-tokens{raise_it}."
                )
            max_tokens = budget.max_tokens
        else:
            max_tokens = default(prompt)
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
