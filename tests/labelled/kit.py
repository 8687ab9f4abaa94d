"""How a labelled case is written down, and the data and layers the cases share.

A case is a function that returns ``(model, x, y, loss_fn)``; ``loss_fn(model(x), y)`` is the scalar loss. A decorator
adds the label an expert would give, the place of the fault (``fnmatch`` patterns over module or parameter names), the
source, and the evidence: checks written with plain autograd (`evidence.py`) that must hold for the label to stand.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Parts = tuple[nn.Module, Any, Any, Callable[..., torch.Tensor]]


class Case(NamedTuple):
    """One network with its batch, its loss and its label."""

    model: nn.Module
    x: Any
    y: Any
    loss_fn: Callable[..., torch.Tensor]
    label: str
    location: str
    source: str


Evidence = Callable[[Case], str]  # raises AssertionError, or returns the figure it saw


@dataclass(frozen=True)
class Entry:
    """A case before it is built. ``known_gap`` says why headwater is expected to answer otherwise."""

    name: str
    parts: Callable[..., Parts]
    label: str
    place: str
    source: str
    evidence: tuple[Evidence, ...]
    twin: tuple[Evidence, ...]
    also: frozenset[str]
    known_gap: str
    seed: int

    @property
    def fixable(self) -> bool:
        return "fixed" in inspect.signature(self.parts).parameters

    def build(self, fixed: bool = False) -> Case:
        torch.manual_seed(self.seed)
        parts = self.parts(fixed=fixed) if self.fixable else self.parts()
        label, place = ("healthy", "") if fixed else (self.label, self.place)
        return Case(*parts, label, place, self.source)


ENTRIES: dict[str, Entry] = {}


def _as_tuple(one: Evidence | Sequence[Evidence]) -> tuple[Evidence, ...]:
    return (one,) if callable(one) else tuple(one)


def case(
    label: str,
    place: str,
    source: str,
    evidence: Evidence | Sequence[Evidence],
    *,
    twin: Evidence | Sequence[Evidence] = (),
    also: Iterable[str] = (),
    known_gap: str = "",
    seed: int = 0,
) -> Callable[[Callable[..., Parts]], Callable[..., Parts]]:
    """Register a case; one with a parameter ``fixed`` has a repaired twin that ``twin`` proves healthy."""

    def register(parts: Callable[..., Parts]) -> Callable[..., Parts]:
        name = parts.__name__
        if name in ENTRIES:
            raise ValueError(f"two labelled cases are called {name!r}")
        entry = Entry(
            name, parts, label, place, source, _as_tuple(evidence), _as_tuple(twin), frozenset(also), known_gap, seed
        )
        if entry.fixable and not entry.twin:
            raise ValueError(f"{name}: the repaired twin has no evidence that it is healthy")
        ENTRIES[name] = entry
        return parts

    return register


def control(source: str, evidence: Evidence | Sequence[Evidence], *, seed: int = 0, known_gap: str = ""):
    """Register a healthy network."""
    return case("healthy", "", source, evidence, seed=seed, known_gap=known_gap)


# ---------------------------------------------------------------- losses
ce = F.cross_entropy
mse = F.mse_loss
bce_logits = F.binary_cross_entropy_with_logits


def ce_tokens(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


# ---------------------------------------------------------------- data
def clusters(n: int = 96, d: int = 16, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """n points in d dimensions around k centres, standardised per feature."""
    y = torch.arange(n) % k
    x = 1.5 * torch.randn(k, d)[y] + torch.randn(n, d)
    return (x - x.mean(0)) / x.std(0), y


def curve(n: int = 96, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth regression target of unit scale, shape (n, 1)."""
    x = torch.randn(n, d)
    return x, torch.sin(x[:, :1]) + 0.5 * x[:, 1:2] * x[:, 2:3]


def pictures(n: int = 48, c: int = 1, side: int = 12, k: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1]: a blurred random template per class plus noise."""
    template = F.interpolate(torch.rand(k, c, 3, 3), size=(side, side), mode="bilinear")
    y = torch.arange(n) % k
    return (0.8 * template[y] + 0.2 * torch.rand(n, c, side, side)).clamp(0, 1), y


def standard(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / x.std()


def sentences(n: int = 24, length: int = 12, vocabulary: int = 40, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a class set by two of the tokens."""
    x = torch.randint(1, vocabulary, (n, length))
    return x, (x[:, 0] + x[:, 2]) % k


def first_step_decides(n: int = 48, length: int = 80, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Series whose class is the sign of the first step's first feature."""
    x = torch.randn(n, length, d)
    return x, (x[:, 0, 0] > 0).long()


# ---------------------------------------------------------------- layers
def normal(std: float) -> Callable[[torch.Tensor], Any]:
    return lambda w: nn.init.normal_(w, std=std)


def variance(sigma_w2: float) -> Callable[[torch.Tensor], Any]:
    """Gaussian weights with fan_in·Var(W) = sigma_w2."""
    return lambda w: nn.init.normal_(w, std=math.sqrt(sigma_w2 / w[0].numel()))


he = variance(2.0)


def xavier(w: torch.Tensor) -> None:
    nn.init.xavier_uniform_(w)


def initialise(model: nn.Module, init: Callable[[torch.Tensor], Any], bias: float | None = 0.0) -> nn.Module:
    """Apply ``init`` to the weight of every Linear and convolution, and set its bias."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            with torch.no_grad():
                init(m.weight)
                if m.bias is not None and bias is not None:
                    m.bias.fill_(bias)
    return model


def mlp(sizes: Sequence[int], act: Callable[[], nn.Module], init=None, *, out=None, bias: bool = True) -> nn.Sequential:
    """Linear, act, Linear, … with no act after the last Linear (``out`` if given). ``init`` zeroes the biases."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if i < len(sizes) - 2:
            layers.append(act())
    if out is not None:
        layers.append(out)
    net = nn.Sequential(*layers)
    return initialise(net, init) if init is not None else net


def every(first: int, stop: int, step: int = 2) -> str:
    """Comma-separated positions in a Sequential, e.g. the Linears of `mlp`."""
    return ",".join(str(i) for i in range(first, stop, step))


def fit(model: nn.Module, x: Any, y: Any, loss_fn, *, steps: int, optimizer: torch.optim.Optimizer) -> nn.Module:
    """Full-batch training; gradients are cleared afterwards."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model
