"""What a Hugging Face folder says about its vocabulary: tokenizer.json and the files beside it.

Nothing of a folder is executed, and code that a folder asks for (`auto_map`) is refused. Files are
read up to a cap, and whatever is wrong with one is a sentence that names it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from forethought.checkpoints.pre_tokenizers import JSON
from forethought.errors import ModelError, UserError

# The biggest real tokenizer.json (260,000 tokens) has 33 MB.
MAX_TOKENIZER_BYTES: Final = 128 << 20
MAX_CONFIG_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How the model's makers sample from it; None where they do not say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The vocabulary of a folder, as far as files say it.

    `tokenizer_json` is the parsed file, `raw` its bytes. `bos_token`, `eos_token` and `pad_token`
    are texts. `eos_ids` come from generation_config.json: every id that ends a turn.
    """

    folder: Path
    tokenizer_json: dict[str, JSON] = field(repr=False)
    raw: bytes = field(repr=False)
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    add_bos: bool
    eos_ids: tuple[int, ...] = ()
    sampling: SamplingDefaults = SamplingDefaults()

    @property
    def where(self) -> str:
        """The file that errors name."""
        return str(self.folder / "tokenizer.json")


def read_tokenizer_folder(folder: str | os.PathLike[str]) -> TokenizerFiles:
    """Read the vocabulary files of a folder.

    Raises UserError if there is no such folder, ModelError for a missing tokenizer.json, a damaged
    file, or a tokenizer that is code.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: check the path.")
    raw = _read(root / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if raw is None:
        raise ModelError(_what_is_missing(root))
    tokenizer_json = _parse(raw, root / "tokenizer.json")
    config = _json(root / "tokenizer_config.json")
    if "auto_map" in config:
        raise ModelError(
            f"{root / 'tokenizer_config.json'} wants its own code to be run (auto_map), and "
            "forethought runs no code from a model: choose a model without it."
        )
    texts = {**_json(root / "special_tokens_map.json"), **config}
    bos = _token_text(texts.get("bos_token"))
    generation = _json(root / "generation_config.json")
    add_bos = config.get("add_bos_token")
    return TokenizerFiles(
        folder=root,
        tokenizer_json=tokenizer_json,
        raw=raw,
        chat_template=_chat_template(root, config),
        bos_token=bos,
        eos_token=_token_text(texts.get("eos_token")),
        pad_token=_token_text(texts.get("pad_token")),
        add_bos=add_bos
        if isinstance(add_bos, bool)
        else _puts_first(tokenizer_json.get("post_processor"), bos),
        eos_ids=_ids(generation.get("eos_token_id"), root / "generation_config.json"),
        sampling=_sampling(generation, root / "generation_config.json"),
    )


def _what_is_missing(root: Path) -> str:
    if (root / "tokenizer.model").exists():
        return (
            f"{root} has a SentencePiece tokenizer.model and no tokenizer.json: convert it (open "
            "the folder with transformers' AutoTokenizer and save_pretrained it), or copy the "
            "tokenizer.json of the original model."
        )
    if (root / "vocab.json").exists():
        return (
            f"{root} has vocab.json and no tokenizer.json: open the folder with transformers' "
            "AutoTokenizer and save_pretrained it."
        )
    return f"{root} has no tokenizer.json: copy it from the original model."


def _read(path: Path, limit: int) -> bytes | None:
    """The bytes of a file, or None if there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions."
        ) from None
    if len(raw) > limit:
        raise ModelError(f"{path} has over {limit >> 20} MiB, no such file is real: copy it again.")
    return raw


def _parse(raw: bytes, path: Path) -> dict[str, JSON]:
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise ModelError(f"{path} is damaged ({reason}): copy it again.") from None
    if not isinstance(parsed, dict):
        raise ModelError(f"{path} is damaged (no JSON object): copy it again.")
    return cast("dict[str, JSON]", parsed)


def _json(path: Path) -> dict[str, JSON]:
    """A configuration beside the tokenizer; empty if it is not there."""
    raw = _read(path, MAX_CONFIG_BYTES)
    return {} if raw is None else _parse(raw, path)


def _token_text(value: JSON) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _chat_template(root: Path, config: dict[str, JSON]) -> str | None:
    """The template; a file of its own comes before the configuration, as in transformers."""
    path = root / "chat_template.jinja"
    raw = _read(path, MAX_CONFIG_BYTES)
    if raw is not None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{path} is damaged (no UTF-8): copy it again.") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {
            str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)
        }
        found = named.get("default")
    return found if isinstance(found, str) else None


def _puts_first(processor: JSON, bos: str | None) -> bool:
    """Whether a post-processor begins every text with the BOS token."""
    if not isinstance(processor, dict):
        return False
    inner = processor.get("processors")
    if isinstance(inner, list):
        return any(_puts_first(part, bos) for part in inner)
    single = processor.get("single")
    if processor.get("type") != "TemplateProcessing" or not isinstance(single, list) or not single:
        return False
    first = single[0]
    special = first.get("SpecialToken") if isinstance(first, dict) else None
    return isinstance(special, dict) and bos is not None and special.get("id") == bos


def _ids(value: JSON, path: Path) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [] if value is None else [value]
    ids = tuple(
        item for item in found if isinstance(item, int) and not isinstance(item, bool) and item >= 0
    )
    if len(ids) != len(found):
        raise ModelError(f"{path}: eos_token_id is no token id: correct or remove it.")
    return ids


def _sampling(generation: dict[str, JSON], path: Path) -> SamplingDefaults:
    if generation.get("do_sample") is not True:
        return SamplingDefaults()

    def number(key: str) -> float | None:
        value = generation.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ModelError(f"{path}: {key} is no number: correct or remove it.")
        return float(value)

    top_k = number("top_k")
    return SamplingDefaults(
        temperature=number("temperature"),
        top_p=number("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p"),
    )
