"""Gains against published values and a slow, obvious twin."""

import math

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.theory import gain, gain_table, torch_gain
from headwater.theory.elementwise import ACTIVATIONS


def test_relu_needs_the_square_root_of_two():
    assert gain("relu") == pytest.approx(math.sqrt(2), abs=1e-9)
    assert gain(torch.relu, "forward") == pytest.approx(math.sqrt(2), abs=1e-9)
    # Var relu(z) = 1/2 - 1/2π
    assert gain(nn.ReLU(), "std") == pytest.approx(1 / math.sqrt(0.5 - 1 / (2 * math.pi)), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        # NEEDS.md R30; SELU by construction (Klambauer et al. 2017)
        ("selu", "forward", 1.0), ("tanh", "forward", 1.5925), ("sigmoid", "forward", 1.8462),
        ("gelu", "forward", 1.5335), ("gelu", "backward", 1.4811),
    ],
)  # fmt: skip
def test_published_gains_are_met(name, kind, value):
    assert gain(name, kind) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_activation_agrees_with_a_plain_midpoint_sum(name):
    # Midpoint rule on 400,000 cells over ±10: its error is O(h²) at smooth parts and h · jump at a jump (2e-5 here).
    h = 20.0 / 400_000
    x = (torch.arange(400_000, dtype=torch.float64) + 0.5) * h - 10.0
    fn = ACTIVATIONS[name]
    fn = fn.double().eval() if isinstance(fn, nn.Module) else fn
    weight = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * h
    leaf = x.clone().requires_grad_()
    y = fn(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    y = y.detach()
    second, mean = float((y * y * weight).sum()), float((y * weight).sum())
    assert gain(name, "forward") == pytest.approx(second**-0.5, rel=1e-4)
    assert gain(name, "backward") == pytest.approx(float((slope**2 * weight).sum()) ** -0.5, rel=1e-4)
    assert gain(name, "std") == pytest.approx((second - mean**2) ** -0.5, rel=1e-4)


def test_the_gain_at_another_variance_keeps_that_variance():
    # tanh at q = 4: E φ² from the table of its own definition: g² E[tanh(2z)²] = 4
    x = (torch.arange(200_000, dtype=torch.float64) + 0.5) * 1e-4 - 10.0
    second = float((torch.tanh(2 * x) ** 2 * torch.exp(-0.5 * x * x)).sum() * 1e-4 / math.sqrt(2 * math.pi))
    assert gain("tanh", "forward", variance=4.0) ** 2 * second == pytest.approx(4.0, rel=1e-8)


def test_torch_gains_stand_beside_ours_and_are_missing_where_torch_raises():
    assert torch_gain("tanh") == pytest.approx(5 / 3)
    assert torch_gain(nn.SELU()) == 0.75
    assert torch_gain(nn.Sigmoid) == 1.0
    assert torch_gain(nn.LeakyReLU(0.3)) == pytest.approx(math.sqrt(2 / 1.09))
    assert torch_gain(nn.GELU()) is None
    assert torch_gain(lambda x: x) is None
    rows = {row.name: row for row in gain_table()}
    assert len(rows) >= 20
    assert rows["relu"].torch == pytest.approx(rows["relu"].forward)
    assert rows["gelu"].torch is None
    assert rows["gelu"].backward == gain("gelu")


def test_leaky_relu_with_another_slope_has_its_own_gain():
    # E φ² = (1 + a²)/2
    assert gain(nn.LeakyReLU(0.5)) == pytest.approx(math.sqrt(2 / 1.25), rel=1e-9)


@pytest.mark.parametrize(
    ("fn", "kind", "message"),
    [
        (lambda x: torch.zeros_like(x), "forward", "zero"),
        (lambda x: torch.ones_like(x), "std", "constant"),
        (torch.sign, "backward", "derivative of sign is zero"),
        ("relu", "sideways", "kind should be"),
        ("rleu", "forward", "no activation named"),
        (3, "forward", "expected an activation"),
        (nn.Softmax(dim=0), "forward", "not elementwise"),
        (torch.log, "forward", "not finite at x = -"),
    ],
)
def test_what_has_no_gain_is_refused_with_a_reason(fn, kind, message):
    with pytest.raises(InputError, match=message):
        gain(fn, kind)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan, "one"])
def test_a_bad_variance_is_refused(variance):
    with pytest.raises(InputError, match="variance"):
        gain("relu", variance=variance)
