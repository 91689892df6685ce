"""``forethought models export``: a Hugging Face folder as a GGUF, and a GGUF as a folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from forethought.cli.terminal import is_terminal, nearest, note, print_json, require, size
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.dialogue.tokenizer import Tokenizer

QUANTISATIONS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q5_0")
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_QUANTISATION = "f16"


class Source(NamedTuple):
    """What is exported: a folder, or a GGUF file."""

    path: Path
    is_folder: bool


def run(source: str, target: str, quantize: str | None, dtype: str | None, *, as_json: bool) -> int:
    """Write ``target`` in the other form; the exit code.

    Raises UserError for what cannot be, before anything is read; nothing is left behind by what
    fails or is interrupted.
    """
    from forethought.engines.load import require_torch
    from forethought.paths import expand

    _check_choice("--quantize", quantize, QUANTISATIONS)
    _check_choice("--dtype", dtype, DTYPES)
    found = _find(source)
    path = expand(target)
    _check_target(found, path, quantize, dtype)
    require_torch("export")
    if found.is_folder:
        written = _to_gguf(found.path, path, quantize or DEFAULT_QUANTISATION)
    else:
        written = _to_folder(found.path, path, dtype)
    if as_json:
        print_json({"source": str(found.path), "target": str(path), **written}, indent=2)
    else:
        where = shlex.quote(str(path))
        kind = written.get("quantize") or written["dtype"]
        note(f"Wrote {path}: {size(written['bytes'])}, {kind}.")
        note(f'Ask it: forethought ask -m {where} "Are tomatoes fruits?"')
    return 0


def _check_choice(option: str, value: str | None, known: tuple[str, ...]) -> None:
    hint = nearest(value or "", [*known])
    require(
        value is None or value in known,
        f"{option} must be one of {', '.join(known)}, not {value!r}{hint}.",
    )


def _find(name: str) -> Source:
    """The folder or file on this disk. Raises UserError for all that is elsewhere."""
    from forethought.checkpoints.resolve import (
        LocalFile,
        LocalFolder,
        ServerReference,
        parse_reference,
        resolve,
    )

    reference = parse_reference(name)
    if isinstance(reference, ServerReference):
        raise UserError(f"{name} is a server: only what is on this disk can be exported.")
    if not isinstance(reference, LocalFile | LocalFolder):
        try:
            resolved = resolve(reference)
        except UserError:
            raise UserError(
                f"{name} is not on this disk: run `forethought models pull {name}` first."
            ) from None
        assert resolved.path is not None
        return Source(resolved.path, resolved.kind == "folder")
    return Source(reference.path, isinstance(reference, LocalFolder))


def _check_target(found: Source, target: Path, quantize: str | None, dtype: str | None) -> None:
    """Whether this source can become this target."""
    is_gguf = target.suffix.lower() == ".gguf"
    if found.is_folder:
        require(
            is_gguf,
            f"{found.path} is a Hugging Face folder already: a folder is exported to a file that "
            f"ends in .gguf, not to {target}.",
        )
        require(dtype is None, "--dtype is for a folder; a GGUF takes --quantize.")
        # write_gguf asks again; here it is said before torch is loaded
        require(
            not target.exists() and not target.is_symlink(),
            f"{target} exists already: remove it, or choose another name.",
        )
        return
    require(
        not is_gguf,
        f"{found.path} is a GGUF file already: a GGUF is exported to a folder, not to {target}; "
        "its quantisation cannot be changed without loss.",
    )
    require(
        quantize is None,
        "--quantize is for a GGUF; a folder holds the numbers as they are, or takes --dtype.",
    )
    require(
        target.is_dir() or not (target.exists() or target.is_symlink()),
        f"{target} is a file: give the name of a new folder.",
    )
    require(
        not target.is_dir() or not any(target.iterdir()),
        f"{target} exists and is not empty: give another name, or remove it first.",
    )


def _to_gguf(folder: Path, target: Path, quantize: str) -> dict[str, Any]:
    from forethought.checkpoints.export import export_gguf
    from forethought.cli.fetching import ProgressBar

    bar = ProgressBar() if is_terminal(sys.stderr) else None
    try:
        report = export_gguf(
            folder,
            target,
            quantize,  # type: ignore[arg-type]  # of the choices
            open_llama_tokenizer=_open_llama_tokenizer,
            progress=bar,
            report=note,
        )
    finally:
        if bar is not None:
            bar.close()
    return {
        "kind": "gguf",
        "quantize": report.quantize,
        "bytes": report.bytes,
        "tensors": report.tensors,
        "notes": list(report.notes),
    }


def _to_folder(file: Path, target: Path, dtype: str | None) -> dict[str, Any]:
    from forethought.checkpoints.export import import_gguf
    from forethought.checkpoints.hf_config import read_config
    from forethought.checkpoints.network_tensors import checkpoint_tensors

    import_gguf(file, target, dtype)  # type: ignore[arg-type]  # of the choices
    config = read_config(target)
    return {
        "kind": "folder",
        "dtype": config.dtype,
        "bytes": sum(item.stat().st_size for item in target.iterdir()),
        "tensors": len(checkpoint_tensors(config)),
        "notes": [],
    }


class _OpenTokenizer:
    """A tokenizer of llama.cpp that was opened on another thread."""

    def __init__(self, path: Path) -> None:
        from forethought.engines.llama_vocabulary import open_llama_tokenizer

        with ExitStack() as stack:
            self.tokenizer: Tokenizer = stack.enter_context(open_llama_tokenizer(path))
            self.close: Callable[[], None] = stack.pop_all().close


@contextmanager
def _open_llama_tokenizer(path: Path) -> Iterator[Tokenizer]:
    """llama.cpp's tokenizer, loaded beside the main thread: Ctrl-C in its loader would hang."""
    from forethought.cli.loading import Loading

    opened = Loading(lambda: _OpenTokenizer(path)).wait()
    try:
        yield opened.tokenizer
    finally:
        opened.close()
