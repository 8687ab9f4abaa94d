"""Alive units: the compiled mask against plain torch and against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references.tensors import FLOATS, tensors

from headwater.errors import InputError
from headwater.stats import alive_units


def by_loop(x: torch.Tensor, threshold: float) -> list[bool]:
    """One unit after the other; the threshold is rounded to the dtype, as in any comparison with a tensor."""
    limit = float(torch.tensor(threshold, dtype=x.dtype))
    return [any(abs(v) > limit for v in x[:, u].double().flatten().tolist()) for u in range(x.shape[1])]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (9, 70), (40, 3), (3, 4, 300), (2, 3, 5, 7), (3, 0), (0, 3), (3, 1)])
def test_a_unit_is_alive_when_one_element_is_above_the_threshold(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    x[:, ::2] *= 0.01
    if x.numel() and shape[1] > 2:
        x[0, 0].fill_(math.nan)
        x[0, 2].fill_(-math.inf)
    for threshold in (0.0, 0.1, 1.0):
        for mask_dtype in (torch.uint8, torch.bool):
            mask = torch.zeros(shape[1], dtype=mask_dtype)
            alive_units(x, threshold, mask)
            assert mask.tolist() == by_loop(x, threshold)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), threshold=st.one_of(st.just(0.0), st.floats(0.0, 1e4)))
def test_any_bit_pattern_is_compared_as_a_number(dtype: torch.dtype, data: st.DataObject, threshold: float) -> None:
    x = data.draw(tensors(dtype, min_size=1))
    mask = torch.zeros(x.numel(), dtype=torch.uint8)
    alive_units(x[None], threshold, mask)
    assert [bool(m) for m in mask.tolist()] == by_loop(x[None], threshold)


def test_marks_of_earlier_steps_stay() -> None:
    mask = torch.tensor([1, 0, 0], dtype=torch.uint8)
    alive_units(torch.tensor([[0.0, 2.0, 0.0]]), 1.0, mask)
    alive_units(torch.zeros(2, 3), 1.0, mask)
    assert mask.tolist() == [1, 1, 0]


def test_views_integers_and_tensors_with_a_gradient_are_read_too() -> None:
    wide = torch.randn(6, 8, requires_grad=True)
    for x in (wide, wide[:, ::2], wide.t(), wide.expand(2, 6, 8), torch.arange(6).reshape(2, 3), wide.cfloat()):
        mask = torch.zeros(x.shape[1], dtype=torch.bool)
        alive_units(x, 0.5, mask)
        assert mask.tolist() == (x.detach().abs() > 0.5).movedim(1, 0).flatten(1).any(1).tolist()


@pytest.mark.parametrize(
    ("shape", "threshold", "mask"),
    [((3,), 0.0, torch.zeros(3, dtype=torch.bool)), ((2, 3), 0.0, torch.zeros(2, dtype=torch.bool)),
     ((2, 3), 0.0, torch.zeros(3)), ((2, 3), -1.0, torch.zeros(3, dtype=torch.bool)),
     ((2, 3), math.nan, torch.zeros(3, dtype=torch.bool))],
)  # fmt: skip
def test_a_mask_or_threshold_that_does_not_fit_is_refused(
    shape: tuple[int, ...], threshold: float, mask: torch.Tensor
) -> None:
    with pytest.raises(InputError):
        alive_units(torch.zeros(shape), threshold, mask)
