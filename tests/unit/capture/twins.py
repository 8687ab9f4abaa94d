"""Slow, obvious twins: statistics in float64 from the whole tensor, gradients from retain_grad."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headwater.records import Profile, Statistics

# Sums over up to 1e5 float32 elements: each rounds at 6e-8, and the errors of a pairwise sum hardly grow.
RTOL = 1e-5


def plain(tensor: Tensor) -> Tensor:
    """The elements as float64, real and imaginary parts separately."""
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().flatten()


def assert_statistics_of(found: Statistics | None, tensor: Tensor, rtol: float = RTOL) -> None:
    """Every statistic equals that of the tensor, computed the obvious way in float64.

    The mean is a sum of cancelling terms: its error is relative to the mean of the magnitudes.
    """
    assert found is not None
    x = plain(tensor)
    size = float(x.abs().mean())
    assert found.count == x.numel()
    assert found.zero_fraction == float((x == 0).double().mean())
    assert math.isclose(found.max_abs, float(x.abs().max()), rel_tol=rtol)
    assert math.isclose(found.rms, float(x.square().mean().sqrt()), rel_tol=rtol)
    assert math.isclose(found.l2_norm, float(x.square().sum().sqrt()), rel_tol=rtol)
    assert math.isclose(found.mean_abs, size, rel_tol=rtol)
    assert math.isclose(found.mean, float(x.mean()), abs_tol=rtol * size)
    assert math.isclose(found.std, float(x.std(correction=0)), rel_tol=rtol, abs_tol=rtol * size)
    if (x != 0).any():
        assert math.isclose(found.min_abs_nonzero, float(x[x != 0].abs().min()), rel_tol=rtol)


def assert_same_statistics(found: Statistics | None, wanted: Statistics | None, rtol: float = RTOL) -> None:
    """Two records of what should be the same tensor, computed along different ways."""
    assert (found is None) == (wanted is None)
    if found is None or wanted is None:
        return
    assert found.count == wanted.count
    for name in ("rms", "mean_abs", "max_abs"):
        assert math.isclose(getattr(found, name), getattr(wanted, name), rel_tol=rtol, abs_tol=1e-30), name


def assert_parameter_gradients_equal_backward(profile: Profile, model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Each parameter's gradient statistics are those of ``loss().backward()``; the same parameters have one."""
    for parameter in model.parameters():
        parameter.grad = None
    loss().backward()
    for name, parameter in model.named_parameters():
        row = profile.parameter(name)
        if parameter.grad is None:
            assert row.gradient is None, name
            assert row.state in ("none", "frozen")
        else:
            assert_statistics_of(row.gradient, parameter.grad)
        assert_statistics_of(row.value, parameter)
        parameter.grad = None


def retained(model: nn.Sequential, x: Tensor, loss: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Output and ∂L/∂output of each layer of a Sequential without in-place operations, by a loop and retain_grad."""
    outputs = []
    for layer in model:
        x = layer(x)
        x.retain_grad()
        outputs.append(x)
    loss(x).backward()
    found = []
    for output in outputs:
        assert output.grad is not None
        found.append((output.detach(), output.grad))
    model.zero_grad()
    return found


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model as measure() does."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
