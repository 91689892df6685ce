"""A new version of the wheel that changes an answer must be noticed here."""

from pathlib import Path

from forethought.engines.llama_probe import EXPECTED, QUESTIONS, probe


def test_the_installed_wheel_answers_as_expected(scripted_path: Path) -> None:
    assert probe(scripted_path) == EXPECTED


def test_every_answer_has_its_question() -> None:
    assert QUESTIONS.keys() == EXPECTED.keys()
