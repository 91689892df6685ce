"""From a Hugging Face folder or a GGUF on this disk to a torch engine that is ready to be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from forethought.checkpoints.folder import open_folder
from forethought.checkpoints.gguf_header import read_header
from forethought.checkpoints.hf_config import read_config
from forethought.checkpoints.hf_tokenizer import HFTokenizer
from forethought.checkpoints.network_config import DeepseekConfig, NetworkConfig
from forethought.checkpoints.network_tensors import cache_bytes_per_token, count_parameters
from forethought.checkpoints.resolve import ResolvedModel
from forethought.checkpoints.tokenizer_files import read_tokenizer_folder
from forethought.dialogue.templates import ChatTemplate
from forethought.engines.machine import available_memory, cores
from forethought.engines.model import Model, Persona
from forethought.engines.persona import (
    DEFAULT_CONTEXT,
    DEFAULT_CONTEXT_PROMPTED,
    gguf_persona,
    gguf_sampling,
    known_families,
)
from forethought.engines.protocol import SamplingParameters
from forethought.engines.torch.apart import apart
from forethought.engines.torch.engine import TorchEngine, TorchOptions
from forethought.engines.torch.kernels import PRECISIONS, Precision, can_int8
from forethought.errors import ModelError, UserError
from forethought.models.loading import load as load_network
from forethought.models.loading import usable_device

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 4.0}
"""Bytes a weight while it is loaded: int8 is made from float32."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


