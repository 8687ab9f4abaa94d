"""A few optimizer steps on a copy: does the loss fall?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.tensors import tensors_in

__all__ = ["SGD_LEARNING_RATE", "Course", "OptimizerRecipe", "fit_random_targets", "run_steps"]

ADAM_LEARNING_RATE = 1e-3
"""Adam's default (Kingma and Ba, ICLR 2015)."""
SGD_LEARNING_RATE = 1e-2
"""Where Adam refuses (sparse gradients); chosen by us."""
LEAST_STEPS = 3
"""Taken even where the time is spent: fewer say nothing. Chosen by us."""


@dataclass(frozen=True, slots=True)
class OptimizerRecipe:
    """How to make the trial's optimizer over any model.

    Attributes:
        cls: its class.
        options: of its groups.
    """

    cls: type[torch.optim.Optimizer]
    options: dict[str, Any]

    @classmethod
    def like(cls, optimizer: torch.optim.Optimizer | None, model: nn.Module) -> OptimizerRecipe:
        """The user's class with the options of its first group; Adam, or SGD for sparse gradients, without one.

        Args:
            optimizer: the user's, or None.
            model: whose parameters it is for.

        Returns:
            The recipe.
        """
        if optimizer is not None:
            group = optimizer.param_groups[0]
            return cls(type(optimizer), {k: group[k] for k in optimizer.defaults if k in group})
        if any(getattr(module, "sparse", False) for module in model.modules()):
            return cls(torch.optim.SGD, {"lr": SGD_LEARNING_RATE})
        return cls(torch.optim.Adam, {"lr": ADAM_LEARNING_RATE})

    @property
    def learning_rate(self) -> float:
        """Of the first group."""
        return float(self.options.get("lr", math.nan))

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over a model's trainable parameters."""
        return self.cls([p for p in model.parameters() if p.requires_grad], **self.options)


@dataclass(frozen=True, slots=True)
class Course:
    """The losses of a trial.

    Attributes:
        losses: before each step and after the last one; it ends early with the first that is not finite.
        seconds_per_step: median over the steps; NaN without one.
        note: why it ended early, or an empty string.
        cut: whether it ended early for want of time.
    """

    losses: tuple[float, ...]
    seconds_per_step: float
    note: str = ""
    cut: bool = False


def fit_random_targets(output: Any) -> Tensor:
    """Mean squared distance of an output to fixed standard normal targets: a task for a model that came without one.

    Args:
        output: of the model, any structure.

    Returns:
        A scalar, 0 at best.
    """
    generator = torch.Generator().manual_seed(0)
    found = [t for _, t in tensors_in(output) if t.is_floating_point()]
    parts = [
        (t - torch.randn(t.shape, generator=generator).to(device=t.device, dtype=t.dtype)).float().square().mean()
        for t in found
    ]
    return torch.stack(parts).sum()


def run_steps(
    model: nn.Module,
    run: Callable[[nn.Module], Tensor],
    recipe: OptimizerRecipe,
    *,
    steps: int,
    seed: int = 0,
    functions: dict[str, Any] | None = None,
    deadline: float = math.inf,
) -> Course:
    """Train a model in place for a few steps on one batch.

    Args:
        model: a copy.
        run: its loss.
        recipe: of the optimizer.
        steps: how many.
        seed: of what the steps draw; the global random state is restored.
        functions: of a training remedy: ``scale_loss``, ``before_step``, ``make_optimizer``.
        deadline: ``time.perf_counter()`` after which no step begins, but for the first ``LEAST_STEPS``.

    Returns:
        The course.
    """
    functions = functions or {}
    losses: list[float] = []
    seconds: list[float] = []
    note, cut = "", False
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        make = functions.get("make_optimizer")
        optimizer = make(model) if make is not None else recipe.make(model)
        for _ in range(steps):
            if len(seconds) >= LEAST_STEPS and time.perf_counter() > deadline:
                note, cut = f"the time was spent after {len(seconds)} steps", True
                break
            started = time.perf_counter()
            optimizer.zero_grad()
            loss = run(model)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                note = f"the loss was {losses[-1]} at step {len(losses) - 1}"
                break
            scale = functions.get("scale_loss")
            (loss if scale is None else scale(loss)).backward()
            before = functions.get("before_step")
            if before is not None:
                before(model, optimizer)
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        else:
            with torch.no_grad():
                losses.append(float(run(model).detach()))
        optimizer.zero_grad()
    return Course(tuple(losses), statistics.median(seconds) if seconds else math.nan, note, cut)
