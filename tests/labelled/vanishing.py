"""Gradients that die along depth."""

from __future__ import annotations

import torch
from tests.labelled.evidence import falls, flat, learns
from tests.labelled.kit import (
    case,
    ce,
    clusters,
    every,
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
from torch import nn


@case(
    "vanishing",
    every(0, 12),
    "Hardsigmoid in place of the sigmoid; its slope is 1/6",
    falls("1", "23", 4),
    twin=(flat("1", "23", 1), learns()),
)
def hardsigmoid_12(fixed):
    """12 × [Linear(64), Hardsigmoid], torch's default init: 'the first layers never change'. Repair: ReLU, He."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [64] * 12 + [4], nn.ReLU if fixed else nn.Hardsigmoid, he if fixed else None), x, y, ce


@case(
    "vanishing",
    every(0, 30),
    "softsign study of Glorot & Bengio 2010, with Keras's N(0, 0.05) init",
    falls("1", "59", 6),
    twin=(flat("1", "59", 1), learns()),
)
def softsign_30_small_normal(fixed):
    """30 softsign layers, N(0, 0.05²): fan_in·Var(W) = 0.16, a factor 0.4 per layer both ways."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [64] * 30 + [4], nn.Softsign, xavier if fixed else normal(0.05)), 0.3 * x, y, ce


@case(
    "vanishing",
    every(0, 20, 1),
    "deep linear networks, Saxe et al. 2014",
    falls("0", "19", 15),
    twin=(flat("0", "19", 0.5), learns()),
)
def deep_linear_tiny_weights(fixed):
    """20 linear layers with N(0, 0.01²): weight gradients are equal everywhere, the signal loses a decade per layer."""
    x, y = clusters(96, 20, 4)
    net = nn.Sequential(nn.Linear(20, 64), *[nn.Linear(64, 64) for _ in range(19)], nn.Linear(64, 4))
    return initialise(net, nn.init.orthogonal_ if fixed else normal(0.01)), x, y, ce


@case(
    "vanishing",
    every(0, 40),
    "He et al. 2015, section 2.2: 30 layers with Xavier do not converge",
    falls("1", "79", 4),
    twin=(flat("1", "79", 1), learns()),
)
def xavier_relu_40(fixed):
    """40 ReLU layers with Xavier weights: 1/√2 per layer, forward and backward."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [128] * 40 + [4], nn.ReLU, he if fixed else variance(1.0)), x, y, ce


@case(
    "vanishing",
    every(0, 20),
    "forum question: 'plain 50-layer network does not learn, the shallow one does'",
    falls("1", "79", 10),
    twin=(flat("1", "79", 1.5), learns(lr=3e-4)),
)
def plain_relu_default_40(fixed):
    """40 × [Linear, ReLU] exactly as torch initialises them: 0.41 per layer."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [64] * 40 + [4], nn.ReLU, variance(2.0) if fixed else None), x, y, ce


@case(
    "vanishing",
    every(0, 24),
    "GELU with torch's default init; Hendrycks & Gimpel 2016 use He's",
    falls("1", "47", 6),
    twin=(flat("1", "47", 2), learns()),
)
def gelu_default_24(fixed):
    """24 GELU layers with the default init (fan_in·Var(W) = 1/3)."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [96] * 24 + [4], nn.GELU, he if fixed else None), x, y, ce


@case(
    "vanishing",
    every(0, 8),
    "deep autoencoder, Hinton & Salakhutdinov 2006: needs pre-training",
    falls("1", "13", 3),
    twin=(flat("1", "13", 1), learns()),
)
def sigmoid_autoencoder(fixed):
    """144-128-64-32-8-32-64-128-144, all sigmoid, N(0, 0.1²): the encoder does not move. Repair: ReLU, He."""
    x, _ = pictures(64, 1, 12)
    x = x.flatten(1)
    net = mlp([144, 128, 64, 32, 8, 32, 64, 128, 144], nn.ReLU if fixed else nn.Sigmoid, he if fixed else normal(0.1))
    return net, x, x, mse


@case(
    "vanishing",
    every(0, 40),
    "Xiao et al. 2018: vanilla CNNs off criticality",
    falls("1", "79", 6),
    twin=(flat("1", "79", 2), learns(lr=1e-3)),
)
def tanh_cnn_default_40(fixed):
    """40 tanh convolutions with torch's default init: 0.58 per layer."""
    x, y = pictures(16, 3, 8, 4)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.Tanh()]
    for _ in range(39):
        layers += [nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"), nn.Tanh()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4))
    if fixed:
        for m in net:
            if isinstance(m, nn.Conv2d):
                nn.init.zeros_(m.weight)
                nn.init.orthogonal_(m.weight.data[:, :, 1, 1])
                nn.init.zeros_(m.bias)
    return net, 0.5 * standard(x), y, ce


class HighwayLayer(nn.Module):
    def __init__(self, width, gate_bias):
        super().__init__()
        self.plain, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, h):
        t = torch.sigmoid(self.gate(h))
        return t * torch.tanh(self.plain(h)) + (1 - t) * h


