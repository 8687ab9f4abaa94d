"""Further faults from reports: data scale, half precision, odd activations, cut graphs that look whole."""

from __future__ import annotations

import warnings

import torch
from tests.labelled.evidence import (
    after_steps,
    falls,
    flat,
    learns,
    no_gradient,
    rises,
    weight_gradient_ratio,
)
from tests.labelled.healthy_shapes import Sine
from tests.labelled.kit import (
    case,
    ce,
    clusters,
    curve,
    he,
    mlp,
    mse,
    sentences,
    variance,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@case(
    "vanishing",
    "0,0.weight",
    "scientific-data threads: inputs in metres, around 1e-9",
    weight_gradient_ratio("0.weight", "2.weight", 6),
    twin=learns(),
)
def inputs_of_a_billionth(fixed):
    """Features of 1e-9 into a default MLP: only the biases act, the first weight gets 1e-9 of the gradient. Repair: scale."""
    x, y = clusters(96, 16, 4)
    return mlp([16, 48, 48, 4], nn.ReLU), x if fixed else 1e-9 * x, y, ce


@case(
    "vanishing",
    "0,2,4,6",
    "Stack Overflow pattern: nn.Softmax as the activation of hidden layers",
    falls("1", "9", 4),
    twin=(flat("1", "9", 1), learns()),
    also=("saturated",),
)
def softmax_as_hidden_activation(fixed):
    """Softmax over 64 units after each of five Linears: outputs of 1/64, slopes of 1/64."""
    x, y = clusters(96, 16, 4)
    return mlp([16] + [64] * 5 + [4], nn.ReLU if fixed else lambda: nn.Softmax(dim=-1), he if fixed else None), x, y, ce


@case(
    "exploding",
    "0,1,2",
    "Sitzmann et al. 2020: sine layers with omega 30 need their own init",
    rises("0", "7", 5),
    twin=(flat("0", "7", 1.5), learns(lr=3e-4)),
)
def siren_with_default_init(fixed):
    """8 sine layers with omega 30 and torch's default weights: slope 30·0.58 per layer. Repair: U(±√(6/n)/30)."""
    x = torch.linspace(-1, 1, 96)[:, None]
    net = nn.Sequential(*[Sine(1 if i == 0 else 64, 64, 30.0, i == 0) for i in range(8)], nn.Linear(64, 1))
    if not fixed:
        for i in range(1, 8):
            net[i].lin.reset_parameters()
    return net, x, torch.sin(10 * x), mse


class BareTransformer(nn.Module):
    def __init__(self, skip, layers=8, d=32):
        super().__init__()
        self.embed, self.head, self.skip = nn.Embedding(40, d), nn.Linear(d, 5), skip
        self.place = nn.Parameter(torch.randn(12, d))
        self.attend = nn.ModuleList([nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(layers)])
        self.mix = nn.ModuleList([mlp([d, 64, d], nn.ReLU) for _ in range(layers)])
        self.norm = nn.ModuleList([nn.LayerNorm(d) for _ in range(layers)])

    def forward(self, t):
        h = self.embed(t) + self.place
        for attend, mix, norm in zip(self.attend, self.mix, self.norm, strict=True):
            a = attend(h, h, h, need_weights=False)[0]
            h = h + a if self.skip else a
            h = norm(h + mix(h)) if self.skip else mix(h)
        return self.head(h.mean(1))


def _first_block_starves(case_):
    p = dict(after_steps(case_, 0).named_parameters())
    ratio = float(torch.log10(p["attend.0.in_proj_weight"].grad.norm() / p["mix.7.2.weight"].grad.norm()))
    assert ratio < -4
    return f"block 0's projections get {ratio:+.1f} decades of block 7's gradient"


@case(
    "vanishing",
    "embed*,attend.[0-4]*,mix.[0-4]*",
    "Dong et al. 2021: a transformer whose skip connections were forgotten",
    _first_block_starves,
    twin=learns(0.02),
)
def transformer_without_skips(fixed):
    """8 attention + feed-forward layers, no skips, no norm. Repair: both."""
    x, y = sentences()
    return BareTransformer(fixed), x, y, ce


@case(
    "vanishing",
    "0,2,4",
    "mixed-precision threads: fp16 without loss scaling",
    no_gradient("0.weight"),
    twin=learns(0.02),
    also=("zero_gradient",),
)
def half_precision_underflow(fixed):
    """fp16 net whose mean squared error is divided by 1e6: every gradient is flushed to zero. Repair: bfloat16."""
    x, y = curve(96, 8)
    net = mlp([8, 64, 64, 1], nn.ReLU, he)
    if fixed:
        return net.bfloat16(), x.bfloat16(), y, lambda o, t: mse(o.float(), t) / 1e6
    return net.half(), x.half(), y, lambda o, t: mse(o.float(), t) / 1e6


class GeneratedWeights(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.generator, self.target, self.fixed = mlp([4, 32, 16 * 4], nn.Tanh, variance(1.0)), nn.Linear(16, 4), fixed
        self.target.weight.requires_grad_(not fixed)
        self.register_buffer("task", torch.randn(1, 4))

    def forward(self, x):
        w = self.generator(self.task).view(4, 16)
        if self.fixed:
            return F.linear(x, w, self.target.bias)
        self.target.weight.data = w
        return self.target(x)


@case(
    "zero_gradient",
    "generator.*",
    "hypernetwork threads: generated weights written into target.weight.data",
    no_gradient("generator.*"),
    twin=learns(0.05),
)
def hypernetwork_writes_data(fixed):
    """The generated matrix is copied into a parameter's data: the generator is cut off. Repair: F.linear with it."""
    x, y = clusters(96, 16, 4)
    return GeneratedWeights(fixed), x, y, ce


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.net = nn.Embedding(40, 16, padding_idx=0), mlp([16 + 4, 32, 5], nn.ReLU, he)

    def forward(self, pair):
        return self.net(torch.cat([self.embed(pair[0]).mean(1), pair[1]], 1))


@case(
    "zero_gradient",
    "embed*",
    "token ids were normalised to [0, 1) before .long(): every token is the padding",
    no_gradient("embed.weight"),
    twin=learns(0.02),
)
def every_token_is_padding(fixed):
    """ids / 40 cast to integers is 0, the padding row, which never gets a gradient. Repair: keep the ids."""
    x, y = sentences()
    return Words(), (x if fixed else (x / 40).long(), torch.randn(24, 4)), y, ce


class CheckpointedStem(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.head, self.reentrant = (
            mlp([16, 48, 32], nn.ReLU, he, out=nn.ReLU()),
            mlp([32, 32, 4], nn.ReLU, he),
            reentrant,
        )

    def forward(self, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            h = checkpoint(self.stem, x, use_reentrant=self.reentrant)
        return self.head(h)


@case(
    "zero_gradient",
    "stem.*",
    "LoRA and fine-tuning threads: reentrant checkpointing of a segment whose input needs no gradient",
    no_gradient("stem.*"),
    twin=learns(),
)
def reentrant_checkpoint_of_the_stem(fixed):
    """checkpoint(..., use_reentrant=True) on raw inputs drops the stem's gradients. Repair: use_reentrant=False."""
    x, y = clusters(96, 16, 4)
    return CheckpointedStem(not fixed), x, y, ce


class ZeroQueryKey(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 24), nn.Linear(24, 5)
        self.place = nn.Parameter(torch.randn(12, 24))
        self.q, self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(3))
        nn.init.zeros_(self.q.weight)
        if both:
            nn.init.zeros_(self.k.weight)

    def forward(self, t):
        h = self.embed(t) + self.place
        a = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) / 24**0.5, -1)
        return self.head((a @ self.v(h)).amax(1))


@case(
    "zero_gradient",
    "q*,k*",
    "attention with both query and key projections at zero: uniform attention for ever",
    no_gradient("q.weight,k.weight"),
    twin=learns(0.02),
)
def query_and_key_zero(fixed):
    """∂L/∂W_q ∝ k = 0 and ∂L/∂W_k ∝ q = 0. Repair: zero the query only."""
    x, y = sentences()
    return ZeroQueryKey(not fixed), x, y, ce


class RewrappedParameter(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.encoder, self.head, self.fixed = mlp([16, 32, 24], nn.Tanh, variance(1.0)), nn.Linear(24, 4), fixed

    def forward(self, x):
        h = self.encoder(x)
        return self.head(h if self.fixed else nn.Parameter(h))


@case(
    "zero_gradient",
    "encoder.*",
    "forum question: nn.Parameter(h) inside forward makes a new leaf",
    no_gradient("encoder.*"),
    twin=learns(),
)
def activation_wrapped_as_parameter(fixed):
    """Wrapping an activation in nn.Parameter cuts the graph."""
    x, y = clusters(96, 16, 4)
    return RewrappedParameter(fixed), x, y, ce
