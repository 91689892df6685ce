"""The weights of a Hugging Face folder: one safetensors file or many, mapped, FP8 in blocks too.

The safetensors library checks a header in full (offsets without holes or overlap, inside the file,
sizes that fit shapes, 100 MB at most); it takes the last of two equal names, so those are looked
for here. The whole folder's headers are read when it is opened, so a missing or damaged shard is
known before any work is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open

from forethought.checkpoints.folder import damaged, find_weights, printable, safetensors_header
from forethought.checkpoints.fp8 import dequantize_blocks, grid_shape
from forethought.checkpoints.network_config import DeepseekConfig, NetworkConfig
from forethought.checkpoints.network_tensors import (
    HEAD,
    checkpoint_tensors,
    is_mtp_copy,
    layer_of,
    mtp_tensors,
)
from forethought.checkpoints.weights import Weights
from forethought.errors import ModelError

SCALE = "_scale_inv"
_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BLOCK = (128, 128)
# Buffers that old versions of transformers saved: they follow from the configuration.
_BUFFER = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")


@dataclass(frozen=True, slots=True)
class _Stored:
    shard: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class SafetensorsWeights:
    """`Weights` over the safetensors files of a folder.

    With a `config` its FP8 block size and its dtype are used; check names and shapes against it
    with `check_tensors`. Raises UserError or ModelError, one sentence, where the folder is no
    whole, safe checkpoint.
    """

    def __init__(self, folder: Path, config: NetworkConfig | None = None) -> None:
        self.folder = folder
        shards, index = find_weights(folder)
        headers = {shard.name: _read_header(shard) for shard in shards}
        if index is None:
            stored = dict(headers[shards[0].name])
        else:
            stored = {}
            for name, shard_name in index.items():
                if name not in headers[shard_name]:
                    raise ModelError(
                        f"{folder / shard_name} lacks {printable(name)}, which the index "
                        "promises: the download is not complete or mixes versions, get it again."
                    )
                stored[name] = headers[shard_name][name]
        self._stored = {name: entry for name, entry in stored.items() if not name.endswith(SCALE)}
        self._scales = {name: entry for name, entry in stored.items() if name.endswith(SCALE)}
        self._block = _BLOCK
        self._default = torch.float32
        if config is not None:
            self._default = getattr(torch, config.dtype)
            if config.quantization is not None:
                self._block = config.quantization.block_size
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Every FP8 weight has the scales that cover it, and every scale an FP8 weight."""
        for name, entry in self._stored.items():
            if entry.dtype.itemsize > 1 or not entry.dtype.is_floating_point:
                continue
            scale = self._scales.get(name + SCALE)
            where = f"{entry.shard}: {printable(name)}"
            if entry.dtype != torch.float8_e4m3fn or len(entry.shape) != 2:
                raise ModelError(f"{where} is FP8 of a kind that is not supported: only e4m3.")
            if scale is None:
                raise ModelError(
                    f"{where} is FP8, and the scales of its blocks ({SCALE}) are missing."
                )
            grid = grid_shape(entry.shape[0], entry.shape[1], self._block)
            if scale.shape != grid or not scale.dtype.is_floating_point:
                raise ModelError(
                    f"{where}{SCALE} has shape {list(scale.shape)}; blocks of {self._block[0]} x "
                    f"{self._block[1]} of a weight {list(entry.shape)} need {list(grid)}."
                )
        for name, entry in self._scales.items():
            weight = self._stored.get(name.removesuffix(SCALE))
            if weight is None or weight.dtype != torch.float8_e4m3fn:
                raise ModelError(f"{entry.shard}: {printable(name)} belongs to no FP8 weight.")

    def names(self) -> Iterator[str]:
        """All tensors, without the scales of FP8 blocks."""
        return iter(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading. KeyError for an unknown name."""
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that `read` gives when none is asked for; FP8 reads as the config's dtype."""
        return self._default if name + SCALE in self._scales else self._stored[name].dtype

    def quantized(self, name: str) -> bool:
        """Whether the tensor is stored as FP8 blocks."""
        return name + SCALE in self._scales

    def shard(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._stored[name].shard

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor on the CPU, contiguous; a view of the mapped file where no dtype changes.

        FP8 blocks are multiplied out in fp32. Raises ModelError when the file is damaged.
        """
        tensor = self._raw(self._stored[name].shard, name)
        if self.quantized(name):
            scale = self._raw(self._scales[name + SCALE].shard, name + SCALE)
            return dequantize_blocks(tensor, scale, self._block, dtype or self._default)
        return tensor if dtype is None else tensor.to(dtype)

    def read_blocks(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The e4m3 values and the scales of a quantised tensor, as stored. KeyError for others."""
        scale = self._scales[name + SCALE]
        values = self._raw(self._stored[name].shard, name)
        return values, self._raw(scale.shard, name + SCALE)

    def _raw(self, shard: Path, name: str) -> torch.Tensor:
        # A handle for each tensor (0.2 ms): its pages leave memory with the tensor, not with the
        # file, so that converting while loading costs no second copy of the weights.
        try:
            with safe_open(shard, framework="pt") as handle:
                tensor: torch.Tensor = handle.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise _damaged(shard, error) from None
        return tensor

    def close(self) -> None:
        """Nothing stays open between reads."""


def _damaged(path: Path, error: Exception) -> ModelError:
    return damaged(path, str(error).removeprefix("Error while deserializing header: "))


def _read_header(path: Path) -> dict[str, _Stored]:
    """Name, shape and dtype of every tensor of a file that the library accepts."""
    header = safetensors_header(path)
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise _damaged(path, error) from None
    found: dict[str, _Stored] = {}
    for name, entry in header.items():
        if name == "__metadata__" or not isinstance(entry, dict):
            continue
        kind, shape = entry["dtype"], entry["shape"]
        dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
        if dtype is None:
            raise ModelError(
                f"{path}: {printable(name)} is stored as {kind}, which is not supported."
            )
        found[name] = _Stored(path, tuple(cast("list[int]", shape)), dtype)
    return found


def check_tensors(weights: Weights, config: NetworkConfig, where: Path | str | None = None) -> None:
    """Raise ModelError unless `weights` are those of `config`, by name, shape and kind of number.

    `where` stands before the sentence; without it, the folder of `weights` if they have one.

    MTP modules may be whole, without their copies of embedding and head, or absent; rotary
    buffers and a stored copy of a tied head are passed over.
    """
    if where is None and isinstance(weights, SafetensorsWeights):
        where = weights.folder
    expected = checkpoint_tensors(config)
    optional = mtp_tensors(config)
    wrong = [
        f"{name} has shape {list(weights.shape(name))}, and config.json means {list(shape)}"
        for name, shape in (expected | optional).items()
        if name in weights and weights.shape(name) != shape
    ]
    missing = [name for name in expected if name not in weights]
    modules = {layer_of(name) for name in optional if name in weights}
    missing += [
        name
        for name in optional
        if layer_of(name) in modules and name not in weights and not is_mtp_copy(name)
    ]
    known = expected.keys() | optional.keys()
    extra, whole_numbers = [], []
    for name in weights.names():
        if name in known:
            if not weights.dtype(name).is_floating_point:
                whole_numbers.append(name)
        elif not _tolerated(name, config):
            extra.append(name)
    for problems, text in (
        (wrong, "{0}"),
        (missing, "{0} is missing"),
        (extra, "{0} is no part of the {1} that config.json describes"),
        (whole_numbers, "{0} holds whole numbers (is it quantised in another way?)"),
    ):
        if problems:
            said = text.format(printable(problems[0]), config.model_type)
            more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
            raise ModelError(
                f"{_prefix(where)}{said}{more}: weights and config.json do not belong together, or "
                "the download is not complete."
            )


def _tolerated(name: str, config: NetworkConfig) -> bool:
    if _BUFFER.fullmatch(name) or (name == HEAD and config.tie_word_embeddings):
        return True
    layer = layer_of(name)
    beyond = layer is not None and layer >= config.num_hidden_layers
    # Modules that the weights bring and the config does not ask for.
    return beyond and isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers == 0


def _prefix(where: Path | str | None) -> str:
    return "" if where is None else f"{where}: "


def check_finite(name: str, tensor: torch.Tensor, where: Path | str | None = None) -> None:
    """Raise ModelError if the tensor holds NaN or an infinity; one pass, no copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    low, high = torch.aminmax(tensor)
    if not (bool(torch.isfinite(low)) and bool(torch.isfinite(high))):
        bad = "NaN" if bool(torch.isnan(low)) or bool(torch.isnan(high)) else "an infinity"
        raise ModelError(
            f"{_prefix(where)}{name} holds {bad}: the weights are damaged, or their training "
            "diverged; get another copy or an earlier checkpoint."
        )
