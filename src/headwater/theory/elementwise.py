"""Any elementwise activation (callable, module, class or name) as a float64 function with its derivative."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.errors import InputError

__all__ = ["ACTIVATIONS", "Activation", "Elementwise", "derivative", "elementwise"]

Activation: TypeAlias = "str | type[nn.Module] | nn.Module | Callable[[Tensor], Tensor] | Elementwise"


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": _identity,
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "prelu": nn.PReLU(),
    "rrelu": nn.RReLU(),
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "hardswish": F.hardswish,
    "sin": torch.sin,
    "erf": torch.erf,
}
"""Activation functions by name, each with torch's default arguments."""
_SYNONYMS = {"identity": "linear", "swish": "silu", "log_sigmoid": "logsigmoid", "gelu_new": "gelu_tanh"}

# Points that separate an elementwise function from one that mixes elements; both signs, no symmetry, chosen by us.
_PROBE = (-7.3, -3.1, -1.7, -0.9, -0.43, -0.11, 0.07, 0.29, 0.61, 1.3, 2.2, 4.7, 8.9)


class Elementwise:
    """An elementwise function φ in float64, checked, and its derivative φ'.

    Attributes:
        name: what to call it in a message.
    """

    __slots__ = ("_call", "name")

    def __init__(self, call: Callable[[Tensor], Tensor], name: str) -> None:
        self._call = call
        self.name = name

    def __call__(self, x: Tensor) -> Tensor:
        """φ(x).

        Args:
            x: float64, any shape; never modified.

        Returns:
            φ(x), float64, detached, the same shape.

        Raises:
            InputError: φ returned something else than one value per element, or a value that is not finite.
        """
        with torch.inference_mode(False), torch.no_grad():
            y = self._shaped(self._call(x.clone()), x).to(torch.float64)
        return self._finite(y, x, "value")

    def slope(self, x: Tensor) -> Tensor:
        """φ'(x) by automatic differentiation; a jump of φ counts nothing, as in autograd.

        Args:
            x: float64, any shape; never modified.

        Returns:
            φ'(x), float64, detached, the same shape.

        Raises:
            InputError: φ is not elementwise, or the derivative is not finite.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            y = self._shaped(self._call(leaf.clone()), x)  # an in-place φ may write on a clone, not on a leaf
            if not (y.requires_grad and y.is_floating_point()):
                return torch.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True)
        return torch.zeros_like(x) if slope is None else self._finite(slope.detach(), x, "derivative")

    def _shaped(self, y: object, x: Tensor) -> Tensor:
        if not isinstance(y, Tensor):
            raise InputError(f"{self.name} should return a tensor, it returned {type(y).__name__}")
        if y.shape != x.shape:
            raise InputError(
                f"{self.name} is not elementwise: an input of shape {tuple(x.shape)} gave {tuple(y.shape)}; "
                "gains and moments are defined for functions of one number"
            )
        if y.is_complex():
            raise InputError(f"{self.name} returns complex numbers; gains and moments are defined for real ones")
        return y

    def _finite(self, y: Tensor, x: Tensor, what: str) -> Tensor:
        if not bool(torch.isfinite(y).all()):
            where = x.flatten()[~torch.isfinite(y).flatten()][0].item()
            raise InputError(
                f"the {what} of {self.name} is not finite at x = {where:.6g}; "
                "moments need a function that is finite on the whole real line"
            )
        return y


def elementwise(fn: Activation) -> Elementwise:
    """Prepare an activation for float64 work, and check that it is one.

    Args:
        fn: a name (``"gelu"``), a module class (``nn.GELU``), a module (copied to float64 on the CPU and set to
            evaluation mode; yours is never touched), or a function of a tensor.

    Returns:
        The function and its derivative.

    Raises:
        InputError: not callable, unknown name, not elementwise, random, or not finite.
    """
    if isinstance(fn, Elementwise):
        return fn
    made = Elementwise(*_resolve(fn))
    x = torch.tensor(_PROBE, dtype=torch.float64)
    try:
        y, part, turned = made(x), made(x[3:8]), made(x.flip(0)).flip(0)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{made.name} failed on a float64 vector: {type(error).__name__}: {error}; "
            "an activation takes a tensor of any shape and returns one of the same shape"
        ) from error
    if not torch.equal(made(x), y):
        raise InputError(f"{made.name} gives two answers for one input (it is random); its gain is not defined")
    if not (torch.allclose(part, y[3:8], rtol=1e-12, atol=1e-14) and torch.allclose(turned, y, rtol=1e-12, atol=1e-14)):
        raise InputError(
            f"{made.name} is not elementwise: the value at one element depends on the others (as in a softmax or a "
            "normalisation); its gain is not defined"
        )
    return made


def derivative(fn: Activation) -> Callable[[Tensor], Tensor]:
    """The derivative of an elementwise activation.

    Args:
        fn: a name, module class, module or function, as in :func:`elementwise`.

    Returns:
        φ' as a function of float64 tensors of any shape.

    Raises:
        InputError: ``fn`` is no elementwise activation.

    Example:
        >>> derivative("sigmoid")(torch.zeros(1, dtype=torch.float64)).item()
        0.25
    """
    return elementwise(fn).slope


def _resolve(fn: Any) -> tuple[Callable[[Tensor], Tensor], str]:
    if isinstance(fn, str):
        key = _SYNONYMS.get(fn.lower(), fn.lower())
        if key not in ACTIVATIONS:
            raise InputError(f"no activation named {fn!r}; there are {', '.join(ACTIVATIONS)}")
        return _resolve(ACTIVATIONS[key])[0], key
    if inspect.isclass(fn) and issubclass(fn, nn.Module):
        try:
            return _resolve(fn())
        except TypeError as error:
            raise InputError(f"{fn.__name__}() cannot be made without arguments ({error}); pass an instance") from error
    if isinstance(fn, nn.Module):
        name = type(fn).__name__
        if any(t.is_meta for t in (*fn.parameters(), *fn.buffers())):
            raise InputError(f"{name} lives on the meta device and holds no values; pass a materialised copy")
        return copy.deepcopy(fn).to(device="cpu", dtype=torch.float64).eval(), name
    if not callable(fn) or inspect.isclass(fn):
        raise InputError(
            f"expected an activation (a function of a tensor, an nn.Module or a name), got {type(fn).__name__}"
        )
    return fn, getattr(fn, "__name__", type(fn).__name__)
