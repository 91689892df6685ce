"""A conversation in progress: what was said, how each turn came about, and the next one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from forethought.cli.interrupt import StopOnInterrupt
from forethought.cli.keys import KeyWatcher
from forethought.cli.settings import MAX_SEED
from forethought.cli.terminal import note
from forethought.dialogue.messages import Message
from forethought.errors import ForethoughtError, UserError

if TYPE_CHECKING:
    from forethought.engines.model import AskOptions, Model
    from forethought.engines.protocol import Handle, Sample, StopReason, ThoughtEnd

ANSWER_KEY = "a"
HINT = f"({ANSWER_KEY}: answer now · Ctrl-C: stop)"
HINT_OF_SERVERS = "(Ctrl-C: stop)"


@dataclass(frozen=True, slots=True)
class Origin:
    """How an assistant's turn came about, enough to go on inside it.

    ``opening`` is the edited thought that the prompt ended with; ``ids`` continue that prompt.
    """

    model: str
    seed: int | None
    stop_reason: StopReason
    thought_end: ThoughtEnd
    ids: tuple[int, ...] | None = None
    opening: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether there is anything to go on with."""
        return self.stop_reason != "stop"


@dataclass(slots=True)
class Turn:
    """A message, and for the assistant how it came about."""

    message: Message
    origin: Origin | None = None


@dataclass
class ChatSession:
    """The state of one chat. ``options`` hold for every turn until a command changes them;
    ``opener`` loads another model by name.
    """

    model: Model
    options: AskOptions
    opener: Callable[[str], Model]
    seed: int | None = None
    hide_thought: bool = False
    interactive: bool = False
    turns: list[Turn] = field(default_factory=list)
    generations: int = 0

    def messages(self) -> list[Message]:
        """The conversation so far."""
        return [turn.message for turn in self.turns]

    def ask(self, question: str) -> Sample:
        """Put a question and keep the answer. What fails leaves the conversation as it was."""
        user = Turn(Message("user", question))
        sample = self._generate([*self.messages(), user.message], question=question)
        self.turns.append(user)
        self._keep(sample)
        return sample

    def retry(self) -> Sample:
        """Answer the last question again, with other randomness."""
        before = self._before_last_answer()
        sample = self._generate(before)
        self._drop_last_answer()
        self._keep(sample)
        return sample

    def resume(self, more: int | None = None) -> Sample:
        """Go on inside the stopped thought or answer; ``more``: at most so many further tokens."""
        turn = self._last_answer()
        origin = turn.origin
        if origin is None or not origin.stopped:
            raise UserError("The last answer is complete: there is nothing to continue.")
        if origin.model != self.model.name:
            raise UserError(
                f"The stopped turn was written by {origin.model}: /model {origin.model} first."
            )
        if origin.ids is None:
            raise UserError(f"{self.model.name} is behind a server that cannot continue a turn.")
        limit = self.options.get("max_tokens")
        if more is None and origin.stop_reason == "length":
            more = limit
        if more is not None:
            limit = len(origin.ids) + more
        sample = self._generate(
            self._before_last_answer(),
            seed=origin.seed,
            max_tokens=limit,
            prefix_ids=origin.ids,
            opening=origin.opening,
        )
        self._drop_last_answer()
        if not sample.answer.startswith(turn.message.content):
            # an engine may give what is new alone; the turn is the whole
            sample = replace(sample, answer=turn.message.content + sample.answer)
        self._keep(sample, opening=origin.opening)
        return sample

    def last_thought(self) -> str:
        """The thought of the last answer; UserError where there is none."""
        thought = self._last_answer().message.thought
        if thought is None:
            raise UserError("The last answer has no thought.")
        return thought

    def resume_from(self, thought: str) -> Sample:
        """Think on from ``thought`` in place of the last one, and answer."""
        sample = self._generate(self._before_last_answer(), opening=thought)
        self._drop_last_answer()
        self._keep(sample, opening=thought)
        return sample

    def change_model(self, name: str) -> None:
        """Go on with another model; the old one stays where the new one cannot be loaded."""
        fresh = self.opener(name)
        old, self.model = self.model, fresh
        old.close()

    def restore(self, turns: list[Turn], parameters: AskOptions, seed: int | None) -> None:
        """Take up a saved chat."""
        self.turns, self.options, self.seed = turns, parameters, seed

    def _last_answer(self) -> Turn:
        if not self.turns or self.turns[-1].message.role != "assistant":
            raise UserError("There is no answer yet: ask something first.")
        return self.turns[-1]

    def _before_last_answer(self) -> list[Message]:
        if self.turns and self.turns[-1].message.role == "user":
            return self.messages()
        self._last_answer()
        return self.messages()[:-1]

    def _drop_last_answer(self) -> None:
        if self.turns and self.turns[-1].message.role == "assistant":
            self.turns.pop()

    def _keep(self, sample: Sample, opening: str | None = None) -> None:
        thought: str | None = (opening or "") + sample.thought
        if not thought and sample.thought_end == "none":
            thought = None
        self.turns.append(
            Turn(
                Message("assistant", sample.answer, thought),
                Origin(
                    model=self.model.name,
                    seed=sample.seed,
                    stop_reason=sample.stop_reason,
                    thought_end=sample.thought_end,
                    ids=sample.ids,
                    opening=opening,
                ),
            )
        )

    def _generate(
        self,
        messages: Sequence[Message],
        *,
        seed: int | None = None,
        max_tokens: int | None = None,
        prefix_ids: Sequence[int] | None = None,
        opening: str | None = None,
        question: str | None = None,
    ) -> Sample:
        options = self.options.copy()
        if seed is None and self.seed is not None:
            # every turn its own randomness, the whole chat reproducible
            seed = (self.seed + self.generations) % (MAX_SEED + 1)
        if seed is not None:
            options["seed"] = seed
        if max_tokens is not None:
            options["max_tokens"] = max_tokens
        if prefix_ids is not None:
            options["prefix_ids"] = prefix_ids
        if opening is not None:
            options["continue_thought"] = opening
        from forethought.cli.display import Display, summary
        from forethought.cli.outside import note_outside

        request = self.model.request(list(messages), **options)
        # a server has no way to be told
        can_answer_now = self.model.engine.capabilities.token_ids
        hint = HINT if can_answer_now else HINT_OF_SERVERS
        display = Display(
            sys.stdout,
            sys.stderr,
            hide_thought=self.hide_thought,
            hint=hint if self.interactive else "",
        )
        with StopOnInterrupt() as interrupt:
            handle = interrupt.watch(self.model.engine.submit(request))
            self.generations += 1
            try:
                if question is not None:
                    note_outside(self.model, question)
                with _watcher(handle) if can_answer_now else nullcontext():
                    samples = display.show(handle.batches())
            except BaseException:
                handle.cancel()
                raise
        display.note(summary(samples[0]))
        return samples[0]


def _watcher(handle: Handle) -> KeyWatcher:
    def answer_now() -> None:
        try:
            handle.answer_now()
        except ForethoughtError as error:  # on a thread of its own, where nobody would catch it
            note(f"forethought: {error}")

    return KeyWatcher(ANSWER_KEY, answer_now)
