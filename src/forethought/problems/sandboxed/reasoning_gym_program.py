"""The program that draws and scores the problems of reasoning-gym.

An entry never leaves the sandbox: scoring draws it again from its settings and seed, so that what
the verifier looks at is exactly what the generator made.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy
from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum, create_dataset


def names(_payload: Any) -> list[str]:
    """All families."""
    return sorted(DATASETS)


def describe(payload: Any) -> dict[str, int]:
    """How many levels a family has: its curriculum's, or 1 where "graded" is false.

    Some curricula end in settings that their family refuses; those are no levels. Raises what the
    library raises for settings that it refuses at every level.
    """
    levels = _curriculum_levels(payload["name"]) if payload["graded"] else 1
    while levels:
        try:
            _dataset({**payload, "level": levels}, seed=0)
            break
        except (AssertionError, ValueError):
            if levels == 1:
                raise
            levels -= 1
    return {"levels": levels}


def draw(payload: Any) -> list[dict[str, str]]:
    """The problems of "seeds": question, and a right answer ("" where the library has none)."""
    drawn = [_entry(payload, seed)[1] for seed in payload["seeds"]]
    return [
        {"question": str(entry["question"]), "answer": str(entry["answer"] or "")}
        for entry in drawn
    ]


def score(payload: Any) -> dict[str, object]:
    """The score of "answer" for the problem of "seed", whose text was "question".

    "state" is "scored", "changed" (the problem came out another this time), "unreadable" (the
    verifier fails on this answer but not on its own) or "failed" (it fails on both).
    """
    dataset, entry = _entry(payload, payload["seed"])
    if str(entry["question"]) != payload["question"]:
        return {"state": "changed", "reason": "the problem could not be drawn again"}
    try:
        return {"state": "scored", "score": float(dataset.score_answer(payload["answer"], entry))}
    except MemoryError:
        return {"state": "failed", "reason": "the verifier ran out of memory"}
    except BaseException as error:  # answers are evaluated, so they raise what they like
        reason = type(error).__name__
    dataset, entry = _entry(payload, payload["seed"])
    own = dataset.score_answer(entry["answer"], entry)
    return {"state": "unreadable" if own == 1.0 else "failed", "reason": reason}


def _curriculum_levels(name: str) -> int:
    """Steps of the longest attribute of the curriculum; 0 where there is none."""
    if name not in CURRICULA:
        return 0
    attributes = create_curriculum(name).attributes.values()
    return max((len(attribute.levels) for attribute in attributes), default=0)


def _entry(payload: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    dataset = _dataset(payload, seed)
    return dataset, dataset[0]


def _dataset(payload: Any, seed: int) -> Any:
    # Some generators use the global random state beside their own.
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    settings: dict[str, Any] = {**payload["config"], "seed": seed, "size": 1}
    if payload["graded"]:
        curriculum = create_curriculum(payload["name"])
        curriculum.set_global_level(payload["level"] - 1)
        config = dataclasses.replace(curriculum.generate_configuration(), **settings)
        settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return create_dataset(payload["name"], **settings)


OPS = {"names": names, "describe": describe, "draw": draw, "score": score}
