"""What to do when a step does not fit into the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from forethought.errors import UserError
from forethought.models.causal_lm import CausalLM

Result = TypeVar("Result")

_GIB = 2**30
_log = logging.getLogger(__name__)


def fitted(
    networks: Sequence[CausalLM],
    compute: Callable[[], Result],
    undo: Callable[[], None],
) -> Result:
    """``compute()``. Where memory is too small for it, what it did is undone and it is called once
    more with networks that keep few activations, as they do from then on; the numbers are the same.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        if all(network.recompute for network in networks):
            raise
    # Outside of the handler: the error remembers the frames, and they what they computed.
    undo()
    for network in networks:
        network.recompute = True
    if networks[0].device.type == "cuda":
        torch.cuda.empty_cache()
    _log.warning(
        "Memory is too small for a pass with all that the way back needs: activations are computed "
        "twice from here on, which is slower; a smaller micro_batch_tokens avoids it."
    )
    return compute()


@contextmanager
def step_memory(device: torch.device, micro_batch_tokens: int) -> Iterator[None]:
    """Within it, running out of memory is a UserError that names the key to lower, and says what
    half of its value would save: what passes hold grows with their tokens, all else stays."""
    held = _allocated(device)
    try:
        yield
    except torch.OutOfMemoryError as error:
        # What the pass held when it broke off is the least that it needs. It is held still: the
        # error remembers the frames. A peak would have to be reset first, and that is others' too.
        reached = _allocated(device)
        half = max(1, micro_batch_tokens // 2)
        saved = (
            f", which saves at least {(reached - held) / 2 / _GIB:.1f} GiB"
            if reached > held
            else ""
        )
        raise UserError(
            f"{device} has too little memory for a pass of {micro_batch_tokens} tokens beside the "
            f"{held / _GIB:.1f} GiB that weights, optimiser and sampler hold: lower "
            f"micro_batch_tokens to {half}{saved}; results do not depend on it."
        ) from error


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
