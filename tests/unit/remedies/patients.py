"""Small networks, each with the fault that one remedy is for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Sick(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor
    loss_fn: Callable[[Tensor, Tensor], Tensor]


def stack(widths: list[int], activation: Callable[[], nn.Module], std: float | None = None) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(a, b)
        if std is not None:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        modules += [layer, activation()] if i < len(widths) - 2 else [layer]
    return nn.Sequential(*modules)


def classes(n: int, d: int, k: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % k
    return torch.randn(k, d)[y] + 0.3 * torch.randn(n, d), y


def sigmoid() -> Sick:
    torch.manual_seed(0)
    return Sick(stack([12] + [24] * 8 + [3], nn.Sigmoid), *classes(48, 12, 3), F.cross_entropy)


def tanh_small_weights() -> Sick:
    torch.manual_seed(0)
    return Sick(stack([12] + [24] * 8 + [3], nn.Tanh, std=0.02), *classes(48, 12, 3), F.cross_entropy)


class Block(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, d), nn.Linear(d, d)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=(2 / d) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x)))


def residual() -> Sick:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), *[Block(24) for _ in range(20)], nn.Linear(24, 3))
    return Sick(model, *classes(48, 12, 3), F.cross_entropy)


class Squash(nn.Module):
    """A block without a shortcut, whose activation is a function in its source."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


def squashing_blocks() -> Sick:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), *[Squash(24) for _ in range(16)], nn.Linear(24, 3))
    return Sick(model, *classes(48, 12, 3), F.cross_entropy)


def constant() -> Sick:
    torch.manual_seed(0)
    model = stack([12, 24, 24, 3], nn.ReLU)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.05)
            nn.init.zeros_(module.bias)
    return Sick(model, *classes(48, 12, 3), F.cross_entropy)


def dead() -> Sick:
    torch.manual_seed(0)
    model = stack([12, 24, 24, 3], nn.ReLU)
    with torch.no_grad():
        model[0].bias[:20] = -30.0
    return Sick(model, *classes(48, 12, 3), F.cross_entropy)


def raw_inputs() -> Sick:
    torch.manual_seed(0)
    x, y = classes(48, 12, 3)
    model = stack([12, 24, 3], nn.Tanh)
    return Sick(model, 500 + 300 * x, y, F.cross_entropy)


class Attention(nn.Module):
    def __init__(self, d: int, factor: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.softmax = nn.Softmax(-1)
        for layer in (self.q, self.k):
            nn.init.normal_(layer.weight, std=factor / d**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.softmax(self.q(x) @ self.k(x).transpose(1, 2) / x.shape[-1] ** 0.5)
        return self.out((scores @ self.v(x)).mean(1))


def one_hot_attention() -> Sick:
    torch.manual_seed(0)
    return Sick(Attention(16, 12.0), torch.randn(24, 10, 16), torch.arange(24) % 16, F.cross_entropy)


def one_unit_softmax() -> Sick:
    torch.manual_seed(0)
    x, y = classes(48, 12, 2)
    model = nn.Sequential(*stack([12, 16, 1], nn.ReLU), nn.Softmax(-1))
    return Sick(model, x, y.float().view(-1, 1), F.mse_loss)


def logarithm_of_scores() -> Sick:
    torch.manual_seed(0)
    x, y = classes(48, 12, 3)
    return Sick(stack([12, 16, 3], nn.ReLU), x, y, lambda p, t: -torch.log(p[torch.arange(len(t)), t]).mean())


class Sequence(nn.Module):
    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.rnn, self.out = recurrent, nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def forgetful_lstm() -> Sick:
    torch.manual_seed(0)
    x = torch.randn(16, 120, 3)
    return Sick(Sequence(nn.LSTM(3, 16, batch_first=True)), x, (x[:, 0, 0] > 0).long(), F.cross_entropy)


def chaotic_rnn() -> Sick:
    torch.manual_seed(0)
    x = 0.1 * torch.randn(16, 50, 3)
    recurrent = nn.RNN(3, 16, batch_first=True)
    nn.init.normal_(recurrent.weight_hh_l0, std=3 / 16**0.5)
    return Sick(Sequence(recurrent), x, (x.sum((1, 2)) > 0).long(), F.cross_entropy)


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = stack([12, 16, 8], nn.ReLU)

    def forward(self, pair: Tensor) -> Tensor:
        return (self.enc(pair[:, 0]) - self.enc(pair[:, 1])).pow(2).sum(1).sqrt()


def zero_distance() -> Sick:
    torch.manual_seed(0)
    pair = torch.randn(32, 2, 12)
    pair[:8, 1] = pair[:8, 0]
    return Sick(Distance(), pair, (torch.arange(32) >= 8).float(), F.mse_loss)


class Rounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = stack([12, 16, 4], nn.ReLU), stack([4, 16, 12], nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(torch.round(3 * self.enc(x)))


def rounding() -> Sick:
    torch.manual_seed(0)
    x = torch.randn(48, 12)
    return Sick(Rounding(), x, x, F.mse_loss)


def half_precision() -> Sick:
    torch.manual_seed(0)
    x, y = classes(48, 12, 3)
    return Sick(stack([12, 24, 24, 3], nn.ReLU).half(), x.half(), y, lambda o, t: 1e-4 * F.cross_entropy(o, t))


def healthy() -> Sick:
    torch.manual_seed(0)
    model = stack([12, 32, 32, 3], nn.ReLU)
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return Sick(model, *classes(48, 12, 3), F.cross_entropy)


# The code of each built-in remedy, and a network that it is for.
FOR: dict[str, Any] = {
    "HR101": tanh_small_weights, "HR102": sigmoid, "HR103": tanh_small_weights, "HR104": tanh_small_weights,
    "HR105": tanh_small_weights, "HR201": sigmoid, "HR202": sigmoid, "HR203": sigmoid, "HR204": sigmoid, "HR205": dead,
    "HR301": sigmoid, "HR302": sigmoid, "HR303": sigmoid, "HR401": squashing_blocks, "HR402": squashing_blocks,
    "HR403": residual, "HR404": residual, "HR501": one_hot_attention, "HR601": constant, "HR602": dead,
    "HR701": raw_inputs, "HR801": one_unit_softmax, "HR802": one_unit_softmax, "HR803": logarithm_of_scores,
    "HR804": logarithm_of_scores, "HR901": forgetful_lstm, "HR902": chaotic_rnn, "HR903": chaotic_rnn,
    "HRA01": residual, "HRA02": half_precision, "HRA03": sigmoid, "HRB01": zero_distance, "HRB02": rounding,
}  # fmt: skip
