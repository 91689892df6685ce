"""Fits src/forethought/problems/scope.json, and prints how often the detector of scope errs.

    python benchmarks/data/make_scope.py > benchmarks/results/scope.txt

Fitted on problems of every family, level, phrasing and language, on further phrasings of them
(benchmarks/texts/scope_phrasings.txt) and on general questions (scope_general.txt). The threshold
is chosen on questions that their model was not fitted on: in each of five rounds every kind of
question of every family loses one of its phrasings (word problems a fifth of their stories), and
the lists in the two files a fifth of their lines. The files scope_held_out_*.txt are read when
weights and threshold stand. Takes about a minute; the same everywhere but for rounding.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from forethought.problems import scope
from forethought.problems.family import Family
from forethought.problems.problem import LANGUAGES, Language
from forethought.problems.registry import BUNDLED, family

TEXTS = Path(__file__).parents[1] / "texts"
WRITTEN = Path(scope.__file__).with_name("scope.json")
ROUNDS = 5
TASKS = 45
"""Of each family, level and language."""
EPOCHS, RATE, SHRINK, DROPPED = 5, 0.08, 2e-4, 0.35
FEWEST, KEPT = 3, 2700
"""A feature occurs in so many questions, and the largest so many are kept."""
FALSE_ALARMS = 0.005
"""The share of the problems not fitted on that the threshold gives up, at most, of all problems and
of those in our further phrasings."""
GENERAL = "general"
SEED = 20261126

NAMES = {
    "en": "Anna Ben Chloe David Emily Ethan Hannah Jack Julia Kevin Laura Leo Marie Mark Nina "
    "Oliver Peter Rosa Sarah Simon Sofia Steve Susan Thomas Victor Wendy Yusuf Zoe Priya Omar",
    "zh": "张伟 王芳 李娜 刘洋 陈杰 杨静 赵敏 黄磊 周涛 吴刚 阿宝 丽丽 小虎 小兰 大宝 思远 子涵 "
    "雨欣 浩宇 梓轩 小王 小李 小张 小陈 文文 佳佳 老李 晓明 玲玲 明明",
}
THINGS = {
    "en": "coins shells bottles chairs rocks plates tickets puzzles cakes leaves pears shirts "
    "chickens trees keys spoons crayons magazines tomatoes rings boxes photos",
    "zh": "枚硬币 个贝壳 个瓶子 把椅子 块石头 个盘子 张门票 个玩偶 块蛋糕 片叶子 个梨 件衬衫 只鸡 "
    "棵树 把钥匙 把勺子 支蜡笔 本杂志 个西红柿 枚戒指 个箱子 张照片",
}
BEFORE = {
    "en": (
        "Please help me: ",
        "Question: ",
        "Hi! ",
        "Quick question. ",
        "Hey, ",
        "Please. ",
        "Q: ",
    ),
    "zh": ("请问，", "问题：", "你好！", "请帮帮我：", "麻烦你，", "题目："),
}
AFTER = {
    "en": (
        " Think step by step.", " Let's think step by step.", " please", " Thanks!", " Thank you.",
        " Explain your reasoning.", " Show your work.", " Answer briefly.", " Be careful.",
        " Give only the answer.", " Put the final answer in a box.", " Check your answer.",
    ),
    "zh": (
        "请一步一步思考。", "谢谢！", "请逐步推理。", "请写出过程。", "请简短回答。",
        "只给出答案。", "仔细想想。", "请解释你的推理。", "请检查答案。",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """``group`` says in which round it is left out."""

    text: str
    label: str
    group: int
    kind: str


class Scripted(Random):
    """Draws what it is told, in turn, so that every phrasing can be had."""

    def __init__(self, draws: Sequence[float]) -> None:
        super().__init__(0)
        self._draws, self._at = draws, 0

    def random(self) -> float:
        draw = self._draws[self._at % len(self._draws)]
        self._at += 1
        return draw

    def choice(self, seq: Any) -> Any:
        return seq[int(self.random() * len(seq))]


def phrasings(one: Family, task: Any, language: Language) -> list[tuple[str, int]]:
    """Every way in which a task is asked, and the round in which that way is left out."""
    cells = [(at + 0.5) / 60 for at in range(60)]
    firsts = list(dict.fromkeys(one.phrase(task, Scripted((u, 0.01)), language) for u in cells))
    seconds = list(dict.fromkeys(one.phrase(task, Scripted((0.01, u)), language) for u in cells))
    found = []
    for i in range(len(firsts)):
        for j in range(len(seconds)):
            draws = ((i + 0.5) / len(firsts), (j + 0.5) / len(seconds))
            text = one.phrase(task, Scripted(draws), language)
            # of a relation the question counts, which is drawn after the form of its sentences
            group = i if len(seconds) == 1 or len(firsts) > len(seconds) else j
            found.append((text, group))
    return found


def problems() -> list[Question]:
    """Problems of all families in every phrasing."""
    found = []
    for name in BUNDLED:
        one = family(name)
        stories: dict[str, int] = {}
        for level in range(1, one.levels + 1):
            for number in range(TASKS):
                rng = Random(number * 64 + level)
                task = one.draw(rng, level)
                for language in LANGUAGES:
                    ways = phrasings(one, task, language)
                    text, group = ways[number % len(ways)]
                    if name == "word_problems":
                        group = stories.setdefault(task.story.name, len(stories)) % ROUNDS
                    found.append(Question(text, name, group, "phrasing"))
    return found


def lines(name: str) -> list[str]:
    text = (TEXTS / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def asked(name: str, kind: str) -> list[Question]:
    """The problems of a file of phrasings."""
    found = []
    for at, line in enumerate(lines(name)):
        label, _, text = line.partition("\t")
        found.append(Question(text.replace("\\n", "\n"), label, at % ROUNDS, kind))
    return found


def general(name: str) -> list[Question]:
    return [Question(text, GENERAL, at % ROUNDS, "general") for at, text in enumerate(lines(name))]


def known_names() -> dict[str, tuple[str, ...]]:
    from forethought.problems.families import _story, family_relations, knights_knaves

    return {
        language: tuple(
            {
                *_story.NAMES[language],
                *knights_knaves._NAMES[language],
                *(
                    one
                    for (spoken, _), names in family_relations._NAMES.items()
                    if spoken == language
                    for one in names
                ),
            }
        )
        for language in LANGUAGES
    }


def varied(question: Question, rng: Random, names: dict[str, tuple[str, ...]]) -> str:
    """The question with other names and things, and with words around it that say nothing."""
    from forethought.problems.families import _story

    text = question.text
    language: Language = "zh" if any("\u4e00" <= one <= "\u9fff" for one in text) else "en"
    if question.label in ("word_problems", "family_relations", "knights_knaves"):
        if rng.random() < 0.6:
            for old in sorted(names[language]):
                text = text.replace(old, rng.choice(NAMES[language].split()))
        if rng.random() < 0.6:
            for measure, thing in _story.THINGS[language]:
                new = rng.choice(THINGS[language].split())
                text = text.replace(measure + thing, new)
    if rng.random() < 0.15:
        text = rng.choice(BEFORE[language]) + text
    if rng.random() < 0.3:
        text = text.rstrip() + rng.choice(AFTER[language])
    return text


def examples(questions: Iterable[Question]) -> list[Question]:
    """What to fit: each question as it is and, the rarer kinds, several times varied."""
    rng, names = Random(SEED), known_names()
    found = []
    for one in questions:
        times = {"phrasing": 1, "own": 4, "general": 3}[one.kind]
        if one.kind != "phrasing":
            found.append(one)
        found += [replace(one, text=varied(one, rng, names)) for _ in range(times)]
    rng.shuffle(found)
    return found


def known_words(questions: Iterable[Question]) -> frozenset[str]:
    """The words of the families' problems."""
    return frozenset(
        word
        for one in questions
        if one.label != GENERAL
        for word in scope.spelled(scope.tokens_in(one.text))
    )


