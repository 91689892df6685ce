"""Problems in JSON lines: one object a line, read once and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from forethought.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file and where it stood, for sentences."""

    path: Path
    line: int
    fields: dict[str, object]

    def text(self, *names: str) -> str:
        """The first of these fields that is there, as text. Raises UserError for none."""
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        raise self.wrong(f"has no field {' or '.join(map(repr, names))} with text")

    def wrong(self, what: str) -> UserError:
        """The sentence for a line that cannot be used."""
        return UserError(f"Line {self.line} of {self.path} {what}: repair the file, or drop it.")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; empty lines are skipped. Raises UserError for what is no JSON object."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read ({reason}): give the path of a file of JSON lines."
        ) from None
    rows: list[Row] = []
    # Not splitlines: JSON text may hold separators that it takes for ends of lines.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields: object = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        row = Row(path, number, fields if isinstance(fields, dict) else {})
        if not isinstance(fields, dict):
            raise row.wrong("is not a JSON object")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no problems: give a file of JSON lines.")
    return rows
