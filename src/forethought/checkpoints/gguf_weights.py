"""The weights of a GGUF file for torch: dequantised, by Hugging Face name, one tensor at a time.

The file is mapped, so opening costs the header alone and reading one tensor costs that tensor.
Everything is checked on opening, against the sizes that the metadata state: every tensor of the
network is there with its shape and a readable type, and there is no other.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import torch

from forethought.checkpoints.gguf_config import config_from_header, keeps_kv_b_split, shown
from forethought.checkpoints.gguf_dequantize import NATIVE, block_of, can_dequantize, dequantize
from forethought.checkpoints.gguf_header import TensorInfo, read_header
from forethought.checkpoints.gguf_names import ROPE_FACTORS, Rotary, StoredTensor, plan
from forethought.errors import ModelError, UserError


class GGUFWeights:
    """Implements :class:`forethought.checkpoints.weights.Weights` over one GGUF file.

    `header` is what the file says, `config` the network it describes. Raises UserError if there is
    no such file, ModelError for a damaged one and for whatever the torch engine does not compute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.config = config_from_header(self.header)
        self._infos = {tensor.name: tensor for tensor in self.header.tensors}
        # Hugging Face name -> where it is: tensors of the file (two for kv_b) and the expert.
        self._sources: dict[str, tuple[tuple[StoredTensor, ...], int]] = {}
        split = keeps_kv_b_split(self.header)
        self._check(list(plan(self.config, split_kv_b=split)))
        self._data: mmap.mmap | None = self._map()

    def names(self) -> Iterator[str]:
        return iter(self._sources)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def shape(self, name: str) -> tuple[int, ...]:
        return self._sources[name][0][0].source_shape

    def dtype(self, name: str) -> torch.dtype:
        kind = self._infos[self._sources[name][0][0].name].type
        return NATIVE.get(kind, torch.float32)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        stored, index = self._sources[name]
        wanted = self.dtype(name) if dtype is None else dtype
        if len(stored) == 2:
            return self._joined(stored[0], stored[1], wanted)
        tensor = stored[0]
        first = index if tensor.layout == "experts" else 0
        raw = self._raw(self._infos[tensor.name], tensor.source_shape, first)
        order = None if tensor.rotary is None else _unpaired(tensor.rotary)
        vector = len(tensor.source_shape) == 1
        if order is not None and not vector:
            raw = raw[order]  # whole rows of blocks: cheaper than rows of numbers
        values = dequantize(raw, self._infos[tensor.name].type, wanted)
        if order is not None and vector:
            values = values[:, order]
        return values.reshape(tensor.source_shape)

    def close(self) -> None:
        """Let go of the file; it is unmapped when the last tensor that looks into it is gone."""
        self._data = None

    def _joined(self, k_b: StoredTensor, v_b: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
        """`kv_b_proj` from its two parts: for each head the key rows, then the value rows."""
        parts = []
        for tensor in (k_b, v_b):
            info = self._infos[tensor.name]
            values = dequantize(self._raw(info, tensor.shape, 0), info.type, dtype)
            parts.append(values.reshape(tensor.shape))
        return torch.cat((parts[0].transpose(1, 2), parts[1]), dim=1).reshape(k_b.source_shape)

    def _raw(self, info: TensorInfo, shape: tuple[int, ...], number: int) -> torch.Tensor:
        """Bytes of piece `number` of this shape in a tensor, (rows, bytes of a row), a view."""
        size, count = block_of(info.type)
        row_bytes = shape[-1] // size * count
        rows = 1
        for dimension in shape[:-1]:
            rows *= dimension
        start = self.header.data_offset + info.offset + number * rows * row_bytes
        if self._data is None:
            raise ModelError(f"{self.path} was closed while its weights were still read.")
        raw = torch.frombuffer(
            self._data, dtype=torch.uint8, count=rows * row_bytes, offset=start
        ).reshape(rows, row_bytes)
        native = NATIVE.get(info.type)
        # A file may align its tensors to single bytes; numbers in memory are aligned.
        return raw.clone() if native is not None and start % native.itemsize else raw

    def _check(self, expected: list[StoredTensor]) -> None:
        """Find every tensor of the plan in the file, with its shape, and no other tensor."""
        for tensor in expected:
            info = self._infos.get(tensor.name)
            if info is None:
                raise ModelError(
                    f"{self.path} lacks the tensor {tensor.name!r} of its {self.config.model_type} "
                    "network: convert the model again."
                )
            found = tuple(reversed(info.shape))
            if _squeezed(found) != _squeezed(tensor.shape):
                raise ModelError(
                    f"{self.path}: the tensor {tensor.name!r} has the shape {found}, and its "
                    f"metadata say {tensor.shape}: convert the model again."
                )
            if tensor.layout in {"k_b", "v_b"}:
                before = self._sources.get(tensor.sources[0], ((), 0))[0]
                self._sources[tensor.sources[0]] = ((*before, tensor), 0)
                continue
            for index, source in enumerate(tensor.sources):
                self._sources[source] = ((tensor,), index)
        known = {tensor.name for tensor in expected} | {ROPE_FACTORS}
        for info in self.header.tensors:
            # attn_rot_embd: rotary tables of the first converters, which nobody reads.
            if info.name not in known and not info.name.endswith(".attn_rot_embd.weight"):
                raise ModelError(
                    f"{self.path} has the tensor {shown(info.name)!r}, which the torch engine does "
                    "not compute: use the llama.cpp engine."
                )
        readable: dict[str, bool] = {}
        for tensor in expected:
            info = self._infos[tensor.name]
            if info.type not in readable:
                readable[info.type] = can_dequantize(info.type)
            if not readable[info.type]:
                raise ModelError(
                    f"{self.path}: the tensor {info.name!r} has the type {info.type}, which cannot "
                    "be turned into numbers for torch: use the llama.cpp engine, or another "
                    "quantisation."
                )

    def _map(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as stream:
                # A private map: torch wants writable memory, and the file must not change.
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path} cannot be read ({error}).") from None
        if len(data) < self.header.file_size:
            raise ModelError(f"{self.path} was cut short while it was opened: download it again.")
        return data


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Leading dimensions of 1 dropped: GGUF does not tell a vector from a matrix of one row."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _unpaired(rotary: Rotary) -> torch.Tensor:
    """Row i of the Hugging Face tensor is row `_unpaired(rotary)[i]` of the GGUF tensor."""
    return torch.argsort(torch.tensor(rotary.rows()))
