"""Networks as they stand in the middle of training, and common building blocks gone wrong."""

from __future__ import annotations

import torch
from tests.labelled.evidence import (
    after_steps,
    dead,
    falls,
    flat,
    flat_spots,
    learns,
    no_gradient,
    nonfinite,
    rises,
    steady_in_time,
    through_time,
    twins,
)
from tests.labelled.kit import (
    case,
    ce,
    clusters,
    control,
    every,
    first_step_decides,
    fit,
    he,
    initialise,
    mlp,
    mse,
    normal,
    pictures,
    standard,
    variance,
    xavier,
)
from tests.labelled.through_time import LastState, set_gate_bias
from torch import nn
from torch.nn import functional as F


@case(
    "saturated",
    "1,3,5",
    "tanh net after SGD steps with a rate far too high: every unit is driven to ±1",
    (flat_spots("3", 0.7), flat_spots("5", 0.7)),
    twin=learns(0.05),
    also=("vanishing",),
)
def tanh_saturated_by_training(fixed):
    """20 steps of SGD with lr 20 on a tanh net. Repair: lr 0.1."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 64, 64, 64, 4], nn.Tanh, xavier)
    return (
        fit(net, x, y, ce, steps=20, optimizer=torch.optim.SGD(net.parameters(), lr=0.1 if fixed else 20.0)),
        x,
        y,
        ce,
    )


@case(
    "dead_units",
    "1,3,5",
    "Adam with lr 1 on a ReLU net (Stack Overflow: 'network outputs the same value for every input')",
    dead("5", 0.7),
    twin=learns(0.02),
    also=("zero_gradient",),
)
def adam_rate_one_kills_relu(fixed):
    """30 Adam steps at lr 1."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 32, 32, 4], nn.ReLU, he)
    return (
        fit(
            net,
            x,
            y,
            ce,
            steps=8 if fixed else 30,
            optimizer=torch.optim.Adam(net.parameters(), lr=0.003 if fixed else 1.0),
        ),
        x,
        y,
        ce,
    )


@control("healthy control; halfway through training: loss at half its start", learns(0.05))
def ok_halfway_through_training():
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 32),
        nn.ReLU(),
        nn.Linear(32, 6),
    )
    return (
        fit(net, standard(x), y, ce, steps=5, optimizer=torch.optim.SGD(net.parameters(), lr=0.05)),
        standard(x),
        y,
        ce,
    )


@control("healthy control; trained LSTM whose gates have become decisive, 12 steps", learns(0.02))
def ok_trained_lstm():
    x, y = first_step_decides(48, 12)
    net = LastState(set_gate_bias(nn.LSTM(3, 24, batch_first=True), 1, 1.0, 24), 24)
    return fit(net, x, y, ce, steps=40, optimizer=torch.optim.Adam(net.parameters(), lr=0.01)), x, y, ce


@control("healthy control; trained tanh net with a tenth of its units near ±1", learns(0.02, lr=1e-3))
def ok_trained_tanh():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 48, 48, 4], nn.Tanh, xavier)
    return fit(net, x, y, ce, steps=40, optimizer=torch.optim.Adam(net.parameters(), lr=3e-3)), x, y, ce


@case(
    "vanishing",
    every(0, 16),
    "hard-swish net (MobileNetV3) without batch norm and with N(0, 0.02) weights",
    falls("1", "19", 4),
    twin=(flat("1", "19", 1.5), learns()),
)
def hardswish_small_weights(fixed):
    """10 Hardswish layers with GPT's N(0, 0.02) but no residual stream: 0.02·√64/2 per layer."""
    x, y = clusters(96, 16, 4)
    return mlp([16] + [64] * 10 + [4], nn.Hardswish, variance(2.6) if fixed else normal(0.02)), x, y, ce


