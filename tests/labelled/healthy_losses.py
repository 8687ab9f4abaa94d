"""Healthy networks told apart by their loss or their outer form: physics, survival, mixers, auxiliary outputs."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns
from tests.labelled.kit import ce, clusters, control, curve, he, mlp, mse, variance, xavier
from torch import nn

OK = "healthy control; "


@control(
    OK + "physics-informed net: the loss holds second derivatives of a tanh net (Raissi et al. 2019)",
    learns(0.05, quiet="4.bias"),
)
def ok_physics_informed():
    class Poisson(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp([1, 24, 24, 1], nn.Tanh, xavier)

        def forward(self, x):
            x = x.clone().requires_grad_()
            u = self.net(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
            return torch.cat([ddu, u[:1].expand(len(x), 1)], 1)

    x = torch.linspace(-1, 1, 64)[:, None]
    return Poisson(), x, torch.cat([-torch.sin(3 * x), torch.zeros(64, 1)], 1), mse


@control(
    OK + "energy-based curve: LayerNorm and residual linear attention-free mixer (Tolstikhin et al. 2021)", learns(0.05)
)
def ok_mlp_mixer():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2, self.tokens, self.channels = (
                nn.LayerNorm(16),
                nn.LayerNorm(16),
                mlp([8, 16, 8], nn.GELU),
                mlp([16, 32, 16], nn.GELU),
            )

        def forward(self, x):
            x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.n2(x))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp, self.blocks, self.out = (
                nn.Linear(4, 16),
                nn.Sequential(*[Mixer() for _ in range(4)]),
                nn.Linear(16, 4),
            )

        def forward(self, x):
            return self.out(self.blocks(self.inp(x.view(-1, 8, 4))).mean(1))

    x, y = clusters(96, 32, 4)
    return Net(), x, y, ce


@control(OK + "a small residual net without normalisation, 4 blocks: growth of a factor 4 is harmless", learns(lr=1e-3))
def ok_four_unscaled_residual_blocks():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = mlp([32, 32, 32], nn.ReLU, he)

        def forward(self, h):
            return h + self.f(h)

    x, y = clusters(96, 16, 4)
    return nn.Sequential(nn.Linear(16, 32), *[Residual() for _ in range(4)], nn.Linear(32, 4)), x, y, ce


@control(OK + "batch-normalised plain net of 6 layers: growth of a factor 3 is harmless", learns())
def ok_batchnorm_plain_6():
    x, y = clusters(96, 16, 4)
    layers = []
    for i in range(6):
        layers += [nn.Linear(16 if i == 0 else 48, 48), nn.BatchNorm1d(48), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(48, 4)), x, y, ce


@control(OK + "mild weights: fan_in·Var(W) = 1.6 on 8 ReLU layers loses a third of a decade", learns(lr=1e-3))
def ok_slightly_small_he():
    x, y = clusters(96, 20, 4)
    return mlp([20] + [96] * 8 + [4], nn.ReLU, variance(1.6)), x, y, ce


@control(OK + "hard parameter sharing with an auxiliary classifier in the middle (Szegedy et al. 2015)", learns(0.05))
def ok_auxiliary_classifier():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high = mlp([16, 48, 48], nn.ReLU, he, out=nn.ReLU()), mlp([48, 48, 4], nn.ReLU, he)
            self.auxiliary = nn.Linear(48, 4)

        def forward(self, x):
            h = self.low(x)
            return self.high(h), self.auxiliary(h)

    x, y = clusters(96, 16, 4)
    return Net(), x, y, lambda out, t: ce(out[0], t) + 0.3 * ce(out[1], t)


@control(OK + "survival model: Cox partial likelihood over a sorted batch", learns(0.02))
def ok_cox_partial_likelihood():
    x, _ = curve(96, 8)
    return (
        mlp([8, 32, 1], nn.ReLU, he),
        x,
        torch.ones(96),
        lambda o, _: -(o.squeeze(1) - torch.logcumsumexp(o.squeeze(1), 0)).mean(),
    )
