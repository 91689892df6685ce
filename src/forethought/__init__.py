"""forethought: the DeepSeek-R1 system in the open.

    import forethought as ft

    model = ft.load()  # nano, which comes along; or a name such as "deepseek-r1:1.5b"
    reply = model.ask("Use 19, 36, 55 and 7 to make 65.")
    print(reply.thought, reply.answer, sep="\\n---\\n")

Importing this package loads nothing heavy (PEP 562): each name is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forethought import models as models
    from forethought.dialogue.messages import Message as Message
    from forethought.dialogue.messages import Prompt as Prompt
    from forethought.engines.load import load as load
    from forethought.engines.model import Model as Model
    from forethought.engines.protocol import AnswerDelta as AnswerDelta
    from forethought.engines.protocol import Budget as Budget
    from forethought.engines.protocol import Finished as Finished
    from forethought.engines.protocol import Sample as Sample
    from forethought.engines.protocol import SamplingParameters as SamplingParameters
    from forethought.engines.protocol import ThoughtDelta as ThoughtDelta
    from forethought.errors import ForethoughtError as ForethoughtError
    from forethought.errors import UserError as UserError
    from forethought.problems.family import Family as Family
    from forethought.problems.family import Worked as Worked
    from forethought.problems.problem import Problem as Problem
    from forethought.problems.problem import Verdict as Verdict
    from forethought.recipes.api import train as train

__version__ = "0.1.0"

_HOMES = {
    "AnswerDelta": "forethought.engines.protocol",
    "Budget": "forethought.engines.protocol",
    "Family": "forethought.problems.family",
    "Finished": "forethought.engines.protocol",
    "ForethoughtError": "forethought.errors",
    "Message": "forethought.dialogue.messages",
    "Model": "forethought.engines.model",
    "Problem": "forethought.problems.problem",
    "Prompt": "forethought.dialogue.messages",
    "Sample": "forethought.engines.protocol",
    "SamplingParameters": "forethought.engines.protocol",
    "ThoughtDelta": "forethought.engines.protocol",
    "UserError": "forethought.errors",
    "Verdict": "forethought.problems.problem",
    "Worked": "forethought.problems.family",
    "load": "forethought.engines.load",
    "train": "forethought.recipes.api",
}

_ROOMS = ("models",)

__all__ = sorted([*_HOMES, *_ROOMS, "__version__"])


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return importlib.import_module(f"forethought.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'forethought' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
