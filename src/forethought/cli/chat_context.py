"""What the next question of a chat will be sent with, and what will be left out."""

from __future__ import annotations

from forethought.cli.chat_session import ChatSession
from forethought.cli.terminal import columns
from forethought.dialogue.messages import Message

PLACEHOLDER = "(your next question)"


def describe(session: ChatSession) -> str:
    """A table of the messages with their tokens, the total, and the exact text that is sent.

    The exact text stands for the next question, which nobody has written yet: a placeholder takes
    its place. A thought counts as dropped when the rendered prompt does not hold it.
    """
    model = session.model
    messages = session.messages()
    if not messages or messages[-1].role != "user":
        messages.append(Message("user", PLACEHOLDER))
    options = session.options.copy()
    prompt = model.prompt(messages, **options)
    rows = [["message", "tokens", "thought", "begins"]]
    system = options.get("system")
    if system:
        rows.append(["system", _count(session, system), "-", _begin(system)])
    dropped = unsent = 0
    for message in messages:
        thought = "-"
        if message.thought:
            count = _count(session, message.thought)
            sent = prompt.text is not None and message.thought.strip() in prompt.text
            thought = f"{count} {'sent' if sent else 'dropped'}"
            dropped += not sent
        unsent += prompt.text is not None and message.content.strip() not in prompt.text
        rows.append(
            [message.role, _count(session, message.content), thought, _begin(message.content)]
        )
    text = columns(rows, right=frozenset({1}))
    length = model.engine.context_length
    if prompt.ids is not None:
        total = f"{len(prompt.ids)} tokens will be sent, the template's own included"
        if length is not None:
            over = len(prompt.ids) - length
            total += f"; the context holds {length}, "
            total += f"{-over} are left" if over <= 0 else f"which is {over} too few"
        text += total + ".\n"
    else:
        text += "A server renders the prompt: it gets these messages, and nothing of ours.\n"
    if dropped:
        noun = "thought of an earlier turn is" if dropped == 1 else "thoughts of earlier turns are"
        text += f"{dropped} {noun} not sent back.\n"
    if unsent:
        noun = "message is" if unsent == 1 else "messages are"
        text += f"{unsent} earlier {noun} not sent: the template has no place for them.\n"
    if prompt.text is not None:
        text += f"Exactly this is sent:\n{prompt.text}\n"
    return text


def _count(session: ChatSession, text: str) -> str:
    count = session.model.count_tokens(text)
    return "?" if count is None else str(count)


def _begin(text: str, width: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
