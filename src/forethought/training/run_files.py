"""The names of the files in a run's folder, for who writes one and who reads one without torch."""

from __future__ import annotations

from typing import Final

RUN: Final = "run.json"
RECIPE: Final = "recipe.toml"
METRICS: Final = "metrics.jsonl"
TIMINGS: Final = "timings.jsonl"
FILM: Final = "film.jsonl"
STATE: Final = "state"
TOKENIZER: Final = "tokenizer"
CHECKPOINTS: Final = "checkpoints"
TENSORBOARD: Final = "tensorboard"
PROFILE: Final = "profile"
PHASES_JSON: Final = "phases.json"
PHASES_TEXT: Final = "phases.txt"
DONE: Final = "done.json"
LOCK: Final = ".lock"
