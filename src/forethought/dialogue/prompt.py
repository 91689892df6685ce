"""A conversation becomes the prompt of one model: text, token ids, and where generation starts.

What a person typed never becomes a control token or a tag. Tokenizers parse such texts out of
whatever they are given (llama.cpp even with ``parse_special=False``, for user-defined tokens), so
every occurrence in a message is cut in two: the text is rendered as a whole, tokenised in the
pieces between the cuts, and no piece holds one. A prompt without an occurrence is tokenised in one
call, as in the model's training. (A tokenizer that puts a space before every text it is given,
SentencePiece's, puts one at each cut too.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from forethought.dialogue.messages import Conversation, HistoryPolicy, Message, Prompt
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.templates import BUILTIN_TEMPLATES, BuiltinName, ChatTemplate
from forethought.dialogue.tokenizer import Tokenizer
from forethought.errors import UserError

Thinks = Literal["native", "prompted", "none"]

PROMPTED_INSTRUCTION: Final = "Please reason step by step."
"""Said to a model that was not trained to think: the words, and the place (the user's turn), that
DeepSeek-R1's usage recommendations give. Every token more delays the first one."""

PROMPTED_PLACE: Final[Literal["user", "system"]] = "user"
"""Where the instruction goes: after the last question, or as (the end of) the system text."""

SUSPICIOUS: Final = "<[|｜▁"
"""Control and user-defined texts hold one of these; others (runs of spaces, say, which some
vocabularies define too) are no one's role or tag, and cutting them would spoil ordinary text."""


def build_prompt(
    conversation: Conversation,
    *,
    template: ChatTemplate | BuiltinName,
    tokenizer: Tokenizer | None,
    tags: ThinkTags | None = None,
    thinks: Thinks = "native",
    history: HistoryPolicy = "strip",
    bos_token: str = "",
    eos_token: str = "",
    add_bos: bool = False,
    continue_thought: str | None = None,
) -> Prompt:
    """The prompt of ``conversation``, which ends with the user's question.

    ``tokenizer`` None (a remote server) gives a prompt without text and ids. ``thinks``: the model
    was trained to think, is asked to (``prompted``), or does not; unless it does not, a thought is
    opened where the template has not done so. ``history``: whether thoughts of earlier turns are
    sent again. ``add_bos``: put ``bos_token`` first where the template has not done so.
    ``continue_thought``: the thought so far; generation goes on inside it.

    Raises UserError for a conversation that cannot be asked, ModelError for a template that fails.
    """
    tags = tags or ThinkTags()
    bare = template == "bare"
    _check(conversation, bare)
    if continue_thought is not None and (bare or thinks == "none"):
        raise UserError("A thought cannot be continued: this model does not think here.")
    messages = tuple(conversation)
    if tokenizer is None:
        return Prompt(messages, thinks=thinks != "none" and not bare)

    contents = [text for message in messages for text in _texts(message)]
    extra = [continue_thought or "", PROMPTED_INSTRUCTION, bos_token, tags.open, tags.close]
    if isinstance(template, ChatTemplate):
        extra.append(template.source)
    marks = _free_characters([*contents, *extra])
    cutter = _Cutter(tokenizer, tags, marks.cut, [*contents, continue_thought or ""])

    turns = [_turn(message, cutter, marks, history) for message in messages]
    if isinstance(template, ChatTemplate) and thinks == "prompted":
        _instruct(turns)

    def render(turns: Sequence[Mapping[str, str]]) -> str:
        if not isinstance(template, ChatTemplate):
            return BUILTIN_TEMPLATES[template](turns, True, bos_token)
        return template.render(
            turns,
            add_generation_prompt=True,
            bos_token=bos_token,
            eos_token=eos_token,
            enable_thinking={"native": True, "prompted": None, "none": False}[thinks],
        )

    rendered = render(turns)
    # A mark is looked for in a prompt of its own: templates read system texts for words such as
    # /no_think, and what is sent should be what they make of the text as it is.
    system_left_out = any(
        message.role == "system" and message.content.strip() for message in messages
    ) and marks.system not in render([_marked(turn, marks) for turn in turns])
    starts_in_thought = False
    if not bare:
        rendered = _one_bos(rendered, bos_token, add_bos)
        if thinks != "none" and not rendered.rstrip().endswith(tags.open):
            rendered += f"{tags.open}\n"
        # From the text, not from what was asked for: a template may open a thought by itself.
        starts_in_thought = rendered.rstrip().endswith(tags.open)
        if continue_thought is not None:
            rendered += cutter.cut(continue_thought)
    rendered = rendered.replace(marks.open, tags.open).replace(marks.close, tags.close)
    pieces = rendered.split(marks.cut)
    ids = [i for piece in pieces if piece for i in tokenizer.encode(piece, parse_special=True)]
    return Prompt(
        conversation=messages,
        text="".join(pieces),
        ids=tuple(ids),
        starts_in_thought=starts_in_thought,
        thinks=not bare and (thinks != "none" or starts_in_thought),
        mid_thought=bool(continue_thought),
        exact=bare,
        system_left_out=system_left_out,
    )


def _check(conversation: Conversation, bare: bool) -> None:
    if not conversation:
        raise UserError("There is no question: the conversation is empty.")
    for message in conversation:
        if message.role not in ("system", "user", "assistant"):
            raise UserError(
                f"A message has the role {message.role!r}: it must be system, user or assistant."
            )
        for text in _texts(message):
            if not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise UserError(
                        f"A message of the {message.role} is not valid Unicode text."
                    ) from None
    last = conversation[-1]
    if last.role != "user":
        raise UserError(f"The conversation ends with the {last.role}: it must end with a question.")
    if not (last.content if bare else last.content.strip()):
        raise UserError("The question is empty.")


def _texts(message: Message) -> Iterator[str]:
    yield message.content
    if message.thought is not None:
        yield message.thought


def _turn(
    message: Message, cutter: _Cutter, marks: _Marks, history: HistoryPolicy
) -> dict[str, str]:
    content = cutter.cut(message.content)
    if history == "keep" and message.thought is not None:
        # Marks stand for the tags until the text is rendered: a template that cuts at the closing
        # tag (R1's does) would undo the policy.
        thought = cutter.cut(message.thought)
        content = f"{marks.open}\n{thought}\n{marks.close}\n\n{content}"
    return {"role": message.role, "content": content}


def _marked(turn: Mapping[str, str], marks: _Marks) -> dict[str, str]:
    """A turn to see by whether the template has a place for a system text."""
    mark = marks.system if turn["role"] == "system" else ""
    return {**turn, "content": turn["content"] + mark}


def _instruct(turns: list[dict[str, str]]) -> None:
    if PROMPTED_PLACE == "user":
        turns[-1]["content"] += f"\n\n{PROMPTED_INSTRUCTION}"
    elif turns[0]["role"] == "system":
        turns[0]["content"] += f"\n\n{PROMPTED_INSTRUCTION}"
    else:
        turns.insert(0, {"role": "system", "content": PROMPTED_INSTRUCTION})


def _one_bos(rendered: str, bos_token: str, add_bos: bool) -> str:
    if not bos_token:
        return rendered
    while rendered.startswith(bos_token * 2):
        rendered = rendered[len(bos_token) :]
    if add_bos and not rendered.startswith(bos_token):
        return bos_token + rendered
    return rendered


@dataclass(frozen=True, slots=True)
class _Marks:
    """Characters that occur nowhere else: where to cut, what shows that a system text was rendered,
    and where kept thoughts begin and end."""

    cut: str
    system: str
    open: str
    close: str


def _free_characters(texts: Sequence[str]) -> _Marks:
    """Four characters for private use that no text holds.

    One character each, so that a template can neither split one nor trim a part of it.
    """
    used = set().union(*texts)
    free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)
    marks = [*islice(free, 4)]
    if len(marks) < 4:
        raise UserError("The conversation uses every character for private use: leave one free.")
    return _Marks(*marks)


