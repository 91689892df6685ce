"""``forethought problems``: what is asked, and whether an answer is right."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
from pathlib import Path

import pexpect
import pytest

from forethought.problems.registry import BUNDLED, family

from .conftest import PROGRAM, Cli, environment, sentence

SORTING = family("sorting").problem(2, 7, "en")
WORKED = ("problems", "show", "sorting", "--level", "2", "--seed", "7", "--language", "en")
VERIFY = ("problems", "verify", "sorting", "--level", "2", "--seed", "7")


def test_the_list_has_every_bundled_family(cli: Cli) -> None:
    done = cli("problems", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["families"]}
    assert set(rows) == set(BUNDLED)
    assert rows["sorting"]["levels"] == 4
    assert rows["sorting"]["styles"] == ["steps", "check"]
    assert rows["sorting"]["example"] == family("sorting").problem(1, 0, "en").text
    table = cli("problems", "list").stdout.decode().splitlines()
    assert len(table) == 1 + len(BUNDLED)
    assert all(len(line) < 140 for line in table)
    assert next(line for line in table if line.startswith("sorting")).split()[1] == "1-4"


def test_a_problem_is_shown_and_is_always_the_same(cli: Cli) -> None:
    first = cli(*WORKED)
    assert first.returncode == 0, first.stderr
    assert first.stdout.decode() == f"{SORTING.text}\n"
    assert cli(*WORKED).stdout == first.stdout
    zh = cli(*WORKED[:-1], "zh").stdout.decode()
    assert zh == f"{family('sorting').problem(2, 7, 'zh').text}\n"
    facts = json.loads(cli(*WORKED, "--json").stdout)
    assert facts["question"] == SORTING.text
    assert facts["answer"] == SORTING.answer
    assert facts["held_out"] == SORTING.held_out


def test_a_problem_is_worked_out(cli: Cli) -> None:
    question, thought, answer = cli(*WORKED, "--work").stdout.decode().strip().split("\n\n")
    assert question == SORTING.text
    assert answer == SORTING.answer
    facts = json.loads(cli(*WORKED, "--style", "check", "--json").stdout)
    assert facts["style"] == "check"
    assert len(facts["steps"]) > thought.count(".") > 1
    assert facts["arrives_at"] == SORTING.answer


RIGHT = SORTING.answer
WRONG = ", ".join(reversed(RIGHT.split(", ")))


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (RIGHT, 0, "correct"),
        (f" {RIGHT}\n", 0, "correct"),
        (WRONG, 1, "wrong: not these items in this order"),
        ("", 1, "wrong: not one list of the items"),
        (f"<think>\nEasy.\n</think>\n\n<answer>{RIGHT}</answer>", 0, "correct"),
        (f"Easy.\n</think>\n<answer>{RIGHT}</answer>", 0, "correct"),
        (f"<answer>{RIGHT}</answer>", 0, "correct"),
        (f"<think>{WRONG}</think>\\boxed{{{RIGHT}}}", 0, "correct"),
        # what stands in the thought is no answer
        (f"<think>\n<answer>{RIGHT}</answer>\n</think>\nI do not know.", 1,
         "wrong: the sample has no final answer after its thought"),
        (f"<think>\n<answer>{RIGHT}</answer>", 1,
         "wrong: the sample has no final answer after its thought"),
        (f"<think>\n<answer>{RIGHT}</answer>\n</think>\n<answer>{WRONG}</answer>", 1,
         "wrong: not these items in this order"),
    ],
    ids=range(11),
)  # fmt: skip
def test_an_answer_is_right_or_wrong(text: str, code: int, said: str, cli: Cli) -> None:
    done = cli(*VERIFY, "--answer", text)
    assert (done.returncode, done.stdout.decode()) == (code, f"{said}\n"), done.stderr
    assert not done.stderr


def test_a_verdict_as_json(cli: Cli) -> None:
    done = cli(*VERIFY, "--answer", f"<answer>{WRONG}</answer>", "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["status"], report["final_answer"]) == ("wrong", WRONG)
    assert report["question"] == family("sorting").problem(2, 7).text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "sortin"), "there is no problem family 'sortin': did you mean 'sorting'?"),
        (("show", "sorting", "--level", "5"),
         "sorting has no level 5: its levels are 1 to 4."),
        (("show", "sorting", "--level", "x"),
         "invalid value for '--level': 'x' is not a whole number. See: forethought problems show "
         "--help"),
        (("show", "sorting", "--seed", "-1"), "--seed must be at least 0, not -1."),
        (("show", "sorting", "--language", "de"),
         "--language must be one of en, zh, not 'de'."),
        (("show", "sorting", "--style", "chek"),
         "sorting has no style 'chek': its styles are steps, check."),
        (("verify", "sorting"),
         "missing option '--answer'. See: forethought problems verify --help"),
        (("show", "nowhere.py:Mine"), None),
    ],
    ids=range(8),
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], said: str | None, cli: Cli) -> None:
    done = cli("problems", *arguments)
    assert done.returncode == 2
    text = sentence(done)
    if said is not None:
        assert text == f"forethought: {said}\n"


OWN = """
from dataclasses import dataclass
from forethought.problems.family import Family, Worked
from forethought.problems.problem import CORRECT, wrong

