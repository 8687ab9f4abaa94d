"""Healthy networks for other tasks: sets, text, segmentation, many classes, penalties, soft targets."""

from __future__ import annotations

import torch
from tests.labelled.evidence import (
    learns,
)
from tests.labelled.kit import (
    bce_logits,
    ce,
    clusters,
    control,
    curve,
    he,
    initialise,
    mlp,
    mse,
    pictures,
    sentences,
    standard,
)
from torch import nn
from torch.nn import functional as F


@control(
    "healthy control; a convolutional text classifier of 9 layers with max pooling and batch norm (Conneau et al. 2017)",
    learns(0.02),
)
def ok_very_deep_text_cnn():
    layers = [nn.Embedding(40, 16)]

    class Swap(nn.Module):
        def forward(self, h):
            return h.transpose(1, 2)

    layers.append(Swap())
    for i in range(9):
        layers += [nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU()]
        if i % 3 == 2:
            layers.append(nn.MaxPool1d(2))
    x, y = sentences(24, 16)
    return nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 5)), x, y, ce


@control("healthy control; deep sets: sum pooling over 40 elements (Zaheer et al. 2017)", learns(0.02, lr=1e-3))
def ok_deep_sets_sum_pooling():
    class Sets(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.all = mlp([3, 32, 16], nn.ReLU, he), mlp([16, 32, 1], nn.ReLU, he)

        def forward(self, x):
            return self.all(self.each(x).sum(1))

    x = torch.randn(48, 40, 3)
    return Sets(), x, x[:, :, :1].mean(1), mse


@control(
    "healthy control; a critic with gradient penalty, so the loss holds a gradient (Gulrajani et al. 2017)",
    learns(0.02, quiet="net.4.bias"),
)
def ok_gradient_penalty_critic():
    class PenalisedCritic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp([8, 48, 48, 1], lambda: nn.LeakyReLU(0.2), he)

        def forward(self, x):
            x = x.clone().requires_grad_()
            score = self.net(x)
            (g,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            return score, g

    x, y = clusters(96, 8, 2)

    def loss(out, t):
        score, g = out
        return score[t == 0].mean() - score[t == 1].mean() + 10 * (g.norm(2, 1) - 1).square().mean()

    return PenalisedCritic(), x, y, loss


@control("healthy control; a large head: 3000 classes, batch of 32", learns(0.02, lr=1e-3))
def ok_three_thousand_classes():
    x, _ = clusters(32, 16, 4)
    return mlp([16, 64, 3000], nn.ReLU, he), x, torch.randint(0, 3000, (32,)), ce


@control("healthy control; binary segmentation with 1 % foreground and Dice loss", learns(0.01))
def ok_dice_loss_rare_foreground():
    x, _ = pictures(16, 1, 16)
    mask = (x > x.flatten(1).quantile(0.97, 1)[:, None, None, None]).float()
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 1)
    )

    def dice(z, t):
        p = torch.sigmoid(z)
        return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    return initialise(net, he), standard(x), mask, dice


@control(
    "healthy control; per-sample weights that are zero for most of the batch (prioritised replay, masked losses)",
    learns(0.02),
)
def ok_mostly_masked_loss():
    x, y = curve(96, 8)
    weight = (torch.arange(96) % 8 == 0).float()[:, None]
    return mlp([8, 32, 32, 1], nn.ReLU, he), x, y, lambda o, t: (weight * (o - t).square()).sum() / weight.sum()


@control("healthy control; label smoothing, mixup targets, logits through LayerNorm", learns(0.02))
def ok_soft_targets():
    x, y = clusters(96, 16, 4)
    t = 0.7 * F.one_hot(y, 4).float() + 0.3 * F.one_hot(y.flip(0), 4).float()
    net = nn.Sequential(*mlp([16, 48, 32], nn.SiLU), nn.LayerNorm(32), nn.Linear(32, 4))
    return net, x, t, lambda z, q: F.cross_entropy(z, q, label_smoothing=0.1)


@control("healthy control; multi-label sigmoid outputs with focal weighting and a bias of -2", learns(0.02))
def ok_multi_label_focal():
    x, _ = clusters(96, 16, 4)
    t = (torch.rand(96, 12) < 0.1).float()
    net = mlp([16, 48, 12], nn.ReLU, he)
    nn.init.constant_(net[2].bias, -2.0)

    def focal(z, q):
        p = torch.sigmoid(z)
        weight = q * (1 - p) ** 2 + (1 - q) * p**2
        return (weight * bce_logits(z, q, reduction="none")).mean()

    return net, x, t, focal
