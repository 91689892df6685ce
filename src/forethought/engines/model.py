"""A loaded model: an engine, how to talk to it, and its defaults.

    model = ft.load()
    reply = model.ask("Use 19, 36, 55 and 7 to make 65.")
    reply.thought, reply.answer
    for event in model.stream("What is 17 + 4 * 3?"): ...

The async twins (``aask``, ``asamples``, ``astream``) run the same engine without blocking the loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, NotRequired, TypedDict, Unpack

from forethought.dialogue.messages import HistoryPolicy, Message, Prompt
from forethought.dialogue.prompt import Thinks, build_prompt
from forethought.dialogue.tags import ThinkTags
from forethought.dialogue.templates import ChatTemplate
from forethought.engines.protocol import (
    Budget,
    Engine,
    Event,
    Handle,
    LogprobKind,
    Request,
    Sample,
    SamplingParameters,
)
from forethought.errors import UserError

TemplateName = Literal["model", "r1", "r1-zero", "bare"]
TEMPLATE_NAMES: tuple[TemplateName, ...] = ("model", "r1", "r1-zero", "bare")


class AskOptions(TypedDict):
    """What one question may set; everything left out is the model's default.

    ``max_tokens``, ``max_thought``, ``min_thought``: see :class:`Budget`; ``max_thought`` 0 closes
    the thought before it begins. ``prefix_ids`` continues a stopped sample exactly (its ``ids``);
    ``continue_thought`` continues from an edited thought's text. ``logprobs``: ``sampling`` or
    ``raw``.
    """

    n: NotRequired[int]
    temperature: NotRequired[float | None]
    top_p: NotRequired[float | None]
    top_k: NotRequired[int | None]
    min_p: NotRequired[float | None]
    max_tokens: NotRequired[int | None]
    max_thought: NotRequired[int | None]
    min_thought: NotRequired[int | None]
    stop: NotRequired[Sequence[str]]
    seed: NotRequired[int | None]
    logprobs: NotRequired[LogprobKind | None]
    reproducible: NotRequired[bool]
    system: NotRequired[str | None]
    template: NotRequired[TemplateName]
    history: NotRequired[HistoryPolicy]
    prefix_ids: NotRequired[Sequence[int]]
    continue_thought: NotRequired[str | None]


Question = str | Sequence[Message] | Prompt


@dataclass(frozen=True, slots=True)
class Persona:
    """How to talk to a model, from the catalogue or from its file.

    ``thought_budget``: the default ``max_thought`` of models that were never trained to stop.
    ``template`` None means the model brings none.
    """

    thinks: Thinks = "native"
    tags: ThinkTags = field(default_factory=ThinkTags)
    history: HistoryPolicy = "strip"
    template: ChatTemplate | None = None
    bos_token: str = ""
    eos_token: str = ""
    add_bos: bool = False
    thought_budget: int | None = None


class Model:
    """See the module. ``question`` is a text, a conversation, or a Prompt already built.

    ``families``: the only problems that the model knows; none named: a general model. ``report``
    gets one-line notes, each once; without it they are warnings of Python's.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        persona: Persona,
        defaults: SamplingParameters,
        *,
        families: Sequence[str] = (),
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.persona = persona
        self.defaults = defaults
        self.families = tuple(families)
        self._report = report
        self._said: set[str] = set()
        self._reproducible = False

    def __repr__(self) -> str:
        return f"Model({self.name!r}, engine={self.engine.name!r}, thinks={self.thinks!r})"

    @property
    def thinks(self) -> Thinks:
        """Trained to think, asked to, or not at all."""
        return self.persona.thinks

    def prompt(self, question: Question, **options: Unpack[AskOptions]) -> Prompt:
        """The prompt that would be sent, with its exact text and ids on a local engine."""
        if isinstance(question, Prompt):
            return question
        conversation = _conversation(question, options.get("system"))
        template_name = options.get("template", "model")
        persona = self.persona
        capabilities = self.engine.capabilities
        if template_name != "model" and not capabilities.templates:
            raise UserError(
                f"--template {template_name} is not possible with {self.name}: a remote server "
                "applies its own template; load the model locally instead."
            )
        continued = options.get("continue_thought")
        if not capabilities.templates:
            if continued is not None:
                raise UserError(
                    f"{self.name} is a remote server, which cannot continue a thought; "
                    "load the model locally instead."
                )
            return build_prompt(
                conversation, template="r1", tokenizer=None, tags=persona.tags, thinks=self.thinks
            )
        template: ChatTemplate | Literal["r1", "r1-zero", "bare"]
        thinks = self.thinks
        if template_name != "model":
            template = template_name
            if template_name in ("r1", "r1-zero"):
                thinks = "native"
        elif persona.template is None:
            raise UserError(
                f"{self.name} brings no chat template; choose one with --template r1, r1-zero "
                "or bare."
            )
        else:
            template = persona.template
        prompt = build_prompt(
            conversation,
            template=template,
            tokenizer=self.engine.tokenizer,
            tags=persona.tags,
            thinks=thinks,
            history=options.get("history", persona.history),
            bos_token=persona.bos_token,
            eos_token=persona.eos_token,
            add_bos=persona.add_bos,
            continue_thought=continued,
        )
        if prompt.system_left_out:
            self._say(
                f"the chat template of {self.name} has no place for a system prompt: it is "
                "left out."
            )
        stopped = options.get("prefix_ids")  # a thought that has begun is closed by the engine
        if options.get("max_thought") == 0 and prompt.starts_in_thought and not stopped:
            return self._without_thought(prompt)
        return prompt

    def _say(self, note: str) -> None:
        if note in self._said:
            return
        self._said.add(note)
        if self._report is not None:
            self._report(note)
            return
        import warnings

        warnings.warn(note, stacklevel=4)

    def _without_thought(self, prompt: Prompt) -> Prompt:
        """R1's own way to skip the thought: an empty one, closed, stands in the prompt."""
        tokenizer = self.engine.tokenizer
        assert tokenizer is not None
        assert prompt.text is not None
        assert prompt.ids is not None
        close = f"\n{self.persona.tags.close}\n\n"
        return replace(
            prompt,
            text=prompt.text + close,
            ids=(*prompt.ids, *tokenizer.encode(close, parse_special=True)),
            starts_in_thought=False,
            mid_thought=False,
        )

    def request(self, question: Question, **options: Unpack[AskOptions]) -> Request:
        """The request that would be submitted, every default filled in."""
        prompt = self.prompt(question, **options)
        sampling = self.defaults
        temperature, top_p = options.get("temperature"), options.get("top_p")
        top_k, min_p = options.get("top_k"), options.get("min_p")
        if temperature is not None:
            if not 0 <= temperature <= 100:
                raise UserError(f"--temperature is {temperature}; it must be between 0 and 100.")
            sampling = replace(sampling, temperature=temperature)
        if top_p is not None:
            if not 0 < top_p <= 1:
                raise UserError(f"--top-p is {top_p}; it must be above 0 and at most 1.")
            sampling = replace(sampling, top_p=top_p)
        if top_k is not None:
            if top_k < 0:
                raise UserError(f"--top-k is {top_k}; it must be 0 (off) or more.")
            sampling = replace(sampling, top_k=top_k)
        if min_p is not None:
            if not 0 <= min_p <= 1:
                raise UserError(f"--min-p is {min_p}; it must be between 0 and 1.")
            sampling = replace(sampling, min_p=min_p)
        max_thought = options.get("max_thought")
        min_thought = options.get("min_thought") or 0
        if max_thought is not None and max_thought < 0:
            raise UserError(f"--max-thought is {max_thought}; it must be 0 or more.")
        if min_thought < 0:
            raise UserError(f"--min-thought is {min_thought}; it must be 0 or more.")
        if max_thought is not None and max_thought < min_thought:
            raise UserError(
                f"--max-thought {max_thought} is below --min-thought {min_thought}; "
                "raise the one or lower the other."
            )
        if max_thought is None and self.persona.thought_budget is not None:
            max_thought = max(self.persona.thought_budget, min_thought)
        stops = tuple(options.get("stop", ()))
        if any(not stop for stop in stops):
            raise UserError("a stop string is empty; leave it out.")
        return Request(
            prompt=prompt,
            n=options.get("n", 1),
            sampling=sampling,
            budget=Budget(options.get("max_tokens"), max_thought, min_thought),
            stop=stops,
            seed=options.get("seed"),
            logprobs=options.get("logprobs"),
            reproducible=options.get("reproducible", False),
            prefix_ids=tuple(options.get("prefix_ids", ())),
        )

    def submit(self, question: Question, **options: Unpack[AskOptions]) -> Handle:
        """Start it; iterate the handle, cancel it, or wait for its samples."""
        return self.engine.submit(self.request(question, **options))

    def ask(self, question: Question, **options: Unpack[AskOptions]) -> Sample:
        """The one reply, thought and answer apart. For n > 1 use :meth:`samples`."""
        if options.get("n", 1) != 1:
            raise UserError("ask gives one reply; use samples(...) for n > 1.")
        return self.samples(question, **options)[0]

    def samples(self, question: Question, **options: Unpack[AskOptions]) -> list[Sample]:
        """n replies to one question, from one prefill."""
        handle = self.submit(question, **options)
        try:
            return handle.wait()
        except BaseException:
            handle.cancel()
            raise

    def stream(self, question: Question, **options: Unpack[AskOptions]) -> Iterator[Event]:
        """Events as they come. Leaving the loop early cancels the request."""
        handle = self.submit(question, **options)
        finished = False
        try:
            yield from handle
            finished = True
        finally:
            if not finished:
                handle.cancel()

    async def aask(self, question: Question, **options: Unpack[AskOptions]) -> Sample:
        """:meth:`ask` without blocking the event loop."""
        if options.get("n", 1) != 1:
            raise UserError("aask gives one reply; use asamples(...) for n > 1.")
        return (await self.asamples(question, **options))[0]

    async def asamples(self, question: Question, **options: Unpack[AskOptions]) -> list[Sample]:
        """:meth:`samples` without blocking; cancelling the task cancels the request."""
        import asyncio

        handle = await asyncio.to_thread(self.submit, question, **options)
        waiting = asyncio.create_task(asyncio.to_thread(handle.wait))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.to_thread(handle.cancel)
            await asyncio.gather(waiting, return_exceptions=True)
            raise

    async def astream(
        self, question: Question, **options: Unpack[AskOptions]
    ) -> AsyncIterator[Event]:
        """:meth:`stream` without blocking; closing the generator cancels the request."""
        import asyncio

        handle = await asyncio.to_thread(self.submit, question, **options)
        batches = handle.batches()
        finished = False
        try:
            while (batch := await asyncio.to_thread(next, batches, None)) is not None:
                for event in batch:
                    yield event
            finished = True
        finally:
            if not finished:
                await asyncio.to_thread(handle.cancel)

    def count_tokens(self, text: str) -> int | None:
        """Tokens of a text, None on an engine without a tokenizer."""
        tokenizer = self.engine.tokenizer
        return None if tokenizer is None else len(tokenizer.encode(text, parse_special=False))

    def close(self) -> None:
        """Free the weights."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _conversation(question: str | Sequence[Message], system: str | None) -> Sequence[Message]:
    messages = [Message("user", question)] if isinstance(question, str) else list(question)
    if system is not None:
        messages.insert(0, Message("system", system))
    return messages
