"""What the tests of the needs share: small networks, batches, an ordinary loop, and the gradients read by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import headwater as hw

Watched = dict[str, Any]
ALWAYS: Watched = {"every": 1, "max_overhead": None}
"""Every step, whatever it costs: what a test needs that asks for a certain step."""


def mlp(*widths: int, seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    widths = widths or (8, 16, 16, 3)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def batch(i: int, rows: int = 8, features: int = 8, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + i)
    x = torch.randn(rows, features, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator)


def loss_of(model: nn.Module, i: int) -> Tensor:
    x, y = batch(i)
    return F.cross_entropy(model(x), y)


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int | Iterable[int], factor: float = 1.0) -> None:
    """The loop that everybody writes."""
    for i in range(steps) if isinstance(steps, int) else steps:
        optimizer.zero_grad()
        (loss_of(model, i) * factor).backward()
        optimizer.step()


def norm(x: Tensor) -> float:
    return math.sqrt(math.fsum(v * v for v in x.detach().double().flatten().tolist()))


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The slow, obvious twin: read by hand, right now."""
    return {n: norm(p.grad) for n, p in model.named_parameters() if p.grad is not None}


def norms_at(run: Any, step: int, phase: str | None = None) -> dict[str, float]:
    """The l2 norms of the gradients that the run file has for a step."""
    rows = {}
    for tensor in run.tensors:
        if tensor.kind == "parameter":
            values = dict(run.series(tensor.name, "gradient.l2_norm", phase=phase))
            if step in values:
                rows[tensor.name] = values[step]
    return rows


def bits(model: nn.Module) -> list[bytes]:
    return [t.detach().contiguous().cpu().numpy().tobytes() for t in model.state_dict().values()]


def watched(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, body: Callable[[], object], **options: Any
) -> Any:
    """Train under watch, and read the file."""
    with hw.watch(model, optimizer, run=path, **{**ALWAYS, **options}):
        body()
    return hw.open_run(path)


class Poison(torch.autograd.Function):
    """Passes values on and turns one element of the gradient into NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        bad = grad_outputs[0].clone()
        bad.view(-1)[0] = math.nan
        return bad
