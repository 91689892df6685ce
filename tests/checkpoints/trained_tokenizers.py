"""Tokenizers trained in a moment, as Hugging Face folders: one for each pre-tokenizer we know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from forethought.checkpoints.comparison_strings import comparison_strings
from forethought.checkpoints.pre_tokenizers import pre_tokenizer, pre_tokenizer_json

SPECIAL = ("<|end|>", "<|user|>", "<s>")
ORDINARY = ("<think>", "</think>")
DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def definition(pre: str, size: int = 1200, texts: list[str] | None = None) -> dict[str, Any]:
    """A tokenizer.json trained on odd strings, with control tokens and two tags."""
    blank = json.loads(Tokenizer(models.BPE()).to_str())
    blank["pre_tokenizer"] = pre_tokenizer_json(pre)
    blank["decoder"] = DECODER
    tokenizer = Tokenizer.from_str(json.dumps(blank))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or comparison_strings(2000, seed=99), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ORDINARY])
    found = json.loads(tokenizer.to_str())
    found["model"]["ignore_merges"] = pre_tokenizer(pre).ignore_merges
    return found


def write_folder(folder: Path, tokenizer_json: dict[str, Any] | None, **config: object) -> Path:
    """A folder with the tokenizer; ``config`` goes into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer_json is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    settings = {"eos_token": "<|end|>", "bos_token": "<s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
