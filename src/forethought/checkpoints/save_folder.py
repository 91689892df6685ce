"""Write a Hugging Face folder that transformers opens: config, weights in shards, tokenizer.

Everything goes into a folder beside the target, which is renamed last: whatever has the target's
name is whole. `config.json` is written last of all, so that not even what a killed run leaves
under the temporary name looks like a model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from forethought.checkpoints.folder import (
    CONFIG,
    GENERATION_CONFIG,
    JSON,
    SINGLE_WEIGHTS,
    TOKENIZER_FILES,
    WEIGHTS_INDEX,
    printable,
)
from forethought.checkpoints.hf_config import to_hf
from forethought.checkpoints.network_config import DtypeName, NetworkConfig
from forethought.checkpoints.network_tensors import (
    GATE_BIAS,
    HEAD,
    checkpoint_tensors,
    is_mtp_copy,
    layer_of,
    mtp_layers_present,
    mtp_tensors,
)
from forethought.checkpoints.safetensors_weights import SCALE
from forethought.errors import ModelError, UserError

SHARD_BYTES = 5_000_000_000
_NAMES: Mapping[torch.dtype, DtypeName] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def save_folder(
    target: Path,
    config: NetworkConfig,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    source: Path | None = None,
    generation_config: Mapping[str, JSON] | None = None,
    tokenizer_files: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `tensors` (checkpoint names, experts one by one) and what belongs to them to `target`.

    `tensors` is read once, in order; at most one shard is in memory. A tied head is not written.
    FP8 values go with their `_scale_inv`, and `config.quantization` must say so; else it is left
    out of config.json, whose dtype is that of most of the tensors. Tokenizer files, the chat
    template and the generation config come from `source` (a model folder); `tokenizer_files` (by
    file name) and `generation_config` go before those. Raises UserError if `target` is a file or
    a folder with something in it, ModelError if the tensors are not those of `config` or the disk
    is full; nothing is left behind then.
    """
    _check_target(target)
    _check_names(tokenizer_files or {})
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".unfinished", dir=target.parent)
        )
        written = _Shards(temporary, config, shard_bytes)
        for name, tensor in tensors:
            written.add(name, tensor)
        saved = written.finish()
        _write_companions(temporary, saved, source, generation_config, tokenizer_files or {})
        write_json(temporary / CONFIG, to_hf(saved))
        _publish(temporary, target)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk is to safetensors
        reason = getattr(error, "strerror", None) or printable(str(error), 120).rstrip(".")
        raise ModelError(
            f"{target} cannot be written ({reason}): check the room on the disk "
            "and the folder's permissions."
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_target(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            raise UserError(
                f"{target} exists and is not empty: give another name, or remove it first."
            )
    elif target.exists() or target.is_symlink():
        raise UserError(f"{target} is a file: give the name of a new folder.")


def _check_names(names: Iterable[str]) -> None:
    for name in names:
        if name not in TOKENIZER_FILES:
            raise ValueError(f"{name!r} is no tokenizer file: one of {', '.join(TOKENIZER_FILES)}")


class _Shards:
    """Collects tensors and writes a file whenever one is full."""

    def __init__(self, folder: Path, config: NetworkConfig, limit: int) -> None:
        self.folder = folder
        self.config = config
        self.limit = limit
        self.open: dict[str, torch.Tensor] = {}
        self.open_bytes = 0
        self.files: list[Path] = []
        self.index: dict[str, str] = {}
        self.total_bytes = 0
        self.bytes_of: dict[torch.dtype, int] = {}
        self.expected = checkpoint_tensors(config) | mtp_tensors(config)
        self.scales: set[str] = set()
        self.fp8: set[str] = set()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if name == HEAD and self.config.tie_word_embeddings:
            return
        self._check(name, tensor)
        if self.open and self.open_bytes + tensor.nbytes > self.limit:
            self._write()
        self.open[name] = own_storage(tensor)
        self.open_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes
        # Remembered now: the file's final name depends on how many there will be.
        self.index[name] = str(len(self.files))
        if tensor.dtype in _NAMES and not name.endswith((SCALE, GATE_BIAS)):
            self.bytes_of[tensor.dtype] = self.bytes_of.get(tensor.dtype, 0) + tensor.nbytes

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name in self.index:
            raise ModelError(f"{name} was given twice, so the model cannot be saved.")
        if name.endswith(SCALE):
            self.scales.add(name.removesuffix(SCALE))
            return
        if tensor.dtype == torch.float8_e4m3fn:
            self.fp8.add(name)
        elif tensor.dtype not in _NAMES:
            raise ModelError(f"{name} is {tensor.dtype}, which a checkpoint does not hold.")
        shape = self.expected.get(name)
        if shape != tuple(tensor.shape):
            wanted = "is no part of this network" if shape is None else f"must be {list(shape)}"
            raise ModelError(
                f"{name} of shape {list(tensor.shape)} {wanted}, so the model cannot be saved."
            )

    def _write(self) -> None:
        path = self.folder / f"shard-{len(self.files)}.safetensors"
        save_file(self.open, path, metadata={"format": "pt"})
        sync_file(path)
        self.files.append(path)
        self.open, self.open_bytes = {}, 0

    def finish(self) -> NetworkConfig:
        """Write the rest and the index; the config as it is on disk."""
        self._check_whole()
        if self.open:
            self._write()
        if len(self.files) == 1:
            self.files[0].rename(self.folder / SINGLE_WEIGHTS)
        else:
            count = len(self.files)
            names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
            for path, name in zip(self.files, names, strict=True):
                path.rename(self.folder / name)
            index = {name: names[int(file)] for name, file in sorted(self.index.items())}
            write_json(
                self.folder / WEIGHTS_INDEX,
                {"metadata": {"total_size": self.total_bytes}, "weight_map": {**index}},
            )
        update: dict[str, object] = {}
        if self.bytes_of and not self.fp8:
            update["dtype"] = _NAMES[max(self.bytes_of, key=lambda dtype: self.bytes_of[dtype])]
        if not self.fp8:
            update["quantization"] = None
        modules = mtp_layers_present(self.config, self.index)
        if getattr(self.config, "num_nextn_predict_layers", modules) != modules:
            update["num_nextn_predict_layers"] = modules
        return self.config.model_copy(update=update)

    def _check_whole(self) -> None:
        needed = list(checkpoint_tensors(self.config))
        modules = {layer_of(name) for name in mtp_tensors(self.config) if name in self.index}
        needed += [
            name
            for name in mtp_tensors(self.config)
            if layer_of(name) in modules and not is_mtp_copy(name)
        ]
        missing = [name for name in needed if name not in self.index]
        if missing:
            raise ModelError(
                f"{missing[0]} was not given (one of {len(missing)} missing), so the model cannot "
                "be saved."
            )
        if self.fp8 != self.scales or (self.fp8 and self.config.quantization is None):
            odd = sorted(self.fp8 ^ self.scales) or sorted(self.fp8)
            raise ModelError(
                f"{odd[0]}: FP8 values, their {SCALE} and the config's quantization belong "
                "together, so the model cannot be saved."
            )


def own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU, contiguous, alone in its storage (which files require)."""
    tensor = tensor.detach().to("cpu").contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor


def _write_companions(
    folder: Path,
    config: NetworkConfig,
    source: Path | None,
    generation_config: Mapping[str, JSON] | None,
    tokenizer_files: Mapping[str, bytes],
) -> None:
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
        sync_file(folder / name)
    if source is not None:
        for name in (*TOKENIZER_FILES, GENERATION_CONFIG):
            given = name in tokenizer_files or (
                name == GENERATION_CONFIG and generation_config is not None
            )
            if not given and (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
                sync_file(folder / name)
    if generation_config is None and not (folder / GENERATION_CONFIG).exists():
        hf = to_hf(config)
        keys = ("bos_token_id", "eos_token_id")
        generation_config = {key: hf[key] for key in keys if hf[key] is not None}
    if generation_config:
        write_json(folder / GENERATION_CONFIG, generation_config)


def write_json(path: Path, values: Mapping[str, JSON]) -> None:
    """Write `values` to `path`, synced. ValueError for NaN and infinities, which JSON lacks."""
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
    sync_file(path)


def sync_file(path: Path) -> None:
    """Make what was written to `path` last through a loss of power."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _publish(temporary: Path, target: Path) -> None:
    """Rename the finished folder; an empty folder of that name gives way."""
    # mkdtemp gives a folder, and safetensors files, that only their owner can read.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    for file in temporary.iterdir():
        file.chmod(0o666 & ~umask)
    sync_folder(temporary)
    if target.is_dir():
        target.rmdir()
    temporary.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` last through a loss of power, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
