"""Numbers and names as they are written."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.profiles import statistics, tiny_statistics

from headwater.records.statistics import Statistics
from headwater.reports.notation import (
    ASCII,
    decades,
    elide,
    factor,
    percent,
    power,
    rms_range,
    rms_text,
    scientific,
    shape_text,
    shorten_names,
    sparkline,
)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != 0.0))
def test_a_number_that_is_not_zero_is_never_written_as_zero(value: float) -> None:
    # Decimal: the rounded text of the largest doubles lies outside the range of a double.
    assert abs(Decimal(scientific(value)) / Decimal(value) - 1) <= Decimal("0.005")


@given(st.floats(min_value=-300, max_value=300))
def test_a_power_of_ten_reads_back_as_its_exponent(log10: float) -> None:
    # Three significant digits: the mantissa is off by at most 0.005, log10(1.005) = 0.0022 decades.
    assert math.log10(float(power(log10))) == pytest.approx(log10, abs=0.0022)


def test_a_power_of_ten_outside_the_range_of_a_double_is_written_too() -> None:
    # 10**-400.5 = 10**0.5 * 10**-401 = 3.16e-401
    assert power(-400.5) == "3.16e-401"
    # 10**(1 - 1e-9) rounds up to 10.00: the carry goes into the exponent.
    assert power(1 - 1e-9) == "1.00e+01"


def test_an_rms_below_the_range_of_a_double_is_written_and_an_exact_zero_says_so() -> None:
    assert rms_text(tiny_statistics(-320.5)) == "3.16e-321"
    assert rms_text(statistics(0.0)) == "0 (exact)"
    assert rms_text(statistics(2.17e-7)) == "2.17e-07"


def test_what_has_no_finite_element_is_a_dash() -> None:
    assert rms_text(None) == "-"
    assert rms_text(Statistics.empty()) == "-"
    assert rms_text(Statistics.of([math.nan, math.inf])) == "-"


def test_a_range_shows_both_ends_and_an_exact_zero_as_zero() -> None:
    assert rms_range([statistics(1e-9), statistics(3e-5), None]) == "1e-09..3e-05"
    assert rms_range([statistics(0.0), statistics(3e-5)]) == "0..3e-05"
    assert rms_range([statistics(0.0), statistics(0.0)]) == "0 (exact)"
    assert rms_range([None]) == "-"


@given(st.floats(min_value=0.0, max_value=1.0))
def test_a_percentage_is_zero_or_hundred_only_when_the_share_is(fraction: float) -> None:
    assert (percent(fraction) == "0%") == (fraction == 0.0)
    assert (percent(fraction) == "100%") == (fraction == 1.0)


@given(st.floats(min_value=-50, max_value=50).filter(lambda x: x != 0.0))
def test_a_change_keeps_its_sign_and_its_size(value: float) -> None:
    text = decades(value)
    assert text[0] == ("−" if value < 0 else "+")
    assert float(text[1:].split()[0]) == pytest.approx(abs(value), rel=0.01)


def test_a_factor_is_written_plainly_when_small_and_scientifically_when_not() -> None:
    assert factor(-0.845) == "×0.143"
    assert factor(-9.46) == "×3.47e-10"


def test_a_shape_without_dimensions_is_a_scalar() -> None:
    assert shape_text(()) == "scalar"
    assert shape_text((32, 10)) == "32×10"
    assert shape_text(None) == "-"


@given(st.text(max_size=60), st.integers(min_value=1, max_value=40))
def test_an_elided_text_keeps_to_its_width_and_to_its_ends(text: str, width: int) -> None:
    short = elide(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
    elif width > 1:
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_names_are_shortened_alike_so_that_rows_stay_comparable() -> None:
    names = ["encoder.stages.0.layers.1.convolution", "encoder.stages.1.layers.0.convolution", "encoder.pooler", "head"]
    # 24 characters: "e.s.0.layers.1.convolution" has 26, so the fourth word is cut in every name as well.
    assert shorten_names(names, 24) == ["e.s.0.l.1.convolution", "e.s.1.l.0.convolution", "e.pooler", "head"]
    assert shorten_names(names, 60) == names


def test_a_sparkline_rises_with_its_values_and_marks_zeros_and_gaps() -> None:
    # Eighths of the range 0..8: 0 -> first block, 4 -> fifth, 8 -> last.
    assert sparkline([0.0, 4.0, 8.0]) == "▁▅█"
    assert sparkline([math.nan, -math.inf, 2.0, 3.0]) == " 0▁█"
    assert len(sparkline([float(i) for i in range(1000)], 40)) == 40


def test_every_drawing_character_has_an_ascii_stand_in_of_one_cell() -> None:
    assert all(isinstance(v, str) and len(v) == 1 and v.isascii() for v in ASCII.values())
