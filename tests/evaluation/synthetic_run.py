"""A run's folder as `forethought train` would write it, made of formulas: for tests of reports."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forethought.training.monitor import FilmFrame
from forethought.training.stage import METRICS

IDENTITY = {
    "forethought": "0.1.0",
    "recipe": "tiny",
    "recipe_digest": "0f3a" * 16,
    "seed": 7,
    "threads": 4,
    "device": "cpu",
    "torch": "2.13.0",
    "python": "3.11",
    "machine": "x86_64",
    "cpu_capability": "AVX2",
    "commit": "61c42e4",
    "started": "2027-01-02T03:04:05+00:00",
}
QUESTIONS = (
    ("countdown", "Use 3, 5 and 7, each once, to make 26.", "3*7+5"),
    ("sorting", "Sort in ascending order: 41, 7, 23, 15.", "7, 15, 23, 41"),
    ("sorting", "把这些数从小到大排列：9, 2, 11。", "2, 9, 11"),
    ("linear_equations", "Solve for x: 3x + 4 = 19.", "5"),
    ("countdown", "Use 2, 4 and 9, each once, to make 34.", "4*9-2"),
    ("calendar_clock", "It is 10:45. What time is it in 95 minutes?", "12:20"),
)
FAMILIES = tuple(sorted({family for family, _, _ in QUESTIONS}))


def recipe(pretrain: int, rl: int) -> str:
    return (
        f'name = "tiny"\nseed = 7\n\n[[stages]]\nkind = "pretrain"\nsteps = {pretrain}\n\n'
        f'[[stages]]\nkind = "rl"\nsteps = {rl}\n'
    )


class SyntheticRun:
    """Writes the files of a run that pretrains, then learns by reinforcement."""

    def __init__(self, path: Path, *, pretrain: int = 60, rl: int = 100, every: int = 10) -> None:
        self.path = path
        self.pretrain, self.rl, self.every = pretrain, rl, every
        self.metrics: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []
        self.film: list[dict[str, Any]] = []
        self._random = random.Random(0)

    def make(self, *, stop_after: int | None = None, finished: bool = True) -> Path:
        """The whole run, or one that is at RL step ``stop_after``."""
        for step in range(1, self.pretrain + 1):
            self._pretrain_step(step)
        self._evaluate("pretrain", self.pretrain, 0.0)
        self._evaluate("rl", 0, 0.0)
        for step in range(1, (self.rl if stop_after is None else stop_after) + 1):
            self._rl_step(step)
            if step % self.every == 0:
                self._evaluate("rl", step, step / self.rl)
        return self.write(finished=finished and stop_after is None)

    def one_step(self) -> Path:
        """A run that has just begun: one step of pretraining, no film."""
        self._pretrain_step(1)
        return self.write(finished=False)

    def write(self, *, finished: bool) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        run = json.dumps({"format": 1, "identity": IDENTITY}, indent=2)
        (self.path / "run.json").write_text(run)
        (self.path / "recipe.toml").write_text(recipe(self.pretrain, self.rl))
        for name in ("metrics", "timings", "film"):
            self._write_lines(name, getattr(self, name))
        if finished:
            (self.path / "done.json").write_text("{}\n")
        return self.path

    def frame(self, number: int, stage: str, step: int, text: str, **changes: Any) -> None:
        """One more frame of the film."""
        family, question, reference = QUESTIONS[number % len(QUESTIONS)]
        language = "zh" if "。" in question else "en"
        frame = FilmFrame(
            stage, step, number, question, reference, family, 1 + number % 3, language, text,
            False, False, len(text) // 3,
        )  # fmt: skip
        self.film.append(asdict(frame) | changes)

    def _write_lines(self, name: str, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path = self.path / f"{name}.jsonl"
        path.write_bytes(text.encode("utf-8", "backslashreplace"))

    def _line(self, stage: str, step: int, **values: float) -> None:
        line: dict[str, Any] = {"stage": stage, "step": step}
        line |= {key: values.get(key) for key in METRICS}
        self.metrics.append(line | values)

    def _noise(self, scale: float) -> float:
        return self._random.gauss(0, scale)

    def _pretrain_step(self, step: int) -> None:
        loss = 1.1 + 5 * math.exp(-9 * step / self.pretrain) + self._noise(0.04)
        norm = 9.0 if step == self.pretrain // 2 else 1 + abs(self._noise(0.1))
        self._line(
            "pretrain", step, loss=loss, grad_norm=norm, learning_rate=1e-3, tokens=16384,
            sequences=40,
        )  # fmt: skip
        self.timings.append(
            {"stage": "pretrain", "step": step, "seconds": 0.5, "tokens_per_second": 32768.0}
        )

    def _rl_step(self, step: int) -> None:
        done = step / self.rl
        right = _rise(done)
        self._line(
            "rl",
            step,
            reward=right + self._noise(0.03),
            reward_accuracy=min(1.0, max(0.0, right + self._noise(0.04))),
            reward_format=_rise(2 * done),
            thought_tokens=30 + 90 * done + self._noise(4),
            truncated=max(0.0, 0.25 * (1 - done) + self._noise(0.02)),
            dead_groups=max(0.0, 0.6 * (1 - 2 * done), 0.5 * (done - 0.5)),
            entropy=0.9 * math.exp(-2 * done) + abs(self._noise(0.02)),
            kl_sampler_trainer=1e-6 * math.exp(self._noise(0.7)),
            reflection_words=0.1 + 1.5 * done**2 + abs(self._noise(0.05)),
            grad_norm=0.3 + abs(self._noise(0.02)),
            loss=self._noise(0.01),
            learning_rate=1e-5,
            tokens=24000,
        )
        self.timings.append(
            {"stage": "rl", "step": step, "seconds": 2.5, "tokens_per_second": 9600.0}
        )

    def _evaluate(self, stage: str, step: int, done: float) -> None:
        right = _rise(done)
        self._line(
            stage,
            step,
            pass_at_1=right,
            pass_at_1_stderr=math.sqrt(right * (1 - right) / 200),
            reward_accuracy=right,
            reward_format=_rise(2 * done),
            thought_tokens=30 + 85 * done,
            truncated=0.2 * (1 - done),
            reflection_words=0.1 + 1.4 * done**2,
            unscorable=0,
            **{f"pass_at_1/{name}": min(1.0, right * (0.9 + 0.1 * at))
               for at, name in enumerate(FAMILIES)},
        )  # fmt: skip
        self.timings.append(
            {"stage": stage, "step": step, "seconds/evaluation": 4.0, "tokens_per_second": 9000.0}
        )
        for number in range(len(QUESTIONS)):
            self._film(number, stage, step, done)

    def _film(self, number: int, stage: str, step: int, done: float) -> None:
        _, question, reference = QUESTIONS[number]
        correct = self._random.random() < _rise(done)
        truncated = not correct and self._random.random() < 0.4
        tries = "".join(f"I try {at}. That gives {3 * at}.\n" for at in range(2 + int(9 * done)))
        thought = f"The question: {question}\n{tries}Wait, let me check: {reference}?"
        answer = reference if correct else "42"
        text = f"<think>\n{thought}\n</think>\n\n<answer>{answer}</answer>"
        if truncated:
            text = text[: text.index("</think>") - 12]
        elif done < 0.2 and not correct:
            text = f"{question[:20]} 42 42 42"
        self.frame(number, stage, step, text, correct=correct, truncated=truncated)


def _rise(done: float) -> float:
    return 0.05 + 0.87 / (1 + math.exp(-9 * (min(done, 1.0) - 0.4)))
