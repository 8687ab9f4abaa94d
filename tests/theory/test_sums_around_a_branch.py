"""Sums φ(t) + f: their law against a sampled chain, and the gradients of residual networks with the ReLU after the sum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater._predict import predict
from headwater.theory.forecast.axes import Atom
from headwater.theory.forecast.pointwise import function_stats
from headwater.theory.forecast.stats import Stats
from headwater.theory.forecast.transport import transported

RHO = 0.27  # of the branch between two samples


def moments(mean: float, square: float, aligned: float) -> Stats:
    m, q, c = (torch.tensor([v], dtype=torch.float64) for v in (mean, square, aligned))
    return Stats((), m, q, q[None], c, c[None])


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0.0)


def test_the_law_of_a_rectified_sum_follows_a_sampled_chain() -> None:
    # u_{l+1} = relu(u_l) + f, f ~ N(0, 1), for two samples whose f have correlation 0.27. After three sums a Gaussian of the
    # same moments gives E h² 6 % too small and E h h'/E h² 0.05 too large. A million draws: standard error 0.003 and 0.001.
    generator = torch.Generator().manual_seed(0)

    def pair() -> tuple[Tensor, Tensor]:
        a, b = (torch.randn(1_000_000, generator=generator, dtype=torch.float64) for _ in range(2))
        return a, RHO * a + math.sqrt(1.0 - RHO**2) * b

    one, two = (relu(math.sqrt(2.0) * x) for x in pair())
    base, function, branch = moments(0.0, 2.0, 2.0 * RHO), relu, moments(0.0, 1.0, RHO)
    for _ in range(3):
        first, second = pair()
        one, two = relu(one + first), relu(two + second)
        total = function_stats(function, base).plus(branch)
        found = transported(function, base, branch, total)
        assert found is not None
        law, base = found
        whole = function_stats(law.forward, base)
        assert float(whole.square) == pytest.approx(float(total.square), rel=1e-3)
        assert float(whole.aligned) == pytest.approx(float(total.aligned), rel=2e-3)
        function = lambda w, law=law: relu(law.forward(w))  # noqa: E731 - the chain's next φ
        mine = function_stats(function, base)
        assert float(mine.square) == pytest.approx(float(one.square().mean()), rel=0.01)
        assert float(mine.aligned / mine.square) == pytest.approx(
            float((one * two).mean() / one.square().mean()), abs=0.01
        )


def test_moments_of_each_position_are_met_by_one_shape() -> None:
    # Positions at an image's edge have another mean and variance than those inside.
    mean, variance = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    square = variance + mean**2
    within = torch.outer(mean, mean) + 0.4 * torch.outer(variance.sqrt(), variance.sqrt())
    atom = Atom("position", 2)
    total = Stats((atom,), mean, square, within, within.diagonal().clone(), within).fixed_diagonals()
    found = transported(relu, moments(0.0, 2.0, 0.0), moments(0.0, 0.3, 0.0), total)
    assert found is not None
    law, base = found
    whole = function_stats(law.forward, base)
    assert whole.mean.tolist() == pytest.approx(mean.tolist(), abs=1e-3)
    assert whole.square.tolist() == pytest.approx(square.tolist(), rel=1e-3)


def test_a_sum_of_gaussians_stays_one() -> None:
    assert (
        transported(lambda t: 2.0 * t, moments(0.1, 1.0, 0.5), moments(0.0, 1.0, 0.2), moments(0.2, 5.0, 2.0)) is None
    )


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.second(torch.relu(self.first(x)))))


def test_the_gradient_of_a_scale_before_the_sum_knows_which_units_are_on() -> None:
    # The probe is the same for all samples: what φ'(u) and x̂ share adds up over the batch. Taken as independent, the
    # gradient of the last block's γ came out 0.3 decades too small.
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(96, 96), nn.ReLU(), *[Block(96) for _ in range(3)], nn.Linear(96, 10))

    torch.manual_seed(3)
    x, y = torch.randn(64, 96), torch.randn(1, 10).expand(64, 10).contiguous()

    def loss(out: Tensor, weights: Tensor) -> Tensor:
        return (out * weights).sum()

    forecast = predict(make, x, y, loss)
    profile = hw.measure(make(), x, y, loss, draws=6, make=make)
    for name in ("2.norm.weight", "3.norm.weight", "4.norm.weight"):
        spread = profile.parameter(name).spread["gradient.rms"]
        value = forecast.parameter(name).gradient_rms_log10
        # Six draws: about 0.02 decades of standard error.
        assert value == pytest.approx(spread.mean, abs=0.08), name
