"""Finite width, depth and precision against sampled networks."""

import math

import pytest
import torch

from headwater.errors import InputError
from headwater.theory import born_dead_probability, log_gradient_variance, underflow_depth


@pytest.mark.parametrize(("width", "depth"), [(50, 50), (80, 20)])
def test_the_log_gradient_of_he_relu_networks_fluctuates_as_hanin_says(width, depth):
    g = torch.Generator().manual_seed(0)
    networks = 300
    h = torch.randn(networks, width, 1, generator=g)
    weights, active = [], []
    for _ in range(depth):
        w = torch.randn(networks, width, width, generator=g) * math.sqrt(2 / width)
        h = w @ h
        active.append((h > 0).float())
        h = torch.relu(h)
        weights.append(w)
    delta = torch.randn(networks, width, 1, generator=g)
    for w, on in zip(reversed(weights), reversed(active), strict=True):
        delta = w.transpose(1, 2) @ (on * delta)
    found = float(delta.square().sum((1, 2)).log().var())
    # The variance of 300 near-Gaussian values is known to √(2/300) = 8 %; O(1/n²) terms add 5 to 10 % at these sizes.
    assert found == pytest.approx(log_gradient_variance([width] * depth), rel=0.3)


def test_the_log_gradient_variance_is_five_times_the_sum_of_inverse_widths():
    assert log_gradient_variance([50] * 50) == pytest.approx(5.0)
    assert log_gradient_variance([10, 100]) == pytest.approx(0.55)
    with pytest.raises(InputError, match="at least 1"):
        log_gradient_variance([10, 0])


def test_narrow_deep_relu_networks_are_born_dead_as_often_as_predicted():
    expected = born_dead_probability(5, 15)
    assert expected == pytest.approx(0.3789, abs=1e-4)  # 1 - (1 - 1/32)^15
    g = torch.Generator().manual_seed(0)
    networks = 6000
    h = torch.randn(networks, 5, 1, generator=g)
    dead = torch.zeros(networks, dtype=torch.bool)
    for _ in range(15):
        h = torch.relu(torch.randn(networks, 5, 5, generator=g) @ h)
        dead |= h.sum((1, 2)) == 0
        h = h / h.norm(dim=1, keepdim=True).clamp_min(1e-30)
    # A share of 6,000 is known to √(0.38·0.62/6000) = 0.006; three of those.
    assert float(dead.float().mean()) == pytest.approx(expected, abs=0.019)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", torch.float64, "float32"])
@pytest.mark.parametrize("limit", ["normal", "subnormal"])
def test_a_gradient_that_shrinks_underflows_at_the_predicted_depth(dtype, limit):
    rate = -0.1
    depth = underflow_depth(rate, dtype, start=0.5, limit=limit)
    name = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
    kind = name.get(dtype, dtype)

    def value(layers):  # in float64 the decimal power itself would underflow: go through two factors
        x = torch.tensor(0.5 * 10 ** (rate * layers / 2), dtype=torch.float64).item()
        return x * 10 ** (rate * layers / 2)

    before, after = value(math.floor(depth - 0.01)), value(math.ceil(depth + 0.01))
    if limit == "normal":
        assert after < torch.finfo(kind).tiny <= before
    elif kind is not torch.float64:
        assert torch.tensor(before, dtype=torch.float64).to(kind).item() > 0.0
        assert torch.tensor(after, dtype=torch.float64).to(kind).item() == 0.0


def test_a_gradient_that_does_not_shrink_never_underflows():
    assert underflow_depth(0.0) == math.inf
    assert underflow_depth(0.3) == math.inf
    assert underflow_depth(-1.0, "fp16", start=1e-6) == 0.0


def test_bad_arguments_of_the_underflow_depth_are_refused():
    for bad in ({"dtype": "int8"}, {"limit": "zero"}, {"start": 0.0}):
        with pytest.raises(InputError):
            underflow_depth(-1.0, **bad)
