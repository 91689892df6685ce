"""What to do when a step does not fit into the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from forethought.errors import UserError

_GIB = 2**30


@contextmanager
def step_memory(device: torch.device, micro_batch_tokens: int) -> Iterator[None]:
    """Within it, running out of memory is a UserError that names the key to lower, and says what
    half of its value would save: what passes hold grows with their tokens, all else stays."""
    on_cuda = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated(device) if on_cuda else held
        half = max(1, micro_batch_tokens // 2)
        # The pass broke off: what it held by then is the least that it needs.
        saved = f", which saves at least {(peak - held) / 2 / _GIB:.1f} GiB" if peak > held else ""
        raise UserError(
            f"{device} has too little memory for a pass of {micro_batch_tokens} tokens beside the "
            f"{held / _GIB:.1f} GiB that weights, optimiser and sampler hold: lower "
            f"micro_batch_tokens to {half}{saved}; results do not depend on it."
        ) from error
