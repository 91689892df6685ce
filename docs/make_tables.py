"""Write the generated tables of docs/, between their markers, from the code they describe.

    .venv/bin/python docs/make_tables.py

A test fails when a table is not what this script would write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def variables() -> str:
    """Every setting: what ``forethought paths --variables`` lists."""
    from forethought.cli.settings import variables_table

    rows = [
        [
            _code(row["variable"]),
            _code(row["key"]),
            _code(row["flag"]),
            row["kind"].replace(" | ", ", "),
            _code(row["default"]),
            row["help"],
        ]
        for row in variables_table()
    ]
    return _table(["variable", "key in config.toml", "option", "kind", "default", "what"], rows)


def chat_commands() -> str:
    """Every command of ``forethought chat``: what ``/help`` lists."""
    from forethought.cli.chat_commands import COMMANDS

    rows = [
        [_code(command.usage).replace("|", "\\|"), command.help] for command in COMMANDS.values()
    ]
    return _table(["command", "what it does"], rows)


def probe() -> str:
    """What the llama.cpp wheel answered when it was asked."""
    from forethought.engines.llama_probe import EXPECTED, QUESTIONS

    rows = [
        [_code(name), QUESTIONS[name], "yes" if answer else "no"]
        for name, answer in EXPECTED.items()
    ]
    return _table(["name", "question", "answer"], rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "variables": ("ask-and-watch-it-think.md", variables),
    "chat-commands": ("ask-and-watch-it-think.md", chat_commands),
    "probe": ("llama-cpp.md", probe),
}


def filled(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the markers of ``name``."""
    pattern = rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)"
    new, count = re.subn(
        pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"there are {count} places for the table {name} instead of one")
    return new


def main() -> None:
    """Fill every table in."""
    for name, (file, make) in TABLES.items():
        path = DOCS / file
        path.write_text(filled(path.read_text("utf-8"), name, make()), encoding="utf-8")


if __name__ == "__main__":
    main()
