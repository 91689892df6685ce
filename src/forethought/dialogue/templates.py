"""Chat templates: a conversation becomes the text a model was trained on.

A template is jinja source from the local model or a local flag, never from a request. Foreign
source is rendered by jinja2's sandbox in a worker process with a time and a memory cap
(``template_process``). The templates built in, and those known by the SHA-256 of their source, are
plain functions below: no process, and no import of jinja2, which costs 60-100 ms at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from forethought.errors import ModelError, UserError

BuiltinName = Literal["r1", "r1-zero", "bare"]
Turn = Mapping[str, str]
"""One message as templates see it: ``role`` and ``content``."""

MAX_SOURCE: Final = 1024 * 1024
"""Characters a template may have; the longest in use have about 20,000."""

TEMPLATE_VARIABLES: Final[Mapping[str, type]] = {
    "messages": list,
    "add_generation_prompt": bool,
    "bos_token": str,
    "eos_token": str,
    "enable_thinking": bool,
}
"""Every name a template may be given, with its type. Nothing else passes."""

REQUEST_VARIABLES: Final = ("enable_thinking",)
"""Those of them that a request may set; the others are ours."""


def request_variables(given: Mapping[str, object]) -> dict[str, bool]:
    """What a request may pass to a template (``chat_template_kwargs``), checked.

    Raises UserError that names the first variable that is unknown, internal or of a wrong type.
    """
    for name, value in given.items():
        if name in REQUEST_VARIABLES:
            wanted = TEMPLATE_VARIABLES[name]
            if type(value) is not wanted:
                raise UserError(f"The template variable {name} must be a {wanted.__name__}.")
        elif name in TEMPLATE_VARIABLES:
            raise UserError(f"The template variable {name} is set by forethought itself.")
        else:
            from difflib import get_close_matches

            near = get_close_matches(name, REQUEST_VARIABLES, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"There is no template variable named {name[:80]!r}.{hint}")
    return {name: bool(value) for name, value in given.items()}


# Built-in templates ---------------------------------------------------------------------------

R1_USER: Final = "<｜User｜>"
R1_ASSISTANT: Final = "<｜Assistant｜>"
R1_END: Final = "<｜end▁of▁sentence｜>"

R1_ZERO_PROMPT: Final = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>."
)
"""DeepSeek-R1 paper, Table 1, up to the first turn."""

R1_ZERO_USER: Final = " User: {content}."
R1_ZERO_ASSISTANT: Final = " Assistant:"


def render_r1(turns: Sequence[Turn], generate: bool, bos_token: str) -> str:
    """DeepSeek-R1's template: system text bare after BOS (the last one wins), no newlines between
    turns, thoughts cut from earlier answers, a thought opened for the next."""
    system = ""
    parts: list[str] = []
    for turn in turns:
        content = turn["content"]
        if turn["role"] == "system":
            system = content
        elif turn["role"] == "user":
            parts += (R1_USER, content)
        else:
            parts += (R1_ASSISTANT, content.split("</think>")[-1], R1_END)
    if generate:
        parts += (R1_ASSISTANT, "<think>\n")
    return bos_token + system + "".join(parts)


def render_r1_zero(turns: Sequence[Turn], generate: bool, bos_token: str) -> str:
    """R1-Zero's template: plain text. Raises UserError for a system text: it has no place."""
    parts = [bos_token, R1_ZERO_PROMPT]
    for turn in turns:
        if turn["role"] == "system":
            raise UserError("The template r1-zero has no place for a system text: leave it out.")
        if turn["role"] == "user":
            parts.append(R1_ZERO_USER.replace("{content}", turn["content"]))
        else:
            parts.append(f"{R1_ZERO_ASSISTANT} {turn['content']}")
    if generate:
        parts.append(f"{R1_ZERO_ASSISTANT} <think>\n")
    return "".join(parts)


def render_bare(turns: Sequence[Turn], generate: bool, bos_token: str) -> str:
    """The text as it is: no BOS, no tags. Raises UserError for a system text: it has no place."""
    if any(turn["role"] == "system" for turn in turns):
        raise UserError("The template bare has no place for a system text: leave it out.")
    return "".join(turn["content"] for turn in turns)


def _render_smollm2(turns: Sequence[Turn], generate: bool, bos_token: str) -> str:
    parts = []
    if turns and turns[0]["role"] != "system":
        parts.append(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n"
        )
    parts += [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns]
    if generate:
        parts.append("<|im_start|>assistant\n")
    return "".join(parts)


def _render_newest(turns: Sequence[Turn], generate: bool, bos_token: str) -> str:
    """Table 1 of the paper around the newest question alone: what models that were trained with
    ``prompt = "r1-zero"`` bring, `forethought.training.prompting.ZERO_TEMPLATE`."""
    question = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    asked = R1_ZERO_USER.replace("{content}", question)
    return f"{bos_token}{R1_ZERO_PROMPT}{asked}{R1_ZERO_ASSISTANT}"


Renderer = Callable[[Sequence[Turn], bool, str], str]

BUILTIN_TEMPLATES: Final[Mapping[BuiltinName, Renderer]] = {
    "r1": render_r1,
    "r1-zero": render_r1_zero,
    "bare": render_bare,
}

KNOWN_TEMPLATES: Final[Mapping[str, Renderer]] = {
    # SmolLM2-135M-Instruct, as its GGUF carries it.
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": _render_smollm2,
    # DeepSeek-R1-Distill-Qwen-32B, as llama.cpp keeps it.
    "03cb8191637dd031cf7dca8bffd267b741d0cb46ab490dc7e452f62f02184b02": render_r1,
    # What is trained here with the prompt r1-zero: nano.
    "ef5f5a08af51211fe469c0b9d7169459275f18167cfedea2241f557bc5ddccc2": _render_newest,
}
"""SHA-256 of a source (UTF-8, without one newline at its end) to the function that equals it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template in jinja, as a model carries it. ``origin`` names it in error sentences.

    Raises ModelError when the source is too long to be one.
    """

    source: str
    origin: str = "the model"

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise ModelError(f"The chat template of {self.origin} is longer than a megabyte.")

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the source without one newline at its end (jinja2 drops it too)."""
        from hashlib import sha256  # loads OpenSSL: only where a template has to be known

        text = self.source.removesuffix("\n")
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def known(self) -> bool:
        """Whether it is rendered in this process."""
        return self.sha256 in KNOWN_TEMPLATES

    def render(
        self,
        messages: Sequence[Turn],
        *,
        add_generation_prompt: bool = True,
        bos_token: str = "",
        eos_token: str = "",
        enable_thinking: bool | None = None,
    ) -> str:
        """The text of ``messages``. ``enable_thinking`` None leaves it undefined.

        Raises UserError when the template refuses the conversation, ModelError when it fails, does
        something forbidden, or takes too much time, memory or text.
        """
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
        renderer = KNOWN_TEMPLATES.get(self.sha256)
        if renderer is not None:
            return renderer(turns, add_generation_prompt, bos_token)
        variables: dict[str, object] = {
            "messages": turns,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
        }
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        from forethought.dialogue.template_process import shared_worker

        return shared_worker().render(self.source, variables, self.origin)
