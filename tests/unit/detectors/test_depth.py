"""The course of the gradient over depth, and its robust slope."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import deep_sigmoid, layer, profile
from tests.profiles import statistics as constant

from headwater.detectors.depth import depth_course, shares, theil_sen
from headwater.records import Profile

numbers = st.floats(-1e3, 1e3, allow_nan=False)


def _twin(xs: list[float], ys: list[float]) -> float:
    """The definition: the median of the slopes of all pairs."""
    pairs = itertools.combinations(zip(xs, ys, strict=True), 2)
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs]
    return statistics.median(slopes)


@given(st.lists(numbers, min_size=3, max_size=25))
@settings(deadline=None)
def test_the_slope_is_the_median_of_all_pairs(ys: list[float]) -> None:
    xs = [float(i) for i in range(len(ys))]
    slope = theil_sen(xs, ys)
    assert slope is not None
    assert slope.value == pytest.approx(_twin(xs, ys))
    assert slope.low <= slope.value <= slope.high


@given(numbers, numbers, st.integers(3, 60))
def test_a_line_gives_its_slope_and_no_interval(slope: float, offset: float, n: int) -> None:
    found = theil_sen([float(i) for i in range(n)], [offset + slope * i for i in range(n)])
    assert found is not None
    for value in (found.value, found.low, found.high):
        assert value == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("outliers", [1, 3, 5])
def test_outliers_below_the_breakdown_point_do_not_move_the_slope(outliers: int) -> None:
    # The breakdown point is 29 % (Sen 1968): of 20 points, 5 wild ones leave (15·14/2)/(20·19/2) = 55 % of the pairs sound.
    ys = [-0.85 * i for i in range(20)]
    for k in range(outliers):
        ys[3 * k + 1] = 1e6 * (-1) ** k
    found = theil_sen([float(i) for i in range(20)], ys)
    assert found is not None
    assert found.value == pytest.approx(-0.85)


def test_the_interval_is_sens() -> None:
    # n = 10: 45 slopes, half = 1.96·√(10·9·25/18) = 21.9; ranks (45 - 21.9)/2 = 11.6 and (45 + 21.9)/2 + 1 = 34.5
    # counted from 1. Allowed is the neighbouring rank: the interval is then wider by one slope, never narrower.
    ys = [float(i * i) for i in range(10)]
    slopes = sorted((y2 - y1) / (b - a) for (a, y1), (b, y2) in itertools.combinations(enumerate(ys), 2))
    found = theil_sen([float(i) for i in range(10)], ys)
    assert found is not None
    assert found.low in slopes[9:12]
    assert found.high in slopes[33:36]


@pytest.mark.parametrize("xs", [[], [0.0], [0.0, 1.0], [2.0, 2.0, 2.0]])
def test_fewer_than_three_positions_have_no_slope(xs: list[float]) -> None:
    assert theil_sen(xs, [1.0] * len(xs)) is None


def test_a_thousand_points_are_thinned_and_keep_their_slope() -> None:
    found = theil_sen([float(i) for i in range(1000)], [0.3 * i for i in range(1000)])
    assert found is not None
    assert found.value == pytest.approx(0.3)


def test_the_course_leaves_out_the_loss_and_the_head() -> None:
    # deep_sigmoid(20): below the head's weights (step "40") there are 20 sigmoids and 19 linears.
    course = depth_course(deep_sigmoid(20, -0.845))
    assert [s.name for s in course.steps][:2] == ["39", "38"]
    assert course.total_decades == pytest.approx(20 * -0.6 + 19 * -0.245)
    assert course.layers == 20
    assert shares(course) == pytest.approx({"activation": -12.0, "weights": 19 * -0.245})
    assert course.slope is not None
    assert course.slope.value == pytest.approx(-0.845, abs=0.01)
    # nearest the input first: all of the change has arrived at the first linear
    assert course.names[0] == "0"
    assert course.cumulative[0] == pytest.approx(course.total_decades)


def test_noise_is_hanins_law() -> None:
    # Var ln|δ|² = 5 Σ 1/n; 19 counted linears of width 100: sd of ln|δ| = √(5·19/100)/2, divided by ln 10 for decades.
    course = depth_course(deep_sigmoid(20))
    assert course.noise_decades == pytest.approx(math.sqrt(5 * 19 / 100) / 2 / math.log(10))
    assert course.beyond_chance()


def test_a_change_within_the_noise_is_not_beyond_chance() -> None:
    narrow = tuple(_resized(deep_sigmoid(20, -0.6), (1, 2)).layers)
    course = depth_course(deep_sigmoid(20, -0.6).replace(layers=narrow))
    # width 2: √(5·19/2)/2/2.30 = 1.50 decades; the fall of 12 is beyond 2.58 of them, a fall of 3 would not be
    assert course.noise_decades == pytest.approx(1.497, abs=1e-3)
    assert course.beyond_chance()
    assert not course.beyond_chance(z=8.1)


def _resized(found: Profile, shape: tuple[int, ...]) -> Profile:
    import dataclasses

    return found.replace(layers=tuple(dataclasses.replace(row, shape=shape) for row in found.layers))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_depth_has_an_empty_course(rows: int) -> None:
    layers = [layer("0", "Linear", 0, 1.0, 1.0)][:rows]
    course = depth_course(profile(layers))
    assert course.steps == ()
    assert course.total_decades == 0.0
    assert course.rate == 0.0
    assert course.slope is None
    assert course.names == ()


def test_a_convolutions_width_is_its_channels() -> None:
    rows = [
        layer("a", "Conv2d", 0, 1.0, constant(1.0, 64), kind="convolution", shape=(1, 16, 2, 2)),
        layer("b", "Linear", 1, 1.0, constant(1.0, 64), kind="convolution", shape=(1, 16, 2, 2)),
        layer("c", "Linear", 2, 1.0, constant(1.0, 64), shape=(1, 64)),
    ]
    # the head is c; b is counted, with 16 channels
    assert depth_course(profile(rows)).noise_decades == pytest.approx(math.sqrt(5 / 16) / 2 / math.log(10))
