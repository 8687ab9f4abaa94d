"""The record of additive statistics: its laws, and its definition by exact arithmetic."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references.exact_statistics import STATISTICS, assert_statistics_agree, exact_statistics

from headwater.errors import RecordError
from headwater.records.statistics import Statistics

# Up to 1e307, so that no l2 norm of 75 of them rounds beyond the largest double.
NUMBERS = st.lists(st.one_of(st.floats(-1e307, 1e307), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=25)


def assert_same(a: Statistics, b: Statistics, rtol: float = 1e-12) -> None:
    assert (a.count, a.zero_count, a.nan_count, a.inf_count) == (b.count, b.zero_count, b.nan_count, b.inf_count)
    for name in STATISTICS:
        x, y = getattr(a, name), getattr(b, name)
        scale = a.mean_abs if name == "mean" else a.rms * 1e-3 if name == "std" else abs(y)
        assert x == y or (math.isnan(x) and math.isnan(y)) or abs(x - y) <= rtol * scale + 5e-324, (name, x, y)


@settings(max_examples=300, deadline=None)
@given(NUMBERS)
def test_statistics_of_numbers_equal_exact_arithmetic(values: list[float]) -> None:
    assert_statistics_agree(Statistics.of(values), exact_statistics(values), rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_merging_equals_concatenation(a: list[float], b: list[float]) -> None:
    assert_statistics_agree(Statistics.of(a) + Statistics.of(b), exact_statistics(a + b), rtol=1e-12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS)
def test_merging_commutes_exactly(a: list[float], b: list[float]) -> None:
    x, y = Statistics.of(a), Statistics.of(b)
    assert x + y == y + x


@settings(max_examples=200, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS)
def test_merging_associates(a: list[float], b: list[float], c: list[float]) -> None:
    x, y, z = (Statistics.of(v) for v in (a, b, c))
    assert_same((x + y) + z, x + (y + z))
    assert_same((x + y) + z, Statistics.merge([x, y, z]))


@given(NUMBERS)
def test_no_element_is_the_neutral_element(values: list[float]) -> None:
    x = Statistics.of(values)
    assert x + Statistics.empty() == x == Statistics.empty() + x
    assert Statistics.merge([]) == Statistics.empty()


@given(NUMBERS)
def test_record_survives_strict_json(values: list[float]) -> None:
    x = Statistics.of(values)
    assert Statistics.from_dict(json.loads(json.dumps(x.to_dict(), allow_nan=False))) == x


@given(NUMBERS, st.integers(-40, 40))
def test_a_common_exponent_changes_no_statistic(values: list[float], shift: int) -> None:
    x = Statistics.of(values)
    assert_same(x.rescaled(x.scale_log2 + shift), x)


def test_smallest_and_largest_double_are_both_kept() -> None:
    # 1e300 sets the scale; 1e-300 is 1e-600 of it, which no double holds.
    s = Statistics.of([1e-300, 1e300, 0.0])
    assert s.min_abs_nonzero == 1e-300
    assert s.max_abs == 1e300
    assert s.zero_count == 1


def test_rms_whose_square_overflows_is_exact() -> None:
    # √((3² + 4²)/2)·1e300 = √12.5·1e300
    assert Statistics.of([3e300, 4e300]).rms == pytest.approx(math.sqrt(12.5) * 1e300, rel=1e-15)


def test_logarithm_of_the_rms_needs_no_representable_rms() -> None:
    s = Statistics.of([1.0, -1.0]).rescaled(0)
    deep = Statistics(2, 0, 0, 0, -5000, s.scaled_sum, s.scaled_sum_abs, 2.0, 2.0, 1.0, 0.0)
    # Two elements of 2**-5000: the rms is 2**-5000, below every double; its log10 is -5000·log10(2).
    assert deep.rms == 0.0
    assert deep.rms_log10 == pytest.approx(-5000 * math.log10(2.0), rel=1e-14)
    assert Statistics.of([0.0]).rms_log10 == -math.inf
    assert math.isnan(Statistics.empty().rms_log10)


@pytest.mark.parametrize("value", ["7", None, math.nan, True])
def test_a_damaged_field_is_named(value: object) -> None:
    data = Statistics.of([1.0]).to_dict() | {"zero_count": value}
    with pytest.raises(RecordError, match="'zero_count'"):
        Statistics.from_dict(data)
