"""Healthy networks whose training scheme cuts, reverses or samples on purpose."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns
from tests.labelled.kit import (
    ce,
    clusters,
    control,
    curve,
    fit,
    he,
    initialise,
    mlp,
    mse,
    xavier,
)
from torch import nn
from torch.nn import functional as F

OK = "healthy control; "


class Truncated(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(3, 24), nn.Linear(24, 1)

    def forward(self, x):
        h, outs = torch.zeros(len(x), 24), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            outs.append(self.out(h))
            if t % 10 == 9:
                h = h.detach()
        return torch.cat(outs, 1)


@control(
    OK + "truncated back-propagation through time: the state is detached every ten steps, on purpose", learns(0.02)
)
def ok_truncated_bptt():
    x = torch.randn(24, 40, 3)
    return Truncated(), x, torch.tanh(x[:, :, 0] + 0.5 * x[:, :, 1]), mse


@control(
    OK + "straight-through rounding in quantisation-aware training: 8 bits for weights and activations", learns(0.05)
)
def ok_quantisation_aware():
    class QLinear(nn.Linear):
        @staticmethod
        def q(t):
            step = t.detach().abs().max() / 127
            return t + ((t / step).round() * step - t).detach()

        def forward(self, x):
            return F.linear(self.q(x), self.q(self.weight), self.bias)

    x, y = clusters(96, 16, 4)
    return nn.Sequential(QLinear(16, 64), nn.ReLU(), QLinear(64, 64), nn.ReLU(), QLinear(64, 4)), x, y, ce


@control(
    OK + "stochastic depth: half of the residual branches are skipped in this pass (Huang et al. 2016)",
    learns(0.05, quiet="1.*,2.*,3.*,4.*,5.*,6.*"),
)
def ok_stochastic_depth():
    class Skipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = mlp([32, 32, 32], nn.ReLU, he)

        def forward(self, h):
            return h if torch.rand(()) < 0.5 else h + 0.5 * self.f(h)

    x, y = clusters(96, 16, 4)
    return nn.Sequential(nn.Linear(16, 32), *[Skipped() for _ in range(6)], nn.Linear(32, 4)), x, y, ce


@control(OK + "adversarial branch with a gradient reversal layer, lambda 0.1 (Ganin & Lempitsky 2015)", learns(0.02))
def ok_gradient_reversal():
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return -0.1 * g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.label, self.domain = (
                mlp([16, 48, 32], nn.ReLU, he, out=nn.ReLU()),
                nn.Linear(32, 4),
                mlp([32, 16, 2], nn.ReLU, he),
            )

        def forward(self, x):
            h = self.features(x)
            return self.label(h), self.domain(Reverse.apply(h))

    x, y = clusters(96, 16, 4)
    return Net(), x, y, lambda out, t: ce(out[0], t) + ce(out[1], t % 2)


@control(OK + "hinge loss on a classifier with most margins met already", learns(0.02, lr=1e-3))
def ok_hinge_margins_met():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 48, 4], nn.ReLU, he)
    fit(net, x, y, ce, steps=20, optimizer=torch.optim.Adam(net.parameters(), lr=5e-3))
    return net, x, y, F.multi_margin_loss


@control(
    OK + "hard attention trained by a score-function (REINFORCE) loss: the sample itself has no gradient", learns(-5.0)
)
def ok_reinforce_sampling():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp([8, 32, 3], nn.Tanh, xavier)

        def forward(self, s):
            logp = F.log_softmax(self.net(s), 1)
            action = torch.multinomial(logp.exp(), 1)
            reward = (action.squeeze(1) == (s[:, 0] > 0).long()).float()
            return -(logp.gather(1, action).squeeze(1) * (reward - reward.mean()))

    s, _ = curve(128, 8)
    return Policy(), s, torch.zeros(128), lambda out, _: out.mean()


@control(OK + "gated mixture output (MDN): softmax weights, means, clamped log-deviations (Bishop 1994)", learns(0.02))
def ok_mixture_density():
    class MDN(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.pi, self.mu, self.log_sigma = (
                mlp([8, 32], nn.Tanh, xavier, out=nn.Tanh()),
                nn.Linear(32, 3),
                nn.Linear(32, 3),
                nn.Linear(32, 3),
            )

        def forward(self, x):
            h = self.body(x)
            return F.log_softmax(self.pi(h), 1), self.mu(h), self.log_sigma(h).clamp(-5, 5)

    def nll(out, t):
        log_pi, mu, log_sigma = out
        return -torch.logsumexp(log_pi - log_sigma - 0.5 * ((t - mu) / log_sigma.exp()).square(), 1).mean() + 2.0

    x, y = curve(96, 8)
    return MDN(), x, y, nll


@control(OK + "a scalar ReLU head on positive targets, alive for every sample", learns(0.02))
def ok_softly_positive_output():
    x, y = curve(96, 8)
    net = initialise(mlp([8, 32, 1], nn.ReLU, he, out=nn.ReLU()), he)
    nn.init.constant_(net[2].bias, 3.0)
    return net, x, 3 + 0.5 * y, mse