class Highway(nn.Module):
    def __init__(self, depth, gate_bias, width=48):
        super().__init__()
        self.inp = nn.Linear(20, width)
        self.layers = nn.Sequential(*[HighwayLayer(width, gate_bias) for _ in range(depth)])
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        return self.out(self.layers(self.inp(x)))


@case(
    "vanishing",
    "inp,layers.[0-9].*,layers.1[0-4].*",
    "Srivastava et al. 2015: start the transform gate bias below 0",
    falls("layers.0", "layers.29", 4),
    twin=(flat("layers.0", "layers.29", 1.5), learns()),
)
def highway_gates_open(fixed):
    """30 highway layers whose transform gates start open (+4): a plain tanh net. Repair: bias -3, the layers carry."""
    x, y = clusters(96, 20, 4)
    return Highway(30, -3.0 if fixed else 4.0), x, y, ce


class ScaledShortcut(nn.Module):
    def __init__(self, width, keep):
        super().__init__()
        self.keep = keep
        self.f = mlp([width, width, width], nn.ReLU, variance(0.2))

    def forward(self, h):
        return self.keep * h + self.f(h)


@case(
    "vanishing",
    "0,[1-9].f.*,1[0-5].f.*",
    "He et al. 2016, Identity Mappings, section 3: constant scaling by 0.5 fails",
    falls("0", "30", 5),
    twin=(flat("0", "30", 1), learns()),
)
def shortcut_scaled_by_half(fixed):
    """30 residual blocks whose shortcut is multiplied by 0.5: the direct path brings 0.5^30. Repair: identity."""
    x, y = clusters(96, 20, 4)
    blocks = [ScaledShortcut(48, 1.0 if fixed else 0.5) for _ in range(30)]
    return nn.Sequential(nn.Linear(20, 48), *blocks, nn.Linear(48, 4)), x, y, ce


@case(
    "vanishing",
    "0,2,4",
    "Nielsen, Neural Networks and Deep Learning, chapter 5: [784,30,30,30,30,10]",
    falls("1", "9", 1.8),
    twin=(flat("1", "9", 0.7), learns()),
)
def nielsen_five_hidden(fixed):
    """[144,30,30,30,30,30,6], sigmoid, N(0, 1/n): the first hidden layer learns a hundred times slower than the last."""
    x, y = pictures(60, 1, 12)
    act, init = (nn.ReLU, he) if fixed else (nn.Sigmoid, variance(1.0))
    return mlp([144, 30, 30, 30, 30, 30, 6], act, init), standard(x).flatten(1), y, ce


@case(
    "vanishing",
    every(0, 10),
    "forum question: 'weight_decay=1 in SGD, all my weights went to 0'",
    falls("1", "13", 4),
    twin=(flat("1", "13", 1.5), learns(0.05)),
    also=("zero_gradient",),
)
def weights_decayed_away(fixed):
    """An 8-layer ReLU net after 50 SGD steps with lr 0.1 and weight_decay 1: every weight is 0.9^50 of its start."""
    x, y = clusters(96, 20, 4)
    net = mlp([20] + [64] * 7 + [4], nn.ReLU, he)
    sgd = torch.optim.SGD(net.parameters(), lr=0.02 if fixed else 0.1, weight_decay=0.0 if fixed else 1.0)
    return fit(net, x, y, ce, steps=10 if fixed else 50, optimizer=sgd), x, y, ce