class _Cutter:
    """Cuts texts so that no piece holds a control text or a tag."""

    def __init__(
        self, tokenizer: Tokenizer, tags: ThinkTags, mark: str, contents: Sequence[str]
    ) -> None:
        self._mark = mark
        self._specials: tuple[str, ...] = ()
        # The list is expensive to build, and most questions hold nothing like it.
        names = (*SUSPICIOUS, tags.open[0], tags.close[0])
        if any(name in content for content in contents for name in names):
            specials = {
                special
                for special in tokenizer.special_texts()
                if len(special) > 1 and any(c in special for c in SUSPICIOUS)
            }
            self._specials = tuple(specials | {tags.open, tags.close})

    def cut(self, text: str) -> str:
        """``text`` with the mark at every cut."""
        if not self._specials:
            return text
        cuts = _cuts(text, self._specials)
        if not cuts:
            return text
        starts, ends = [0, *cuts], [*cuts, len(text)]
        return self._mark.join(text[a:b] for a, b in zip(starts, ends, strict=True))


def _cuts(text: str, specials: Sequence[str]) -> list[int]:
    """Sorted positions such that every occurrence of a special text has one inside it, and an
    occurrence that begins in ``text`` and ends in what follows it has one too."""
    occurrences: list[tuple[int, int]] = []
    for special in specials:
        at = text.find(special)
        while at >= 0:
            occurrences.append((at + len(special), at))
            at = text.find(special, at + 1)
    occurrences.sort()
    cuts: list[int] = []
    for end, start in occurrences:
        at = bisect_right(cuts, start)
        if at == len(cuts) or cuts[at] >= end:
            insort(cuts, (start + end) // 2)
    # Templates trim: what follows may come right after the last visible character.
    for end in {len(text), len(text.rstrip())}:
        begins = any(
            text.startswith(special[:n], end - n)
            for special in specials
            for n in range(1, min(len(special), end + 1))
        )
        if begins:
            at = bisect_left(cuts, end)
            if at == len(cuts) or cuts[at] != end:
                cuts.insert(at, end)
    return cuts
