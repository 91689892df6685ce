"""reasoning-gym, GSM8K and MATH, through the real sandbox."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import UserError
from forethought.problems.adapters import math_verify, reasoning_gym
from forethought.problems.adapters.gsm8k import Gsm8k
from forethought.problems.adapters.math import MathProblems, last_box
from forethought.problems.adapters.math_verify import MathVerifier, number
from forethought.problems.adapters.reasoning_gym import ReasoningGym
from forethought.problems.sandbox import Sandbox
from forethought.problems.source import ProblemSource

DATA = Path(__file__).parents[2].parent / "shared" / "data"
IN_CI = os.environ.get("CI") == "true"


def needs(package: str) -> pytest.MarkDecorator:
    there = shutil.which("bwrap") is not None and importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(
        not there and not IN_CI, reason=f"bwrap or {package} is not installed"
    )


def data(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="module")
def maths() -> Iterator[Sandbox]:
    with math_verify.math_verify_sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def gym() -> Iterator[Sandbox]:
    with reasoning_gym.reasoning_gym_sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> MathVerifier:
    """A verifier that fails where it would need its sandbox."""
    monkeypatch.setenv("PATH", "/nonexistent")
    return MathVerifier(math_verify.math_verify_sandbox())


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("18", 18),
            ("-1,234.50", -1234.5),
            ("$18.00", 18),
            ("\\$18.", 18),
            ("$5$", 5),
            ("070", 70),
            ("1{,}000", 1000),
            ("\\frac{3}{4}", 0.75),
            ("\\dfrac12", 0.5),
            ("-3/4", -0.75),
            ("−7", -7),
        ],
    )
    def test_read(self, text: str, value: float) -> None:
        assert number(text) == value

    @pytest.mark.parametrize(
        "text", ["", "x", "1 2", "1,23", "12e5", "1/0", "4210_5", "٣", "1_000"]
    )
    def test_not_numbers(self, text: str) -> None:
        assert number(text) is None

    @given(st.text(max_size=60))
    def test_never_raises(self, text: str) -> None:
        number(text)


class TestDecidedWithoutSandbox:
    @pytest.mark.parametrize(
        ("gold", "answer", "correct"),
        [
            ("18", "18.0", True),
            ("18", "$18", True),
            ("18", "19", False),
            ("12", "12.0000001", False),
            ("025", "25", True),
            ("\\frac{1}{2}", "0.5", True),
            ("(3, \\frac{\\pi}{2})", "\\left( 3,\\, \\dfrac{\\pi}{2} \\right)", True),
            ("4210_5", "4210", False),
            ("4210_5", "4210_6", False),
            ("4210_5", "4210_{5}", True),
            ("50\\%", "50", True),
            ("90^\\circ", "90", True),
            ("90^\\circ", "90\\%x", None),
            ("\\text{Evelyn}", "Evelyn", True),
            ("\\text{Evelyn}", "\\text{Carla}", False),
            ("\\text{(C)}", "C", True),
            ("\\text{(C)}", "(D)", False),
            ("3", "18 apples and 3 pears", False),
            ("18", "18 dollars", True),
            ("18", "18\\text{ dollars}", True),
            ("18", "19 dollars", False),
            ("5", "5 million", False),
            ("5", "5\\text{ million}", False),
            ("\\frac{1}{3}", "several 3 and 1/3", False),
            ("2", "", False),
            ("2", "2" * 1001, False),
            ("18", "18，-7", False),
            ("18", "-7 -> 18", False),
            ("18", "18\n18", False),
            ("18", "-7 = 18", False),
            ("18", "18 | 19", False),
            ("18", "(18, 19)", False),
            ("18", "~18", False),
            ("18", "≠ 18", False),
            ("18", "(lambda: 18)()", False),
            ("18", "18**9**9", False),
            ("18", '[["18"]]', False),
            ("18", "18<br>", False),
            ("18", "18\x00", False),
            ("18", "18\u2060", False),
            ("1234", "1,234", True),
            ("1,234", "$1,234$", True),
            ("90\\text{ square\nunits}", "90\\text{ square\nunits}", True),
        ],
    )
    def test_pairs(
        self, no_sandbox: MathVerifier, gold: str, answer: str, correct: bool | None
    ) -> None:
        if correct is None:
            with pytest.raises(UserError, match="bubblewrap"):
                no_sandbox.verify(gold, answer)
        else:
            verdict = no_sandbox.verify(gold, answer)
            assert verdict.status == ("correct" if correct else "wrong"), verdict


@needs("math_verify")
class TestMathVerify:
    @pytest.mark.parametrize(
        ("gold", "answer", "status"),
        [
            ("\\sqrt{51}", "51^{1/2}", "correct"),
            ("(-2,1)", "(-2, 1)", "correct"),
            ("(-2,1)", "(1,-2)", "wrong"),
            ("\\{1,2\\}", "\\{2,1\\}", "correct"),
            ("x<1", "(-\\infty,1)", "correct"),
            ("2x+3", "y=3+2x", "correct"),
            ("5", "x=5", "correct"),
            ("5", "x=6", "wrong"),
            ("18", "9+9", "correct"),
            ("\\frac{1}{2}", "50\\%", "wrong"),
            ("0.5", "50\\%", "wrong"),
            ("\\frac{\\pi}{2}", "90^\\circ", "wrong"),
            ("\\sqrt{2}", "banana", "wrong"),
            ("\\sqrt{2}", "\\frac{", "wrong"),
        ],
    )
    def test_verdicts(self, maths: Sandbox, gold: str, answer: str, status: str) -> None:
        verdict = MathVerifier(maths).verify(gold, answer)
        assert verdict.status == status, verdict

    def test_a_power_tower_is_unscorable(self) -> None:
        limits = math_verify.Limits(seconds=1.0)
        with math_verify.math_verify_sandbox(limits) as sandbox:
            verdict = MathVerifier(sandbox).verify("\\sqrt{2}", "9^{9^{9^{9^9}}}+\\sqrt{2}")
            assert verdict.status == "unscorable"
            assert MathVerifier(sandbox).verify("\\sqrt{2}", "2^{1/2}").correct

    @pytest.mark.slow
    def test_every_gold_of_math500_equals_its_box(self, maths: Sandbox) -> None:
        path = data("math500/test.jsonl")
        source = MathProblems(path, MathVerifier(maths), name="math500")
        for index, line in enumerate(path.read_text().splitlines()):
            box = last_box(json.loads(line)["solution"])
            assert box is not None
            verdict = source.verify(source.problem(index), box)
            assert verdict.correct, (index, box, verdict)
        asked = [{"gold": f"${p.answer}$"} for p in map(source.problem, range(len(source)))]
        for pair in asked:
            value = maths.call("compare", {**pair, "answer": pair["gold"]}).value
            assert value == {"equal": True, "gold_read": True, "answer_read": True}, pair


class TestFiles:
    def test_gsm8k(self) -> None:
        source: ProblemSource = Gsm8k(data("gsm8k/test.jsonl"))
        assert (len(source), source.name) == (1319, "gsm8k")
        first = source.problem(0)
        assert first.text.startswith("Janet")
        assert first.answer == "18"
        assert source.verify(first, "$18.00").correct
        assert source.verify(first, "17").status == "wrong"
        assert source.verify(first, "18 dollars").status == "wrong"
        assert all(source.verify(source.problem(i), source.problem(i).answer).correct
                   for i in range(len(source)))  # fmt: skip
        assert len(Gsm8k(data("gsm8k/train.jsonl"))) == 7473

    def test_gsm8k_with_a_verifier(self, no_sandbox: MathVerifier) -> None:
        source = Gsm8k(data("gsm8k/test.jsonl"), no_sandbox)
        assert source.verify(source.problem(0), "18 dollars").correct
        assert source.verify(source.problem(0), "16 eggs make 18").status == "wrong"

    def test_math(self, no_sandbox: MathVerifier) -> None:
        math500 = MathProblems(data("math500/test.jsonl"), no_sandbox, name="math500")
        train: ProblemSource = MathProblems(data("math_train4500/train.jsonl"), no_sandbox)
        assert (len(math500), len(train)) == (500, 4500)
        levels = [train.problem(index).level for index in range(len(train))]
        assert [levels.count(level) for level in range(1, 6)] == [394, 804, 1026, 1086, 1190]
        asked = {math500.problem(index).canonical for index in range(500)}
        assert len(asked) == 500
        assert not asked & {train.problem(index).canonical for index in range(4500)}
        for index in range(4500):
            problem = train.problem(index)
            assert train.verify(problem, problem.answer).correct

    def test_aime(self, no_sandbox: MathVerifier) -> None:
        source = MathProblems(data("aime24/test.jsonl"), no_sandbox, name="aime24")
        zeros = [p for p in map(source.problem, range(len(source))) if p.answer.startswith("0")]
        assert zeros
        assert all(source.verify(p, p.answer.lstrip("0")).correct for p in zeros)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "holds no problems"),
            ("{}", r"Line 1 of .* has no field 'question'"),
            ("\n[1]", r"Line 2 of .* is not a JSON object"),
            ("[" * 100_000, "not a JSON object"),
            ('{"question": "q", "answer": "18"}', "no number after ####"),
            ('{"question": "q", "answer": "#### many"}', "no number after ####"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, text: str, sentence: str) -> None:
        path = tmp_path / "file.jsonl"
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            Gsm8k(path)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be read"):
            Gsm8k(tmp_path / "none.jsonl")

    @pytest.mark.parametrize(
        ("solution", "box"),
        [
            ("\\boxed{1} or \\boxed{2}", "2"),
            ("\\fbox{\\frac{1}{2}}.", "\\frac{1}{2}"),
            ("so $\\boxed 5$.", "5"),
            ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
            ("\\boxed{1", None),
            ("none", None),
        ],
    )
    def test_last_box(self, solution: str, box: str | None) -> None:
        assert last_box(solution) == box


@needs("reasoning_gym")
class TestReasoningGym:
    def test_draws_and_scores(self, gym: Sandbox) -> None:
        family = ReasoningGym("countdown", gym, {"min_numbers": 3, "max_numbers": 3})
        problem = family.problem(1, 5)
        assert problem == family.problem(1, 5)
        assert problem != family.problem(1, 6)
        assert (problem.family, problem.seed) == ("reasoning-gym/countdown", 5)
        assert list(family.problems(1, [5, 6])) == [family.problem(1, 5), family.problem(1, 6)]
        assert family.verify(problem, problem.answer).correct
        assert family.verify(problem, f"({problem.answer})").correct

    def test_no_consolation(self, gym: Sandbox) -> None:
        family = ReasoningGym("count_primes", gym)
        problem = family.problem(1, 1)
        assert family.verify(problem, problem.answer).correct
        for answer in ("", "banana", f"The answer is {problem.answer}"):
            assert family.verify(problem, answer).status == "wrong"

    def test_a_verifier_that_raises(self, gym: Sandbox) -> None:
        family = ReasoningGym("prime_factorization", gym)
        verdict = family.verify(family.problem(1, 1), "banana")
        assert (verdict.status, verdict.reason) == ("wrong", "the verifier cannot read it")

    def test_levels(self, gym: Sandbox) -> None:
        graded = ReasoningGym("spell_backward", gym, graded=True)
        assert graded.levels > 1
        hard = graded.problem(graded.levels, 3)
        assert hard.answer != graded.problem(1, 3).answer
        assert graded.verify(hard, hard.answer).correct
        with pytest.raises(UserError, match=r"has no level 99: its levels are 1 to"):
            graded.problem(99, 0)
        assert ReasoningGym("caesar_cipher", gym, graded=True).levels >= 2
        with pytest.raises(UserError, match="no curriculum"):
            ReasoningGym("acre", gym, graded=True)

    def test_refusals(self, gym: Sandbox) -> None:
        with pytest.raises(UserError, match="did you mean 'countdown'"):
            ReasoningGym("countdwn", gym)
        with pytest.raises(UserError, match="accepts every answer"):
            ReasoningGym("game_of_life_halting", gym)
        with pytest.raises(UserError, match="which numbers are used"):
            ReasoningGym("puzzle24", gym)
        with pytest.raises(UserError, match="refuses the settings of countdown"):
            ReasoningGym("countdown", gym, {"largest": 5})
        with pytest.raises(UserError, match="English only"):
            ReasoningGym("countdown", gym).problem(1, 1, "zh")

    @pytest.mark.parametrize(
        "name", ["spiral_matrix", "countdown", "n_queens", "simple_integration"]
    )
    @pytest.mark.parametrize(
        "template",
        [
            "__import__('os').system('touch {path}')",
            "[c for c in ().__class__.__base__.__subclasses__()]",
            "open('{path}', 'w')",
            "ｏｐｅｎ('{path}', 'w')",
            "(1).real",
            "getattr(1, 'real')",
        ],
    )
    def test_code_is_no_answer(
        self, gym: Sandbox, tmp_path: Path, name: str, template: str
    ) -> None:
        touched = tmp_path / "touched"
        family = ReasoningGym(name, gym)
        before = gym.stats.jobs
        verdict = family.verify(family.problem(1, 1), template.format(path=touched))
        assert (verdict.status, verdict.reason) == ("wrong", "reads like code, not like an answer")
        assert gym.stats.jobs == before + 1
        assert not touched.exists()

    @pytest.mark.parametrize("name", ["spiral_matrix", "binary_matrix", "countdown", "n_queens"])
    def test_code_that_is_evaluated_stays_inside(
        self, gym: Sandbox, tmp_path: Path, name: str
    ) -> None:
        """Past the adapter's filter: the library really runs it, and it reaches nothing."""
        touched = tmp_path / "touched"
        family = ReasoningGym(name, gym)
        problem = family.problem(1, 1)

        def score(code: str) -> object:
            return gym.call(
                "score",
                {
                    "name": name,
                    "config": {},
                    "graded": False,
                    "level": 1,
                    "seed": 1,
                    "question": problem.text,
                    "answer": code,
                },
                3.0,
            )

        score(f"__import__('os').system('touch {touched}')")
        score(f"__import__('pathlib').Path({str(touched)!r}).touch()")
        score("__import__('os').kill(-1, 9)")
        score("__import__('os')._exit(0)")
        score(
            "[setattr(__import__('sys').modules['reasoning_gym.factory'].DATASETS"
            f"[{name!r}][0], 'score_answer', lambda *a: 1.0), 1]"
        )
        assert not touched.exists()
        assert family.verify(problem, "[[7]]").status == "wrong"
        assert family.verify(problem, problem.answer).correct

    def test_honest_answers_are_no_code(self, gym: Sandbox) -> None:
        for name in sorted(reasoning_gym._EVALUATING):
            family = ReasoningGym(name, gym)
            for problem in family.problems(1, range(2)):
                assert family.verify(problem, problem.answer).correct, problem

    def test_evaluation_happens_at_all(self, gym: Sandbox) -> None:
        """Shows that the test above tests something: the eval is there."""
        family = ReasoningGym("spiral_matrix", gym)
        problem = family.problem(1, 1)
        payload = {"name": "spiral_matrix", "config": {}, "graded": False, "level": 1, "seed": 1}
        answer = "[__import__('os')._exit(0)]"
        outcome = gym.call("score", {**payload, "question": problem.text, "answer": answer})
        assert outcome.kind == "sandbox_error"

    def test_cheap_numbers_are_refused(self, gym: Sandbox) -> None:
        family = ReasoningGym("countdown", gym)
        verdict = family.verify(family.problem(1, 1), "cos(pi)*6")
        assert verdict.reason == "not in the form that is asked for"

    def test_a_changed_problem_is_unscorable(self, gym: Sandbox) -> None:
        family = ReasoningGym("count_primes", gym)
        other = ReasoningGym("gcd", gym).problem(1, 1)
        assert family.verify(other, "1").status == "unscorable"
