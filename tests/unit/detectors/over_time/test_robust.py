"""Median, MAD, windows and Kendall's test against slow, obvious twins."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.detectors.over_time import Memory
from headwater.detectors.over_time.robust import NORMAL_MAD, enter_window, kendall_z, mad, median

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(numbers)
def test_median_and_mad_are_those_of_the_standard_library(values: list[float]) -> None:
    middle = statistics.median(values)
    assert median(values) == middle
    assert mad(sorted(values)) == statistics.median([abs(v - middle) for v in values])


def test_the_factor_makes_the_mad_of_a_normal_distribution_its_standard_deviation() -> None:
    assert pytest.approx(1 / statistics.NormalDist().inv_cdf(0.75), abs=1e-4) == NORMAL_MAD


@given(numbers, st.integers(1, 10))
def test_a_window_holds_the_last_values_in_both_orders(values: list[float], length: int) -> None:
    memory: Memory = {}
    for value in values:
        enter_window(memory, value, length)
    assert memory["window"] == values[-length:]
    assert memory["ordered"] == sorted(values[-length:])


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=30))
def test_kendalls_z_changes_its_sign_with_the_direction_and_not_with_a_monotone_map(values: list[float]) -> None:
    z = kendall_z(values)
    assert kendall_z(values[::-1]) == pytest.approx(-z)
    assert kendall_z([2.0 * v for v in values]) == pytest.approx(z)


def test_kendalls_z_of_ten_rising_numbers() -> None:
    # S = 45, its variance without a trend 10·9·25/18 = 125.
    assert kendall_z(range(10)) == pytest.approx(45 / math.sqrt(125))
