"""A few steps on a copy: what one backward pass cannot tell, the next one can."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater.capture.guard import untouched
from headwater.capture.names import clean_names
from headwater.capture.parameters import NamedParameter, list_parameters
from headwater.capture.session import observe
from headwater.errors import HeadwaterError
from headwater.records import SecondLook, UpdateProfile

__all__ = ["CopyError", "look_again"]

_STEP = 0.01  # relative size of the neutral step: large enough to open a gate, too small to change the verdict
_MOST_PERTURBED = 64  # parameters tried one by one; each costs a forward


class CopyError(HeadwaterError):
    """The model cannot be copied, or its copy cannot be run; the text says why."""


@dataclass(frozen=True)
class _Twin:
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    parameters: list[NamedParameter]


def look_again(
    model: nn.Module,
    run: Callable[[nn.Module], Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    steps: int = 3,
    suspects: Sequence[str] = (),
    batch_size: int | None = None,
) -> SecondLook:
    """Take a few steps on a copy with the same batch and look at what is still so.

    Without an optimizer the step is neutral: each parameter moves against its gradient by 1 % of its own rms (of 0.01
    where it is zero), whatever the scale of the loss. Nothing outside the copy changes.

    Args:
        model: the model.
        run: computes the scalar loss of a given model.
        optimizer: the user's; its class, groups and state are copied with the model.
        steps: how many steps.
        suspects: names of parameters without a gradient, whose influence on the loss is to be tried.
        batch_size: first dimension of the inputs, or None.

    Returns:
        What was seen.

    Raises:
        CopyError: the model cannot be copied, or its copy cannot be run.
    """
    twin = _copied(model, optimizer)
    with untouched(twin.model):  # and with it the random states that the copy's forwards use
        influences = _influences(twin, run, suspects)
        updates: tuple[UpdateProfile, ...] = ()
        for step in range(steps):
            before = (
                [p.tensor.detach().clone() for p in twin.parameters] if step == 0 and twin.optimizer is not None else []
            )
            _step(twin, run)
            if before:
                updates = _updates(twin, before)
        observation = observe(twin.model, lambda: run(twin.model), batch_size=batch_size)
    managed = _managed(twin)
    return SecondLook(
        steps=steps,
        optimizer="a neutral step of 1 %" if twin.optimizer is None else type(twin.optimizer).__name__,
        layers=observation.layers,
        parameters=observation.parameters,
        loss=observation.loss,
        influences=influences,
        updates=updates,
        unassigned=tuple(
            p.name for p in twin.parameters if managed and p.tensor.requires_grad and id(p.tensor) not in managed
        ),
        frozen_in_optimizer=tuple(
            p.name for p in twin.parameters if not p.tensor.requires_grad and id(p.tensor) in managed
        ),
    )


def _copied(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> _Twin:
    try:
        # Together: the copied optimizer holds the copied parameters.
        twin, its_optimizer = copy.deepcopy((model, optimizer))
    except (RuntimeError, TypeError, NotImplementedError, AttributeError, RecursionError) as error:
        raise CopyError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})") from error
    for parameter in twin.parameters():
        parameter.grad = None
    return _Twin(twin, its_optimizer, list_parameters(clean_names(twin)))


def _managed(twin: _Twin) -> set[int]:
    return (
        set() if twin.optimizer is None else {id(p) for group in twin.optimizer.param_groups for p in group["params"]}
    )


def _loss(twin: _Twin, run: Callable[[nn.Module], Tensor]) -> Tensor:
    try:
        loss = run(twin.model)
    except RuntimeError as error:
        raise CopyError(f"the copy of {type(twin.model).__name__} does not run: {error}") from error
    if loss.grad_fn is None:
        raise CopyError(
            "the loss of the copy depends on none of its parameters: loss() should use the model it is given"
        )
    return loss.reshape(())


def _step(twin: _Twin, run: Callable[[nn.Module], Tensor]) -> None:
    trainable = [p.tensor for p in twin.parameters if p.tensor.requires_grad]
    for tensor in trainable:
        tensor.grad = None
    _loss(twin, run).backward()
    if not any(t.grad is not None for t in trainable):
        raise CopyError("no parameter of the copy received a gradient: loss() should use the model it is given")
    if twin.optimizer is not None:
        twin.optimizer.step()
        return
    with torch.no_grad():
        gradients = [(t, t.grad.to_dense() if t.grad.is_sparse else t.grad) for t in trainable if t.grad is not None]
        sizes = [float(gradient.abs().max()) for _, gradient in gradients]
        largest = max((s for s in sizes if math.isfinite(s)), default=0.0)
        for (tensor, gradient), size in zip(gradients, sizes, strict=True):
            # Below the rounding unit of the largest a gradient is rounding, and no direction to move in.
            if not math.isfinite(size) or size <= torch.finfo(gradient.dtype).eps * largest:
                continue
            direction = gradient / size  # first to a safe range: neither its square nor the step may underflow
            length = float(tensor.detach().abs().float().square().mean().sqrt()) or 1.0
            unit = direction / direction.abs().float().square().mean().sqrt()
            tensor.sub_((unit * (_STEP * length)).to(tensor.dtype))


def _updates(twin: _Twin, before: Sequence[Tensor]) -> tuple[UpdateProfile, ...]:
    assert twin.optimizer is not None
    groups = {id(p): group for group in twin.optimizer.param_groups for p in group["params"]}
    rows = []
    for parameter, old in zip(twin.parameters, before, strict=True):
        group, gradient = groups.get(id(parameter.tensor)), parameter.tensor.grad
        if group is None or gradient is None:
            continue
        dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach().double().abs()
        norm = float(old.double().abs().square().sum().sqrt())
        moved = float((parameter.tensor.detach() - old).double().abs().square().sum().sqrt())
        ratio = moved / norm if norm > 0 else None
        epsilon = group.get("eps")
        rows.append(
            UpdateProfile(
                name=parameter.name,
                optimizer=type(twin.optimizer).__name__,
                learning_rate=float(group["lr"]),
                epsilon=float(epsilon) if isinstance(epsilon, int | float) else None,
                update_ratio=ratio if ratio is None or math.isfinite(ratio) else None,
                gradient_rms=float(dense.square().mean().sqrt()),
            )
        )
    return tuple(rows)


def _influences(twin: _Twin, run: Callable[[nn.Module], Tensor], suspects: Sequence[str]) -> dict[str, bool]:
    """Whether the loss moves when a parameter is perturbed: bit for bit, with the same random state each time."""
    wanted = [p for p in twin.parameters if p.name in set(suspects)][:_MOST_PERTURBED]
    if not wanted:
        return {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        reference = _repeatable_loss(twin, run)
        found = {}
        for parameter in wanted:
            tensor = parameter.tensor
            kept = tensor.detach().clone()
            size = float(kept.abs().float().square().mean().sqrt()) or 1.0
            # Half a standard deviation: enough to cross a step of sign() or round() somewhere.
            noise = torch.randn(tensor.shape, generator=generator).to(device=tensor.device, dtype=tensor.dtype)
            tensor.add_(0.5 * size * noise)
            found[parameter.name] = _repeatable_loss(twin, run) != reference
            tensor.copy_(kept)
    return found


def _repeatable_loss(twin: _Twin, run: Callable[[nn.Module], Tensor]) -> float:
    # With grad: a loss may take gradients inside itself (a gradient penalty).
    with untouched(twin.model), torch.enable_grad():
        return float(run(twin.model).detach())
