"""Parameters that no gradient can reach because something beside them is zero, constant or unused."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns, no_gradient
from tests.labelled.kit import case, ce, ce_tokens, clusters, curve, he, mlp, mse, pictures, sentences, standard, xavier
from torch import nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    def __init__(self, d_in, d_out, rank, both_zero):
        super().__init__()
        self.base = nn.Linear(d_in, d_out)
        self.base.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(rank, d_in)), nn.Parameter(torch.zeros(d_out, rank))
        if not both_zero:
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


@case(
    "zero_gradient",
    "*lora_*",
    "litgpt and SAPT threads: both LoRA factors are zero",
    no_gradient("0.lora_*,2.lora_*"),
    twin=learns(0.05, lr=1e-2),
)
def lora_both_factors_zero(fixed):
    """Two adapters with A = B = 0 and a trainable head: the adapters are at a saddle for ever. Repair: random A."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(
        LoRALinear(16, 32, 4, not fixed), nn.ReLU(), LoRALinear(32, 32, 4, not fixed), nn.ReLU(), nn.Linear(32, 4)
    )
    return net, x, y, ce


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.encoder, self.context, self.head = (
            mlp([8, 32, 16], nn.ReLU, he),
            mlp([8, 32, 16], nn.ReLU, he),
            nn.Linear(16, 4),
        )
        self.register_buffer("mask", torch.full((16,), value))

    def forward(self, x):
        return self.head(self.encoder(x[:, :8]) * self.mask + self.context(x[:, 8:]))


@case(
    "zero_gradient",
    "encoder.*",
    "multimodal threads: a modality mask that was never set stays all zeros",
    no_gradient("encoder.*"),
    twin=learns(),
)
def modality_masked_out(fixed):
    """One of two encoders is multiplied by a buffer of zeros."""
    x, y = clusters(96, 16, 4)
    return Masked(1.0 if fixed else 0.0), x, y, ce


class ZeroBranch(nn.Module):
    def __init__(self, width, first_too):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.b.weight), nn.init.zeros_(self.b.bias)
        if first_too:
            nn.init.zeros_(self.a.weight), nn.init.zeros_(self.a.bias)

    def forward(self, h):
        return h + self.b(torch.relu(self.a(h)))


