"""Gradients that grow along depth."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import flat, learns, rises
from tests.labelled.kit import case, ce, clusters, every, he, initialise, mlp, mse, normal, pictures, standard, variance
from tests.labelled.vanishing import GraphConv, random_graph
from torch import nn


@case(
    "exploding",
    every(0, 12),
    "TensorFlow tutorials of 2016: tf.random_normal weights, stddev left at 1",
    rises("1", "19", 5),
    twin=(flat("1", "19", 1), learns()),
)
def relu_unit_normal_10(fixed):
    """10 ReLU layers of width 64 with N(0,1) weights: ×5.7 per layer; weight gradients look equally huge everywhere."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [64] * 10 + [4], nn.ReLU, he if fixed else normal(1.0)), x, y, ce


@case(
    "exploding",
    every(0, 20, 1),
    "He's gain on a linear network doubles the variance per layer (Saxe et al. 2014)",
    rises("0", "39", 4),
    twin=(flat("0", "39", 0.5), learns(lr=3e-4)),
)
def he_gain_on_linear_40(fixed):
    """40 linear layers, no activation, He normal: √2 per layer."""
    x, y = clusters(96, 20, 4)
    net = nn.Sequential(nn.Linear(20, 64), *[nn.Linear(64, 64) for _ in range(39)], nn.Linear(64, 4))
    return initialise(net, nn.init.orthogonal_ if fixed else he), x, y, ce


class SkipBN(nn.Module):
    def __init__(self, width, skip):
        super().__init__()
        self.lin, self.bn, self.skip = nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), skip
        he(self.lin.weight.data)
        if skip:
            nn.init.constant_(self.bn.weight, 0.15)

    def forward(self, h):
        out = self.bn(self.lin(h))
        return h + torch.relu(out) if self.skip else torch.relu(out)


@case(
    "exploding",
    "0,[1-9].*,1[0-9].*",
    "Yang et al. 2019: batch norm makes plain deep nets explode, 1.21 per layer",
    rises("1", "50", 3),
    twin=(flat("1", "50", 1), learns(lr=1e-3)),
)
def batchnorm_plain_50(fixed):
    """50 × [Linear, BatchNorm1d, ReLU] without a skip connection. Repair: skip connections and small gamma."""
    x, y = clusters(96, 20, 4)
    return nn.Sequential(nn.Linear(20, 64), *[SkipBN(64, fixed) for _ in range(50)], nn.Linear(64, 4)), x, y, ce


@case(
    "exploding",
    every(0, 10),
    "Gulrajani et al. 2017, figure 1: a larger clipping value makes critic gradients explode",
    rises("1", "23", 3),
    twin=(flat("1", "23", 1.5), learns(0.02, quiet="24.bias")),
)
def wgan_critic_clip_large(fixed):
    """A 12-layer critic of width 256 with every weight at ±0.2, where clipping drives them."""
    x, y = clusters(64, 20, 2)
    net = mlp([20] + [256] * 12 + [1], lambda: nn.LeakyReLU(0.2), he)
    if not fixed:
        for p in net.parameters():
            if p.dim() > 1:
                p.data = 0.2 * torch.sign(p.data)
    return net, x, y, lambda score, t: score[t == 0].mean() - score[t == 1].mean()


