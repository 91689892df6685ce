"""How to talk to a model, from its own file and the catalogue; and how long, unasked."""

from __future__ import annotations

from dataclasses import replace

from forethought.checkpoints.bundled import card_of
from forethought.checkpoints.catalogue import Entry
from forethought.checkpoints.gguf_header import GGUFHeader
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.templates import ChatTemplate
from forethought.engines.model import Persona
from forethought.engines.protocol import SamplingParameters

DEFAULT_CONTEXT = 32_768
"""R1 was evaluated at this many generated tokens; more is loaded when asked for (--ctx)."""
DEFAULT_CONTEXT_PROMPTED = 2_048
"""Enough for a budgeted thought and an answer; a longer prompt loads more by itself."""


def gguf_persona(header: GGUFHeader, entry: Entry | None) -> Persona:
    """How to talk to a model: the catalogue's word, else what its own template knows."""
    source = header.chat_template
    template = ChatTemplate(source, header.path.name) if source else None
    vocabulary = header.items("tokenizer.ggml.tokens")

    def text(token: int | None) -> str:
        if vocabulary is None or token is None or not 0 <= token < len(vocabulary):
            return ""
        return str(vocabulary[token])

    persona = Persona(
        thinks="native" if source and "</think>" in source else "none",
        template=template,
        bos_token=text(header.bos_id),
        eos_token=text(header.eos_id),
        add_bos=bool(header.add_bos),
    )
    if entry is None:
        return persona
    return replace(
        persona,
        thinks=entry.thinks,
        tags=ThinkTags(entry.tags.open, entry.tags.close),
        history=entry.history,
        thought_budget=entry.thought_budget,
    )


def known_families(entry: Entry | None) -> tuple[str, ...]:
    """The only problems that a model knows, by its card; none for a general one."""
    card = None if entry is None else card_of(entry)
    return () if card is None else card.families


def gguf_sampling(header: GGUFHeader, entry: Entry | None) -> SamplingParameters:
    """R1's, unless the catalogue or the model's file says otherwise."""
    values = header.sampling
    own = entry.sampling if entry is not None else None
    base = SamplingParameters()

    def pick(stated: float | None, key: str, default: float) -> float:
        return stated if stated is not None else values.get(key, default)

    return SamplingParameters(
        temperature=pick(own.temperature if own else None, "temp", base.temperature),
        top_p=pick(own.top_p if own else None, "top_p", base.top_p),
        top_k=int(pick(own.top_k if own else None, "top_k", base.top_k)),
        min_p=pick(own.min_p if own else None, "min_p", base.min_p),
    )
