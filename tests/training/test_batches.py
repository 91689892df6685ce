"""Packed batches: what is trained, at which rows, and how sequences share passes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.training.batches import PackedBatch, TokenSequence, lane_batches, micro_batches

SEQUENCES = [
    TokenSequence((10, 11, 12, 13)),
    TokenSequence((20, 21, 22, 23, 24), 3),
    TokenSequence((30, 31, 32, 33), mask=(True, False, True, False)),
    TokenSequence((40, 41)),
]


def test_targets_follow_prompt_or_mask_and_end_with_the_last_token():
    assert [one.targets for one in SEQUENCES] == [3, 2, 1, 1]
    assert [one.inputs for one in SEQUENCES] == [3, 4, 3, 1]
    batch = PackedBatch(SEQUENCES)
    assert batch.ids_1N.tolist() == [[10, 11, 12, 20, 21, 22, 23, 30, 31, 32, 40]]
    assert batch.positions_1N.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.targets_L.tolist() == [11, 12, 13, 23, 24, 32, 41]
    assert batch.rows_L.tolist() == [0, 1, 2, 5, 6, 8, 10]
    assert batch.sequence_L.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert batch.lengths_S.tolist() == [3, 2, 1, 1]
    assert (batch.tokens, batch.loss_tokens) == (11, 7)


def test_the_mtp_module_predicts_the_trained_tokens_after_the_next_within_a_sequence():
    batch = PackedBatch(SEQUENCES)
    assert batch.second_targets_L.tolist() == [12, 13, 23, 24, 32]
    assert batch.second_rows_L.tolist() == [0, 1, 4, 5, 7]


def test_a_sequence_without_targets_has_a_length_of_zero():
    batch = PackedBatch([TokenSequence((1, 2, 3), mask=(False,) * 3), TokenSequence((4, 5))])
    assert batch.lengths_S.tolist() == [0, 1]
    assert batch.targets_L.tolist() == [5]


def test_a_sequence_of_one_token_is_refused():
    with pytest.raises(ValueError, match="predicts nothing"):
        PackedBatch([TokenSequence((1, 2)), TokenSequence((1,))])


def test_a_prompt_of_nothing_trains_all_but_the_first_token():
    batch = PackedBatch([TokenSequence((5, 6, 7), 0)])
    assert batch.targets_L.tolist() == [6, 7]
    assert TokenSequence((5, 6, 7), 0).targets == 2


_IDS = st.lists(st.integers(0, 99), min_size=2, max_size=12)


@st.composite
def _sequences(draw) -> list[TokenSequence]:
    made = []
    for ids in draw(st.lists(_IDS, min_size=1, max_size=5)):
        mask = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).map(tuple)
        made.append(
            TokenSequence(tuple(ids), draw(st.integers(0, len(ids) - 1)), draw(st.none() | mask))
        )
    return made


@given(_sequences())
def test_rows_and_targets_are_those_of_a_plain_loop(sequences):
    batch = PackedBatch(sequences)
    first, second, start = [], [], 0
    for sequence in sequences:
        trained = sequence.mask or [at >= sequence.prompt for at in range(len(sequence.ids))]
        for at in range(1, len(sequence.ids)):
            if trained[at]:
                first.append((start + at - 1, sequence.ids[at]))
                if at >= 2:
                    second.append((start + at - 2, sequence.ids[at]))
        start += sequence.inputs
    assert list(zip(batch.rows_L.tolist(), batch.targets_L.tolist(), strict=True)) == first
    rows, targets = batch.second_rows_L.tolist(), batch.second_targets_L.tolist()
    assert list(zip(rows, targets, strict=True)) == second
    assert batch.loss_tokens == sum(one.targets for one in sequences)
    assert torch.equal(batch.lengths_S, torch.tensor([one.targets for one in sequences]))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 80))
def test_every_sequence_is_in_one_pass_and_only_a_long_one_goes_beyond_the_budget(lengths, budget):
    parts = micro_batches(lengths, budget)
    assert sorted(at for part in parts for at in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or sum(lengths[at] for at in part) <= budget
    longest_first = [lengths[at] for part in parts for at in part]
    assert longest_first == sorted(lengths, reverse=True)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.integers(1, 100),
    st.integers(1, 5),
)
def test_passes_of_lanes_hold_each_sequence_once_within_the_budget(lengths, budget, lanes):
    batches = lane_batches(lengths, budget, lanes)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[at] for at in batch) <= budget


def test_every_lane_gets_about_the_same():
    lengths = [9, 3, 5, 8, 2, 7, 4, 6, 1, 5]
    batches = lane_batches(lengths, 1000, 2)
    assert [sum(lengths[at] for at in batch) for batch in batches] == [25, 25]
    assert len(lane_batches(lengths, 17, 2)) % 2 == 0
    assert lane_batches(lengths, 17, 1) == micro_batches(lengths, 17)
    assert lane_batches([5], 1000, 4) == [[0]]
