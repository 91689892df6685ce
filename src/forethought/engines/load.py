"""From a name to a loaded model: catalogue name, GGUF path, ``hf://``, or a server's URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from forethought.checkpoints.gguf_header import GGUFHeader, read_header
from forethought.checkpoints.gguf_memory import kv_bytes_per_token, memory_needed
from forethought.checkpoints.resolve import (
    DownloadPolicy,
    LocalFolder,
    Reference,
    ResolvedModel,
    ServerReference,
    parse_reference,
    resolve,
)
from forethought.engines.machine import available_memory
from forethought.engines.model import Model, Persona
from forethought.engines.persona import (
    DEFAULT_CONTEXT,
    DEFAULT_CONTEXT_PROMPTED,
    gguf_persona,
    gguf_sampling,
    known_families,
)
from forethought.engines.protocol import SamplingParameters
from forethought.errors import ModelError, UserError

EngineName = Literal["auto", "llama.cpp", "torch", "remote"]
ENGINE_NAMES: tuple[EngineName, ...] = ("auto", "llama.cpp", "torch", "remote")

_R1_LIKE = re.compile(r"(^|[^a-z0-9])(r1|qwq)([^a-z0-9]|$)", re.IGNORECASE)
"""Names of models whose template opens the thought, so that a server which sends raw text sends
the closing tag alone. Of other models text without an opening tag is answer."""

DEFAULT_MODEL = "nano"


def load(
    name: str | None = None,
    *,
    engine: EngineName = "auto",
    context: int | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    lora: Path | str | None = None,
    slots: int = 1,
    reproducible: bool = False,
    download: bool | DownloadPolicy = False,
    progress: Callable[[int, int | None], None] | None = None,
    report: Callable[[str], None] | None = None,
    api_key: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    speculate: bool = False,
) -> Model:
    """Load a model by catalogue name, GGUF or folder path, ``hf://org/repo[:file]`` or server URL;
    without a name the one that comes with forethought, `DEFAULT_MODEL`.

    ``context``: tokens of one sample, prompt included; None takes up to 32,768 of what the model
    and the memory allow. ``slots``: samples that should run side by side (more are loaded when
    needed). ``download``: may a missing model be fetched. ``progress`` gets bytes done and total,
    ``report`` one-line notes. ``api_key`` is for servers. ``device`` (cpu, cuda, cuda:N), ``dtype``
    (float32, bfloat16, int8) and ``speculate`` (with the model's MTP module) are the torch
    engine's.

    Raises UserError (unknown model, not on disk, impossible option) and ModelError (file damaged,
    architecture unknown to llama.cpp, not enough memory).
    """
    reference = parse_reference(name or DEFAULT_MODEL)
    _check_engine(reference, engine)
    if isinstance(download, bool):
        download = DownloadPolicy("yes" if download else "no")
    found = resolve(reference, download=download, progress=progress, report=report)
    if found.kind == "server":
        for option, value in (
            ("--lora", lora),
            ("--ctx", context),
            ("--threads", threads),
            ("--gpu-layers", gpu_layers),
            ("--device", device),
            ("--dtype", dtype),
            ("--speculate", speculate or None),
        ):
            if value is not None:
                raise UserError(
                    f"{option} is not possible with the server {found.url}: it belongs to whoever "
                    "runs the model; leave it out."
                )
        return _remote(found, api_key, reproducible, report)
    assert found.path is not None
    if engine == "torch" or found.kind == "folder":
        _refuse("the torch engine", (("--lora", lora), ("--gpu-layers", gpu_layers)))
        require_torch()
        from forethought.engines.torch.load import load_torch

        return load_torch(
            found,
            context=context,
            threads=threads,
            device=device,
            dtype=dtype,
            speculate=speculate,
            reproducible=reproducible,
            report=report,
        )
    _refuse(
        "llama.cpp", (("--device", device), ("--dtype", dtype), ("--speculate", speculate or None))
    )
    return _llama_cpp(
        found,
        context=context,
        threads=threads,
        gpu_layers=gpu_layers,
        lora=Path(lora).expanduser() if lora is not None else None,
        slots=slots,
        reproducible=reproducible,
        report=report,
    )


def _check_engine(reference: Reference, engine: EngineName) -> None:
    """One sentence for every engine that cannot open what was named."""
    if engine not in ENGINE_NAMES:
        raise UserError(f"there is no engine {engine!r}; take one of {', '.join(ENGINE_NAMES)}.")
    is_server = isinstance(reference, ServerReference)
    if engine == "torch" and is_server:
        raise UserError("--engine torch needs a Hugging Face folder or a GGUF file, not a server.")
    if engine == "remote" and not is_server:
        raise UserError(
            "--engine remote needs the URL of a server, like -m http://127.0.0.1:1234/v1#model."
        )
    if engine == "llama.cpp" and (is_server or isinstance(reference, LocalFolder)):
        raise UserError("--engine llama.cpp needs a GGUF file, not a server or a folder.")


def _refuse(engine: str, options: Sequence[tuple[str, object]]) -> None:
    for option, value in options:
        if value is not None:
            raise UserError(f"{option} is not possible with {engine}; leave it out.")


def require_torch(what: str = "the torch engine") -> None:
    """Raise UserError with the install line where the extra `train` is missing."""
    from importlib.util import find_spec

    missing = [
        name for name in ("torch", "safetensors", "tokenizers", "gguf") if find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"{what} needs {', '.join(missing)}, which the base install leaves out; "
            "install them with: pip install 'forethought[train]'"
        )


def _llama_cpp(
    found: ResolvedModel,
    *,
    context: int | None,
    threads: int | None,
    gpu_layers: int | None,
    lora: Path | None,
    slots: int,
    reproducible: bool,
    report: Callable[[str], None] | None,
) -> Model:
    from forethought.engines.llama_cpp import LlamaCppEngine
    from forethought.engines.llama_loading import LlamaOptions
    from forethought.engines.llama_server import LoadOptions
    from forethought.engines.threads import choose_threads

    assert found.path is not None
    header = read_header(found.path)
    for option, value in (("--ctx", context), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; it must be at least 1.")
    if gpu_layers is not None and gpu_layers < 0:
        raise UserError(f"--gpu-layers is {gpu_layers}; it must be 0 or more.")
    persona = gguf_persona(header, found.entry)
    most, first = _contexts(header, persona, context)
    _check_memory(found, header, first)
    if threads is None:
        threads = choose_threads(
            LoadOptions(found.path, cells=512, gpu_layers=gpu_layers, lora=lora), report
        )
    engine = LlamaCppEngine(
        LlamaOptions(
            path=found.path,
            header=header,
            context=first,
            most_context=most,
            slots=slots,
            threads=threads,
            gpu_layers=gpu_layers,
            lora=lora,
            reproducible=reproducible,
        ),
        persona.tags,
        report,
    )
    if found.entry is None and persona.thinks == "none" and engine.tags.close_id is not None:
        persona = replace(persona, thinks="native")  # the vocabulary has the tag as one token
    persona = replace(persona, tags=engine.tags)
    return Model(
        found.name,
        engine,
        persona,
        gguf_sampling(header, found.entry),
        families=known_families(found.entry),
        report=report,
    )


def _contexts(header: GGUFHeader, persona: Persona, context: int | None) -> tuple[int, int]:
    """The most tokens a sample may have, and what is loaded at first."""
    trained = header.context_length or DEFAULT_CONTEXT
    if context is not None:
        if context > trained:
            raise UserError(
                f"--ctx {context} is more than the {trained} tokens this model was trained for."
            )
        return context, context
    first = DEFAULT_CONTEXT_PROMPTED if persona.thinks == "prompted" else DEFAULT_CONTEXT
    affordable = available_memory() // 3 // max(1, kv_bytes_per_token(header))
    first = max(512, min(first, affordable // 256 * 256))
    return trained, min(first, trained)


def _check_memory(found: ResolvedModel, header: GGUFHeader, context: int) -> None:
    """Say it before loading; weights are mapped from disk, so only what surely fails is refused."""
    need = memory_needed(header, context)
    have = available_memory()
    if need.cache + need.compute > have:
        raise ModelError(
            f"{found.name} needs {_gib(need.cache + need.compute)} of memory for a context of "
            f"{context} tokens besides its weights, and {_gib(have)} is free; take a smaller --ctx."
        )


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _remote(
    found: ResolvedModel,
    api_key: str | None,
    reproducible: bool,
    report: Callable[[str], None] | None,
) -> Model:
    from forethought.engines.remote import RemoteEngine

    assert found.url is not None
    if reproducible:
        raise UserError(
            f"--reproducible is not possible with the server {found.url}: nobody but its owner "
            "decides how it computes; load the model locally instead."
        )
    engine = RemoteEngine(found.url, found.model, api_key=api_key)
    if _R1_LIKE.search(engine.model):
        engine.thinks = "native"
    return Model(
        engine.model, engine, Persona(thinks="native"), SamplingParameters(), report=report
    )
