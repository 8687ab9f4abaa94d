"""Small networks with one planted fault each, and healthy ones that look suspicious: what the detector tests run on.

A planted fault names the detector that must find it, and shell patterns for the place it was planted at. The healthy
networks are chosen to be awkward: exact zeros at the first step, unused heads, small heads, shared weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.models import ResNet, SparseEmbedding, TiedLanguageModel, Transformer, deep_sigmoid_mlp, he_relu_mlp, mlp
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Task:
    """What ``hw.diagnose`` is called with."""

    model: nn.Module
    inputs: Any
    targets: Any
    loss_fn: Loss
    optimizer: torch.optim.Optimizer | None = None

    def diagnose(self, scale: float = 1.0, **more: Any) -> hw.Diagnosis:
        """Diagnose with the loss multiplied by ``scale``."""
        loss_fn = self.loss_fn if scale == 1.0 else lambda out, y: scale * self.loss_fn(out, y)
        return hw.diagnose(
            self.model, self.inputs, self.targets, loss_fn, **{"optimizer": self.optimizer, **more}
        )  # fmt: skip


def _classes(batch: int, classes: int = 5) -> Tensor:
    return torch.arange(batch) % classes


def _token_loss(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


def _tokens(vocabulary: int = 20) -> Tensor:
    return torch.randint(0, vocabulary, (4, 6))


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


# -------------------------------------------------------------------- planted faults


def vanishing() -> Task:
    """Sigmoid at its best multiplies by 1/4 per layer (-0.60 decades), torch's default weights by 0.577."""
    return Task(deep_sigmoid_mlp(8, 64), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)


def exploding() -> Task:
    """He weights times 3: log10 3 = +0.48 decades per layer over eight hidden layers."""
    model = he_relu_mlp(9, 64)
    with torch.no_grad():
        for linear in _linears(model)[1:-1]:
            linear.weight.mul_(3.0)
    return Task(model, torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)


def collapsed_signal() -> Task:
    """Large biases, small weights: what the samples have in common wins at every layer (ordered phase)."""
    model = mlp(8, *[64] * 8, 1, activation=nn.Tanh)
    with torch.no_grad():
        for linear in _linears(model):
            linear.weight.normal_(std=0.1 / linear.in_features**0.5)
            linear.bias.normal_(std=0.5)
    return Task(model, torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)


class _Attention(nn.Module):
    """One head of attention with separate projections, nothing around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        logits = self.q(h) @ self.k(h).transpose(1, 2) / h.shape[-1] ** 0.5
        return logits.softmax(-1) @ self.v(h)


class BareAttention(nn.Module):
    """Attention layers without skip or normalisation: the tokens become parallel (Dong et al. 2021)."""

    def __init__(self, layers: int = 12, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(_Attention(width) for _ in range(layers))
        self.head = nn.Linear(width, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(h)


def rank_collapse() -> Task:
    """The values keep their size (orthogonal); only the differences between tokens fade, layer by layer."""
    model = BareAttention()
    for layer in model.layers:
        nn.init.orthogonal_(layer.v.weight)
    return Task(model, _tokens(), _tokens(), _token_loss)


def dead_units() -> Task:
    """A bias of -10 switches every unit of one layer off for every sample."""
    model = he_relu_mlp(3, 32)
    nn.init.constant_(model[2].bias, -10.0)
    return Task(model, torch.randn(32, 8), torch.randn(32, 1), F.mse_loss)


def saturated() -> Task:
    """Weights of standard deviation 20: the pre-activations are of size 57, where tanh is ±1."""
    model = mlp(8, 32, 32, 1, activation=nn.Tanh)
    nn.init.normal_(model[0].weight, std=20.0)
    return Task(model, torch.randn(32, 8), torch.randn(32, 1), F.mse_loss)


def symmetric() -> Task:
    """One constant for all weights: every hidden unit is the same unit."""
    model = mlp(8, 16, 16, 1, activation=nn.Tanh)
    for linear in _linears(model):
        nn.init.constant_(linear.weight, 0.1)
        nn.init.zeros_(linear.bias)
    return Task(model, torch.randn(32, 8), torch.randn(32, 1), F.mse_loss)


class Distance(nn.Module):
    """The length of a difference that is exactly zero for one sample: sqrt has no slope at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).square().sum(1, keepdim=True).sqrt())


def not_a_number() -> Task:
    x = torch.randn(16, 8)
    x[3] = 0.0  # body(0) = 0, and d sqrt(u)/du at u = 0 is infinite, times du = 0: NaN
    return Task(Distance(), x, torch.randn(16, 1), F.mse_loss)


