"""Between samples and between positions: derived values, exact twins, extreme magnitudes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import exact_statistics as reference
from tests.references.tensors import finite_tensors, tensors

from headwater.stats import between_sample_fraction, position_cosine, summarize


def test_fraction_of_two_samples_is_derived_by_hand() -> None:
    # Features (1, 3) and (2, 2): variances over the samples 1 and 0, second moments 5 and 4: 1/9.
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert between_sample_fraction(x) == pytest.approx(1 / 9, rel=1e-6)


def test_fraction_is_one_for_opposite_samples_and_zero_for_equal_ones() -> None:
    row = torch.randn(1, 50)
    assert between_sample_fraction(torch.cat([row, -row])) == 1.0
    assert between_sample_fraction(row.expand(6, 50)) == 0.0


@pytest.mark.parametrize(("dtype", "difference"), [(torch.float64, 1e-12), (torch.float32, 2e-7)], ids=str)
def test_differences_in_the_last_digits_are_found(dtype: torch.dtype, difference: float) -> None:
    x = torch.ones(8, 40, dtype=dtype) + difference * torch.randn(8, 40, dtype=dtype)
    expected = reference.between_sample_fraction(x)
    assert expected is not None
    assert 0.0 < expected < 1e-12
    assert between_sample_fraction(x) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-30, 1e-8, 1e8, 1e30, 1e38])
def test_fraction_does_not_depend_on_the_magnitude(scale: float) -> None:
    x = (torch.randn(6, 30).clamp(-3, 3) + 0.5) * scale
    assert between_sample_fraction(x) == pytest.approx(reference.between_sample_fraction(x), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_fraction_of_any_samples_equals_exact_arithmetic(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(dtype, min_size=2, max_size=30))
    x = x[: x.numel() // 2 * 2].view(2, -1) if data.draw(st.booleans()) else x[:, None]
    expected = reference.between_sample_fraction(x)
    got = between_sample_fraction(x)
    assert (got is None) == (expected is None)
    if expected is not None:
        # Features beyond 2**126 below the largest leave no trace; then a fraction of 0 is right to 1e-30.
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-30)


def test_known_statistics_save_a_pass_and_change_nothing() -> None:
    x = torch.randn(16, 9, 4)
    assert between_sample_fraction(x, summarize(x)) == between_sample_fraction(x)


def test_samples_that_are_not_finite_are_left_out() -> None:
    x = torch.randn(5, 20)
    spoiled = torch.cat([x, torch.full((1, 20), math.nan), x[:1].clone()])
    spoiled[-1, 3] = math.inf
    assert between_sample_fraction(spoiled) == pytest.approx(between_sample_fraction(x), rel=1e-6)


@pytest.mark.parametrize("x", [torch.ones(1, 4), torch.zeros(4, 4), torch.empty(3, 0), torch.tensor(1.0),
                               torch.full((3, 2), math.nan), torch.tensor([[1.0], [math.inf]])])  # fmt: skip
def test_fraction_is_none_where_it_has_no_meaning(x: torch.Tensor) -> None:
    assert between_sample_fraction(x) is None


def test_many_samples_with_many_features_are_read_in_tiles() -> None:
    # 300 × 3·40·50 = 1.8 million elements; samples agree to 1e-5, so every tile is read twice.
    x = (1.0 + 1e-5 * torch.randn(300, 3, 40, 50)).transpose(1, 3)
    deviations = (x.double() - x.double().mean(0)).square().sum()
    assert between_sample_fraction(x) == pytest.approx(float(deviations / x.double().square().sum()), rel=1e-5)


def test_cosine_of_three_positions_is_derived_by_hand() -> None:
    # e1, e1, e2: one pair of cosine 1, two of cosine 0: mean 1/3. Lengths do not matter.
    x = torch.tensor([[[2.0, 0.0], [1e-3, 0.0], [0.0, 7.0]]])
    assert position_cosine(x) == pytest.approx(1 / 3, abs=1e-6)


def test_cosine_is_one_for_a_collapsed_sequence_and_minus_one_for_opposites() -> None:
    v = torch.randn(2, 1, 8)
    assert position_cosine(v.expand(2, 5, 8)) == pytest.approx(1.0, abs=1e-6)
    assert position_cosine(torch.cat([v, -v], 1)) == pytest.approx(-1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_cosine_of_any_sequence_equals_the_mean_over_pairs(dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(finite_tensors(dtype, min_size=12, max_size=12)).view(2, 3, 2)
    expected = reference.position_cosine(x)
    got = position_cosine(x)
    assert (got is None) == (expected is None)
    if expected is not None:
        assert got == pytest.approx(expected, abs=1e-5)


def test_positions_that_are_zero_or_not_finite_are_left_out() -> None:
    x = torch.randn(2, 4, 6)
    padded = torch.cat([x, torch.zeros(2, 3, 6), torch.full((2, 1, 6), math.nan)], 1)
    assert position_cosine(padded) == pytest.approx(position_cosine(x), abs=1e-6)


@pytest.mark.parametrize("x", [torch.ones(3, 1, 4), torch.ones(3, 4), torch.zeros(2, 5, 4), torch.empty(0, 5, 4)])
def test_cosine_is_none_where_it_has_no_meaning(x: torch.Tensor) -> None:
    assert position_cosine(x) is None


def test_long_sequences_are_read_in_parts() -> None:
    x = torch.randn(3, 700, 900) + 0.5
    u = x.double() / x.double().norm(dim=2, keepdim=True)
    expected = ((u.sum(1).square().sum(1) - 700) / (700 * 699)).mean()
    assert position_cosine(x) == pytest.approx(float(expected), abs=1e-6)
