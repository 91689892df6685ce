"""Running out of memory in a step says which key to lower."""

from __future__ import annotations

import pytest
import torch

from forethought.errors import UserError
from forethought.training.memory import step_memory


def test_out_of_memory_names_the_key_and_its_half():
    with (
        pytest.raises(UserError, match="lower micro_batch_tokens to 4096"),
        step_memory(torch.device("cpu"), 8192),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), step_memory(torch.device("cpu"), 8192):
        raise ZeroDivisionError


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_says_what_half_would_save():
    def fill():
        with step_memory(torch.device("cuda"), 8192):
            held = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda")]
            while True:
                held.append(torch.empty(1 << 34, dtype=torch.uint8, device="cuda"))

    with pytest.raises(UserError, match=r"saves at least \d+\.\d GiB"):
        fill()
