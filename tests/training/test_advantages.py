"""From rewards to advantages: groups, their dead and unscorable members, the penalty on length."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.errors import UserError
from forethought.training.losses import advantages, soft_overlong_punishment


def close(one, other, tolerance=1e-10):
    one, other = (torch.as_tensor(x, dtype=torch.float64) for x in (one, other))
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_advantages_have_the_unbiased_deviation():
    rewards = [[1.0, 0.0, 0.0, 1.1], [0.0, 0.0, 0.0, 1.0]]
    found = advantages(torch.tensor(rewards, dtype=torch.float64), "std")
    for row, values in zip(rewards, found.values_PG.tolist(), strict=True):
        mean = sum(row) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / 3)
        close(values, [(r - mean) / (std + 1e-4) for r in row], 1e-12)
    plain = advantages(torch.tensor(rewards), "none").values_PG
    close(plain[1], torch.tensor([-0.25, -0.25, -0.25, 0.75], dtype=torch.float64), 1e-7)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 + 0.2, 1.1, -0.7, 1e-30, 1e12])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_a_group_is_dead_by_exact_equality_of_its_rewards(reward, size):
    """Whatever rounding makes of their mean: fractions too, and large numbers."""
    found = advantages(torch.full((1, size), reward, dtype=torch.float64), "std")
    assert found.dead_P.tolist() == [True]
    assert not found.learns_PG.any()
    assert not found.values_PG.any()


def test_a_group_with_nearly_equal_rewards_is_alive_but_says_next_to_nothing():
    found = advantages(torch.tensor([[0.1 + 0.2, 0.3, 0.3]], dtype=torch.float64), "std")
    assert found.dead_P.tolist() == [False]
    assert found.values_PG.abs().max() < 1e-11


def test_a_group_whose_mean_is_average_is_not_dead():
    """A filter on the mean reward would take [0, 1] for uninformative at 0.5, or keep [.5, .5]."""
    found = advantages(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), "none")
    assert found.dead_P.tolist() == [False, True]


def test_unscorable_samples_are_not_in_the_mean_and_have_no_loss():
    rewards = torch.tensor([[1.0, math.nan, 0.0, 1.0], [math.nan, math.nan, 1.0, 0.0]])
    found = advantages(rewards, "std", ~rewards.isnan())
    assert found.learns_PG.tolist() == [[True, False, True, True], [False, False, True, True]]
    assert found.dead_P.tolist() == [False, False]
    close(
        found.values_PG[0, [0, 2, 3]], advantages(torch.tensor([[1.0, 0, 1]]), "std").values_PG[0]
    )
    close(found.values_PG[1, 2:], advantages(torch.tensor([[1.0, 0]]), "std").values_PG[0])
    assert found.values_PG[0, 1] == 0
    # Their reward is not looked at, whatever it is.
    other = advantages(rewards.nan_to_num(7.0), "std", ~rewards.isnan())
    close(other.values_PG, found.values_PG)


@pytest.mark.parametrize("scorable", [[False] * 3, [True, False, False]])
def test_a_group_with_fewer_than_two_verdicts_is_dead(scorable):
    found = advantages(torch.tensor([[1.0, 0.0, 1.0]]), "std", torch.tensor([scorable]))
    assert found.dead_P.tolist() == [True]
    assert found.values_PG.tolist() == [[0, 0, 0]]
    assert not found.learns_PG.any()


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_of_one_is_refused(scale):
    with pytest.raises(UserError, match="group_size"):
        advantages(torch.tensor([[1.0], [0.0]]), scale)


def test_a_reward_that_is_not_finite_is_refused_by_place():
    with pytest.raises(UserError, match="sample 1 of group 0 is nan"):
        advantages(torch.tensor([[1.0, math.nan]]), "std")


@given(
    rows=st.lists(st.lists(st.integers(-8, 8), min_size=4, max_size=4), min_size=1, max_size=5),
    shift=st.integers(-100, 100),
    scale=st.sampled_from(["std", "none"]),
)
def test_a_constant_added_to_all_rewards_changes_nothing(rows, shift, scale):
    rewards = torch.tensor(rows, dtype=torch.float64) / 4
    found, moved = advantages(rewards, scale), advantages(rewards + shift, scale)
    assert torch.equal(found.dead_P, moved.dead_P)
    close(found.values_PG, moved.values_PG, 1e-9)
    close(found.values_PG.sum(dim=1), torch.zeros(len(rows), dtype=torch.float64), 1e-9)


@given(rows=st.permutations(range(4)), places=st.permutations(range(3)))
def test_a_group_is_judged_by_itself_alone(rows, places):
    """Groups and samples in another order have the same advantages in that order."""
    rewards = torch.tensor([[1.0, 0, 0], [0.3, 0.9, 0.1], [1, 1, 1], [-2, 5, 1]])
    found = advantages(rewards, "std").values_PG
    close(advantages(rewards[rows][:, places], "std").values_PG, found[rows][:, places], 1e-12)


def test_soft_overlong_punishment_by_hand():
    lengths = torch.tensor([0, 80, 81, 90, 99, 100, 150])
    punishment = soft_overlong_punishment(lengths, 100, 20)
    close(punishment.tolist(), [0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0], 1e-12)
    for cache in (0, 101):
        with pytest.raises(ValueError, match="cache_tokens"):
            soft_overlong_punishment(lengths, 100, cache)