class Denoiser1d(nn.Module):
    """Encoder and decoder without the skips of a U-Net."""

    def __init__(self, act, init):
        super().__init__()
        self.encoder = nn.Sequential(
            *[m for i in range(5) for m in (nn.Conv1d(1 if i == 0 else 12, 12, 5, padding=2), act())]
        )
        self.decoder = nn.Sequential(
            *[m for _ in range(5) for m in (nn.Conv1d(12, 12, 5, padding=2), act())], nn.Conv1d(12, 1, 1)
        )
        initialise(self, init)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@case(
    "vanishing",
    "encoder.*",
    "signal-denoising threads: ten sigmoid convolutions, the encoder does not move",
    falls("encoder.1", "decoder.9", 4),
    twin=(flat("encoder.1", "decoder.9", 1.5), learns(0.02)),
)
def sigmoid_conv1d_denoiser(fixed):
    """Conv1d denoiser with sigmoids throughout. Repair: LeakyReLU, He."""
    clean = torch.sin(torch.linspace(0, 12, 48) + 6.28 * torch.rand(24, 1, 1))
    act, init = (nn.LeakyReLU, he) if fixed else (nn.Sigmoid, variance(1.0))
    return Denoiser1d(act, init), clean + 0.2 * torch.randn_like(clean), clean, mse


@case(
    "exploding",
    "0,[1-4].*",
    "super-resolution threads (EDSR): residual scaling is needed once batch norm is removed",
    rises("0", "12", 4),
    twin=(flat("0", "12", 1), learns(lr=1e-3)),
)
def residual_convolutions_gain(fixed):
    """12 convolutional residual blocks with branch gain 2.5 and no norm. Repair: gain 0.2."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular")
            variance((0.2 if fixed else 2.5) ** 2)(self.conv.weight.data)

        def forward(self, x):
            return x + F.leaky_relu(self.conv(x), 0.5)

    x, y = pictures(16, 3, 8)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        *[Block() for _ in range(12)],
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 6),
    )
    return net, standard(x), y, ce


@case(
    "zero_gradient",
    "low*",
    "multi-task code: the shared trunk's features are detached for both heads",
    no_gradient("low.*"),
    twin=learns(),
)
def both_heads_detach_the_trunk(fixed):
    """Each head takes h.detach() 'so that the tasks do not disturb each other'. Repair: one head keeps the graph."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.a, self.b = mlp([16, 48, 32], nn.ReLU, he, out=nn.ReLU()), nn.Linear(32, 4), nn.Linear(32, 2)

        def forward(self, x):
            h = self.low(x)
            return self.a(h if fixed else h.detach()), self.b(h.detach())

    x, y = clusters(96, 16, 4)
    return Net(), x, y, lambda out, t: ce(out[0], t) + ce(out[1], t % 2)