class DetachedBranch(nn.Module):
    """Two branches are added; one of them is detached on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Linear(8, 16)
        self.lost = nn.Linear(8, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.kept(x) + self.lost(x).detach()))


def detached_branch() -> Task:
    return Task(DetachedBranch(), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)


def underflow() -> Task:
    """A loss of size 1e-6 in float16, whose smallest normal number is 6.1e-5."""
    return Task(
        mlp(8, 16, 4).half(), torch.randn(16, 8).half(), torch.randn(16, 4).half(),
        lambda out, y: 1e-6 * (out.float() - y.float()).square().mean(),
    )  # fmt: skip


class LastState(nn.Module):
    """A classifier of a sequence from the last state of a recurrent layer."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = layer
        self.head = nn.Linear(layer.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def _recurrent(factor: float, steps: int) -> Task:
    """A ReLU RNN with recurrent weights ``factor`` times the identity: the gradient changes by it per step."""
    layer = nn.RNN(4, 16, nonlinearity="relu", batch_first=True)
    nn.init.eye_(layer.weight_hh_l0).data.mul_(factor)
    nn.init.constant_(layer.bias_ih_l0, 1.0)  # keeps most units on
    return Task(LastState(layer), 0.1 * torch.randn(8, steps, 4), _classes(8, 3), F.cross_entropy)


def vanishing_in_time() -> Task:
    return _recurrent(0.5, 40)  # 39 steps of log10 0.5 = -0.301: -11.7 decades


def exploding_in_time() -> Task:
    return _recurrent(1.5, 30)  # 29 steps of log10 1.5 = +0.176: +5.1 decades


def too_large_a_step() -> Task:
    model = he_relu_mlp(2, 32)
    return Task(
        model, torch.randn(16, 8), torch.randn(16, 1), F.mse_loss, torch.optim.SGD(model.parameters(), lr=100.0)
    )  # fmt: skip


def broadcast_loss() -> Task:
    """(16, 1) against (16,): mse_loss compares 256 pairs."""
    return Task(he_relu_mlp(2, 32), torch.randn(16, 8), torch.randn(16), F.mse_loss)


def saturated_loss() -> Task:
    """A head of weights of standard deviation 30 makes logits of size 100 and more."""
    model = he_relu_mlp(2, 32)
    model[-1] = nn.Linear(32, 5)
    nn.init.normal_(model[-1].weight, std=30.0)
    return Task(model, torch.randn(16, 8), _classes(16), F.cross_entropy)


@dataclass(frozen=True)
class Planted:
    """A network with a fault, the detector that must find it, and where."""

    name: str
    code: str
    build: Callable[[], Task]
    verdict: hw.Verdict
    place: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def make(self) -> Task:
        """The task, from a fixed seed."""
        torch.manual_seed(11)
        return self.build()


V = hw.Verdict
FAULTS: tuple[Planted, ...] = (
    Planted("deep sigmoid", "HW101", vanishing, V.VANISHING, ("0", "1")),
    Planted("weights three times He's", "HW102", exploding, V.EXPLODING, ("0", "1")),
    Planted("ordered phase", "HW103", collapsed_signal, V.VANISHING, ("13", "14", "15")),
    Planted(
        "attention without skip", "HW104", rank_collapse, V.VANISHING, ("layers.11.q.weight", "layers.11.k.weight")
    ),
    Planted("bias -10", "HW201", dead_units, V.DEAD_UNITS, ("3",)),
    Planted("tanh of large weights", "HW202", saturated, V.SATURATED, ("1",)),
    Planted("constant weights", "HW203", symmetric, V.SYMMETRIC, ("0.weight",)),
    Planted("square root at zero", "HW301", not_a_number, V.NAN, ("body*", "(model)*")),
    Planted("detached branch", "HW302", detached_branch, V.ZERO_GRADIENT, ("lost.weight",)),
    Planted("tiny loss in float16", "HW303", underflow, V.VANISHING, ("0.weight",)),
    Planted("recurrent weights of one half", "HW401", vanishing_in_time, V.VANISHING_IN_TIME, ("rnn",)),
    Planted("recurrent weights of three halves", "HW402", exploding_in_time, V.EXPLODING_IN_TIME, ("rnn",)),
    Planted("learning rate 100", "HW501", too_large_a_step, V.HEALTHY, ("0.weight",)),
    Planted("targets of another shape", "HW502", broadcast_loss, V.HEALTHY, ()),
    Planted("logits of size 100", "HW503", saturated_loss, V.HEALTHY, ("4",)),
)


# -------------------------------------------------------------------- healthy, and awkward


class Rezero(nn.Module):
    """x + α f(x) with α = 0: every weight inside f gets exactly zero at the first step (Bachlechner 2020)."""

    def __init__(self, blocks: int = 4, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(blocks))
        self.alpha = nn.Parameter(torch.zeros(blocks))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for alpha, block in zip(self.alpha, self.blocks, strict=True):
            h = h + alpha * block(h)
        return self.head(h)


class Fixup(nn.Module):
    """The last layer of each branch starts at zero, the others at L^(-1/2) of He's (Zhang 2019)."""

    def __init__(self, blocks: int = 4, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(blocks))
        for block in self.blocks:
            nn.init.kaiming_normal_(block[0].weight).data.mul_(blocks**-0.5)
            nn.init.zeros_(block[-1].weight)
        self.head = nn.Linear(width, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


class Lora(nn.Module):
    """A frozen layer and two trainable factors beside it, as LoRA starts: A random, B zero (Hu 2021)."""

    def __init__(self, zero_a: bool = False) -> None:
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.a = nn.Linear(16, 4, bias=False)
        self.b = nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.b.weight)
        if zero_a:
            nn.init.zeros_(self.a.weight)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + self.b(self.a(x))))


