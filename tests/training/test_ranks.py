"""Two processes against one: the same rollouts, gradients and figures; and one that ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_program
import torch
from safetensors.torch import load_file

from forethought.errors import UserError
from forethought.training.ranks import Ranks, joined, rank_here

PROGRAM = Path(rank_program.__file__)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(command: list[str], rank: int, port: int, count: int = 2) -> subprocess.Popen[str]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), str(PROGRAM.parents[1])]),
    }
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **{name: str(value) for name, value in place.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_ranks(*command: str) -> list[tuple[int, str, str]]:
    """Two ranks of a Python program: their exit codes, stdout and stderr."""
    port = free_port()
    ranks = [start(list(command), rank, port) for rank in range(2)]
    done = []
    for one in ranks:
        out, errors = one.communicate(timeout=120)
        done.append((one.returncode, out, errors))
    return done


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    tensors, facts = rank_program.everything(Ranks())
    return tensors, json.loads(json.dumps(facts))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    done = run_ranks(str(PROGRAM), str(out))
    assert [code for code, _, _ in done] == [0, 0], done
    return load_file(out / "tensors"), json.loads((out / "facts").read_text())


def test_gradients_and_biases_are_those_of_one(alone, two):
    assert two[0].keys() == alone[0].keys()
    compared = 0
    for name, one in alone[0].items():
        if name.startswith("rollout"):
            continue
        difference = float((two[0][name] - one).double().norm())
        bound = 1e-5 if "float32" in name else 1e-10
        assert difference <= bound * float(one.double().norm()), name
        compared += 1
    assert compared > 150


def test_figures_of_the_steps_are_those_of_one(alone, two):
    for name, one in alone[1].items():
        if name != "rollout":
            tolerance = 1e-9 if "float64" in name else 1e-4
            _same(two[1][name], one, tolerance, name)


def test_levels_rise_for_all_ranks_as_for_one(alone, two):
    mine, one = two[1]["climbing float64"], alone[1]["climbing float64"]
    levels = [step["open_level/shown_digit"] for step in mine["steps"]]
    assert levels[0] == 1
    assert levels[-1] == 3
    assert mine["state"] == one["state"]


def _same(mine: Any, one: Any, tolerance: float, where: str) -> None:
    if isinstance(one, dict):
        assert mine.keys() == one.keys(), where
        for key, value in one.items():
            _same(mine[key], value, tolerance, f"{where} {key}")
    elif isinstance(one, list):
        for at, (left, right) in enumerate(zip(mine, one, strict=True)):
            _same(left, right, tolerance, f"{where} {at}")
    elif isinstance(one, float):
        assert mine == pytest.approx(one, rel=tolerance, abs=1e-3 * tolerance), where
    elif "replayed_micro_batches" not in where:  # there are more of them
        assert mine == one, where


def test_the_rollout_is_the_same_whoever_draws_it(alone, two):
    mine, one = two[1]["rollout"], alone[1]["rollout"]
    assert mine["ids"] == one["ids"]
    assert mine["truncated"] == one["truncated"]
    assert mine["judged"] == one["judged"]
    assert torch.equal(two[0]["rollout/experts"], alone[0]["rollout/experts"])
    torch.testing.assert_close(
        two[0]["rollout/logprobs"], alone[0]["rollout/logprobs"], rtol=1e-5, atol=1e-6
    )
    # Each draws its own problems only.
    assert mine["heard"] == [[p, i] for p in (0, 2, 4) for i in range(3)]


def test_one_that_ends_ends_the_others_with_a_sentence(tmp_path: Path):
    done = run_ranks(str(PROGRAM), str(tmp_path), "leaves")
    assert [code for code, _, _ in done] == [0, 0], done
    assert (tmp_path / "error").read_text().startswith("ModelError: another process of this run")


def test_a_rank_of_one_does_nothing():
    ranks = Ranks()
    tensor = torch.ones(3)
    ranks.sum_([tensor])
    assert torch.equal(tensor, torch.ones(3))
    assert ranks.any(False, True) == (False, True)
    assert ranks.totals([1.5]) == [1.5]
    assert ranks.gather_bytes(b"a") == [b"a"]
    assert list(ranks.own(3)) == [0, 1, 2]
    with joined("cuda:1") as there:
        assert (there.rank, there.count, there.first) == (0, 1, True)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Ranks(2, 2)


def test_a_place_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        rank_here()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is None"), joined("cpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "process 1 of this host has no GPU: torch finds 0"), ("cuda:0", "set device to")],
)
def test_a_rank_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch, device: str, message: str):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), joined(device):
        pass
