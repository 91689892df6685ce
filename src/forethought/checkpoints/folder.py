"""A Hugging Face folder on disk: which of its files forethought reads, and which it refuses.

Nothing of a folder is run: weights that can run code when opened (pickles) and Python files are
refused (rules R14, R15 of the trust notes). JSON is read with a size limit, and a key that appears
twice is an error, because readers differ on which of the two they take.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from forethought.errors import ModelError, UserError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SINGLE_WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_JSON_BYTES = 4 << 20
# The index of the 671B checkpoint, the largest known, is 9 MB.
MAX_INDEX_BYTES = 64 << 20
# The safetensors library's own limit.
MAX_HEADER_BYTES = 100_000_000
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_CODE = (".py", ".pyc", ".so")


def printable(text: str, limit: int = 400) -> str:
    """Text of a file as one line of a sentence: control characters escaped, cut at `limit`."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """For `json.loads(object_pairs_hook=...)`: ValueError for a key that appears twice."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} appears twice")
        found[key] = value
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def parse_json(data: bytes, where: str) -> dict[str, JSON]:
    """The JSON object in `data`. Raises ModelError that names `where`."""
    try:
        value: object = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(
            f"{where} cannot be read as JSON ({reason}): the file is damaged, get it again."
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{where} holds no JSON object: the file is damaged, get it again.")
    return cast("dict[str, JSON]", value)


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, JSON]:
    """The JSON object in the file `path`. Raises ModelError if it is damaged or over `limit`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}).") from None
    if len(data) > limit:
        raise ModelError(f"{path} is larger than {limit >> 20} MiB: that is no {path.name}.")
    return parse_json(data, str(path))


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The files of a folder that forethought reads; None where there is none."""

    path: Path
    config: Path
    weights: tuple[Path, ...]
    """The safetensors shards, in the order of their names."""
    index: Mapping[str, str] | None
    """Tensor name to file name, where the weights are sharded."""
    tokenizer: Path | None
    tokenizer_config: Path | None
    chat_template: Path | None
    generation_config: Path | None

    def require_tokenizer(self) -> Path:
        """The path of `tokenizer.json`. Raises ModelError where the folder has none."""
        if self.tokenizer is None:
            others = [name for name in TOKENIZER_FILES if (self.path / name).is_file()]
            hint = f" (it has {', '.join(others)})" if others else ""
            raise ModelError(
                f"{self.path} has no tokenizer.json{hint}: copy it from the model that these "
                "weights were made from, or save the tokenizer there with transformers."
            )
        return self.tokenizer


def _file(folder: Path, *names: str) -> Path | None:
    for name in names:
        path = folder / name
        if path.is_file():
            return path
    return None


def check_folder(folder: Path) -> Path:
    """The path of the folder's `config.json`.

    Raises UserError if `folder` is no folder or has no config.json, ModelError if it brings code.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}: give the folder that holds the model's {CONFIG}.")
    config = folder / CONFIG
    if not config.is_file():
        raise UserError(
            f"{folder} has no {CONFIG}: it is no Hugging Face model folder, or its download is "
            "not complete."
        )
    code = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _CODE)
    if code:
        raise ModelError(
            f"{folder} brings its own code ({code[0]}), which forethought never runs: it has its "
            "own networks; remove the file if config.json names a model type it knows."
        )
    return config


def open_folder(folder: Path) -> ModelFolder:
    """What is in `folder`. Raises UserError or ModelError, one sentence; reads only the index."""
    config = check_folder(folder)
    weights, index = find_weights(folder)
    return ModelFolder(
        path=folder,
        config=config,
        weights=weights,
        index=index,
        tokenizer=_file(folder, "tokenizer.json"),
        tokenizer_config=_file(folder, "tokenizer_config.json"),
        chat_template=_file(folder, "chat_template.jinja", "chat_template.json"),
        generation_config=_file(folder, GENERATION_CONFIG),
    )


def safetensors_header(path: Path) -> dict[str, JSON]:
    """The JSON header of a safetensors file: tensor name to dtype, shape and offsets.

    Only its size, its JSON and the uniqueness of its names are checked here. Raises ModelError.
    """
    try:
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            room = path.stat().st_size - 8
            text = stream.read(length) if 0 < length <= min(room, MAX_HEADER_BYTES) else b""
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error}).") from None
    if length > MAX_HEADER_BYTES:
        raise damaged(path, f"its header is larger than {MAX_HEADER_BYTES // 10**6} MB")
    if not text:
        raise damaged(path, "its header is cut off")
    return parse_json(text, f"The header of {path}")


def damaged(path: Path, reason: str) -> ModelError:
    """The sentence for a weights file that cannot be read."""
    return ModelError(
        f"{path} is damaged or not complete ({printable(reason, 200)}): delete it and get it again."
    )


def tensor_names(folder: Path) -> frozenset[str] | None:
    """Names of the stored tensors, from the index or the header; None where there are no weights.

    Raises ModelError if either is damaged.
    """
    single, index = folder / SINGLE_WEIGHTS, folder / WEIGHTS_INDEX
    if single.is_file():
        return frozenset(safetensors_header(single).keys() - {"__metadata__"})
    return frozenset(_weight_map(index)) if index.is_file() else None


def find_weights(folder: Path) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    """The weights files of `folder`, and the index where they are sharded.

    A single `model.safetensors` goes before an index, as in transformers. Raises ModelError for
    pickles, no weights at all, a bad index or a missing shard.
    """
    single = folder / SINGLE_WEIGHTS
    if single.is_file():
        return (single,), None
    index_path = folder / WEIGHTS_INDEX
    if not index_path.is_file():
        raise _no_weights(folder)
    index = _weight_map(index_path)
    shards = tuple(folder / name for name in sorted(set(index.values())))
    for shard in shards:
        if not shard.is_file():
            raise ModelError(
                f"{folder} lacks {shard.name}, one of the {len(shards)} files that "
                f"{WEIGHTS_INDEX} names: download it again."
            )
    return shards, index


def _no_weights(folder: Path) -> ModelError:
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        return ModelError(
            f"{folder} holds its weights as {pickles[0]}, a pickle, which can run code when "
            f"opened; forethought reads safetensors only: convert it to {SINGLE_WEIGHTS}, or get "
            "a safetensors version of the model."
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    hint = f" (it has {others[0]}, which is not one of them)" if others else ""
    return ModelError(
        f"{folder} has neither {SINGLE_WEIGHTS} nor {WEIGHTS_INDEX}{hint}: the download is not "
        "complete, or this is no model folder."
    )


def _weight_map(path: Path) -> dict[str, str]:
    """`weight_map` of an index, each file a plain name inside the folder."""
    weight_map = read_json(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} has no weight_map: the file is damaged, get it again.")
    index: dict[str, str] = {}
    checked: set[str] = set()
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise ModelError(
                f"{path} gives no file name for {printable(tensor, 120)}: it is damaged."
            )
        if name not in checked:
            _check_shard_name(path, name)
            checked.add(name)
        index[tensor] = name
    return index


def _check_shard_name(path: Path, name: str) -> None:
    if "/" in name or "\\" in name or ":" in name or "\0" in name or name in {"", ".", ".."}:
        raise ModelError(
            f"{path} names {name[:120]!r}, a file outside the folder: such an index is not "
            "followed; get the model again from a source you trust."
        )
    if not name.endswith(".safetensors"):
        reason = " (a pickle can run code when opened)" if name.endswith(_PICKLES) else ""
        raise ModelError(
            f"{path} names {name[:120]!r}, which is no safetensors file{reason}: convert the "
            "model to safetensors."
        )
