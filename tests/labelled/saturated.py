"""Bounded activations, gates and softmaxes at their flat ends."""

from __future__ import annotations

import torch
from tests.labelled.evidence import flat_spots, learns, peaked
from tests.labelled.kit import (
    bce_logits,
    case,
    ce,
    clusters,
    curve,
    first_step_decides,
    fit,
    he,
    initialise,
    mlp,
    mse,
    normal,
    pictures,
    sentences,
    standard,
    xavier,
)
from torch import nn
from torch.nn import functional as F


@case(
    "saturated",
    "2,4",
    "forum question: tanh net on 0..255 images does not learn",
    flat_spots("2", 0.9),
    twin=learns(),
    also=("vanishing",),
)
def tanh_on_bytes(fixed):
    """144-64-64-6 tanh on raw bytes. Repair: standardise."""
    x, y = pictures(60, 1, 12)
    net = nn.Sequential(nn.Flatten(), *mlp([144, 64, 64, 6], nn.Tanh, xavier))
    return net, standard(x) if fixed else 255 * x, y, ce


@case(
    "saturated",
    "1,3",
    "binarised-network threads: Hardtanh behind N(0,1) weights",
    flat_spots("1", 0.7),
    twin=learns(),
    also=("vanishing", "dead_units"),
)
def hardtanh_unit_normal(fixed):
    """Hardtanh layers of width 64, weights N(0,1): pre-activations of std 4 to 8, outside ±1 the slope is 0."""
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 4], nn.Hardtanh, xavier if fixed else normal(1.0)), x, y, ce


@case(
    "saturated",
    "3,2",
    "Keras threads: raw house sizes into a sigmoid output with binary cross-entropy",
    flat_spots("3", 0.9),
    twin=learns(),
    also=("vanishing", "zero_gradient"),
)
def sigmoid_output_on_raw_areas(fixed):
    """Features in the thousands: the sigmoid answers exactly 0 or 1. Repair: standardise, logits in the loss."""
    x = torch.rand(96, 5) * torch.tensor([4000.0, 9.0, 2000.0, 100.0, 30.0])
    y = (x[:, :1] > 2000).float()
    net = mlp([5, 32, 1], nn.ReLU, he, out=nn.Identity() if fixed else nn.Sigmoid())
    if fixed:
        return net, (x - x.mean(0)) / x.std(0), y, bce_logits
    return net, x, y, lambda p, t: F.mse_loss(p, t)


class Attention(nn.Module):
    """Single-head attention with its softmax as a module."""

    def __init__(self, width, scale, vocabulary=40, classes=5):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(12, width))
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        for m in (self.q, self.k, self.v):
            normal(width**-0.5)(m.weight)
        self.softmax, self.head, self.scale = nn.Softmax(dim=-1), nn.Linear(width, classes), scale

    def forward(self, t):
        h = self.embed(t) + self.position
        a = self.softmax(self.q(h) @ self.k(h).transpose(1, 2) * self.scale)
        return self.head((a @ self.v(h)).mean(1))


@case(
    "saturated",
    "softmax",
    "Vaswani et al. 2017, section 3.2.1: dot products without 1/√d push the softmax into flat regions",
    peaked("softmax", 0.9),
    twin=learns(),
    also=("vanishing",),
)
def attention_without_scaling(fixed):
    """d = 256 and no 1/√d: logits of std 32, attention is one-hot."""
    x, y = sentences(24, 12)
    return Attention(256, 1 / 16 if fixed else 1.0), x, y, ce


class SqueezeExcite(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.sigmoid = nn.Sigmoid()
        nn.init.constant_(self.squeeze[2].bias, bias)

    def forward(self, h):
        u = torch.relu(self.conv(h))
        return self.sigmoid(self.squeeze(u.mean((2, 3))))[:, :, None, None] * u


@case(
    "saturated",
    "sigmoid,1.sigmoid,2.sigmoid",
    "squeeze-and-excitation threads: gate bias far below 0 shuts the block",
    (flat_spots("1.sigmoid", 0.9), flat_spots("2.sigmoid", 0.9)),
    twin=learns(0.05),
    also=("vanishing",),
)
def squeeze_gates_shut(fixed):
    """Two squeeze-excite convolutions whose gates start at sigmoid(-9): nothing passes. Repair: bias 0."""
    x, y = pictures(48, 3, 10)
    bias = 1.0 if fixed else -9.0
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        SqueezeExcite(bias),
        SqueezeExcite(bias),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 6),
    )
    return net, standard(x), y, ce