@case(
    "zero_gradient",
    "[1-4].a.*,[1-4].b.weight",
    "Fixup gone wrong: both layers of each branch start at zero (relu'(0) = 0)",
    no_gradient("[1-4].a.*,[1-4].b.weight"),
    twin=learns(),
    also=("dead_units", "symmetric"),
)
def branch_zero_twice(fixed):
    """Residual branches whose two Linears are both zero never wake; the stream alone learns. Repair: only the last one zero."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(nn.Linear(16, 32), *[ZeroBranch(32, not fixed) for _ in range(4)], nn.Linear(32, 4))
    return net, x, y, ce


class PooledAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.embed, self.score, self.softmax = (
            nn.Embedding(40, 16),
            mlp([16, 16, 1], nn.Tanh, xavier),
            nn.Softmax(dim=dim),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, t):
        h = self.embed(t)
        return self.head((self.softmax(self.score(h)) * h).sum(1))


@case(
    "zero_gradient",
    "score.*",
    "attention pooling with softmax over the wrong dimension, of size 1",
    no_gradient("score.*"),
    twin=learns(),
    also=("saturated",),
)
def attention_softmax_wrong_dim(fixed):
    """softmax(dim=-1) of (B, T, 1) scores is all ones. Repair: dim=1."""
    x, y = sentences()
    return PooledAttention(1 if fixed else -1), x, y, ce


@case(
    "zero_gradient",
    "0,2,0.*,2.*",
    "LayerNorm over a single feature: the output is its bias, whatever comes in",
    no_gradient("0.*,2.*"),
    twin=learns(),
)
def layer_norm_of_one_feature(fixed):
    """A scalar head behind LayerNorm(1). Repair: no norm there."""
    x, _ = clusters(96, 16, 4)
    y = torch.sin(x[:, :1])
    return (
        nn.Sequential(
            nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1), nn.Identity() if fixed else nn.LayerNorm(1), nn.Linear(1, 1)
        ),
        x,
        y,
        mse,
    )


class Clamped(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.net, self.limit = mlp([8, 32, 1], nn.ReLU, he), nn.Identity() if fixed else nn.Hardtanh(0.0, 1.0)
        nn.init.constant_(self.net[2].bias, 0.5 if fixed else -9.0)

    def forward(self, x):
        return self.limit(self.net(x))


@case(
    "saturated",
    "net.*,limit",
    "forum question: clamp(0, 1) on the output, the predictions start below 0",
    no_gradient("net.*"),
    twin=learns(),
    also=("zero_gradient", "dead_units"),
)
def output_clamped_from_below(fixed):
    """Every prediction is near -9 and clamped to 0: no parameter gets a gradient at all. Repair: no clamp."""
    x, y = curve(96, 8)
    return Clamped(fixed), x, torch.sigmoid(y), mse


class NearestWarp(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.locate = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 6))
        nn.init.normal_(self.locate[3].weight, std=0.02)
        self.locate[3].bias.data = torch.tensor([1.0, 0.1, 0, 0, 1, -0.1])
        self.read = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 6))
        self.mode = mode

    def forward(self, x):
        grid = F.affine_grid(self.locate(x).view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.read(F.grid_sample(x, grid, mode=self.mode, align_corners=False))


@case(
    "zero_gradient",
    "locate.*",
    "spatial-transformer threads: grid_sample(mode='nearest')",
    no_gradient("locate.*"),
    twin=learns(),
)
def nearest_sampling_in_transformer(fixed):
    """Nearest-neighbour sampling has no derivative with respect to the grid. Repair: bilinear."""
    x, y = pictures(48, 1, 12)
    return NearestWarp("bilinear" if fixed else "nearest"), standard(x), y, ce


@case(
    "zero_gradient",
    "0,2,0.*,3.*",
    "porting threads: TensorFlow's keep_prob = 1.0 became nn.Dropout(1.0)",
    no_gradient("0.*"),
    twin=learns(),
    also=("dead_units",),
)
def dropout_of_everything(fixed):
    """nn.Dropout(p=1.0) after the first layer drops every unit in training."""
    x, y = clusters(96, 16, 4)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1 if fixed else 1.0), nn.Linear(64, 4)), x, y, ce


class Captioner(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.see, self.say, self.out = nn.Linear(16, 24), nn.GRU(8, 24, batch_first=True), nn.Linear(24, 10)
        self.word, self.fixed = nn.Embedding(10, 8), fixed

    def forward(self, pair):
        start = torch.tanh(self.see(pair[0]))[None]
        start = start if self.fixed else torch.zeros_like(start)
        return self.out(self.say(self.word(pair[1]), start)[0])


@case(
    "zero_gradient",
    "see.*,see",
    "captioning threads: the image feature is computed and then not used",
    no_gradient("see.*"),
    twin=learns(),
)
def encoder_computed_but_unused(fixed):
    """The decoder starts from zeros instead of the encoder's feature; inputs are a tuple."""
    words = torch.randint(0, 10, (32, 7))
    return Captioner(fixed), (torch.randn(32, 16), words[:, :-1]), words[:, 1:], ce_tokens


class Rounded(nn.Module):
    """Coordinates are predicted, rounded to pixels, and used as an index."""

    def __init__(self, fixed):
        super().__init__()
        self.point, self.table, self.out = (
            mlp([8, 24, 1], nn.ReLU, he),
            nn.Parameter(torch.randn(16, 6)),
            nn.Linear(6, 1),
        )
        self.fixed = fixed

    def forward(self, x):
        place = 15 * torch.sigmoid(self.point(x)).squeeze(1)
        if not self.fixed:
            return self.out(self.table[place.round().long()])
        low = place.floor().clamp(max=14).long()
        share = (place - low)[:, None]
        return self.out((1 - share) * self.table[low] + share * self.table[low + 1])


@case(
    "zero_gradient",
    "point.*",
    "differentiable-indexing threads: .long() on a predicted coordinate",
    no_gradient("point.*"),
    twin=learns(0.05),
)
def predicted_index(fixed):
    """A predicted coordinate is cast to an index. Repair: linear interpolation."""
    x = torch.randn(96, 8)
    return Rounded(fixed), x, torch.sin(x[:, :1]), mse
