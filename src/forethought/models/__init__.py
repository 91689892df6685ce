"""Networks: config + weights + ids -> logits, nothing else.

    import forethought as ft

    network = ft.models.load("a-hugging-face-folder")  # or a .gguf
    logits = network(ids)  # [batch, tokens] -> [batch, tokens, vocabulary]
    ft.models.save(network, "another-folder", source="a-hugging-face-folder")

Importing this package imports no torch (PEP 562): each name is imported when first used, and
without torch that is a `UserError` that names the extra to install.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.models.cache import PlainCache as PlainCache
    from forethought.models.causal_lm import CausalLM as CausalLM
    from forethought.models.loading import build as build
    from forethought.models.loading import load as load
    from forethought.models.loading import save as save

_HOMES = {
    "CausalLM": "forethought.models.causal_lm",
    "PlainCache": "forethought.models.cache",
    "build": "forethought.models.loading",
    "load": "forethought.models.loading",
    "save": "forethought.models.loading",
}
# What the extra brings: any of them missing means that it is not installed.
_OF_THE_EXTRA = frozenset({"torch", "numpy", "pydantic", "safetensors", "gguf"})

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'forethought.models' has no attribute {name!r}")
    try:
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OF_THE_EXTRA:
            raise
        raise UserError(
            f"forethought.models needs {error.name}; install it with: "
            "pip install 'forethought[train]'"
        ) from None
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