@case(
    "vanishing",
    every(0, 16),
    "Gulrajani et al. 2017, figure 1: weight clipping at 0.01 makes critic gradients vanish",
    falls("1", "23", 6),
    twin=(flat("1", "23", 1), learns(0.02, quiet="24.bias")),
)
def wgan_critic_clip_small(fixed):
    """A 12-layer LeakyReLU critic whose weights were clipped to ±0.01. Repair: gradient penalty, so He weights stay."""
    x, y = clusters(96, 20, 2)
    net = mlp([20] + [64] * 12 + [1], lambda: nn.LeakyReLU(0.2), he)
    if not fixed:
        for p in net.parameters():
            p.data.clamp_(-0.01, 0.01)
    return net, x, y, lambda score, t: score[t == 0].mean() - score[t == 1].mean()


@case(
    "vanishing",
    every(0, 14),
    "spectral norm on every layer of a deep ReLU net: a Gaussian matrix scaled to σ_max = 1",
    falls("1", "35", 5),
    twin=(flat("1", "35", 1), learns()),
)
def spectral_norm_relu_18(fixed):
    """18 spectrally normalised ReLU layers: σ_max = 1 means fan_in·Var(W) = 1/4, 0.35 per layer. Repair: no SN, He."""
    x, y = clusters(96, 20, 4)
    net = mlp([20] + [64] * 18 + [4], nn.ReLU, he)
    if not fixed:
        for i in range(0, 36, 2):
            nn.utils.parametrizations.spectral_norm(net[i], n_power_iterations=20)
        net.eval()
    return net, x, y, ce


class GraphConv(nn.Module):
    def __init__(self, d_in, d_out, adjacency, skip=False):
        super().__init__()
        self.lin = nn.Linear(d_in, d_out)
        self.register_buffer("adjacency", adjacency)
        self.skip = skip

    def forward(self, h):
        out = torch.relu(self.lin(self.adjacency @ h))
        return h + 0.3 * out if self.skip else out


def random_graph(n=60, degree=5.0, normalise=True):
    a = (torch.rand(n, n) < degree / n).float()
    a = ((a + a.T) > 0).float().fill_diagonal_(1.0)
    s = a.sum(1).rsqrt()
    return s[:, None] * a * s[None] if normalise else a


@case(
    "vanishing",
    "0,1,2,3,4,5,6,7",
    "Li et al. 2019, DeepGCNs: deep GCNs lose the gradient and over-smooth",
    falls("1", "15", 3),
    twin=(flat("1", "15", 1.5), learns(0.05)),
)
def gcn_16_layers(fixed):
    """16 graph convolutions with default init: neighbours are averaged, ReLU and small weights shrink the rest."""
    a = random_graph()
    x = torch.randn(60, 16)
    y = (x[:, 0] > 0).long()
    layers = [GraphConv(16, 32, a)] + [GraphConv(32, 32, a, skip=fixed) for _ in range(15)]
    return nn.Sequential(*layers, nn.Linear(32, 2)), x, y, ce


class TwoTowers(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        act, init = (nn.ReLU, he) if fixed else (nn.Sigmoid, variance(1.0))
        self.deep = mlp([20] + [48] * 12, act, init)
        self.wide = nn.Linear(20, 48)
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        return self.head(torch.relu(self.wide(x)) + self.deep(x))


@case(
    "vanishing",
    "deep.*",
    "Cheng et al. 2016, Wide & Deep: one tower learns and hides that the other does not",
    falls("deep.1", "deep.21", 4),
    twin=(flat("deep.1", "deep.21", 1), learns()),
)
def deep_tower_hidden_by_wide_one(fixed):
    """A wide tower beside 11 sigmoid layers: the loss falls, the deep tower's first layers never move."""
    x, y = clusters(96, 20, 4)
    return TwoTowers(fixed), x, y, ce