def load_torch(
    found: ResolvedModel,
    *,
    context: int | None,
    threads: int | None,
    device: str | None,
    dtype: str | None,
    speculate: bool,
    reproducible: bool,
    report: Callable[[str], None] | None,
) -> Model:
    """Load a folder or GGUF on the torch engine.

    ``device``: cpu, cuda or cuda:N; None takes CUDA where there is one. ``dtype``: of weights
    and activations (int8: of weights and products); None takes float32 on a CPU and bfloat16 on
    CUDA. Raises UserError (a device, precision or option that is not there), ModelError (damaged,
    unsupported, too little memory: said before anything is read).
    """
    assert found.path is not None
    place = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {place}; the torch engine computes on cpu or cuda.")
    precision = _precision(dtype, place)
    for option, value in (("--ctx", context), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1.")
    if found.kind == "folder":
        config, tokenizer, persona, defaults, ends = _folder(found.path)
    else:
        config, tokenizer, persona, defaults, ends = _gguf(found)
    if speculate and not getattr(config, "num_nextn_predict_layers", 0):
        raise UserError(
            f"--speculate needs a model with an MTP module, and {found.name} has none; "
            "leave it out."
        )
    if precision == "int8" and isinstance(config, DeepseekConfig):
        raise UserError(
            f"--dtype int8 is for dense networks, and {found.name} has experts; take bfloat16 or "
            "float32."
        )
    most, usual = _contexts(found.name, config, persona, context)
    _check_memory(found.name, config, precision, place, usual)
    if threads is None:
        threads = cores()[0]
    path, asked = found.path, threads

    def make() -> TorchEngine:
        if place.type == "cpu":
            torch.set_num_threads(asked)
        network = load_network(path, device=place, dtype=_DTYPES[precision], mtp=speculate)
        return TorchEngine(
            network,
            tokenizer,
            TorchOptions(
                found.name,
                context=usual,
                most_context=most,
                precision=precision,
                threads=asked,
                reproducible=reproducible,
                speculate=speculate,
            ),
            ends=ends,
            tags=persona.tags,
        )

    engine = apart(make)
    if found.entry is None and persona.thinks == "none" and engine.tags.close_id is not None:
        persona = replace(persona, thinks="native")  # the vocabulary has the tag as one token
    return Model(
        found.name,
        engine,
        replace(persona, tags=engine.tags),
        defaults,
        families=known_families(found.entry),
        report=report,
    )


def _precision(dtype: str | None, place: torch.device) -> Precision:
    if dtype is None:
        return "float32" if place.type == "cpu" else "bfloat16"
    precision = next((known for known in PRECISIONS if known == dtype), None)
    if precision is None:
        raise UserError(f"--dtype is {dtype!r}; take one of {', '.join(PRECISIONS)}.")
    if precision == "int8" and place.type != "cpu":
        raise UserError(f"--dtype int8 is for the CPU, not for {place}; take bfloat16.")
    if precision == "int8" and not can_int8():
        raise UserError(
            "--dtype int8 needs a torch with fbgemm's products, which this processor does not "
            "have; take float32 or bfloat16."
        )
    return precision


_Read = tuple[NetworkConfig, HFTokenizer, Persona, SamplingParameters, tuple[int, ...]]


def _folder(path: Path) -> _Read:
    """What a Hugging Face folder says, weights apart."""
    open_folder(path)
    config = read_config(path)
    files = read_tokenizer_folder(path)
    tokenizer = HFTokenizer.from_files(files)
    source = files.chat_template
    persona = Persona(
        thinks="native" if source and "</think>" in source else "none",
        template=ChatTemplate(source, path.name) if source else None,
        bos_token=files.bos_token or "",
        eos_token=files.eos_token or "",
        add_bos=files.add_bos,
    )
    base = SamplingParameters()
    own = files.sampling
    defaults = SamplingParameters(
        temperature=base.temperature if own.temperature is None else own.temperature,
        top_p=base.top_p if own.top_p is None else own.top_p,
        top_k=base.top_k if own.top_k is None else own.top_k,
        min_p=base.min_p if own.min_p is None else own.min_p,
    )
    ends = {*config.eos_token_ids, *files.eos_ids}
    if files.eos_token:
        ends.update(tokenizer.encode(files.eos_token, parse_special=True)[:1])
    return config, tokenizer, persona, defaults, tuple(ends)


def _gguf(found: ResolvedModel) -> _Read:
    """What a GGUF says, weights apart."""
    from forethought.checkpoints.gguf_weights import GGUFWeights

    assert found.path is not None
    header = read_header(found.path)
    weights = GGUFWeights(found.path)
    config = weights.config
    weights.close()
    tokenizer = HFTokenizer.from_gguf(header)
    ends = [
        value
        for key in ("eos_token_id", "eot_token_id", "eom_token_id")
        if isinstance(value := header.metadata.get(f"tokenizer.ggml.{key}"), int)
    ]
    return (
        config,
        tokenizer,
        gguf_persona(header, found.entry),
        gguf_sampling(header, found.entry),
        tuple(ends),
    )


def _contexts(
    name: str, config: NetworkConfig, persona: Persona, context: int | None
) -> tuple[int, int]:
    """The most tokens a sample may have, and what it gets unasked."""
    trained = config.max_position_embeddings
    if context is not None:
        if context > trained:
            raise UserError(
                f"--ctx {context} is more than the {trained} tokens {name} was trained for."
            )
        return context, context
    usual = DEFAULT_CONTEXT_PROMPTED if persona.thinks == "prompted" else DEFAULT_CONTEXT
    return trained, min(usual, trained)


def _check_memory(
    name: str, config: NetworkConfig, precision: Precision, place: torch.device, context: int
) -> None:
    """Refuse before reading what surely does not fit: the weights and a small cache."""
    count = count_parameters(config)
    weights = (count.total + count.mtp) * _BYTES[precision]
    if config.tie_word_embeddings:
        weights += count.embedding * _BYTES[precision]
    cache = min(context, 256) * cache_bytes_per_token(config, 2 if precision == "bfloat16" else 4)
    need = weights + cache
    have = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_memory()
    if need > have:
        smaller = "" if precision == "bfloat16" else " (or --dtype bfloat16)"
        raise ModelError(
            f"{name} needs {need / 2**30:.1f} GiB of memory as {precision}, and "
            f"{have / 2**30:.1f} GiB is free; take a smaller model{smaller}."
        )
