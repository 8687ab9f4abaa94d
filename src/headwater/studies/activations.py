"""Activations by name, or any elementwise function of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headwater.errors import StudyError

__all__ = ["ACTIVATIONS", "Activation", "FunctionLayer", "activation_layer", "activation_name"]

Activation = str | Callable[[Tensor], Tensor]
"""A name out of :data:`ACTIVATIONS`, or a function of a tensor that works element by element."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "relu6": nn.ReLU6,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
}


class FunctionLayer(nn.Module):
    """A user's elementwise function as a layer, so that its output can be observed.

    Args:
        function: a tensor in, a tensor of the same shape out.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function; same shape out as in."""
        return self.function(input)


def activation_name(activation: Activation) -> str:
    """What to call an activation.

    Args:
        activation: a name or a function.

    Returns:
        The name, or the function's own ``__name__``.
    """
    if isinstance(activation, str):
        return activation
    return str(getattr(activation, "__name__", type(activation).__name__))


def activation_layer(activation: Activation) -> nn.Module:
    """A fresh layer for an activation.

    Args:
        activation: a name, an elementwise function, or a parameter-free module.

    Returns:
        A module.

    Raises:
        StudyError: the name is unknown (near names are suggested), or the function changes its input's shape.
    """
    if isinstance(activation, str):
        make = ACTIVATIONS.get(activation)
        if make is None:
            near = difflib.get_close_matches(activation, ACTIVATIONS, n=3, cutoff=0.4)
            raise StudyError(
                f"unknown activation {activation!r}; "
                + (f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(ACTIVATIONS)}")
            )
        return make()
    if not callable(activation):
        raise StudyError(f"an activation is a name or a function of a tensor, got {type(activation).__name__}")
    probe = torch.zeros(2, 3)
    out = activation(probe)
    if not isinstance(out, Tensor) or out.shape != probe.shape:
        raise StudyError(
            f"the activation {activation_name(activation)} must return a tensor of its input's shape (2, 3), "
            f"got {tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}"
        )
    return activation if isinstance(activation, nn.Module) else FunctionLayer(activation)
