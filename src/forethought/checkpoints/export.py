"""Hugging Face folder -> GGUF and back, for every architecture that both worlds compute.

Both ways go tensor by tensor. What a GGUF cannot hold, or llama.cpp would compute otherwise, is
refused with a sentence before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import gguf
import torch

from forethought.checkpoints.gguf_config import (
    ARCHITECTURES,
    metadata_from_config,
    rope_factors,
)
from forethought.checkpoints.gguf_names import ROPE_FACTORS, StoredTensor, plan
from forethought.checkpoints.gguf_weights import GGUFWeights
from forethought.checkpoints.gguf_writer import (
    TYPES,
    PlannedTensor,
    refuse_existing,
    row_pieces,
    write_gguf,
)
from forethought.checkpoints.hf_config import read_config
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DeepseekConfig, DtypeName, NetworkConfig
from forethought.checkpoints.network_tensors import GGUFQuantization
from forethought.checkpoints.safetensors_weights import (
    SafetensorsWeights,
    check_finite,
    check_tensors,
)
from forethought.checkpoints.save_folder import save_folder
from forethought.checkpoints.tokenizer_files import SamplingDefaults, read_tokenizer_folder
from forethought.checkpoints.vocabulary import (
    check_against_llama_cpp,
    folder_vocabulary,
    tokenizer_files_from_gguf,
)
from forethought.checkpoints.weights import Weights
from forethought.dialogue.tokenizer import Tokenizer
from forethought.errors import UserError

LlamaTokenizerOpener = Callable[[Path], AbstractContextManager[Tokenizer]]
"""Opens the tokenizer of a GGUF in llama.cpp; an engine brings it."""

_F16, _F32 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written: its size in bytes, its tensors, and what a person should know of them."""

    path: Path
    quantize: GGUFQuantization
    bytes: int
    tensors: int
    notes: tuple[str, ...]