class Router(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.choose, self.softmax = mlp([16, 32, 4], nn.ReLU, he), nn.Softmax(dim=-1)
        self.values, self.temperature = nn.Parameter(torch.randn(4, 8)), temperature
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.softmax(self.choose(x) / self.temperature) @ self.values)


@case(
    "saturated",
    "softmax,choose.*",
    "Gumbel-softmax threads (Jang et al. 2017): the temperature is annealed far too low",
    peaked("softmax", 0.99),
    twin=learns(),
    also=("vanishing", "zero_gradient"),
)
def softmax_temperature_too_low(fixed):
    """A routing softmax at temperature 0.001: one-hot for every sample, the router gets nothing. Repair: 1."""
    x, y = clusters(96, 16, 4)
    return Router(1.0 if fixed else 1e-3), x, y, ce


@case(
    "saturated",
    "3,2",
    "Nielsen, chapter 3: a badly wrong sigmoid with the quadratic cost hardly learns",
    flat_spots("3", 0.9, 0.05),
    twin=learns(),
    also=("vanishing",),
)
def sigmoid_mse_badly_wrong(fixed):
    """Rare-event net whose output bias is -9 while half of the targets are 1, squared error. Repair: cross-entropy."""
    x, y = clusters(96, 16, 2)
    net = mlp([16, 32, 1], nn.ReLU, he, out=nn.Identity() if fixed else nn.Sigmoid())
    nn.init.xavier_uniform_(net[2].weight, 0.5)
    nn.init.constant_(net[2].bias, 0.0 if fixed else -9.0)
    return net, x, y[:, None].float(), bce_logits if fixed else mse


@case(
    "saturated",
    "1,3,5",
    "TheDeepChecker-style program: stddev 1 for a 256-wide sigmoid net",
    (flat_spots("3", 0.6, 0.05), flat_spots("5", 0.6, 0.05)),
    twin=learns(),
    also=("vanishing",),
)
def sigmoid_wide_unit_normal(fixed):
    """20-256-256-256-4 sigmoid with N(0,1) weights: pre-activations of std 9 and more."""
    x, y = clusters(96, 20, 4)
    return (
        mlp([20, 256, 256, 256, 4], nn.Sigmoid, (lambda w: nn.init.xavier_normal_(w, 4.0)) if fixed else normal(1.0)),
        x,
        y,
        ce,
    )


@case(
    "saturated",
    "1,3",
    "MobileNet on 0..255 images: everything sits above 6",
    flat_spots("1", 0.35),
    twin=learns(),
    also=("dead_units", "vanishing"),
)
def relu6_on_bytes(fixed):
    """ReLU6 behind a convolution on raw bytes: outputs are 0 or 6, the slope is 0 on both sides."""
    x, y = pictures(48, 3, 10)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 6),
    )
    initialise(net, he)
    return net, standard(x) if fixed else 255 * x, y, ce


class Squashed(nn.Module):
    """A tanh-squashed policy mean."""

    def __init__(self, gain):
        super().__init__()
        self.body = mlp([6, 64, 64, 2], nn.Tanh, xavier)
        nn.init.orthogonal_(self.body[4].weight, gain)
        self.squash = nn.Tanh()

    def forward(self, s):
        return self.squash(self.body(s))


@case(
    "saturated",
    "squash",
    "Andrychowicz et al. 2021, What Matters in On-Policy RL: the last policy layer 100 times smaller",
    flat_spots("squash", 0.7),
    twin=learns(0.02),
    also=("vanishing",),
)
def policy_head_gain_30(fixed):
    """The policy's last layer has gain 30: every action is ±1. Repair: gain 0.01."""
    s = torch.randn(96, 6)
    return Squashed(0.01 if fixed else 30.0), s, 0.5 * torch.tanh(s[:, :2]), mse


