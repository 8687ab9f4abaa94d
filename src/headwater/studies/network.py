"""A stack of layers as data, and how to build it as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from headwater.errors import StudyError
from headwater.studies.activations import Activation, activation_layer, activation_name
from headwater.studies.initializations import Initialization, initialization

__all__ = ["Network", "RawMatrices", "Stack", "build"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Layers of ``activation(weights · input + bias)``, one after the other.

    Attributes:
        inputs: features of a sample.
        width: units of every hidden layer.
        hidden: how many hidden layers.
        outputs: units of the output layer, or None when the last hidden layer is the output.
        activation: its name, or a function.
        activation_on_input: whether the activation is applied to the sample itself first.
        activation_on_output: whether the output layer has the activation too.
        initialization: name of the rule.
        bias: whether the layers have biases.
        shortcut: ``none``; ``all``: x + layer(x) around every layer, broadcasting where the widths differ;
            ``matching``: only where the widths are equal.
        branch_scale: ``one``, or ``inverse_sqrt_depth``: the branch of a shortcut is multiplied by 1/√L.
        raw: plain matrices x @ W of shape (in, out), with no layer modules around them.
    """

    inputs: int
    width: int
    hidden: int
    outputs: int | None = None
    activation: Activation = "sigmoid"
    activation_on_input: bool = False
    activation_on_output: bool = False
    initialization: str = "default"
    bias: bool = True
    shortcut: Literal["none", "all", "matching"] = "none"
    branch_scale: Literal["one", "inverse_sqrt_depth"] = "one"
    raw: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units from the input to the output; layer l maps ``sizes[l - 1]`` to ``sizes[l]``."""
        return (self.inputs, *[self.width] * self.hidden, *([] if self.outputs is None else [self.outputs]))

    @property
    def layer_names(self) -> tuple[str, ...]:
        """One name per weight matrix: ``fc1 … fcL``, ``w1 … wL`` for raw matrices.

        The output layer is ``out`` where it has no activation.
        """
        count = len(self.sizes) - 1
        prefix = "w" if self.raw else "fc"
        names = [f"{prefix}{i + 1}" for i in range(count)]
        if not self.raw and not self.is_activated(count - 1):
            names[-1] = "out"
        return tuple(names)

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Parameter name of each weight matrix."""
        return self.layer_names if self.raw else tuple(f"{name}.weight" for name in self.layer_names)

    @property
    def depth(self) -> int:
        """How many times the activation is applied."""
        count = len(self.sizes) - 1
        return sum(self.is_activated(i) for i in range(count)) + self.activation_on_input

    @property
    def rule(self) -> Initialization:
        """The initialisation rule."""
        return initialization(self.initialization)

    @property
    def weight_variance(self) -> float:
        """σ_w² = fan_in · Var(W) of the hidden layers."""
        return self.rule.weight_variance(self.width, self.width)

    @property
    def scale(self) -> float:
        """What the branch of a shortcut is multiplied by."""
        return 1.0 if self.branch_scale == "one" else 1.0 / math.sqrt(len(self.sizes) - 1)

    def is_activated(self, index: int) -> bool:
        """Whether layer ``index`` (from 0) is followed by the activation."""
        is_output = self.outputs is not None and index == self.hidden
        return self.activation_on_output or not is_output

    def has_shortcut(self, index: int) -> bool:
        """Whether layer ``index`` (from 0) has a shortcut around it."""
        if self.shortcut == "matching":
            return self.sizes[index] == self.sizes[index + 1]
        return self.shortcut == "all"

    def with_depth(self, depth: int) -> Network:
        """The same network with the activation applied ``depth`` times.

        Args:
            depth: how many times.

        Returns:
            A network.

        Raises:
            StudyError: no hidden layer would be left.
        """
        extra = self.activation_on_input + (self.outputs is not None and self.activation_on_output)
        hidden = depth - extra
        if hidden < 1:
            raise StudyError(f"depth {depth} leaves no hidden layer; use {extra + 1} or more")
        return replace(self, hidden=hidden)

    def with_width(self, width: int) -> Network:
        """The same network with another width; the input grows with it where the two were equal.

        Args:
            width: units of a hidden layer.

        Returns:
            A network.

        Raises:
            StudyError: the width is not positive.
        """
        if width < 1:
            raise StudyError(f"a width is 1 or more, got {width}")
        return replace(self, width=width, inputs=width if self.inputs == self.width else self.inputs)

    def describe(self) -> str:
        """The network in words."""
        count = len(self.sizes) - 1
        name = activation_name(self.activation)
        kind = "matrices" if self.raw else "linear layers"
        parts = [f"{count} {kind}, sizes {_fold(self.sizes)}"]
        if name == "identity":
            parts.append("no activation")
        else:
            places = "after every one" if self.is_activated(count - 1) else "after every one but the last"
            parts.append(f"{name} {'on the input and ' if self.activation_on_input else ''}{places}")
        parts.append(self.rule.title + ("" if self.bias else ", no biases"))
        if self.shortcut != "none":
            scaled = " with the branch × 1/√L" if self.branch_scale != "one" else ""
            fits = "where the widths match" if self.shortcut == "matching" else "around every layer"
            parts.append(f"a shortcut {fits}{scaled}")
        return "; ".join(parts)