def fitted(questions: Sequence[Question]) -> scope.Weights:
    """Softmax regression by Adagrad, one question at a time, with words left out at random."""
    classes = (*BUNDLED, GENERAL)
    made = []
    # what is strange in a question is judged by the others, or nothing fitted would be strange
    others = [known_words(one for one in questions if one.group != g) for g in range(ROUNDS)]
    for question in examples(questions):
        one = scope.features(question.text, others[question.group])
        label = question.label
        mask = np.array([0.0 if name in scope.possible(one) else -np.inf for name in BUNDLED] + [0])
        if label == GENERAL and not scope.possible(one):
            continue
        made.append((one, mask, classes.index(label)))
    counts = Counter(name for one, _, _ in made for name in (*one.structure, *one.words))
    names = sorted(name for name, count in counts.items() if count >= FEWEST)
    index = {name: at for at, name in enumerate(names)}
    rows = []
    for one, mask, number in made:
        structure = np.array(sorted(index[n] for n in one.structure if n in index))
        words = np.array(sorted(index[n] for n in one.words if n in index), dtype=int)
        rows.append((structure, words, scope.word_scale(len(one.words)), mask, number))
    weights = np.zeros((len(names), len(classes)))
    seen = np.full((len(names), 1), 0.1)
    rng = np.random.default_rng(SEED)
    for _ in range(EPOCHS):
        for at in rng.permutation(len(rows)):
            structure, words, scale, mask, number = rows[at]
            words = words[rng.random(len(words)) >= DROPPED]
            scores = (
                mask + weights[structure].sum(0) + scale / (1 - DROPPED) * weights[words].sum(0)
            )
            error = np.exp(scores - scores.max())
            error /= error.sum()
            error[number] -= 1.0
            for rows_of, by in ((structure, 1.0), (words, scale)):
                step = by * error + SHRINK * weights[rows_of]
                seen[rows_of, 0] += (step**2).mean(1)
                weights[rows_of] -= RATE * step / np.sqrt(seen[rows_of])
    return rounded(names, weights, classes)._replace(known=known_words(questions))


