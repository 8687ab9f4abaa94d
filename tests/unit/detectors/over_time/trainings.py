"""Labelled trainings on digits: healthy ones, and ones with a fault planted at a known step, per alert."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tests.unit.detectors.over_time.digits import Recurrent, Transformer, batches, cnn, mlp
from tests.unit.detectors.over_time.recorded import Training
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR


@dataclass(frozen=True)
class Case:
    """A labelled training.

    Attributes:
        name: of the case.
        make: seed and number of steps to the training.
        code: of the alert that must find it; empty for a healthy one.
        found_as: code of the finding, where it is another one's (HW608 speaks for the detectors).
        where: the name that must come first; empty for any.
        from_step: at which the fault is there.
        by_step: by which it must have been found, recording every step.
    """

    name: str
    make: Callable[[int, int], Training]
    code: str = ""
    found_as: str = ""
    where: str = ""
    from_step: int = 0
    by_step: int = 200

    def __str__(self) -> str:
        return self.name


def training(
    model: Callable[[], nn.Module],
    optimizer: Callable[..., Optimizer] = Adam,
    shape: tuple[int, ...] = (64,),
    schedule: Callable[[Optimizer, int], object] | None = None,
    plant: Callable[[Training], None] | None = None,
    **options: object,
) -> Callable[[int, int], Training]:
    def make(seed: int, steps: int) -> Training:
        torch.manual_seed(seed)
        net = model()
        its = optimizer(net.parameters(), **options)
        run = Training(net, its, batches(seed, 64, shape))
        if schedule is not None:
            run.scheduler = schedule(its, steps)
        if plant is not None:
            plant(run)
        return run

    return make


def cosine(optimizer: Optimizer, steps: int) -> object:
    return CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: Optimizer, steps: int) -> object:
    return OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps + 1)


ROWS, PICTURE = (8, 8), (1, 8, 8)
HEALTHY = (
    Case("mlp, sgd", training(mlp, SGD, lr=0.1)),
    Case("mlp, momentum, cosine", training(mlp, SGD, schedule=cosine, lr=0.05, momentum=0.9)),
    Case("mlp, adam", training(mlp, lr=1e-3)),
    Case("mlp of 8 layers, adam", training(lambda: mlp(depth=8, width=128), lr=1e-3)),
    Case("tanh mlp, adamw, one cycle", training(lambda: mlp(nn.Tanh), AdamW, schedule=one_cycle, lr=1e-3)),
    Case("sigmoid mlp of 2 layers, adam", training(lambda: mlp(nn.Sigmoid, depth=2), lr=3e-3)),
    Case("cnn, momentum, weight decay", training(cnn, SGD, PICTURE, cosine, lr=0.05, momentum=0.9, weight_decay=5e-4)),
    Case("cnn, adamw", training(cnn, AdamW, PICTURE, lr=1e-3)),
    Case("transformer, adamw, one cycle", training(Transformer, AdamW, ROWS, one_cycle, lr=1e-3)),
    Case("transformer, adam", training(Transformer, Adam, ROWS, lr=3e-3)),
    Case("lstm, adam", training(Recurrent, Adam, ROWS, lr=1e-2)),
    Case("lstm, momentum", training(Recurrent, SGD, ROWS, lr=0.5, momentum=0.9)),
)


# ------------------------------------------------------------ faults

START = 100  # the step from which on the fault is there, where it does not begin at once


class FromStep:
    """A tensor hook that multiplies gradients from a step on; the training tells it the step."""

    def __init__(self, factor: float, start: int = START, stop: float = math.inf) -> None:
        self.factor, self.start, self.stop, self.step = factor, start, stop, -1

    def tell(self, step: int) -> None:
        self.step = step

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.factor if self.start <= self.step < self.stop else gradient


def on_parameter(name: str, factor: float, **when: float) -> Callable[[Training], None]:
    def plant(run: Training) -> None:
        hook = FromStep(factor, **when)
        run.model.get_parameter(name).register_hook(hook)
        run.before_forward = hook.tell

    return plant


def nan_in_the_backward_of(name: str) -> Callable[[Training], None]:
    """A NaN in one element of ∂L/∂(output of a layer), which makes the gradients of it and of all before it NaN."""

    def plant(run: Training) -> None:
        hook = FromStep(math.nan)
        run.before_forward = hook.tell

        def forward(module: nn.Module, inputs: object, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(hook)

        run.model.get_submodule(name).register_forward_hook(forward)

    return plant


def bad_batch(factor: float, start: int = START) -> Callable[[Training], None]:
    def plant(run: Training) -> None:
        plain = run.batches
        run.batches = lambda step: (plain(step)[0] * (factor if step == start else 1.0), plain(step)[1])

    return plant


def at_step(change: Callable[[nn.Module, int], None]) -> Callable[[Training], None]:
    def plant(run: Training) -> None:
        @torch.no_grad()
        def before(step: int) -> None:
            change(run.model, step)

        run.before_forward = before

    return plant


def kill_units(model: nn.Module, step: int) -> None:
    """From step 100 on, three quarters of the second layer's units get a bias far below what enters."""
    if step >= START:
        model.get_parameter("2.bias")[:48] = -50.0


