"""Healthy networks that carry the mark of a fault: shut gates, infinities, zeros, copies, one-hot rows, constants."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import learns, steady_in_time
from tests.labelled.kit import (
    ce,
    clusters,
    control,
    first_step_decides,
    fit,
    he,
    mlp,
    mse,
    pictures,
    standard,
)
from torch import nn
from torch.nn import functional as F

OK = "healthy control; "


@control(
    OK
    + "rare positives: the output bias starts at log(0.01/0.99), so the sigmoid starts at 1 % (Lin et al. 2017, RetinaNet)",
    learns(0.02),
)
def ok_prior_bias_on_sigmoid_output():
    x, _ = clusters(200, 16, 4)
    y = (torch.arange(200) % 67 == 0).float()[:, None]
    x[y[:, 0] == 1] += 1.0
    net = mlp([16, 32, 1], nn.ReLU, he, out=nn.Sigmoid())
    nn.init.normal_(net[2].weight, std=0.01)
    nn.init.constant_(net[2].bias, -math.log(99))
    return net, x, y, F.binary_cross_entropy


@control(
    OK + "a trained classifier that ends in nn.Softmax: its rows are nearly one-hot and right",
    learns(0.02, lr=1e-3),
)
def ok_confident_softmax_output():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 48, 4], nn.ReLU, he, out=nn.Softmax(dim=1))

    def nll(p, t):
        return -(p[torch.arange(len(t)), t] + 1e-9).log().mean()

    return fit(net, x, y, nll, steps=60, optimizer=torch.optim.Adam(net.parameters(), lr=5e-3)), x, y, nll


class ChronoCell(nn.Module):
    def __init__(self, longest=150, width=24):
        super().__init__()
        self.forget, self.write, self.out, self.gate = (
            nn.Linear(3, width),
            nn.Linear(3, width),
            nn.Linear(width, 2),
            nn.Sigmoid(),
        )
        self.forget.bias.data = torch.log(torch.empty(width).uniform_(40, longest))

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.write.out_features)
        for t in range(x.shape[1]):
            f = self.gate(self.forget(x[:, t]))
            h = f * h + (1 - f) * torch.tanh(self.write(x[:, t]))
        return self.out(h)


@control(
    OK + "memory gates with biases log(40) to log(150), made for long memories (Tallec & Ollivier 2018)",
    (steady_in_time(1.0), learns(0.01, lr=0.02)),
    known_gap="a gate that is meant to stay open is judged by its slope alone",
)
def ok_chrono_gates():
    x, y = first_step_decides(40, 60)
    return ChronoCell(), x, y, ce


class ActionMask(nn.Module):
    def forward(self, scores, allowed):
        return scores.masked_fill(~allowed, -torch.inf)


class MaskedPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mask = mlp([8, 48, 6], nn.ReLU, he), ActionMask()

    def forward(self, s):
        return self.mask(self.body(s), s[:, :6] > -0.8)


@control(
    OK + "invalid actions get a logit of -inf (Huang & Ontañón 2022): loss and gradients are finite",
    learns(0.02),
)
def ok_minus_infinity_action_mask():
    s = torch.randn(96, 8)
    s[:, 5] = 1.0
    y = torch.where(s[:, 0] > 0.5, 0, 5)
    return MaskedPolicy(), s, y, ce


class Impute(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.fill = nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return torch.where(torch.isnan(x), self.fill, x)


@control(
    OK + "missing values arrive as NaN and are replaced by a learned value",
    learns(0.02),
)
def ok_missing_values_imputed():
    x, y = clusters(96, 16, 4)
    x[torch.rand_like(x) < 0.1] = torch.nan
    return nn.Sequential(Impute(16), *mlp([16, 48, 4], nn.ReLU, he)), x, y, ce


class CandidateAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.value, self.softmax, self.head = (
            nn.Linear(8, 1),
            nn.Linear(8, 16),
            nn.Softmax(dim=1),
            nn.Linear(16, 3),
        )

    def forward(self, pair):
        x, present = pair
        a = self.softmax(self.key(x).squeeze(2).masked_fill(~present, -1e9))
        return self.head((a[..., None] * torch.relu(self.value(x))).sum(1))


@control(
    OK + "attention over candidate sets of which most hold one element: those rows are one-hot by count",
    learns(0.02),
)
def ok_attention_over_single_candidates():
    x = torch.randn(64, 5, 8)
    count = torch.where(torch.arange(64) % 4 == 0, 5, 1)
    return (
        CandidateAttention(),
        (x, torch.arange(5)[None] < count[:, None]),
        (x[:, 0, 0] > 0).long() + (x[:, 0, 1] > 0).long(),
        ce,
    )


class Styled(nn.Module):
    def __init__(self):
        super().__init__()
        self.mapping, self.constant = mlp([8, 32, 32], nn.LeakyReLU, he), nn.Parameter(torch.randn(1, 12, 4, 4))
        self.style1, self.conv1 = nn.Linear(32, 24), nn.Conv2d(12, 12, 3, padding=1)
        self.style2, self.conv2 = nn.Linear(32, 24), nn.Conv2d(12, 1, 3, padding=1)

    @staticmethod
    def adain(h, style):
        scale, shift = style[:, :, None, None].chunk(2, 1)
        return F.instance_norm(h) * (1 + scale) + shift

    def forward(self, z):
        w = self.mapping(z)
        h = self.conv1(self.constant.expand(len(z), -1, -1, -1))
        h = F.leaky_relu(self.adain(h, self.style1(w)), 0.2)
        h = F.interpolate(h, scale_factor=2)
        return self.conv2(self.adain(h, self.style2(w)))


@control(
    OK + "style generator: a learned constant goes in, the sample enters by modulation (Karras et al. 2019)",
    learns(0.02, quiet="conv1.bias"),
)
def ok_style_generator_constant_input():
    z = torch.randn(32, 8)
    return Styled(), z, z[:, :1, None, None].expand(32, 1, 8, 8) * 0.5, mse


@control(OK + "trainable bilinear up-sampling kernels, all equal at the start (Long et al. 2015, FCN)", learns(0.02))
def ok_bilinear_upsampling():
    x, _ = pictures(24, 1, 8)
    up = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8, bias=False)
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    up.weight.data = (ramp[:, None] * ramp[None]).expand(8, 1, 4, 4).clone()
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), up, nn.Conv2d(8, 1, 3, padding=1))
    return net, standard(x), F.interpolate(x, scale_factor=2, mode="nearest"), mse


class Controlled(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)]).requires_grad_(False)
        self.copy = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32)])
        self.zero = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        for layer in self.zero:
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)

    def forward(self, x):
        c = torch.relu(self.copy[0](x))
        h = torch.relu(self.base[0](x) + self.zero[0](c))
        h = torch.relu(self.base[1](h) + self.zero[1](torch.relu(self.copy[1](c))))
        return self.base[2](h)


@control(
    OK + "ControlNet: a trainable copy feeds a frozen net through zero layers (Zhang et al. 2023)",
    learns(0.05, lr=0.01),
)
def ok_controlnet_zero_layers():
    x, y = clusters(96, 16, 4)
    return Controlled(), x, y, ce


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = mlp([16, 48, 24], nn.GELU), mlp([10, 48, 24], nn.GELU)
        self.temperature = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pair):
        a, b = F.normalize(self.image(pair[0]), dim=1), F.normalize(self.text(pair[1]), dim=1)
        return self.temperature.exp() * a @ b.T


@control(OK + "two towers, cosine logits over 0.07, labels on the diagonal (Radford et al. 2021, CLIP)", learns(0.05))
def ok_contrastive_two_towers():
    a = torch.randn(32, 16)
    return (
        Clip(),
        (a, a[:, :10] + 0.1 * torch.randn(32, 10)),
        torch.arange(32),
        lambda z, t: (ce(z, t) + ce(z.T, t)) / 2,
    )


class TopKAutoencoder(nn.Module):
    def __init__(self, width=1024, k=16):
        super().__init__()
        self.encode, self.decode, self.k = nn.Linear(24, width), nn.Linear(width, 24), k
        self.decode.weight.data = F.normalize(torch.randn(24, width), dim=0)
        self.encode.weight.data = self.decode.weight.data.T.clone()

    def forward(self, x):
        z = self.encode(x - self.decode.bias)
        top, where = z.topk(self.k, 1)
        return self.decode(torch.zeros_like(z).scatter(1, where, torch.relu(top)))


@control(
    OK + "sparse autoencoder, 16 of 1024 latents per sample: most are silent on this batch (Gao et al. 2024)",
    learns(0.05, lr=1e-3),
)
def ok_top_k_sparse_autoencoder():
    x, _ = clusters(48, 24, 6)
    return TopKAutoencoder(), x, x, mse


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 6)

    def forward(self, x):
        return self.out(self.rnn(x.squeeze(1))[0][:, -1])


@control(
    OK + "the LSTM tutorial: an image read row by row (16 rows), torch's defaults, last state",
    learns(0.1, steps=60, lr=0.01),
)
def ok_lstm_reads_image_rows():
    x, y = pictures(60, 1, 16)
    return Rows(), standard(x), y, ce
