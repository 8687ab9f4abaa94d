"""The log2 histogram: fixed bins, exact addition, quantiles within a factor of two."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references.exact_statistics import elements
from tests.references.tensors import FLOATS, tensors

from headwater.errors import RecordError
from headwater.records.histogram import Histogram
from headwater.stats import log2_histogram


def test_bins_are_derived_by_hand() -> None:
    # 1 and 1.99 lie in [2⁰, 2¹), 2 in [2¹, 2²), -0.3 in [2⁻², 2⁻¹).
    x = torch.tensor([1.0, 1.99, 2.0, -0.3, 0.0, -0.0, math.nan, math.inf, -math.inf])
    assert log2_histogram(x) == Histogram(((-2, 1),), ((0, 2), (1, 1)), zero_count=2, nan_count=1, inf_count=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bit_pattern_falls_into_its_bin(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(dtype))
    h = log2_histogram(x)
    assert h == Histogram.of(elements(x))
    assert h.count == x.numel()


@settings(max_examples=100, deadline=None)
@given(a=tensors(torch.float32), b=tensors(torch.bfloat16))
def test_histograms_of_two_ranks_add_up_to_that_of_the_whole(a: torch.Tensor, b: torch.Tensor) -> None:
    whole = log2_histogram(torch.cat([a, b.float()]))
    assert log2_histogram(a) + log2_histogram(b) == whole == log2_histogram(b) + log2_histogram(a)


def test_smallest_and_largest_numbers_have_their_bins() -> None:
    assert log2_histogram(torch.tensor([5e-324, 1.7e308], dtype=torch.float64)).positive == ((-1074, 1), (1023, 1))
    assert log2_histogram(torch.tensor([1e-45, 3e38])).positive == ((-149, 1), (127, 1))


@pytest.mark.parametrize("power", [-100, 0, 100])
def test_scaling_by_a_power_of_two_moves_the_bins(power: int) -> None:
    x = torch.randn(10_000)
    moved = log2_histogram(x * 2.0**power)
    assert moved.positive == tuple((e + power, c) for e, c in log2_histogram(x).positive)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_more_elements_than_a_float32_can_count(dtype: torch.dtype) -> None:
    n = 2**24 + 3
    x = torch.ones(n, dtype=dtype)
    x[:5] = -4.0
    h = log2_histogram(x)
    assert h == Histogram(((2, 5),), ((0, n - 5),))
    assert h == log2_histogram(x[: n // 2]) + log2_histogram(x[n // 2 :])


def test_quantiles_lie_within_a_factor_of_two() -> None:
    x = torch.randn(20_001, dtype=torch.float64) * 1e-30
    h = log2_histogram(x)
    for q in (0.01, 0.25, 0.5, 0.9, 0.999):
        exact = float(x.abs().quantile(q))
        assert 0.5 <= h.quantile_abs(q) / exact <= 2.0


def test_quantile_interpolates_inside_its_bin() -> None:
    # Four elements in [1, 2): the median stands at half of the bin on a log scale, √2.
    h = Histogram.of([1.0, 1.2, 1.5, 1.9])
    assert h.quantile_abs(0.5) == pytest.approx(math.sqrt(2.0))
    assert (h.quantile_abs(0.0), h.quantile_abs(1.0)) == (1.0, pytest.approx(2.0))


def test_zeros_take_the_lowest_ranks() -> None:
    h = Histogram.of([0.0, 0.0, 0.0, 8.0, math.nan])
    assert h.quantile_abs(0.5) == 0.0
    assert 8.0 <= h.quantile_abs(0.9) <= 16.0
    assert Histogram.of([0.0]).quantile_abs(1.0) == 0.0


def test_quantile_of_nothing_finite_is_nan_and_of_the_largest_double_is_finite() -> None:
    assert math.isnan(Histogram.of([math.nan]).quantile_abs(0.5))
    assert math.isfinite(Histogram.of([1.7e308]).quantile_abs(1.0))
    assert Histogram.of([5e-324]).quantile_abs(0.0) == 5e-324


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_quantile_outside_zero_to_one_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Histogram.of([1.0]).quantile_abs(q)


@given(st.lists(st.floats(), max_size=20))
def test_record_survives_strict_json(values: list[float]) -> None:
    h = Histogram.of(values)
    assert Histogram.from_dict(json.loads(json.dumps(h.to_dict(), allow_nan=False))) == h


@pytest.mark.parametrize(
    ("field", "value"),
    [("positive", None), ("negative", [[1]]), ("positive", [[0.5, 1]]), ("nan_count", 1.5), ("zero_count", None)],
)
def test_a_damaged_field_is_named(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=repr(field)):
        Histogram.from_dict(Histogram.of([1.0]).to_dict() | {field: value})
