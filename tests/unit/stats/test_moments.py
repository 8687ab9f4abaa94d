"""summarize: every dtype's full range, against exact arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references.exact_statistics import assert_statistics_agree, elements, exact_statistics
from tests.references.tensors import FLOATS, tensors

from headwater.records.statistics import Statistics
from headwater.stats import moment_row, moment_rows, statistics_from_rows, summarize, summarize_many

any_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)

# Decades from the smallest subnormal (rounded up) to the largest number of each dtype (R7).
DECADES = {
    torch.float16: (-7.2, 4.8), torch.bfloat16: (-38.0, 38.5), torch.float32: (-44.0, 38.5), torch.float64: (-300, 300)
}  # fmt: skip


def log_uniform(n: int, dtype: torch.dtype, low: float, high: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    decades = low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)
    signs = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    return (10.0**decades * signs).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_bit_pattern_gives_the_exact_statistics(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(dtype))
    assert_statistics_agree(summarize(x), exact_statistics(elements(x)))


@any_dtype
@pytest.mark.parametrize("n", [1, 2, 1000, 65_536, 70_001])
def test_the_whole_range_in_one_tensor_neither_overflows_nor_underflows(dtype: torch.dtype, n: int) -> None:
    x = log_uniform(n, dtype, *DECADES[dtype])
    twin = Statistics.of(elements(x))
    s = summarize(x)
    assert s.scaled_sum_squares > 0.0
    assert_agrees_with_twin(s, twin)


@any_dtype
@pytest.mark.parametrize("position", [0.0, 0.1, 0.5, 0.9])
def test_a_narrow_band_anywhere_in_the_range_is_exact(dtype: torch.dtype, position: float) -> None:
    low, high = DECADES[dtype]
    start = low + position * (high - low)
    x = log_uniform(5000, dtype, start, min(start + 1.0, high))
    assert_agrees_with_twin(summarize(x), Statistics.of(elements(x)))


def assert_agrees_with_twin(s: Statistics, twin: Statistics, rtol: float = 1e-5) -> None:
    names = ("mean", "mean_abs", "rms", "l2_norm", "std", "kurtosis", "max_abs", "min_abs_nonzero")
    counts = ("count", "zero_count", "nan_count", "inf_count")
    assert_statistics_agree(s, {name: getattr(twin, name) for name in names + counts}, rtol)


def test_fp64_statistics_equal_the_fsum_twin_to_twelve_digits() -> None:
    x = torch.randn(3000, dtype=torch.float64)
    assert_agrees_with_twin(summarize(x), Statistics.of(x.tolist()), rtol=1e-12)


def test_noise_far_below_the_mean_keeps_its_spread() -> None:
    # float32 at 1e6 has a spacing of 1/16; E[x²] - mean² would leave nothing of a spread of 0.2.
    x = 1e6 + 0.2 * torch.randn(200_000)
    twin = Statistics.of(x.tolist())
    assert summarize(x).std == pytest.approx(twin.std, rel=1e-5)
    assert summarize(x).mean == pytest.approx(twin.mean, rel=1e-9)


@pytest.mark.parametrize("value", [0.1, 1.0, 3e38, 1e-45, -7e-30])
def test_a_constant_tensor_has_no_spread_and_kurtosis_one(value: float) -> None:
    x = torch.full((300_001,), value)
    s = summarize(x)
    stored = float(x[0])
    assert s.std <= 1e-9 * abs(stored)
    assert s.mean == pytest.approx(stored, rel=1e-6)
    assert s.rms == pytest.approx(abs(stored), rel=1e-6)
    assert s.kurtosis == pytest.approx(1.0, rel=1e-5)
    assert s.max_abs == s.min_abs_nonzero == abs(stored)


def test_gaussian_kurtosis_is_three() -> None:
    # Standard error of the kurtosis of n Gaussians: √(24/n) = 0.005; six of them.
    assert summarize(torch.randn(1_000_000)).kurtosis == pytest.approx(3.0, abs=0.03)


def test_zeros_are_counted_apart_from_what_is_not_finite() -> None:
    x = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 2.0])
    s = summarize(x)
    assert (s.count, s.zero_count, s.nan_count, s.inf_count) == (6, 2, 1, 2)
    # Over the finite elements 0, 0, 2: mean 2/3, second moment 4/3.
    assert s.mean == pytest.approx(2 / 3)
    assert s.rms == pytest.approx(math.sqrt(4 / 3))
    assert s.min_abs_nonzero == 2.0


@pytest.mark.parametrize("values", [[math.nan] * 3, [math.inf, -math.inf]])
def test_nothing_finite_leaves_counts_alone(values: list[float]) -> None:
    s = summarize(torch.tensor(values))
    assert s.finite_count == 0
    assert math.isnan(s.rms)
    assert s.to_dict() == Statistics.of(values).to_dict()


@any_dtype
def test_a_tensor_of_zeros_is_only_zeros(dtype: torch.dtype) -> None:
    assert summarize(torch.zeros(70_001, dtype=dtype)) == Statistics.of([0.0] * 70_001)


def test_nonfinite_elements_far_from_the_mean_do_not_touch_the_spread() -> None:
    x = torch.cat([1e6 + 0.2 * torch.randn(1000), torch.full((500,), math.inf)])
    assert summarize(x).std == pytest.approx(Statistics.of(x.tolist()).std, rel=1e-5)


def test_rows_have_the_columns_of_the_record() -> None:
    x = torch.tensor([[1.0, -2.0, 0.0], [math.nan, 3e-40, 3e38]])
    rows = moment_rows(x)
    assert rows.shape == (2, 11)
    assert rows.dtype == torch.float64
    assert statistics_from_rows(rows) == [summarize(row) for row in x]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_rows_of_nothing_are_the_statistics_of_nothing(shape: tuple[int, int]) -> None:
    rows = moment_rows(torch.empty(shape))
    assert statistics_from_rows(rows) == [Statistics.empty()] * shape[0]


def test_moments_left_on_the_device_give_the_same_record() -> None:
    x = torch.randn(100_003)
    assert statistics_from_rows(moment_row(x)[None]) == [summarize(x)]


def test_many_tensors_keep_their_order_and_their_statistics() -> None:
    tensors_ = [
        torch.randn(7), torch.zeros(7), torch.randn(3, 4, dtype=torch.complex64), torch.empty(0), torch.tensor(2.0),
        torch.randn(7) * 1e-30, torch.randn(40, 3).t(), torch.ones(()).expand(7), torch.randn(70_001),
        torch.tensor([math.nan] * 7), torch.randn(120), torch.randn(7).half(), torch.eye(5).to_sparse(),
    ]  # fmt: skip
    assert len(summarize_many(tensors_)) == len(tensors_)
    for s, tensor in zip(summarize_many(tensors_), tensors_, strict=True):
        # Rows that are summed together take the longer way together: equal up to rounding, not bit by bit.
        assert_statistics_agree(s, exact_statistics(elements(tensor)) if tensor.numel() < 200 else _as_dict(tensor))
    assert summarize_many([]) == []


def _as_dict(tensor: torch.Tensor) -> dict[str, float]:
    twin = Statistics.of(elements(tensor))
    names = ("mean", "mean_abs", "rms", "l2_norm", "std", "kurtosis", "max_abs", "min_abs_nonzero")
    return {name: getattr(twin, name) for name in (*names, "count", "zero_count", "nan_count", "inf_count")}


@settings(max_examples=100, deadline=None)
@given(a=tensors(torch.float32), b=tensors(torch.float32))
def test_statistics_of_parts_add_up_to_those_of_the_whole(a: torch.Tensor, b: torch.Tensor) -> None:
    merged = summarize(a) + summarize(b)
    assert_statistics_agree(merged, exact_statistics(elements(torch.cat([a, b]))))
    assert summarize(b) + summarize(a) == merged


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_scaling_by_a_power_of_two_scales_every_statistic(power: int) -> None:
    x = torch.randn(1000)
    s, t = summarize(x), summarize(x * 2.0**power)
    for name in ("mean", "mean_abs", "rms", "std", "max_abs", "min_abs_nonzero"):
        assert getattr(t, name) == pytest.approx(getattr(s, name) * 2.0**power, rel=1e-6)
    assert t.kurtosis == pytest.approx(s.kurtosis, rel=1e-6)


def test_neither_the_tensor_nor_the_random_state_is_touched() -> None:
    x = torch.randn(1000, requires_grad=True)
    before, state = x.detach().clone(), torch.get_rng_state()
    s = summarize(x)
    assert summarize_many([x, x]) == [s, s]
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None


def test_autocast_and_inference_mode_change_nothing() -> None:
    x = 1e3 + torch.randn(5000)
    expected = summarize(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert summarize(x) == expected
    with torch.inference_mode():
        born_inside = x.clone()
        assert summarize(x) == expected
    assert summarize(born_inside) == expected
