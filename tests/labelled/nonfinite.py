"""NaN and Inf, forward or only backward."""

from __future__ import annotations

import torch
from tests.labelled.evidence import learns, nonfinite
from tests.labelled.kit import case, ce, clusters, curve, fit, he, mlp, mse, sentences
from torch import nn
from torch.nn import functional as F


@case(
    "nan",
    "*",
    "forum question: own cross-entropy -log(softmax(x)) turns NaN on raw inputs",
    nonfinite(),
    twin=learns(0.05),
    also=("exploding", "saturated"),
)
def log_of_underflown_softmax(fixed):
    """Logits in the hundreds: a probability underflows to 0 and -t·log(p) is 0·inf. Repair: log_softmax."""
    x, y = clusters(96, 16, 4)
    t = F.one_hot(y, 4).float()
    net = mlp([16, 32, 4], nn.ReLU, he)
    if fixed:
        return net, 200 * x, t, lambda z, q: -(q * F.log_softmax(z, 1)).sum(1).mean()
    return net, 200 * x, t, lambda z, q: -(q * torch.log(F.softmax(z, 1))).sum(1).mean()


@case(
    "nan",
    "softmax*,*",
    "own softmax exp(x)/sum(exp(x)): overflow above 88",
    nonfinite(),
    twin=learns(0.05),
    also=("exploding",),
)
def exp_overflow_in_own_softmax(fixed):
    """exp of logits near 300 is inf, inf/inf is NaN. Repair: subtract the maximum."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 4], nn.ReLU, he)

    def loss(z, t):
        z = z - z.amax(1, keepdim=True).detach() if fixed else z
        e = z.exp()
        p = e / e.sum(1, keepdim=True)
        return -(p[torch.arange(len(t)), t] + 1e-8).log().mean()

    return net, (20 if fixed else 150) * x, y, loss


class Standardise(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + self.eps)


@case(
    "nan",
    "0,1,3",
    "tabular threads: a constant column is standardised inside the model",
    nonfinite(),
    twin=learns(quiet=""),
)
def constant_feature_standardised(fixed):
    """(x - mean)/std with a constant feature: 0/0 in the very first operation. Repair: + 1e-6."""
    x, y = clusters(96, 16, 4)
    x[:, 5] = 3.0
    return nn.Sequential(Standardise(1e-6 if fixed else 0.0), *mlp([16, 32, 4], nn.ReLU, he)), x, y, ce


class UnitRows(nn.Module):
    def __init__(self, safe):
        super().__init__()
        self.safe = safe

    def forward(self, h):
        return F.normalize(h, dim=-1) if self.safe else h / h.norm(dim=-1, keepdim=True)


@case("nan", "2,0,3", "face-embedding threads: x / x.norm() when ReLU zeroed the whole row", nonfinite(), twin=learns())
def unit_length_of_zero_embedding(fixed):
    """Rows whose units are all off have norm 0. Repair: F.normalize."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(nn.Linear(16, 4, bias=False), nn.ReLU(), UnitRows(fixed), nn.Linear(4, 4))
    x[7] = 0.0
    return net, x, y, ce


class GeodesicHead(nn.Module):
    def __init__(self, safe):
        super().__init__()
        self.encode, self.safe = nn.Linear(6, 3), safe

    def forward(self, x):
        u = F.normalize(self.encode(x), dim=1)
        cosine = u @ u.T  # each vector against each: the diagonal is 1
        cosine = cosine.clamp(-1 + 1e-5, 1 - 1e-5) if self.safe else cosine.clamp(-1, 1)
        return torch.acos(cosine)


@case("nan", "encode*", "rotation-regression threads: acos has an infinite slope at 1", nonfinite(), twin=learns(0.02))
def acos_at_one(fixed):
    """Angles between all pairs, the diagonal included: acos'(1) = -inf. The forward pass is finite. Repair: clamp."""
    x = torch.randn(48, 6)
    return GeodesicHead(fixed), x, torch.full((48, 48), 1.2), mse


