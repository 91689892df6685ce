"""The line about a question that a model of the families alone was not made for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forethought.checkpoints.catalogue import catalogue, find
from forethought.cli.outside import PULL, outside_line, outside_note


def test_it_is_one_line_that_names_the_model_and_one_to_pull() -> None:
    line = outside_line("nano")
    assert line.startswith("nano ")
    assert line.endswith(f"forethought models pull {PULL}")
    assert "\n" not in line
    assert len(line) < 130


def test_the_model_to_pull_is_in_the_catalogue_and_thinks() -> None:
    assert PULL in catalogue().names()
    assert find(PULL).thinks == "native"


def test_fourteen_is_how_many_families_there_are() -> None:
    from forethought.problems.registry import BUNDLED

    assert len(BUNDLED) == 14


@pytest.mark.parametrize("question", ["What is the capital of France?", "法国的首都是哪里？", ""])
def test_it_is_said_of_other_questions(question: str) -> None:
    assert outside_note(question, "nano") == outside_line("nano")


@pytest.mark.parametrize("question", ["What is 17 + 4 * 3?", "解方程：3x + 5 = 20。"])
def test_it_is_not_said_of_the_families(question: str) -> None:
    assert outside_note(question, "nano") is None


def test_a_question_loads_nothing_heavy() -> None:
    code = (
        "import sys; from forethought.cli.outside import outside_note;"
        "outside_note('What is 1 + 2?', 'nano'); print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.split(".")[0] for name in done.stdout.split()}
    assert names.isdisjoint({"numpy", "torch", "pydantic", "httpx", "jinja2", "xllamacpp"})
