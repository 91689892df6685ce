"""Processes that train one model together: data-parallel, over torch.distributed.

Every rank holds the whole network and optimiser, and every rank knows the whole rollout: only
sampling, verdicts and passes are shared out. What is computed where is a function of the work
alone; sums over ranks differ from those of one rank in rounding only. Tensors travel, no objects.

A rank of one does nothing and imports nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import torch

from forethought.errors import ModelError, UserError

RANK, COUNT, LOCAL = "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Environment variables by which torchrun tells a process its place."""
BUCKET = 1 << 25
"""Numbers that are summed at once, at most (a larger tensor by itself): 128 MiB of float32."""
_PATIENCE: Final = timedelta(minutes=30)
"""How long a rank waits for the others: verdicts and evaluations are not equally long for all."""


class Ranks:
    """This process's place among ``count``. Collective calls are made by all, in the same order;
    they raise ModelError where another rank has ended."""

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | str = "cpu") -> None:
        if not 0 <= rank < count:
            raise ValueError(f"rank {rank} of {count}")
        self.rank, self.count = rank, count
        self._device = torch.device(device)

    @property
    def first(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def own(self, count: int) -> range:
        """Which of ``count`` things are this rank's to do."""
        return range(self.rank, count, self.count)

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""
        if self.alone:
            return
        import torch.distributed as dist

        with torch.no_grad():
            for group in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                there = flat.to(self._device)
                _collective(partial(dist.all_reduce, there))
                start = 0
                for tensor in group:
                    tensor.copy_(there[start : start + tensor.numel()].view_as(tensor))
                    start += tensor.numel()

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the ranks, in float64."""
        if self.alone:
            return list(numbers)
        vector = torch.tensor(numbers, dtype=torch.float64)
        self.sum_([vector])
        return [float(value) for value in vector.tolist()]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any rank has it."""
        if self.alone:
            return flags
        return tuple(total > 0 for total in self.totals([float(flag) for flag in flags]))

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks in their order, on the CPU; one axis, of any length."""
        if self.alone:
            return [tensor]
        import torch.distributed as dist

        # As bytes: not every backend knows every kind of number.
        raw = tensor.cpu().contiguous().view(torch.uint8)
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(raw)
        self.sum_([lengths])
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(raw)] = raw
        there = padded.to(self._device)
        found = [torch.empty_like(there) for _ in range(self.count)]
        _collective(partial(dist.all_gather, found, there))
        return [
            one.cpu()[:length].clone().view(tensor.dtype)
            for one, length in zip(found, lengths.tolist(), strict=True)
        ]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all ranks, in their order."""
        if self.alone:
            return [data]
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _NO_BYTES
        return [bytes(one.numpy().tobytes()) for one in self.gather(own)]

    def wait(self) -> None:
        """Until all are here."""
        self.totals([0.0])


_LOST: Final = re.compile("onnection|ocket|imed out|Timeout|NCCL|aborted|peer")
"""What the backends say when somebody has gone."""
_NO_BYTES: Final = torch.zeros(0, dtype=torch.uint8)


def _collective(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise ModelError(
            "another process of this run has ended, so this one cannot go on: what it said tells "
            f"why ({str(error).splitlines()[0][:200]})."
        ) from error


def _buckets(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors that travel together: of one dtype, and few enough that their copy is small."""
    full: list[list[torch.Tensor]] = []
    filling: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        bucket = filling.setdefault(tensor.dtype, [])
        if bucket and sum(one.numel() for one in bucket) + tensor.numel() > BUCKET:
            full.append(bucket)
            bucket = filling[tensor.dtype] = []
        bucket.append(tensor)
    return [*full, *filling.values()]


def rank_here() -> int:
    """This process's rank, without joining the others."""
    return _number(RANK) if _number(COUNT, 1) > 1 else 0


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that torchrun (or ``forethought train --gpus``) started, of which this is one; a
    rank of one where nobody did.

    On CUDA each takes the GPU of its place on the host. Raises UserError where that is missing, and
    where a variable of torchrun's is none.
    """
    count = _number(COUNT, 1)
    if count <= 1:
        yield Ranks()
        return
    import torch.distributed as dist

    rank, wanted = _number(RANK), torch.device(device)
    if wanted.type == "cuda":
        place, gpus = _number(LOCAL), torch.cuda.device_count()
        if wanted.index is not None:
            raise UserError(
                f"device is {device!r}, and {count} processes train together: set device to "
                '"cuda", and each takes a GPU of its own.'
            )
        if place >= gpus:
            raise UserError(f"process {place} of this host has no GPU: torch finds {gpus}.")
        torch.cuda.set_device(place)
        wanted = torch.device("cuda", place)
    try:
        dist.init_process_group("nccl" if wanted.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the {count} processes of this run do not find each other: start them by torchrun or "
            f"by --gpus ({str(error).splitlines()[0][:200]})."
        ) from error
    try:
        yield Ranks(rank, count, wanted)
    finally:
        dist.destroy_process_group()


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if value < 0:
        raise UserError(
            f"the environment variable {name} is {text!r}, and torchrun sets it to a number: start "
            "the run by torchrun or --gpus, or unset it."
        )
    return value
