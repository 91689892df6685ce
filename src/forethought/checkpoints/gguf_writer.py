"""Writing a GGUF file tensor by tensor, so that memory stays at one piece of one tensor.

The `gguf` library writes the header; the data follow in pieces of whole rows, because a stack of
experts of a large model does not fit the memory that the rest of the program needs.

Shapes: R rows, C numbers of a row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import numpy.typing as npt
import torch

from forethought.checkpoints.network_tensors import GGUFQuantization
from forethought.errors import ModelError, UserError

TYPES: Final[dict[GGUFQuantization, gguf.GGMLQuantizationType]] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q5_0": gguf.GGMLQuantizationType.Q5_0,
}
_FILE_TYPES: Final[dict[GGUFQuantization, gguf.LlamaFileType]] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
}
_PIECE: Final = 1 << 22  # elements at a time: 16 MiB of float32


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written: shape in torch's order, type, and who brings its rows."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    rows: Callable[[], Iterator[torch.Tensor]]
    """Float tensors of whole rows, (R, shape[-1]) each, that follow each other."""

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        block, count = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=object)) // block * count


def write_gguf(
    target: Path,
    architecture: str,
    metadata: Mapping[str, object],
    tensors: Sequence[PlannedTensor],
    quantize: GGUFQuantization,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a file of another name beside it (`.NAME.*.part`) and rename that last.

    A failure leaves nothing behind. `progress` gets bytes written and bytes in all. Raises
    UserError if the target exists or the disk is full, ModelError naming the tensor that does not
    fit its type.
    """
    refuse_existing(target)
    total = sum(tensor.bytes for tensor in tensors)
    part: Path | None = None
    try:
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise UserError(
                f"{target} needs {total / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left: "
                "free some, or choose a smaller quantisation."
            )
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".part", dir=target.parent
        )
        os.close(handle)
        part = Path(name)
        with contextlib.closing(gguf.GGUFWriter(part, architecture)) as writer:
            _write(writer, metadata, tensors, quantize, progress, total)
        refuse_existing(target)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp's are the owner's alone
        part.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}).") from None
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def refuse_existing(target: Path) -> None:
    """Raise UserError if something has this name, or there is no folder for it."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists already: remove it, or choose another name.")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} to write {target.name} into.")


def row_pieces(rows_RC: torch.Tensor, order: Sequence[int] | None = None) -> Iterator[torch.Tensor]:
    """The rows in pieces of float32, in another order if one is given."""
    step = max(1, _PIECE // max(1, rows_RC.shape[-1]))
    index = None if order is None else torch.tensor(order)
    for start in range(0, rows_RC.shape[0], step):
        if index is None:
            yield rows_RC[start : start + step].float()
        else:
            yield rows_RC[index[start : start + step]].float()


def _write(
    writer: gguf.GGUFWriter,
    metadata: Mapping[str, object],
    tensors: Sequence[PlannedTensor],
    quantize: GGUFQuantization,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> None:
    for key, value in metadata.items():
        _add(writer, key, value)
    writer.add_file_type(_FILE_TYPES[quantize])
    if quantize.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    stream = writer.fout[0]
    writer.write_padding(stream, stream.tell())
    done = 0
    for tensor in tensors:
        written = 0
        for piece in tensor.rows():
            data = encode(piece, tensor.kind, tensor.name)
            data.tofile(stream)
            written += data.nbytes
            if progress is not None:
                progress(done + written, total)
        if written != tensor.bytes:
            raise ModelError(
                f"the tensor {tensor.name!r} brought {written} bytes and {tensor.bytes} were "
                "announced: its shape is not what the config says."
            )
        writer.write_padding(stream, written)
        done += written
    stream.flush()
    os.fsync(stream.fileno())


def encode(
    rows_RC: torch.Tensor, kind: gguf.GGMLQuantizationType, name: str
) -> npt.NDArray[np.generic]:
    """Finite float32 rows as the bytes of a type. Raises ModelError where they are too large."""
    rows_RC = rows_RC.contiguous()
    if kind == gguf.GGMLQuantizationType.F32:
        return rows_RC.numpy()
    # Blocks have their scale in float16, the largest number of a block divided by 8 or more.
    if kind != gguf.GGMLQuantizationType.BF16 and float(rows_RC.abs().max()) > 65504:
        raise ModelError(
            f"the tensor {name!r} holds {float(rows_RC.abs().max()):.3g}, more than {kind.name} "
            "can: choose f32 or bf16."
        )
    if kind == gguf.GGMLQuantizationType.F16:
        return rows_RC.half().numpy()
    if kind == gguf.GGMLQuantizationType.BF16:
        return rows_RC.bfloat16().view(torch.int16).numpy()
    quantized: npt.NDArray[np.generic] = gguf.quants.quantize(rows_RC.numpy(), kind)
    return quantized


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    kind = gguf.GGUFValueType
    if isinstance(value, Iterable) and not isinstance(value, str):
        items = list(value)
        if not items:
            raise ModelError(f"the metadata key {key!r} would be an empty list.")
        inner = _kind_of(key, items[0])
        sub_type = kind.INT32 if inner == kind.UINT32 else inner
        writer.add_key_value(key, items, kind.ARRAY, sub_type)
    else:
        writer.add_key_value(key, value, _kind_of(key, value))


def _kind_of(key: str, value: object) -> gguf.GGUFValueType:
    kind = gguf.GGUFValueType
    if isinstance(value, bool):
        return kind.BOOL
    if isinstance(value, int):
        if value < 0:
            return kind.INT32
        return kind.UINT32 if value < 1 << 32 else kind.UINT64
    if isinstance(value, float):
        return kind.FLOAT32
    if isinstance(value, str | bytes):
        return kind.STRING
    raise ModelError(f"the metadata key {key!r} is a {type(value).__name__}.")