@case(
    "zero_gradient",
    "net.*",
    "forum question: (score > 0).float() in the forward pass",
    no_gradient("net.*"),
    twin=learns(0.05),
)
def scores_compared_not_subtracted(fixed):
    """The model returns (score > 0) as a float times a learned scale: comparison has no gradient. Repair: sigmoid."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = mlp([16, 32, 1], nn.Tanh, xavier), nn.Parameter(torch.ones(()))

        def forward(self, x):
            s = self.net(x)
            return self.scale * (torch.sigmoid(s) if fixed else (s > 0).float())

    x, y = clusters(96, 16, 2)
    return Net(), x, y[:, None].float(), mse


@case(
    "nan",
    "*",
    "focal loss written with p**gamma and log(p) on probabilities of exactly 0",
    nonfinite(),
    twin=learns(0.02),
)
def focal_loss_of_zero_probability(fixed):
    """Sigmoid in float32 reaches exactly 0 and 1: (1-p)^γ log p is 0·inf. Repair: clamp to [1e-6, 1 - 1e-6]."""
    x, y = clusters(96, 16, 2)
    net = mlp([16, 32, 1], nn.ReLU, he, out=nn.Sigmoid())
    t = y[:, None].float()

    def focal(p, target):
        p = p.clamp(1e-6, 1 - 1e-6) if fixed else p
        return -(target * (1 - p) ** 2 * p.log() + (1 - target) * p**2 * (1 - p).log()).mean()

    return net, x if fixed else 100 * x, t, focal


@case(
    "nan",
    "*",
    "distance matrix by torch.sqrt of squared differences, its diagonal included",
    nonfinite(),
    twin=learns(0.02),
)
def distance_matrix_diagonal(fixed):
    """√0 on the diagonal: the slope is inf, times 0. The forward pass is finite. Repair: + 1e-9."""
    x = torch.randn(32, 8)
    goal = torch.cdist(x[:, :2], x[:, :2])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp([8, 24, 2], nn.Tanh, xavier)

        def forward(self, v):
            z = self.net(v)
            return torch.sqrt(((z[:, None] - z[None]) ** 2).sum(2) + (1e-9 if fixed else 0.0))

    return Net(), x, goal, mse


def _members_stay_equal(case_):
    towers = after_steps(case_).towers
    assert torch.equal(towers[0][0].weight, towers[3][0].weight)
    return "members 0 and 3 are equal after 3 steps"


@case(
    "symmetric",
    "towers.*",
    "an ensemble whose members are built with the same seed and averaged before the loss",
    _members_stay_equal,
    twin=learns(),
    also=("healthy",),
)
def ensemble_members_identical(fixed):
    """Four equal members, averaged: four times the cost of one. Repair: different seeds."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = nn.ModuleList()
            for i in range(4):
                torch.manual_seed(i if fixed else 7)
                self.towers.append(mlp([16, 24, 4], nn.ReLU, he))

        def forward(self, x):
            return sum(t(x) for t in self.towers) / 4

    x, y = clusters(96, 16, 4)
    return Ensemble(), x, y, ce


@case(
    "symmetric",
    "conv.*,conv",
    "an Inception-like conv stack with kernels all ones, and a dense head all ones",
    twins("conv.0.weight"),
    twin=learns(0.05),
)
def ones_everywhere_small_images(fixed):
    """All weights 1/fan_in in conv and head."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 12, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Linear(12 * 4, 6)
            if not fixed:
                for p in (self.conv[0].weight, self.conv[2].weight, self.head.weight):
                    nn.init.constant_(p, 1 / p[0].numel())
                for p in (self.conv[0].bias, self.conv[2].bias, self.head.bias):
                    nn.init.zeros_(p)

        def forward(self, x):
            return self.head(F.adaptive_avg_pool2d(self.conv(x), 2).flatten(1))

    x, y = pictures(48, 1, 8)
    return Net(), standard(x) if fixed else x, y, ce


class Memory(nn.Module):
    def __init__(self, decay):
        super().__init__()
        self.inp, self.out, self.decay = nn.Linear(3, 24), nn.Linear(24, 2), decay

    def forward(self, x):
        h = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            h = self.decay * h + torch.tanh(self.inp(x[:, t]))
        return self.out(h)


@case(
    "vanishing_in_time",
    "inp",
    "leaky integrator with a fixed leak of 0.7: a memory of three steps for a task of sixty",
    through_time(-6),
    twin=(steady_in_time(1.0), learns(0.02)),
    also=("vanishing",),
)
def leaky_integrator_forgets(fixed):
    """h ← 0.7 h + tanh(Wx), 60 steps. Repair: leak 0.995."""
    x, y = first_step_decides(48, 60)
    return Memory(0.995 if fixed else 0.7), x, y, ce


@case(
    "exploding_in_time",
    "rnn",
    "a GRU whose recurrent weights are six times too large: chaotic state",
    through_time(2.0),
    also=("exploding", "saturated"),
)
def gru_large_recurrent_weights():
    """nn.GRU, recurrent N(0, (6/√n)²), weak inputs, 50 steps: chaotic state."""
    x, y = first_step_decides(32, 50)
    rnn = nn.GRU(3, 96, batch_first=True)
    nn.init.normal_(rnn.weight_hh_l0, std=6 / 96**0.5)
    return LastState(rnn, 96), 0.02 * x, y, ce
