"""Makes :mod:`reference` importable, and one thread the rule: the shapes here are tiny."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# It remarks on every yarn factor that is not the ratio of the two lengths.
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
