"""How a problem is put to a model that is being trained, and what a well-formed reply is.

Two prompts. ``chat`` has R1's marks around the question. ``r1-zero`` is the plain text of the
DeepSeek-R1 paper's Table 1. Neither opens the thought: the model is rewarded for writing the tags.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, Literal, Protocol

from forethought.dialogue.final_answer import ANSWER_CLOSE, ANSWER_OPEN
from forethought.training.tokenizer import TAGS, TrainedTokenizer

PromptName = Literal["chat", "r1-zero"]

R1_ZERO: Final = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {question}. Assistant:"
)
"""DeepSeek-R1 (arXiv:2501.12948), Table 1."""

ZERO_TEMPLATE: Final = (
    "{%- set ns = namespace(text='') -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{%- set ns.text = message['content'] -%}{%- endif -%}{%- endfor -%}"
    "{{- bos_token -}}" + "{{- '" + R1_ZERO.replace("{question}", "' + ns.text + '") + "' -}}"
)
"""The same as a chat template, for asking: of the newest question alone, as in training."""


class Encode(Protocol):
    """`HFTokenizer.encode`."""

    def __call__(self, text: str, *, parse_special: bool) -> list[int]: ...


def prompt_text(question: str, name: PromptName) -> str:
    """The plain text that the model reads of a prompt: what a tokenizer should know the words of.
    Table 1's words come before every question, 157 tokens where no merge knows them."""
    return question if name == "chat" else R1_ZERO.replace("{question}", question)


class Prompter:
    """Questions to token ids; the same ids when a run is asked later through its chat template."""

    def __init__(
        self, tokenizer: TrainedTokenizer, name: PromptName, *, encode: Encode | None = None
    ) -> None:
        """``encode``: the tokenizer's own method by default; another has to give the same ids."""
        self._encode = encode or tokenizer.tokenizer.encode
        self._specials = tuple(tokenizer.tokenizer.special_texts())
        self._name = name
        self._chat = (tokenizer.bos_id, tokenizer.user_id), (tokenizer.assistant_id,)
        self._bos = tokenizer.bos_id

    def encoding_by(self, tokenizer: TrainedTokenizer, encode: Encode) -> Prompter:
        """The same prompter with another way to the same ids."""
        return Prompter(tokenizer, self._name, encode=encode)

    def ids(self, question: str) -> tuple[int, ...]:
        """The prompt of a question. Tags and marks inside the question stay text."""
        if self._name == "chat":
            before, after = self._chat
            return (*before, *self._encode(question, parse_special=False), *after)
        start, end = R1_ZERO.split("{question}")
        if not any(text in question for text in self._specials):
            if self._start_ids is None:
                return (self._bos, *self._encode(start + question + end, parse_special=True))
            return (*self._start_ids, *self._encode(f" {question}{end}", parse_special=True))
        inner = self._encode(question, parse_special=False)
        outer = (self._encode(part, parse_special=True) for part in (start, end))
        first, last = outer
        return (self._bos, *first, *inner, *last)

    @cached_property
    def _start_ids(self) -> tuple[int, ...] | None:
        """BOS and what comes before every question but its space; None where that is no whole
        number of words to the tokenizer."""
        start, end = R1_ZERO.split("{question}")
        first = self._encode(start.rstrip(), parse_special=True)
        for probe in ("x", "1", "(", "“", "\n"):
            rest = self._encode(f" {probe}{end}", parse_special=True)
            if self._encode(start + probe + end, parse_special=True) != [*first, *rest]:
                return None
        return (self._bos, *first)


def reply_text(thought: str, answer: str) -> str:
    """A well-formed reply, without the end token: a thought, then a final answer in its tags."""
    return f"{TAGS.open}\n{thought}\n{TAGS.close}\n\n{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
