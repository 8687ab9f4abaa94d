"""Rows of several ranks as one: the two reductions against Statistics.merge, which goes rank by rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headwater.capture.training.additive import (
    CHANGE_COLUMNS,
    Additive,
    Changes,
    Moments,
    Norms,
    SecondMoments,
    kind_of,
    ratios,
)
from headwater.records import Statistics
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS
from headwater.stats import moment_table, statistics_from_rows


def reduced(kind: Additive, tables: Sequence[Tensor], present: Sequence[Tensor], elements: Sequence[Tensor]) -> Tensor:
    """What MAX and SUM over ranks do, in one process."""
    agreed = torch.stack([kind.to_extremes(t, p) for t, p in zip(tables, present, strict=True)]).amax(0)
    sums = [kind.to_sums(t, p, e, agreed) for t, p, e in zip(tables, present, elements, strict=True)]
    return kind.to_table(agreed, torch.stack(sums).sum(0))


def merged(parts: Sequence[Tensor]) -> Statistics:
    tables = [moment_table([part]) for part in parts]
    there = [torch.tensor([True])] * len(parts)
    elements = [torch.tensor([float(part.numel())], dtype=torch.float64) for part in parts]
    return statistics_from_rows(reduced(Moments(), tables, there, elements))[0]


def assert_alike(found: Statistics, expected: Statistics) -> None:
    counts = ("count", "zero_count", "nan_count", "inf_count")
    assert [getattr(found, name) for name in counts] == [getattr(expected, name) for name in counts]
    for name in ("rms", "mean_abs", "max_abs", "std", "min_abs_nonzero", "kurtosis", "l2_norm"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=0.0, nan_ok=True), name
    size = expected.mean_abs if expected.finite_count else 0.0
    assert found.mean == pytest.approx(expected.mean, rel=1e-9, abs=1e-12 * size, nan_ok=True)


numbers = st.floats(-1e30, 1e30, allow_nan=False).map(lambda x: 0.0 if abs(x) < 1e-30 else x)
pieces = st.lists(st.one_of(numbers, st.sampled_from([math.nan, math.inf, -math.inf, 0.0])), max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=5))
def test_pieces_of_a_tensor_add_up_to_the_statistics_of_the_whole(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.float64) for part in parts]
    each = [statistics_from_rows(moment_table([t]))[0] for t in tensors]
    assert_alike(merged(tensors), Statistics.merge(each))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e150, 1e300])
def test_sums_stay_in_range_at_every_scale(scale: float) -> None:
    tensors = [torch.tensor([1.0, -2.0], dtype=torch.float64) * scale, torch.tensor([3.0], dtype=torch.float64) * scale]
    found = merged(tensors)
    # Σx² = 1 + 4 + 9 = 14 over 3 elements.
    assert found.rms == pytest.approx(math.sqrt(14 / 3) * scale, rel=1e-12)
    assert found.max_abs == pytest.approx(3 * scale, rel=1e-15)


def test_pieces_of_very_different_size_keep_the_largest() -> None:
    found = merged([torch.tensor([1e-200], dtype=torch.float64), torch.tensor([1e200], dtype=torch.float64)])
    assert found.max_abs == pytest.approx(1e200)
    assert found.min_abs_nonzero == 1e-200


def test_a_spread_far_below_the_mean_survives() -> None:
    # Two pieces about 1 with deviations of ±1e-7 and ±3e-7: Σ(x - M)² = 2·1e-14 + 2·9e-14, M = 1.
    a = torch.tensor([1 - 1e-7, 1 + 1e-7], dtype=torch.float64)
    b = torch.tensor([1 - 3e-7, 1 + 3e-7], dtype=torch.float64)
    assert merged([a, b]).variance == pytest.approx(20e-14 / 4, rel=1e-6)


def test_what_is_not_present_does_not_count() -> None:
    table = moment_table([torch.tensor([5.0, 5.0])])
    twice = [table, table]
    whose = [torch.tensor([True]), torch.tensor([False])]
    counted = [torch.tensor([2.0], dtype=torch.float64)] * 2
    assert statistics_from_rows(reduced(Moments(), twice, whose, counted))[0].count == 2


def test_rows_that_no_rank_has_are_empty() -> None:
    table = torch.zeros((1, 11), dtype=torch.float64)
    nobody = [torch.tensor([False])]
    found = statistics_from_rows(reduced(Moments(), [table], nobody, [torch.zeros(1, dtype=torch.float64)]))[0]
    assert found == Statistics.empty()


def test_norms_add_up_in_squares_and_counts_as_they_are() -> None:
    # ‖(3, 4)‖ with pieces of norm 3 and 4 is 5; one NaN and two infinities in all.
    tables = [
        torch.tensor([[3e200, 1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[4e200, 0.0, 2.0]], dtype=torch.float64),
    ]
    there = [torch.tensor([True])] * 2
    ones = [torch.ones(1, dtype=torch.float64)] * 2
    assert reduced(Norms(), tables, there, ones).tolist() == [[pytest.approx(5e200), 1.0, 2.0]]


def test_the_update_ratio_weighs_each_rank_by_what_it_holds() -> None:
    # Rank 0 read all of 4 elements: ‖Δw‖ = 3, ‖w‖ = 6. Rank 1 read a quarter of 8: ‖Δw‖² = 4, ‖w‖² = 16, so 16 and 64 in
    # all of them. ratio² = (9 + 16) / (36 + 64) = 1/4; read 4 + 2 of 12 elements.
    tables = [
        torch.tensor([[3.0, 6.0, 1.0]], dtype=torch.float64),
        torch.tensor([[2.0, 4.0, 0.25]], dtype=torch.float64),
    ]
    elements = [torch.tensor([4.0], dtype=torch.float64), torch.tensor([8.0], dtype=torch.float64)]
    assert reduced(Changes(), tables, [torch.tensor([True])] * 2, elements).tolist() == [[0.5, 0.5]]


def test_a_tensor_that_was_zero_and_moved_has_an_infinite_ratio_and_one_that_stayed_has_none() -> None:
    changes = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert ratios(changes).tolist() == [[math.inf, 1.0], [0.0, 1.0]]


def test_the_second_moment_is_a_mean_over_all_elements() -> None:
    # mean v = (2 · 3² + 6 · 1²) / 8 = 3; a quarter of 2 and half of 6 elements below eps: 3.5 / 8.
    tables = [
        torch.tensor([[3.0, 1e-8, 0.25]], dtype=torch.float64),
        torch.tensor([[1.0, 1e-8, 0.5]], dtype=torch.float64),
    ]
    elements = [torch.tensor([2.0], dtype=torch.float64), torch.tensor([6.0], dtype=torch.float64)]
    found = reduced(SecondMoments(), tables, [torch.tensor([True])] * 2, elements).tolist()
    assert found == [[pytest.approx(math.sqrt(3.0)), 1e-8, pytest.approx(3.5 / 8)]]


def test_a_table_is_told_by_its_columns() -> None:
    assert kind_of(STATISTICS_COLUMNS) == Moments()
    assert kind_of(NORM_COLUMNS) == Norms()
    assert kind_of(CHANGE_COLUMNS) == Changes()
    assert kind_of(("something",)) is None