@case(
    "saturated",
    "1,0",
    "Hardsigmoid gates: pre-activations beyond ±3 have slope exactly 0",
    flat_spots("1", 0.7),
    twin=learns(),
    also=("dead_units", "zero_gradient", "vanishing"),
)
def hardsigmoid_inputs_in_hundreds(fixed):
    """Hardsigmoid on features in the hundreds."""
    x, y = clusters(96, 12, 3)
    return mlp([12, 48, 3], nn.Hardsigmoid, xavier), x if fixed else 300 * x, y, ce


class Mixture(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.Softmax(dim=-1))
        self.gate[0].weight.data.mul_(scale)
        self.experts = nn.ModuleList([mlp([8, 16, 1], nn.Tanh, xavier) for _ in range(4)])

    def forward(self, x):
        return (self.gate(x) * torch.cat([e(x) for e in self.experts], 1)).sum(1, keepdim=True)


@case(
    "saturated",
    "gate.1,gate.0",
    "Jacobs et al. 1991 mixtures in today's threads: the gate is one-hot before training",
    peaked("gate.1", 0.97),
    twin=learns(),
    also=("vanishing",),
)
def mixture_gate_one_hot(fixed):
    """The gate's logits have std 100: one expert per sample, the gate gets no gradient. Repair: default init."""
    x, y = curve(96, 8)
    return Mixture(1.0 if fixed else 200.0), x, y, mse


class Critic(nn.Module):
    """A frozen, already perfect discriminator behind a generator."""

    def __init__(self, saturating):
        super().__init__()
        self.generator = mlp([8, 64, 64, 2], nn.ReLU, he)
        self.discriminator = mlp([2, 64, 1], nn.ReLU)
        self.sigmoid = nn.Sigmoid()
        self.saturating = saturating
        real, fake = torch.randn(64, 2) * 0.1 + 8, torch.randn(64, 2)
        both, y = torch.cat([real, fake]), torch.cat([torch.ones(64, 1), torch.zeros(64, 1)])
        sgd = torch.optim.Adam(self.discriminator.parameters(), lr=0.02)
        fit(self.discriminator, both, y, bce_logits, steps=200, optimizer=sgd)
        for p in self.discriminator.parameters():
            p.requires_grad_(False)

    def forward(self, z):
        score = self.discriminator(self.generator(z))
        return self.sigmoid(score) if self.saturating else score


@case(
    "saturated",
    "sigmoid,generator*",
    "Goodfellow et al. 2014, section 3; Arjovsky & Bottou 2017: log(1 - D) saturates",
    flat_spots("sigmoid", 0.9, 0.02),
    twin=learns(),
    also=("vanishing",),
)
def generator_against_perfect_discriminator(fixed):
    """The generator minimises log(1 - D(G(z))) against a discriminator that is sure. Repair: maximise log D(G(z))."""
    z = torch.randn(64, 8)
    net = Critic(saturating=not fixed)
    if fixed:
        return net, z, torch.zeros(64), lambda score, _: F.softplus(-score).mean()
    return net, z, torch.zeros(64), lambda p, _: torch.log1p(-p.clamp(max=1 - 1e-6)).mean()


class GatedMemory(nn.Module):
    """A hand-written forget gate: h ← f·h + (1 - f)·tanh(Wx)."""

    def __init__(self, bias):
        super().__init__()
        self.forget, self.write, self.out = nn.Linear(3, 24), nn.Linear(3, 24), nn.Linear(24, 2)
        self.gate = nn.Sigmoid()
        nn.init.constant_(self.forget.bias, bias)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 24)
        for t in range(x.shape[1]):
            f = self.gate(self.forget(x[:, t]))
            h = f * h + (1 - f) * torch.tanh(self.write(x[:, t]))
        return self.out(h)


@case(
    "saturated",
    "gate,forget",
    "Tallec & Ollivier 2018 (chrono init) overdone: the gate never opens",
    flat_spots("gate", 0.9),
    twin=learns(0.02),
    also=("vanishing", "vanishing_in_time"),
)
def memory_gate_stuck_open(fixed):
    """A forget gate with bias +14: nothing is ever written. Repair: bias 2."""
    x, y = first_step_decides(48, 12)
    return GatedMemory(2.0 if fixed else 14.0), x, y, ce