class TwoHeads(nn.Module):
    """The batch belongs to the first task; the second head is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = he_relu_mlp(3, 32)[:-1]
        self.first = nn.Linear(32, 5)
        self.second = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.body(x))


def _zero_gamma() -> Task:
    model = ResNet(8, 3)
    for block in model.blocks:
        nn.init.zeros_(block.bn2.weight)
    return Task(model, torch.randn(8, 3, 6, 6), _classes(8), F.cross_entropy)


def _zero_head() -> Task:
    model = he_relu_mlp(4, 32)
    model[-1] = nn.Linear(32, 5)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return Task(model, torch.randn(16, 8), _classes(16), F.cross_entropy)


def _orthogonal_tanh() -> Task:
    model = mlp(32, *[32] * 20, 5, activation=nn.Tanh)
    for linear in _linears(model):
        nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(linear.bias)
    return Task(model, 0.5 * torch.randn(16, 32), _classes(16), F.cross_entropy)


def _selu() -> Task:
    model = mlp(64, *[64] * 10, 5, activation=nn.SELU)
    for linear in _linears(model):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    return Task(model, torch.randn(16, 64), _classes(16), F.cross_entropy)


@dataclass(frozen=True)
class Healthy:
    """A network in which nothing is wrong."""

    name: str
    build: Callable[[], Task]

    def __str__(self) -> str:
        return self.name

    def make(self) -> Task:
        """The task, from a fixed seed."""
        torch.manual_seed(12)
        return self.build()


def _vectors(build: Callable[[], nn.Module], features: int = 8) -> Callable[[], Task]:
    return lambda: Task(build(), torch.randn(16, features), _classes(16), F.cross_entropy)


HEALTHY: tuple[Healthy, ...] = (
    Healthy("he relu", lambda: Task(he_relu_mlp(10, 64), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)),
    Healthy("linear regression", lambda: Task(mlp(8, 1), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss)),
    Healthy("resnet", lambda: Task(ResNet(8, 3), torch.randn(8, 3, 6, 6), _classes(8), F.cross_entropy)),
    Healthy("resnet with zero gamma", _zero_gamma),
    Healthy("pre-LN transformer", lambda: Task(Transformer(3, 16), _tokens(), _tokens(), _token_loss)),
    Healthy("post-LN transformer", lambda: Task(Transformer(3, 16, False), _tokens(), _tokens(), _token_loss)),
    Healthy("short lstm", lambda: Task(
        LastState(nn.LSTM(4, 16, batch_first=True)), torch.randn(8, 8, 4), _classes(8, 3), F.cross_entropy)),
    Healthy("short gru", lambda: Task(
        LastState(nn.GRU(4, 16, batch_first=True)), torch.randn(8, 8, 4), _classes(8, 3), F.cross_entropy)),
    Healthy("rezero", _vectors(Rezero)),
    Healthy("fixup", _vectors(Fixup)),
    Healthy("lora", _vectors(Lora, 16)),
    Healthy("zero head", _zero_head),
    Healthy("unused head", _vectors(TwoHeads)),
    Healthy("orthogonal tanh", _orthogonal_tanh),
    Healthy("selu", _selu),
    Healthy("tied embedding", lambda: Task(
        TiedLanguageModel(), torch.randint(0, 12, (3, 4)), torch.randint(0, 12, (3, 4)), _token_loss)),
    Healthy("sparse embedding", lambda: Task(
        SparseEmbedding(), torch.randint(0, 30, (4, 3)), _classes(4, 4), F.cross_entropy)),
)  # fmt: skip


def dead_lora() -> Task:
    """Both factors zero: neither ever gets a gradient."""
    torch.manual_seed(13)
    return Task(Lora(zero_a=True), torch.randn(16, 16), _classes(16), F.cross_entropy)