@dataclass(frozen=True)
class Doubling(Family):
    name = "doubling"
    levels = 1
    def draw(self, rng, level): return rng.randrange(10)
    def canonical(self, task): return str(task)
    def phrase(self, task, rng, language): return f"Double {task}.\\x1b]0;taken\\x07"
    def answer(self, task, language): return str(2 * task)
    def verify(self, problem, answer):
        return CORRECT if answer == problem.answer else wrong("no")
    def worked(self, problem, rng, *, style="steps", slip=0.0): return Worked((), None)
"""


def test_a_family_of_ones_own(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    spec = f"{tmp_path}/mine.py:Doubling"
    facts = json.loads(cli("problems", "show", spec, "--seed", "3", "--json").stdout)
    done = cli("problems", "verify", spec, "--seed", "3", "--answer", facts["answer"])
    assert done.returncode == 0, done.stderr
    text = cli("problems", "show", spec, "--seed", "3", "--work").stdout.decode()
    assert "It arrives at no answer." in text
    assert "\x1b]0;taken\x07" in text  # a pipe gets the exact text, a terminal none of it
    command = [*PROGRAM, "problems", "show", spec, "--seed", "3"]
    env = environment(home)
    seen = pexpect.run(shlex.join(command), env=env).decode()
    assert "\u241b]0;taken\u2407" in seen
    assert "\x1b" not in seen


needs_gym = pytest.mark.skipif(
    os.environ.get("CI") != "true"
    and (shutil.which("bwrap") is None or importlib.util.find_spec("reasoning_gym") is None),
    reason="bwrap or reasoning_gym is not installed",
)
SUM = ("reasoning-gym/chain_sum", "--level", "1", "--seed", "3")


@needs_gym
def test_problems_of_reasoning_gym(cli: Cli) -> None:
    done = cli("problems", "show", *SUM, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["family"], facts["level"], facts["isolated"]) == (SUM[0], 1, True)
    right = cli("problems", "verify", *SUM, "--answer", facts["answer"])
    assert (right.returncode, right.stdout) == (0, b"correct\n")
    done = cli("problems", "verify", *SUM, "--answer", "no", "--json", "--unsafe-no-sandbox")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["status"], report["isolated"]) == ("wrong", False)
    refused = cli("problems", "show", *SUM, "--work")
    assert refused.returncode == 2
    assert sentence(refused) == (
        "forethought: reasoning-gym/chain_sum brings no worked thoughts: leave --work out.\n"
    )


def test_without_bwrap_nothing_is_graded_unasked(cli: Cli) -> None:
    done = cli("problems", "verify", *SUM, "--answer", "1", PATH="/nonexistent")
    assert done.returncode == 2
    assert "install the Debian package bubblewrap, or type --unsafe-no-sandbox" in sentence(done)
    assert not done.stdout