class Phase(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.mix, self.shift = nn.Linear(16, 12, bias=False), shift

    def forward(self, x):
        z = self.mix(x)
        return torch.atan(z[:, :6] / (z[:, 6:] + self.shift * (z[:, 6:] == 0)))


@case("nan", "mix*", "speech threads: the phase of a silent frame, atan(0 / 0)", nonfinite(), twin=learns(0.02))
def phase_of_silence(fixed):
    """Two frames of digital silence in a hand-written phase. Repair: keep the denominator off zero."""
    x = torch.randn(48, 16)
    x[:2] = 0.0
    return Phase(1e-3 if fixed else 0.0), x, torch.zeros(48, 6), mse


class MaskedAttention(nn.Module):
    def __init__(self, low):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.query, self.low, self.head = nn.Linear(16, 1), low, nn.Linear(16, 5)
        self.softmax = nn.Softmax(dim=1)

    def forward(self, t):
        h = self.embed(t)
        score = self.query(h).squeeze(-1).masked_fill(t == 0, self.low)
        return self.head((self.softmax(score)[..., None] * h).sum(1))


@case(
    "nan", "softmax", "attention threads: a row in which every position is masked with -inf", nonfinite(), twin=learns()
)
def fully_masked_row(fixed):
    """One empty document in the batch: softmax over all -inf is NaN. Repair: a large finite number."""
    x, y = sentences()
    x[3] = 0
    return MaskedAttention(-1e4 if fixed else -torch.inf), x, y, ce


class BatchDiversity(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps

    def forward(self, h):
        spread = (h.var(0, unbiased=False) + self.eps).sqrt().mean()
        return torch.cat([h, spread.expand(len(h), 1)], 1)


@case(
    "nan",
    "0,2",
    "progressive-GAN threads: minibatch standard deviation of a channel that is constant",
    nonfinite(),
    twin=learns(),
)
def minibatch_stddev_of_constant_channel(fixed):
    """var(0).sqrt() of a pruned unit, constant over the batch: 0·inf in the backward pass only. Repair: + 1e-8."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(0.2), BatchDiversity(1e-8 if fixed else 0.0), nn.Linear(33, 4))
    net[0].weight.data[3] = 0.0
    return net, x, y, ce


class MaskedMean(nn.Module):
    def __init__(self, safe):
        super().__init__()
        self.embed, self.head, self.safe = nn.Embedding(40, 16), nn.Linear(16, 5), safe

    def forward(self, t):
        keep = (t > 0).float()[..., None]
        count = keep.sum(1).clamp(min=1) if self.safe else keep.sum(1)
        return self.head((self.embed(t) * keep).sum(1) / count)


@case("nan", "*", "mean pooling over an empty sequence: 0 tokens, 0/0", nonfinite(), twin=learns())
def mean_over_no_tokens(fixed):
    """One sample has no token left after masking. Repair: clamp the count."""
    x, y = sentences()
    x[5] = 0
    return MaskedMean(fixed), x, y, ce


@case(
    "nan", "*", "fp16 threads: activations beyond 65504", nonfinite(), twin=learns(0.02, lr=1e-3), also=("exploding",)
)
def half_precision_overflow(fixed):
    """fp16 net on features in the thousands: the second layer overflows to inf. Repair: unit-scale features."""
    x, y = clusters(48, 16, 4)
    net = mlp([16, 64, 64, 4], nn.ReLU, he)
    if fixed:
        return net.bfloat16(), x.bfloat16(), y, lambda z, t: ce(z.float(), t)
    return net.half(), (15000 * x).half(), y, lambda z, t: ce(z.float(), t)


@case("nan", "attend*", "entropy regularisers: p·log p at p = 0", nonfinite(), twin=learns(0.02))
def entropy_of_hard_probabilities(fixed):
    """Attention weights from ReLU, normalised, then -p·log p as a regulariser: 0·(-inf). Repair: p·log(p + 1e-8)."""
    x, y = clusters(96, 16, 4)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, v):
            w = torch.relu(self.attend(v)) + 0.0
            p = w / (w.sum(1, keepdim=True) + 1e-6)
            return self.head(p), p

    def loss(out, t):
        p = out[1]
        return ce(out[0], t) - 0.01 * (p * torch.log(p + (1e-8 if fixed else 0.0))).sum(1).mean()

    return Net(), x, y, loss


@case(
    "nan",
    "*",
    "'loss is nan after a few steps': unscaled regression targets with lr 0.1",
    nonfinite(),
    twin=learns(),
    also=("exploding",),
)
def weights_diverged_to_nan(fixed):
    """40 SGD steps at lr 0.1 on targets in the hundreds: the weights themselves are NaN. Repair: scale, lr 0.01."""
    x, y = curve(96, 8)
    net = mlp([8, 32, 1], nn.ReLU, he)
    if fixed:
        return net, x, y, mse
    return (
        fit(net, 30 * x, 300 * y, mse, steps=40, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)),
        30 * x,
        300 * y,
        mse,
    )


class GeM(nn.Module):
    def __init__(self, floor):
        super().__init__()
        self.p, self.floor = nn.Parameter(torch.tensor(3.0)), floor

    def forward(self, h):
        h = h if self.floor is None else h.clamp(min=self.floor)
        return h.pow(self.p).mean((2, 3)).pow(1 / self.p)


@case(
    "nan",
    "1,1.p,0",
    "generalised-mean pooling (Radenović et al. 2018) without the clamp",
    nonfinite(),
    twin=learns(0.02),
)
def gem_pooling_of_negative_features(fixed):
    """pow with a learned exponent of negative features: the mean may be below 0, its root is NaN. Repair: clamp."""
    x = torch.randn(48, 3, 6, 6)
    y = torch.arange(48) % 4
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), GeM(1e-6 if fixed else None), nn.Linear(8, 4))
    return net, x, y, ce


class VariationalHead(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.encode, self.mu, self.logvar = mlp([12, 32], nn.ReLU, he), nn.Linear(32, 3), nn.Linear(32, 3)
        self.decode = mlp([3, 32, 12], nn.ReLU, he)
        self.fixed = fixed

    def forward(self, x):
        h = torch.relu(self.encode(x))
        mu, logvar = self.mu(h), self.logvar(h)
        logvar = logvar.clamp(-8, 8) if self.fixed else logvar
        return self.decode(mu + torch.exp(0.5 * logvar)), mu, logvar


@case(
    "nan",
    "logvar,decode*,encode*,mu",
    "VAE threads: exp(logvar) overflows on unscaled data",
    nonfinite(),
    twin=learns(0.02),
    also=("exploding",),
)
def vae_variance_overflow(fixed):
    """A VAE on values in the thousands: exp(logvar) is inf. Repair: scale the data, clamp logvar."""
    x, _ = clusters(64, 12, 4)
    x = x if fixed else 3000 * x

    def loss(out, t):
        recon, mu, logvar = out
        return mse(recon, t) - 0.05 * (1 + logvar - mu.square() - logvar.exp()).mean()

    return VariationalHead(fixed), x, x, loss