def rounded(
    names: Sequence[str], weights: np.ndarray[Any, Any], classes: tuple[str, ...]
) -> scope.Weights:
    """The largest weights, each as one character."""
    weights = weights - weights.mean(1, keepdims=True)
    size = np.abs(weights).max(1)
    kept = sorted(np.argsort(-size, kind="stable")[:KEPT])
    step = float(f"{np.quantile(size[kept], 0.99) / scope.MOST:.3g}")
    levels = np.clip(np.rint(weights / step), -scope.MOST, scope.MOST).astype(int)
    of = {
        names[at]: "".join(chr(scope.ZERO + level) for level in levels[at])
        for at in kept
        if levels[at].any()
    }
    return scope.Weights(classes, step, 0.0, of, frozenset())


def score(text: str, weights: scope.Weights) -> tuple[float, str]:
    found = scope.features(text, weights.known)
    if not scope.possible(found):
        return -math.inf, ""
    judged = scope.judged(found, weights)
    return judged.score, judged.family


def left_out(questions: Sequence[Question]) -> list[tuple[Question, float, str]]:
    """Each question with its score and its nearest family by weights that it had no part in."""
    found: list[tuple[Question, float, str]] = []
    for turn in range(ROUNDS):
        weights = fitted([one for one in questions if one.group != turn])
        found += [(one, *score(one.text, weights)) for one in questions if one.group == turn]
    return found


def fit_on() -> list[Question]:
    return problems() + asked("scope_phrasings", "own") + general("scope_general")


def main() -> None:
    questions = fit_on()
    counts = Counter((one.kind) for one in questions)
    print(f"to fit on: {dict(counts)}")
    unseen = left_out(questions)
    inside = sorted(value for one, value, _ in unseen if one.label != GENERAL)
    own = sorted(value for one, value, _ in unseen if one.kind == "own")
    threshold = min(
        inside[math.floor(FALSE_ALARMS * len(inside))], own[math.floor(FALSE_ALARMS * len(own))]
    )
    threshold = round(threshold - 0.005, 2)
    print(f"threshold {threshold}; left out of the fit in five rounds:")
    for kind in ("phrasing", "own", "general"):
        report(kind, [(one, value - threshold, near) for one, value, near in unseen
                      if one.kind == kind])  # fmt: skip
    weights = fitted(questions)._replace(threshold=threshold)
    WRITTEN.write_text(
        json.dumps(
            {
                "what": "weights of forethought.problems.scope, by benchmarks/data/make_scope.py",
                "classes": weights.classes,
                "step": weights.step,
                "threshold": threshold,
                "known": " ".join(sorted(weights.known)),
                "weights": dict(sorted(weights.of.items())),
            },
            ensure_ascii=False,
            indent=0,
        )
        + "\n",
        encoding="utf-8",
    )
    print(f"{len(weights.of)} features, {WRITTEN.stat().st_size} bytes")
    kept = scope._weights()  # as they are read again
    for name, questions in (
        ("held-out phrasings", asked("scope_held_out_phrasings", "own")),
        ("held-out general", general("scope_held_out_general")),
    ):
        report(name, [(one, *score(one.text, kept)) for one in questions])


def report(name: str, found: Sequence[tuple[Question, float, str]]) -> None:
    """How many are outside, by family, and which go the wrong way."""
    wrong = [
        (one, value, near) for one, value, near in found if (value >= 0) == (one.label == GENERAL)
    ]
    what = "taken for problems" if name.endswith("general") else "false alarms"
    print(f"{name}: {len(wrong)} of {len(found)} {what} ({len(wrong) / len(found):.2%})")
    for one, value, near in wrong:
        print(f"    {value:+.2f} {one.label} ({near}): {one.text!r}")
    if not name.endswith("general"):
        right = sum(near == one.label for one, _, near in found)
        print(f"    nearest family right: {right / len(found):.1%}")


if __name__ == "__main__":
    main()