def export_gguf(
    folder: Path,
    target: Path,
    quantize: GGUFQuantization,
    *,
    name: str | None = None,
    open_llama_tokenizer: LlamaTokenizerOpener | None = None,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write a Hugging Face folder as one GGUF file.

    Matrices get the type `quantize`; norms, biases and routers stay float32, and rows that are no
    multiple of the 32 numbers of a block become float16, which `report` says. With
    `open_llama_tokenizer` a thousand strings are encoded both here and by llama.cpp first.
    `progress` gets bytes written and bytes in all. `name` is what the file calls the model (None:
    the folder's name).

    Raises UserError for an existing target and for what llama.cpp cannot do, ModelError for a
    damaged folder, naming the tensor where one is at fault.
    """
    if quantize not in get_args(GGUFQuantization):
        raise UserError(
            f"{quantize!r} is no quantisation of this export: choose one of "
            f"{', '.join(get_args(GGUFQuantization))}."
        )
    refuse_existing(target)
    config = read_config(folder)
    metadata: dict[str, object] = {**metadata_from_config(config)}
    files = read_tokenizer_folder(folder)
    vocabulary = folder_vocabulary(files).padded(config.vocab_size)
    metadata |= {"general.type": "model", "general.name": name or folder.resolve().name}
    metadata |= _sampling_metadata(files.sampling) | vocabulary.metadata
    if open_llama_tokenizer is not None:
        check_against_llama_cpp(vocabulary, HFTokenizer.from_files(files), open_llama_tokenizer)
    weights = SafetensorsWeights(folder, config)
    try:
        check_tensors(weights, config, folder)
        tensors, notes = planned_tensors(config, weights, quantize, folder)
        if isinstance(config, DeepseekConfig) and config.num_nextn_predict_layers:
            notes.append("The MTP module is left out: a GGUF has no place for it.")
        for note in notes:
            if report is not None:
                report(note)
        write_gguf(
            target,
            ARCHITECTURES[config.model_type],
            metadata,
            tensors,
            quantize,
            progress=progress,
        )
    finally:
        weights.close()
    return ExportReport(target, quantize, target.stat().st_size, len(tensors), tuple(notes))


def _sampling_metadata(sampling: SamplingDefaults) -> dict[str, object]:
    """How the model's makers sample from it, with the keys that llama.cpp reads."""
    stated = {
        "temp": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
    }
    return {f"general.sampling.{key}": value for key, value in stated.items() if value is not None}


def planned_tensors(
    config: NetworkConfig, weights: Weights, quantize: GGUFQuantization, folder: Path
) -> tuple[list[PlannedTensor], list[str]]:
    """The tensors of the file with their types, and a sentence on those that are not quantised."""
    tensors: list[PlannedTensor] = []
    uneven: dict[int, int] = {}
    factors = rope_factors(config)
    if factors is not None:
        values = torch.tensor([factors], dtype=torch.float32)
        tensors.append(
            PlannedTensor(ROPE_FACTORS, (len(factors),), _F32, lambda: row_pieces(values))
        )
    for stored in plan(config):
        kind = TYPES[quantize]
        if stored.keeps_full_precision:
            kind = _F32
        elif stored.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            kind = _F16
            uneven[stored.shape[-1]] = uneven.get(stored.shape[-1], 0) + 1
        tensors.append(
            PlannedTensor(stored.name, stored.shape, kind, _Rows(config, stored, weights, folder))
        )
    notes = [
        f"{count} tensor{'s' if count > 1 else ''} with rows of {length} numbers, no multiple of "
        f"32, stored as f16 and not as {quantize}."
        for length, count in uneven.items()
    ]
    return tensors, notes


@dataclass(frozen=True, slots=True)
class _Rows:
    """Reads the rows of one tensor of the file when they are written."""

    config: NetworkConfig
    stored: StoredTensor
    weights: Weights
    folder: Path

    def __call__(self) -> Iterator[torch.Tensor]:
        order = None if self.stored.rotary is None else self.stored.rotary.rows()
        for source in self.stored.sources:
            whole = self.weights.read(source)
            check_finite(source, whole, self.folder)
            tensor = self._part(whole)
            if tensor.dim() == 1:
                yield (tensor if order is None else tensor[order]).float().unsqueeze(0)
            else:
                yield from row_pieces(tensor.reshape(-1, self.stored.shape[-1]), order)

    def _part(self, tensor: torch.Tensor) -> torch.Tensor:
        """All of a source, or the half of `kv_b_proj` that this tensor holds."""
        if self.stored.layout not in {"k_b", "v_b"}:
            return tensor
        assert isinstance(self.config, DeepseekConfig)
        nope, rank = self.config.qk_nope_head_dim, self.config.kv_lora_rank
        heads = tensor.reshape(self.config.num_attention_heads, -1, rank)
        if self.stored.layout == "v_b":
            return heads[:, nope:]
        return heads[:, :nope].transpose(1, 2)


def import_gguf(path: Path, target: Path, dtype: DtypeName | None = None) -> None:
    """Write a GGUF file as a Hugging Face folder that transformers opens.

    `dtype` None keeps every number as the file has it: float16 and bfloat16 tensors as they are,
    quantised ones as the float32 that they stand for. Raises UserError if the target exists,
    ModelError for a damaged file, for weights that are no numbers, and for what transformers has no
    name for.
    """
    weights = GGUFWeights(path)
    try:
        config = weights.config
        if dtype is not None:
            config = config.model_copy(update={"dtype": dtype})
        wanted: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        files = tokenizer_files_from_gguf(weights.header)
        generation = json.loads(files.pop("generation_config.json", b"{}"))

        def tensors() -> Iterator[tuple[str, torch.Tensor]]:
            for name in weights.names():
                full = name.endswith("e_score_correction_bias")
                tensor = weights.read(name, torch.float32 if full else wanted)
                check_finite(name, tensor, path)
                yield name, tensor

        save_folder(target, config, tensors(), generation_config=generation, tokenizer_files=files)
    finally:
        weights.close()
