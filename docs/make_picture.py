"""Draw docs/ask.svg: the terminal of a real run of ``forethought ask`` with the bundled model.

    .venv/bin/python docs/make_picture.py [--seed N] [QUESTION]

The program runs in a pseudo-terminal; what it wrote is drawn as it came, long lines broken where
the terminal breaks them. Nothing is edited. One CPU thread is used, so that the text depends on
the seed alone as far as it can. The machine's own configuration is not read. Needs the extra dev.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import pexpect
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS = 92
TARGET = Path(__file__).with_name("ask.svg")


def run(arguments: list[str]) -> str:
    """What ``forethought`` writes to a terminal of :data:`COLUMNS` columns."""
    kept = {name: value for name, value in os.environ.items() if "FORETHOUGHT_" not in name}
    with tempfile.TemporaryDirectory() as home:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "forethought", *arguments],
            env=kept
            | {
                "TERM": "xterm-256color",
                "FORETHOUGHT_THREADS": "1",
                "FORETHOUGHT_HOME": home,
            },
            # a thought may be long, and what scrolls by is drawn all the same
            dimensions=(200, COLUMNS),
            encoding="utf-8",
            timeout=300,
        )
        child.expect(pexpect.EOF)
        child.close()
    if child.exitstatus != 0:
        raise SystemExit(f"forethought ended with {child.exitstatus}: {child.before}")
    text = str(child.before).replace("\r\n", "\n")
    # each piece of the stream closes and opens its style again
    text = text.replace("\x1b[0m\x1b[2m", "")
    # a counter that was drawn and erased again was on the screen for a moment only
    return re.sub(r"[^\n]*\r\x1b\[K", "", text)


def draw(command: str, output: str) -> str:
    """The SVG of a terminal that shows ``command`` and then ``output``."""
    console = Console(
        record=True,
        width=COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(Text.assemble(("$ ", "green"), (command, "bold")))
    for line in Text.from_ansi(output.rstrip("\n")).split("\n", allow_blank=True):
        for part in line.divide(range(COLUMNS, len(line), COLUMNS)) if line else [line]:
            console.print(part, no_wrap=True, overflow="ignore", crop=False, highlight=False)
    # without rich's web font: a picture in a README loads nothing
    code_format = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="forethought", unique_id="ask", code_format=code_format)
    return svg.replace("font-family: Fira Code, monospace", "font-family: monospace")


def main() -> None:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="Use 19, 36, 55 and 7 to make 65.")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--target", type=Path, default=TARGET)
    chosen = parser.parse_args()
    output = run(["ask", chosen.question, "--seed", str(chosen.seed)])
    command = f'forethought ask "{chosen.question}" --seed {chosen.seed}'
    chosen.target.write_text(draw(command, output) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
