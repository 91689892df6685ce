"""A sample as the JSON object that ``--json`` prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from forethought.engines.protocol import Sample


def sample_object(
    sample: Sample,
    model: str,
    *,
    prompt_ids: Sequence[int] | None = None,
    with_ids: bool = False,
    with_logprobs: bool = False,
) -> dict[str, Any]:
    """The keys that users may rely on, in their order; ``--ids`` and ``--logprobs`` add theirs.

    Log-probabilities stand one to one with ``ids``, null at tokens that were put there (the close
    of a budget), not sampled. A probability of zero has no logarithm that JSON can hold: null too.
    """
    usage, timings = sample.usage, sample.timings
    result: dict[str, Any] = {
        "thought": sample.thought,
        "answer": sample.answer,
        "final_answer": sample.final_answer,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "thought_tokens": usage.thought_tokens,
            "answer_tokens": usage.answer_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "timings": {
            "first_token": timings.first_token,
            "first_answer": timings.first_answer,
            "total": timings.total,
            "tokens_per_second": timings.tokens_per_second,
        },
        "stop_reason": sample.stop_reason,
        "model": model,
        "seed": sample.seed,
    }
    if with_ids:
        result["prompt_ids"] = None if prompt_ids is None else list(prompt_ids)
        result["ids"] = None if sample.ids is None else list(sample.ids)
    if with_logprobs:
        result["logprobs"] = (
            None
            if sample.logprobs is None
            else [p if p is not None and math.isfinite(p) else None for p in sample.logprobs]
        )
    return result