def grow(model: nn.Module, step: int) -> None:
    """A weight before a batch normalisation grows by 2 % per step: the loss feels nothing."""
    model.get_parameter("0.weight").mul_(1.02)


class Factors(nn.Module):
    """A frozen-free LoRA layer whose two factors both start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64)
        self.A = nn.Parameter(torch.zeros(4, 64))
        self.B = nn.Parameter(torch.zeros(64, 4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + x @ self.A.T @ self.B.T))


def noise_only(run: Training) -> None:
    """Labels without any relation to the pictures, so that the loss stays where it is."""
    plain = run.batches

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        return x, torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(step))

    run.batches = batch


def grow_on_noise(run: Training) -> None:
    at_step(grow)(run)
    noise_only(run)


def clipped_by_one_giant(run: Training) -> None:
    on_parameter("4.weight", 1e10, start=START)(run)
    run.clip = 1.0


FAULTS = (
    Case("nan in a backward", training(mlp, plant=nan_in_the_backward_of("2"), lr=1e-3), "HW601", where="2.weight",
         from_step=START, by_step=START),
    Case("one bad batch", training(mlp, plant=bad_batch(100.0), lr=1e-3), "HW602", from_step=START, by_step=START),
    Case("one tensor's gradient times 1000", training(cnn, SGD, PICTURE,
         plant=on_parameter("3.weight", 1000.0, start=START, stop=START + 1), lr=0.01),
         "HW602", where="3.weight", from_step=START, by_step=START),
    Case("a weight that grows", training(cnn, SGD, PICTURE, plant=grow_on_noise, lr=1e-3), "HW603", where="0.weight", by_step=180),
    Case("a gradient cut off", training(mlp, plant=on_parameter("2.weight", 0.0), lr=1e-3), "HW604", where="2.weight",
         from_step=START, by_step=START + 8),
    Case("a gradient 1e-6 of itself", training(mlp, SGD, plant=on_parameter("2.weight", 1e-6), lr=0.1), "HW604",
         where="2.weight", from_step=START, by_step=START + 8),
    Case("two zero factors", training(Factors, lr=1e-3), "HW604", where="A", by_step=2),
    Case("units that die", training(mlp, plant=at_step(kill_units), lr=1e-3), "HW605", where="3", from_step=START,
         by_step=START + 15),
    Case("clipped by one giant", training(mlp, plant=clipped_by_one_giant, lr=1e-3), "HW606", from_step=START,
         by_step=199),
    Case("steps as large as the weights", training(cnn, SGD, PICTURE, lr=0.01, weight_decay=70.0), "HW607", by_step=4),
    Case("steps below rounding", training(mlp, SGD, lr=1e-9), "HW607", by_step=4),
    Case("a deep sigmoid network", training(lambda: mlp(nn.Sigmoid, depth=12), SGD, lr=0.1), "HW608", "HW101", by_step=4),
    Case("a deep sigmoid network, adam", training(lambda: mlp(nn.Sigmoid, depth=12), lr=1e-3), "HW608", "HW101", by_step=4),
)  # fmt: skip
