"""Further faults: symmetry, time, and loss scales that hide them."""

from __future__ import annotations

import torch
from tests.labelled.evidence import (
    after_steps,
    falls,
    flat,
    learns,
    nonfinite,
    rises,
    steady_in_time,
    through_time,
    twins,
    weight_gradient_ratio,
)
from tests.labelled.kit import (
    case,
    ce,
    ce_tokens,
    clusters,
    every,
    first_step_decides,
    he,
    initialise,
    mlp,
    normal,
    sentences,
    standard,
    variance,
)
from torch import nn


class ConstantTransformer(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 24), nn.Linear(24, 5)
        self.layer = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True)
        if constant:
            for name, p in self.layer.named_parameters():
                if p.dim() > 1:
                    nn.init.constant_(p, 0.02)
                elif "norm" not in name:
                    nn.init.zeros_(p)

    def forward(self, t):
        return self.head(self.layer(self.embed(t)).mean(1))


def _projections_stay_copies(case_):
    layer = after_steps(case_).layer
    for w in (layer.self_attn.in_proj_weight[48:], layer.linear1.weight):
        w = w.detach()
        assert (w - w[:1]).abs().max() <= 1e-5 * w.abs().max(), "the rows differ"
    return "value and feed-forward units are copies after 3 steps"


@case(
    "symmetric",
    "layer.self_attn*,layer.linear1*",
    "constant initialisation of a transformer layer",
    _projections_stay_copies,
    twin=learns(0.02),
)
def constant_transformer_layer(fixed):
    """All matrices of the layer are 0.02: every head and every feed-forward unit is the same."""
    x, y = sentences()
    return ConstantTransformer(not fixed), x, y, ce


@case(
    "nan",
    "0,1,2",
    "resumed checkpoints: the running mean of BatchNorm is NaN, seen only in eval mode",
    nonfinite(),
    twin=learns(),
)
def nan_in_running_statistics(fixed):
    """A BatchNorm buffer holds NaN; in eval mode everything behind it is NaN."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 4)).eval()
    if not fixed:
        net[1].running_mean[5] = torch.nan
    return net, x, y, ce


class LinearAttention(nn.Module):
    def __init__(self, normalise):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(3))
        for m in (self.q, self.k, self.v):
            nn.init.normal_(m.weight, std=24**-0.5)
        self.normalise, self.norm = normalise, nn.LayerNorm(24)

    def forward(self, h):
        u = self.norm(h) if self.normalise else h
        out = self.q(u) @ (self.k(u).transpose(1, 2) @ self.v(u))
        return h + out / (u.shape[1] * 24**0.5) if self.normalise else h + out


@case(
    "exploding",
    "0,1,2,3,4,5",
    "linear attention without the 1/T: the update is cubic in the stream",
    rises("0", "4", 4),
    twin=learns(0.02, lr=1e-3),
    also=("nan",),
)
def linear_attention_unnormalised(fixed):
    """Six residual linear-attention layers without normalisation. Repair: pre-norm, divide by T·√d."""
    x, y = torch.randn(16, 24, 24), torch.arange(16) % 4
    net = nn.Sequential(
        *[LinearAttention(fixed) for _ in range(6)], nn.AdaptiveAvgPool2d((1, 24)), nn.Flatten(), nn.Linear(24, 4)
    )
    return net, x if fixed else 0.25 * x, y, ce


class LSTMCellLoop(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 24), nn.Linear(24, 2)
        if bias is not None:
            self.cell.bias_ih.data[24:48], self.cell.bias_hh.data[24:48] = bias, 0.0

    def forward(self, x):
        h = c = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.out(h)


@case(
    "vanishing_in_time",
    "cell",
    "a loop over nn.LSTMCell with default biases",
    through_time(-6),
    twin=(steady_in_time(1.5), learns(0.02)),
    also=("vanishing",),
)
def lstm_cell_loop_100(fixed):
    """100 steps through nn.LSTMCell. Repair: forget bias 5."""
    x, y = first_step_decides(32, 100)
    return LSTMCellLoop(5.0 if fixed else None), x, y, ce


class CharModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = (
            nn.Embedding(30, 16),
            nn.RNN(16, 64, nonlinearity="relu", batch_first=True),
            nn.Linear(64, 30),
        )
        nn.init.normal_(self.rnn.weight_hh_l0, std=0.25)

    def forward(self, t):
        return self.out(self.rnn(self.embed(t))[0]) * 1e-3


@case(
    "exploding_in_time",
    "rnn",
    "character RNN with a loss at every step and recurrent weights N(0, 0.25²), width 64",
    through_time(3, 0, -2, name="embed"),
    also=("exploding",),
)
def char_rnn_every_step_loss_explodes():
    """ReLU RNN, gain √2 per step over 40 steps; the loss at each step cannot hide it."""
    x = torch.randint(0, 30, (16, 41))
    return CharModel(), x[:, :-1], x[:, 1:], ce_tokens


@case(
    "vanishing",
    every(0, 10),
    "mean-squared towers: sigmoid net in float64, where nothing underflows",
    falls("1", "29", 8),
    twin=(flat("1", "29", 1), learns()),
)
def sigmoid_15_float64_tiny_loss(fixed):
    """15 sigmoid layers in float64 under a loss times 1e-12."""
    x, y = clusters(96, 16, 4)
    net = mlp([16] + [48] * 15 + [4], nn.ReLU if fixed else nn.Sigmoid, he if fixed else variance(1.0)).double()
    return net, x.double(), y, lambda o, t: 1e-12 * ce(o, t)


@case(
    "exploding",
    every(0, 12),
    "relu net at gain 4 under a loss times 1e-12: an absolute threshold sees nothing",
    rises("1", "29", 6),
    twin=(flat("1", "29", 1), learns(lr=3e-4)),
)
def relu_gain_four_tiny_loss(fixed):
    """15 ReLU layers with fan_in·Var(W) = 16."""
    x, y = clusters(96, 16, 4)
    return (
        mlp([16] + [64] * 15 + [4], nn.ReLU, variance(2.0 if fixed else 16.0)),
        standard(x),
        y,
        lambda o, t: 1e-12 * ce(o, t),
    )


@case(
    "dead_units",
    "3,2",
    "ELU pushed to -1 for every sample by a bias of -25",
    weight_gradient_ratio("0.weight", "4.weight", 6),
    twin=learns(),
    also=("saturated", "vanishing", "zero_gradient"),
)
def elu_bias_minus_25(fixed):
    """ELU has slope e^-25 there: constant units, no gradient below."""
    x, y = clusters(96, 16, 4)
    net = initialise(mlp([16, 48, 48, 4], nn.ELU, he), variance(1.5))
    nn.init.constant_(net[2].bias, 0.0 if fixed else -25.0)
    return net, x, y, ce


@case("symmetric", "0,3", "constant weights in front of batch norm", twins("0.weight"), twin=learns())
def constant_weights_with_batchnorm(fixed):
    """Linear layers of 0.1 followed by BatchNorm: normalisation does not break the symmetry."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    initialise(net, normal(0.3) if fixed else lambda w: nn.init.constant_(w, 0.1))
    return net, x, y, ce
