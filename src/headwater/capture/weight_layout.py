"""How each kind of layer lays its weights out: blocks, fans, the initialiser its class uses by default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headwater.capture.parameters import NamedParameter
from headwater.theory.initializers import Candidate

__all__ = ["Layout", "added_bias", "bias_default", "weight_layout"]

_GATES: dict[str, tuple[str | None, ...]] = {
    "LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new"),
}  # fmt: skip


@dataclass
class Layout:
    """How to read one parameter.

    Attributes:
        blocks: names of the matrices stacked along dimension 0; (None,) for a single one.
        fans: (inputs per output, outputs per input) of a block, as the layer computes.
        default: what the owner's class initialises it with.
        torch_fans: what ``torch.nn.init`` takes the fans of a block to be; None for the plain (out, in, ...) rule.
        kind: see :class:`headwater.capture.initialization.Matrix`.
        notes: for the reader.
    """

    blocks: tuple[str | None, ...] = (None,)
    fans: tuple[int, int] = (1, 1)
    default: Candidate | None = None
    torch_fans: tuple[int, int] | None = None
    kind: str = "layer"
    notes: list[str] = field(default_factory=list)


def _uniform(label: str, fan: float) -> Candidate:
    # U(±1/√n) has variance 1/(3n).
    return Candidate(f"torch default: U(±1/√{label})", "uniform", 1.0 / (3.0 * fan))


def weight_layout(parameter: NamedParameter) -> Layout:
    """How to read one weight.

    Args:
        parameter: of two or more dimensions.

    Returns:
        The layout.
    """
    owner, tensor, name = parameter.owner, parameter.tensor, parameter.attribute
    rows, columns = int(tensor.shape[0]), int(tensor.shape[1])
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return _recurrent_layout(parameter)
    if isinstance(owner, nn.MultiheadAttention):
        return _attention_layout(parameter)
    if isinstance(owner, nn.modules.conv._ConvNd):
        return _convolution_layout(owner, tensor)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        plan = Layout(kind="lookup", fans=(1, columns), default=Candidate("torch default: N(0, 1)", "normal", 1.0))
        if parameter.aliases:
            plan.notes.append(f"tied with {', '.join(parameter.aliases)}: as a linear layer its fan_in is {columns}")
        return plan
    if isinstance(owner, nn.Bilinear):
        return Layout(fans=(columns * int(tensor.shape[2]), rows), default=_uniform("in1_features", columns))
    if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf"):
        default = Candidate("transformers default: N(0, 0.02)", "normal", 0.02**2)
        return Layout(fans=(rows, columns), torch_fans=(rows, columns), default=default)
    if isinstance(owner, nn.Linear) or (name == "weight" and hasattr(owner, "in_features")):
        return Layout(fans=(columns, rows), default=_uniform("fan_in", columns))
    return _free_layout(parameter)


def _convolution_layout(owner: nn.modules.conv._ConvNd, tensor: Tensor) -> Layout:
    field_ = math.prod(owner.kernel_size)
    stride = math.prod(owner.stride)
    into, out = owner.in_channels // owner.groups * field_, owner.out_channels // owner.groups * field_
    receptive = math.prod(tensor.shape[2:])
    torch_fans = (int(tensor.shape[1]) * receptive, int(tensor.shape[0]) * receptive)
    notes = []
    if owner.transposed:
        # Every input pixel reaches `out` outputs; an output pixel sees kernel/stride of the taps.
        fans = (max(1, round(into / stride)), out)
        label = "(out_channels/groups · kernel)"
        if torch_fans[0] != fans[0]:
            notes.append(
                f"torch.nn.init takes fan_in = {torch_fans[0]} for a transposed convolution; an output sums {fans[0]}"
            )
    else:
        fans = (into, max(1, round(out / stride)))
        label = "fan_in"
        if torch_fans[1] != fans[1]:
            notes.append(
                f"torch.nn.init takes fan_out = {torch_fans[1]}; with stride and groups an input reaches {fans[1]}"
            )
    return Layout(fans=fans, torch_fans=torch_fans, default=_uniform(label, torch_fans[0]), notes=notes)


def _recurrent_layout(parameter: NamedParameter) -> Layout:
    owner, tensor, name = parameter.owner, parameter.tensor, parameter.attribute
    hidden = int(owner.hidden_size)  # type: ignore[arg-type]  # both base classes have it
    cell = type(owner).__name__.removesuffix("Cell")
    default = _uniform("hidden_size", hidden)
    if name.startswith("weight_hr"):  # the projection of an LSTM with proj_size
        return Layout(fans=(int(tensor.shape[1]), int(tensor.shape[0])), default=default, kind="layer")
    blocks = _GATES.get(cell, (None,) * 1)
    if cell == "RNN":
        kind = "recurrent" if name.startswith("weight_hh") else "gate"
        return Layout(fans=(int(tensor.shape[1]), int(tensor.shape[0])), default=default, kind=kind)
    notes = ["one of several gates: how the gradient travels through time is decided by the gates together"]
    fans = (int(tensor.shape[1]), int(tensor.shape[0]) // len(blocks))
    return Layout(blocks=blocks, fans=fans, default=default, kind="gate", notes=notes)


def _attention_layout(parameter: NamedParameter) -> Layout:
    tensor, name = parameter.tensor, parameter.attribute
    rows, columns = int(tensor.shape[0]), int(tensor.shape[1])
    if name == "in_proj_weight":
        # xavier_uniform_ runs over the stacked (3d, d) matrix, so that Var = 2/(4d), half of a d × d block's 1/d.
        default = Candidate(
            "torch default: xavier_uniform_() of the stacked (3d × d) matrix", "uniform", 2.0 / (rows + columns)
        )
        notes = ["initialised as one (3d × d) matrix: each d × d block has gain 1/√2, not 1"]
        return Layout(blocks=("query", "key", "value"), fans=(columns, rows // 3), default=default, notes=notes)
    default = Candidate("torch default: xavier_uniform_()", "uniform", 2.0 / (rows + columns))
    kind = "logits" if name in ("q_proj_weight", "k_proj_weight") else "lookup" if name.startswith("bias") else "layer"
    return Layout(fans=(columns, rows), default=default, kind=kind)


def _free_layout(parameter: NamedParameter) -> Layout:
    tensor, name = parameter.tensor, parameter.attribute
    if any(word in name.lower() for word in ("pos", "token", "embed", "query", "bias")):
        note = "taken for values that are added or handed out, not multiplied with (by its name)"
        return Layout(fans=(1, int(tensor.shape[-1])), kind="lookup", notes=[note])
    rows, columns = int(tensor.shape[-2]), int(tensor.shape[-1])
    note = "a parameter of your own: read as (out, in), as in x @ W.T; for x @ W swap fan_in and fan_out"
    notes = [note] if rows != columns else []
    if tensor.dim() > 2:
        notes.append("the leading dimensions are taken for a stack of matrices")
    return Layout(fans=(columns, rows), torch_fans=(columns, rows), notes=notes)


def added_bias(parameter: NamedParameter) -> Tensor | None:
    """The bias that is added to what a weight gives, both of a recurrent layer's pair together.

    Args:
        parameter: the weight.

    Returns:
        The bias, detached; None without one.
    """
    owner, name = parameter.owner, parameter.attribute
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        suffix = name.removeprefix("weight_ih").removeprefix("weight_hh")
        found = [getattr(owner, f"bias_{part}{suffix}", None) for part in ("ih", "hh")]
        pair = [b.detach() for b in found if isinstance(b, Tensor)]
        return torch.stack(pair).sum(0) if pair and not name.startswith("weight_hr") else None
    if isinstance(owner, nn.MultiheadAttention):
        bias = owner.in_proj_bias if name == "in_proj_weight" else None
    else:
        bias = getattr(owner, "bias", None) if name == "weight" else None
    return bias.detach() if isinstance(bias, Tensor) and bias.is_floating_point() else None


def bias_default(owner: nn.Module) -> Candidate | None:
    """What the owner's class initialises its bias with.

    Args:
        owner: the module of the bias.

    Returns:
        The initialiser; None when there is no rule.
    """
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return _uniform("hidden_size", int(owner.hidden_size))
    if isinstance(owner, nn.Bilinear):
        return _uniform("in1_features", owner.in1_features)
    weight = getattr(owner, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() >= 2:
        return _uniform("fan_in", math.prod(weight.shape[1:]))
    return None