class Residual(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.scale = scale
        self.f = mlp([width, width, width], nn.ReLU, he)

    def forward(self, h):
        return h + self.scale * self.f(h)


@case(
    "exploding",
    "0,[1-9].f.*,1[0-9].f.*",
    "Zhang et al. 2019 (Fixup): without normalisation the variance doubles per block",
    rises("0", "40", 3),
    twin=(flat("0", "40", 0.5), learns(lr=1e-3)),
)
def residual_mlp_unscaled_40(fixed):
    """40 residual blocks, He branches, no normalisation. Repair: branches times 1/√40."""
    x, y = clusters(96, 20, 4)
    blocks = [Residual(48, 40**-0.5 if fixed else 1.0) for _ in range(40)]
    return nn.Sequential(nn.Linear(20, 48), *blocks, nn.Linear(48, 4)), x, y, ce


@case(
    "exploding",
    every(0, 30),
    "Poole et al. 2016 and Schoenholz et al. 2017: the chaotic phase of tanh networks",
    rises("1", "79", 3.5),
    twin=(flat("1", "79", 1.5), learns(lr=1e-3)),
)
def tanh_chaotic_40(fixed):
    """40 tanh layers with fan_in·Var(W) = 6: the Jacobian expands although the activations are bounded."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [160] * 40 + [4], nn.Tanh, variance(1.1 if fixed else 6.0)), 0.3 * x, y, ce


class Repeated(nn.Module):
    """One layer applied again and again: depth by weight sharing."""

    def __init__(self, steps, gain, width=48):
        super().__init__()
        self.inp, self.core, self.out = nn.Linear(20, width), nn.Linear(width, width), nn.Linear(width, 4)
        nn.init.orthogonal_(self.core.weight, gain)
        nn.init.zeros_(self.core.bias)
        self.steps = steps

    def forward(self, x):
        h = self.inp(x)
        for _ in range(self.steps):
            h = torch.nn.functional.leaky_relu(self.core(h), 0.9)
        return self.out(h)


@case(
    "exploding",
    "core,inp",
    "Bai et al. 2019, Deep Equilibrium Models: unrolled iterations that do not contract",
    rises("inp", "out", 5),
    twin=(flat("inp", "out", 1.5), learns(lr=1e-3)),
    also=("exploding_in_time",),
)
def shared_layer_40_iterations(fixed):
    """The same Linear 40 times with gain 1.5: 1.4^40. Repair: gain 1."""
    x, y = clusters(96, 20, 4)
    return Repeated(40, 1.04 if fixed else 1.5), x, y, ce


@case(
    "exploding",
    "0,1,2,3,4",
    "Kipf & Welling 2017, section 2.2: the renormalisation trick",
    rises("0", "9", 3),
    twin=(flat("0", "9", 1.5), learns(0.05)),
)
def gcn_sums_neighbours(fixed):
    """10 graph convolutions that sum over ~13 neighbours without normalisation. Repair: D^-1/2 A D^-1/2, He."""
    a = random_graph(60, 7.0, normalise=fixed)
    x = torch.randn(60, 16)
    y = (x[:, 0] > 0).long()
    net = nn.Sequential(*[GraphConv(16 if i == 0 else 32, 32, a) for i in range(10)], nn.Linear(32, 2))
    return initialise(net, variance(3.0 if fixed else 1.0)), x, y, ce


@case(
    "exploding",
    every(0, 14),
    "ELU with standard normal weights; Clevert et al. 2016 use He's init",
    rises("1", "23", 6),
    twin=(flat("1", "23", 1), learns()),
)
def elu_unit_normal_12(fixed):
    """12 ELU layers, N(0,1) weights of width 100."""
    x, y = clusters(96, 20, 4)
    return mlp([20] + [100] * 12 + [4], nn.ELU, variance(1.5) if fixed else normal(1.0)), x, y, ce


@case(
    "exploding",
    "0,2,4,6,8,10",
    "VGG without batch norm, TF1 truncated normal of stddev 0.1 (CIFAR-10 threads)",
    rises("1", "15", 2),
    twin=(flat("1", "15", 1), learns(lr=1e-3)),
)
def conv_std_tenth_8(fixed):
    """8 convolutions of 64 channels with stddev 0.1: fan_in·Var(W) = 5.8, ×1.7 per layer."""
    x, y = pictures(16, 3, 8)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(7):
        layers += [nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 6))
    initialise(net, he if fixed else normal(0.12))
    return net, standard(x), y, ce


class Square(nn.Module):
    def forward(self, h):
        return h + 0.1 * h * h


@case(
    "exploding",
    every(0, 8),
    "polynomial activations in networks for homomorphic encryption (CryptoNets threads)",
    rises("1", "15", 3),
    twin=(flat("1", "15", 1.5), learns(0.05)),
    also=("nan",),
)
def polynomial_activation_8(fixed):
    """8 layers of h + h²/10: activations and slopes grow together. Repair: tanh."""
    x, _ = clusters(96, 20, 4)
    net = mlp([20] + [64] * 8 + [1], nn.Tanh if fixed else Square, variance(1.2 if fixed else 1.6))
    return net, x, torch.tanh(x[:, :1]), lambda o, t: mse(torch.tanh(o / math.sqrt(8)), t) if fixed else mse(o, t)
