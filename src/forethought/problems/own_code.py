"""A person's own Python file (a family, a reward): imported once, by its path."""

from __future__ import annotations

import importlib.util
import sys
from hashlib import blake2b
from pathlib import Path
from types import ModuleType

from forethought.errors import UserError


def own_module(path: Path) -> ModuleType:
    """The module in the file ``path``, which is run the first time.

    Raises UserError: one sentence where it is no Python file or cannot be imported.
    """
    name = f"forethought_own_{path.stem}_{blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    found = sys.modules.get(name)
    if found is not None:
        return found
    made = importlib.util.spec_from_file_location(name, path)
    if made is None or made.loader is None:
        raise UserError(f"{path} is no Python file: give the path of a .py file.")
    module = importlib.util.module_from_spec(made)
    # Before it runs: dataclasses look their own module up.
    sys.modules[name] = module
    try:
        made.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        said = " ".join(str(error).split())
        raise UserError(f"{path} cannot be imported ({type(error).__name__}: {said}).") from error
    return module
