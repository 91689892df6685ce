"""The one view of stored weights, whatever the file: tensors by their Hugging Face name.

`safetensors_weights` reads folders, `gguf_weights` reads GGUF files (dequantised, renamed, with
rotary rows permuted back), so that whoever loads or converts knows only this protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch


class Weights(Protocol):
    """Stored tensors by Hugging Face checkpoint name, experts one by one, as released.

    Block-quantised tensors (FP8, GGUF types) read as what they stand for: `names` lists no scales.
    """

    def names(self) -> Iterator[str]: ...

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading. KeyError for an unknown name."""

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` gives when none is asked for."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, contiguous; it may be a view of the mapped file (do not write).

        Raises ModelError with one sentence when the file is damaged.
        """

    def close(self) -> None: ...
