"""A recipe: everything that decides what a run computes, as one frozen value read from TOML."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from forethought.checkpoints.network_config import NetworkConfig
from forethought.training.config import (
    Count,
    EvaluationConfig,
    Frozen,
    Positive,
    PretrainConfig,
    RejectionConfig,
    RLConfig,
    SFTConfig,
)

Stage = Annotated[
    PretrainConfig | SFTConfig | RejectionConfig | RLConfig, Field(discriminator="kind")
]
STAGE_KINDS = ("pretrain", "sft", "rejection-sample", "rl")


class TokenizerConfig(Frozen):
    """``vocab_size``: the most entries; text that yields fewer merges gives fewer. ``documents``:
    how many documents of the corpus it is trained on."""

    vocab_size: Annotated[int, Field(ge=300, le=1 << 20)] = 4096
    documents: Count = 20_000


class ProblemsConfig(Frozen):
    """Which families, which of their levels (all unless named), and how often each family comes.

    ``settings``: a family's own fields, by its name (``countdown = { largest = 9 }``).
    """

    families: Annotated[tuple[str, ...], Field(min_length=1)]
    levels: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]] = Field(default_factory=dict)
    weights: dict[str, Positive] = Field(default_factory=dict)
    settings: dict[str, dict[str, bool | int | float | str]] = Field(default_factory=dict)
    language: Literal["en", "zh"] | None = None

    @model_validator(mode="after")
    def _different(self) -> Self:
        for name in self.families:
            if self.families.count(name) > 1:
                raise ValueError(f"families names {name!r} twice; name it once (weights says more)")
        return self


PromptName = Literal["chat", "r1-zero"]
"""``chat``: R1's chat tokens around the question. ``r1-zero``: the template of the paper's Table 1,
plain text."""


class Recipe(Frozen):
    """One run, from end to end. ``model`` has the keys of Hugging Face's config.json for
    `deepseek_v3` (or a dense decoder); ``vocab_size``, token ids and ``dtype`` come from elsewhere:
    until the tokenizer is there, ``model`` has placeholders (`recipes.model_table`).
    ``base`` starts from a folder with weights and tokenizer instead: then there is no ``model`` and
    no ``tokenizer``, and the first stage may be any."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 2)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of a lane, part of a run's identity; None: the machine's cores over the lanes."""
    lanes: Annotated[int, Field(ge=1, le=64)] = 1
    """Micro-batches that are computed side by side on the CPU, from one set of weights; for a
    network whose operations are too short to be shared among threads."""
    sampling_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads while sampling: a very small network samples fastest on one; None: all."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d{1,4})?)$")] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    prompt: PromptName = "chat"
    base: str | None = None
    model: NetworkConfig | None = None
    tokenizer: TokenizerConfig = TokenizerConfig()
    problems: ProblemsConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    keep_states: Count = 2

    @model_validator(mode="after")
    def _start(self) -> Self:
        if self.base is not None:
            for key in ("model", "tokenizer"):
                if key in self.model_fields_set and getattr(self, key) is not None:
                    raise ValueError(
                        f"base and [{key}] exclude each other: base brings its own {key}; remove "
                        "one of them"
                    )
            return self
        if self.model is None:
            raise ValueError(
                "there is neither [model] nor base: describe a network in [model], or name a "
                "folder with weights in base"
            )
        if self.stages[0].kind != "pretrain":
            raise ValueError(
                f"stages[1] ({self.stages[0].kind}) would train random weights: begin with a "
                "pretrain stage, or with the weights of a base"
            )
        return self

    @model_validator(mode="after")
    def _lanes(self) -> Self:
        if self.lanes > 1 and self.device != "cpu":
            raise ValueError(
                f"lanes = {self.lanes} are for the CPU, and device is {self.device!r}: set lanes "
                'to 1, or device to "cpu"'
            )
        return self

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.model is not None:
            too_long = self.too_long(self.model.max_position_embeddings)
            if too_long is not None:
                raise ValueError(
                    f"{too_long} model.max_position_embeddings; lower the one or raise the other"
                )
        return self

    def too_long(self, positions: int) -> str | None:
        """The first length that a network of so many positions cannot take, as "key n exceeds m"
        without the name of that m; None if all fit."""
        asked = [("evaluation.max_tokens", self.evaluation.max_tokens)]
        for number, stage in enumerate(self.stages, 1):
            where = f"{stage_name(number, stage.kind)}: "
            if isinstance(stage, PretrainConfig):
                key, length = "corpus.max_document_tokens", stage.corpus.max_document_tokens
            elif isinstance(stage, SFTConfig):
                key, length = "max_length", stage.max_length
            else:
                key, length = "max_tokens", stage.max_tokens
            asked.append((where + key, length))
        return next(
            (f"{key} {length} exceeds the {positions} of" for key, length in asked
             if length > positions),
            None,
        )  # fmt: skip


def stage_name(number: int, kind: str) -> str:
    """How sentences call a stage; ``number`` counts from 1, as a reader of the file does."""
    return f"stages[{number}] ({kind})"


def nearest_of(word: str, known: Iterable[str]) -> str:
    """``did you mean X?``, or all that there are where none is near."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(names)}" if names else "there are none"