def _fold(sizes: Sequence[int]) -> str:
    """``100, 100, 100, 1`` as ``100 ×3, 1``."""
    groups: list[tuple[int, int]] = []
    for size in sizes:
        if groups and groups[-1][0] == size:
            groups[-1] = (size, groups[-1][1] + 1)
        else:
            groups.append((size, 1))
    return ", ".join(f"{size} ×{n}" if n > 1 else str(size) for size, n in groups)


class Stack(nn.Module):
    """The module of a :class:`Network` with linear layers: ``fc1, act1, fc2, act2, …``.

    Args:
        network: what to build. Parameters are drawn from torch's global random stream, layer by layer, weight
            before bias, as ``nn.Linear`` does.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        rule = network.rule
        for i, name in enumerate(network.layer_names):
            fan_in, fan_out = network.sizes[i], network.sizes[i + 1]
            linear = nn.Linear(fan_in, fan_out, bias=network.bias)  # torch's own default rule
            if rule.name != "default":
                rule.weight_(linear.weight, fan_in, fan_out)
                if linear.bias is not None:
                    rule.bias_(linear.bias, fan_in)
            self.add_module(name, linear)
            if network.is_activated(i):
                self.add_module(f"act{i + 1}", activation_layer(network.activation))
        if network.activation_on_input:
            self.add_module("act0", activation_layer(network.activation))

    def forward(self, input: Tensor) -> Tensor:
        """Map samples (B, ``sizes[0]``) to outputs (B, ``sizes[-1]``); a shortcut may broadcast."""
        x: Tensor = self.get_submodule("act0")(input) if self.network.activation_on_input else input
        for i, name in enumerate(self.network.layer_names):
            out = self.get_submodule(name)(x)
            if self.network.is_activated(i):
                out = self.get_submodule(f"act{i + 1}")(out)
            x = x + self.network.scale * out if self.network.has_shortcut(i) else out
        return x


class RawMatrices(nn.Module):
    """The module of a :class:`Network` without layer modules: parameters ``w1, w2, …`` of shape (in, out).

    Args:
        network: what to build; no biases and no shortcuts.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        if network.bias or network.shortcut != "none":
            raise StudyError("raw matrices have neither biases nor shortcuts")
        self.network = network
        self.activation = activation_layer(network.activation)
        for i, name in enumerate(network.layer_names):
            fan_in, fan_out = network.sizes[i], network.sizes[i + 1]
            weight = torch.empty(fan_in, fan_out)
            network.rule.weight_(weight, fan_in, fan_out)
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, input: Tensor) -> Tensor:
        """Map samples (B, ``sizes[0]``) to outputs (B, ``sizes[-1]``)."""
        x: Tensor = self.activation(input) if self.network.activation_on_input else input
        for i, name in enumerate(self.network.layer_names):
            x = x @ self.get_parameter(name)
            if self.network.is_activated(i):
                x = self.activation(x)
        return x


def build(network: Network) -> nn.Module:
    """A freshly initialised module, drawn from torch's global random stream.

    Args:
        network: what to build.

    Returns:
        A :class:`Stack`, or :class:`RawMatrices` where ``network.raw``.
    """
    return RawMatrices(network) if network.raw else Stack(network)
