"""Parameters that no gradient can reach: cut graphs, steps, constants."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns, no_gradient
from tests.labelled.kit import case, ce, clusters, he, mlp, mse
from torch import nn
from torch.nn import functional as F


class Cut(nn.Module):
    """An encoder and a head, with some operation between them."""

    def __init__(self, between):
        super().__init__()
        self.encoder, self.head = mlp([16, 32, 24], nn.ReLU, he, out=nn.ReLU()), mlp([24, 32, 4], nn.ReLU, he)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self.encoder(x)))


@case(
    "zero_gradient",
    "encoder.*",
    "forum question: .detach() left over from debugging",
    no_gradient("encoder.*"),
    twin=learns(),
)
def detached_encoder(fixed):
    """head(encoder(x).detach()): the loss falls, the encoder never changes."""
    x, y = clusters(96, 16, 4)
    return Cut((lambda h: h) if fixed else (lambda h: h.detach())), x, y, ce


class NoGradBackbone(Cut):
    def forward(self, x):
        with torch.no_grad():
            h = self.encoder(x)
        return self.head(h)


@case(
    "zero_gradient",
    "encoder.*",
    "fine-tuning threads: torch.no_grad() around a backbone that should train",
    no_gradient("encoder.*"),
    twin=learns(),
)
def backbone_under_no_grad(fixed):
    """requires_grad is True everywhere, yet the backbone runs under no_grad."""
    x, y = clusters(96, 16, 4)
    return Cut(lambda h: h) if fixed else NoGradBackbone(None), x, y, ce


@case(
    "zero_gradient",
    "encoder.*",
    "forum question: torch.tensor(out.tolist()) in the middle of a model",
    no_gradient("encoder.*"),
    twin=learns(),
)
def rebuilt_from_python_numbers(fixed):
    """Features go through Python lists (as they would through NumPy)."""
    x, y = clusters(96, 16, 4)
    return Cut((lambda h: h) if fixed else (lambda h: torch.tensor(h.tolist()))), x, y, ce


@case(
    "zero_gradient", "encoder.*", "old tutorials: h.data in the forward pass", no_gradient("encoder.*"), twin=learns()
)
def data_attribute_in_forward(fixed):
    """h.data cuts the graph without a word."""
    x, y = clusters(96, 16, 4)
    return Cut((lambda h: h) if fixed else (lambda h: h.data * 1.0)), x, y, ce


@case(
    "zero_gradient",
    "encoder.*",
    "spiking nets without a surrogate gradient (Neftci et al. 2019)",
    no_gradient("encoder.*"),
    twin=learns(),
)
def heaviside_spikes(fixed):
    """torch.heaviside(h - 0.3): the derivative is 0 everywhere. Repair: sigmoid surrogate in the backward pass."""
    x, y = clusters(96, 16, 4)

    def spike(h):
        soft = torch.sigmoid(4 * (h - 0.3))
        return soft + ((h > 0.3).float() - soft).detach() if fixed else torch.sign(h - 0.3) * 0.5 + 0.5

    return Cut(spike), x, y, ce


@case(
    "zero_gradient",
    "encoder.*",
    "quantisation-aware threads: floor without a straight-through estimator",
    no_gradient("encoder.*"),
    twin=learns(),
)
def floored_features(fixed):
    """Features are floored to 1/4. Repair: straight-through."""
    x, y = clusters(96, 16, 4)
    return Cut(lambda h: h + (torch.floor(4 * h) / 4 - h).detach() if fixed else torch.floor(4 * h) / 4), x, y, ce


class TokenGenerator(nn.Module):
    def __init__(self, soft):
        super().__init__()
        self.generator, self.embed, self.reader = (
            mlp([8, 32, 20], nn.ReLU, he),
            nn.Embedding(20, 16),
            mlp([16, 24, 1], nn.ReLU, he),
        )
        self.soft = soft

    def forward(self, z):
        scores = self.generator(z)
        if self.soft:
            p = F.softmax(scores, 1)
            return self.reader(p @ self.embed.weight)
        return self.reader(self.embed(scores.argmax(1)))


@case(
    "zero_gradient",
    "generator.*",
    "text-GAN threads: argmax between generator and discriminator",
    no_gradient("generator.*"),
    twin=learns(0.05),
)
def argmax_between_generator_and_reader(fixed):
    """The generator's word is picked by argmax. Repair: softmax mixture."""
    z = torch.randn(96, 8)
    return TokenGenerator(fixed), z, torch.sin(z[:, :1]), mse


class VectorQuantiser(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.encode, self.decode = mlp([20, 32, 8], nn.ReLU, he), mlp([8, 32, 20], nn.ReLU, he)
        self.codes = nn.Parameter(0.5 * torch.randn(24, 8))
        self.fixed = fixed

    def forward(self, x):
        h = self.encode(x)
        q = self.codes[torch.cdist(h, self.codes).argmin(1)]
        return self.decode(h + (q - h).detach() if self.fixed else q), h, q


@case(
    "zero_gradient",
    "encode.*",
    "van den Oord et al. 2017 (VQ-VAE) re-implementations without the straight-through line",
    no_gradient("encode.*"),
    twin=learns(0.05),
)
def vq_without_straight_through(fixed):
    """decode(codes[nearest]): the encoder gets nothing. Repair: straight-through, codebook and commitment losses."""
    x, _ = clusters(96, 20, 4)

    def loss(out, t):
        recon, h, q = out
        extra = mse(q, h.detach()) + 0.25 * mse(h, q.detach()) if fixed else 0.0
        return mse(recon, t) + extra

    return VectorQuantiser(fixed), x, x, loss


class HardGumbel(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.choose, self.fixed = mlp([16, 32, 6], nn.ReLU, he), fixed
        self.values, self.out = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 4)

    def forward(self, x):
        p = F.softmax(self.choose(x), 1)
        hard = F.one_hot(p.argmax(1), 6).to(p.dtype)
        return self.out((hard - p.detach() + p if self.fixed else hard) @ self.values)


@case(
    "zero_gradient",
    "choose.*",
    "hard categorical samples without the straight-through trick (Jang et al. 2017)",
    no_gradient("choose.*"),
    twin=learns(),
)
def one_hot_choice(fixed):
    """A one-hot of the argmax selects a value vector; the chooser never learns."""
    x, y = clusters(96, 16, 4)
    return HardGumbel(fixed), x, y, ce
