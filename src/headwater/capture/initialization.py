"""Read the weights of a model as its initialiser left them: fans, moments, law, and what follows each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater.capture.following import Spot, Surroundings
from headwater.capture.initial_values import Values, describe_values
from headwater.capture.names import ROOT, clean_names, layer_kind
from headwater.capture.parameters import NamedParameter, list_parameters
from headwater.capture.weight_layout import Layout, added_bias, bias_default, weight_layout
from headwater.errors import InputError
from headwater.theory.elementwise import Elementwise
from headwater.theory.initializers import Candidate, plain_candidates, standard_candidates

__all__ = ["Biases", "Matrix", "read_weights"]

_GATE_ACTIVATION = {"cell": "tanh", "new": "tanh"}


@dataclass(frozen=True)
class Matrix:
    """One weight, or one block of a stacked weight.

    Attributes:
        parameter: where it lives.
        block: which block; None for the whole.
        layer: the owner's name.
        shape: of the block.
        fan_in: inputs per output.
        fan_out: outputs per input.
        values: what they look like.
        kind: ``layer`` (x ↦ Wx + b, with or without an activation), ``lookup`` (rows are handed out or added), ``gate``
            (of a recurrent cell), ``logits`` (query and key), ``recurrent`` (the vanilla RNN's state to state).
        activation: what follows, by name; ``linear`` when nothing elementwise does; None when it cannot be told.
        function: that activation.
        normalized_input: a normalisation comes right before.
        normalized_output: a normalisation comes right after.
        bias_variance: second moment of what is added.
        notes: for the reader.
    """

    parameter: NamedParameter
    block: str | None
    layer: str
    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    values: Values
    kind: str = "layer"
    activation: str | None = None
    function: Elementwise | None = None
    normalized_input: bool = False
    normalized_output: bool = False
    bias_variance: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Biases:
    """One bias vector.

    Attributes:
        parameter: where it lives.
        layer: the owner's name.
        values: what they look like.
    """

    parameter: NamedParameter
    layer: str
    values: Values


def read_weights(model: nn.Module) -> tuple[list[Matrix], list[Biases], dict[str, str]]:
    """Every weight matrix, every bias, and what was left out.

    Args:
        model: any module with values; only read.

    Returns:
        Matrices, biases, and parameter name to the reason it is neither.

    Raises:
        InputError: no module, no parameters, or parameters without values (meta device, lazy modules).
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"explain_init needs an nn.Module, got {type(model).__name__}")
    names = clean_names(model)
    parameters = list_parameters(names)
    _refuse_without_values(model, parameters)
    surroundings = Surroundings(model)
    depth = _depth_of_stack([p.name for p in parameters])
    matrices: list[Matrix] = []
    biases: list[Biases] = []
    skipped: dict[str, str] = {}
    for parameter in parameters:
        owner, tensor = parameter.owner, parameter.tensor
        layer = (names.get(owner) or ("",))[0] or ROOT
        reason = _why_skipped(parameter)
        if reason is not None:
            skipped[parameter.name] = reason
        elif tensor.dim() < 2:
            default = bias_default(owner)
            biases.append(Biases(parameter, layer, describe_values(tensor.detach(), [default] if default else [])))
        else:
            matrices.extend(_matrices(parameter, layer, surroundings, depth))
    return matrices, biases, skipped


def _refuse_without_values(model: nn.Module, parameters: list[NamedParameter]) -> None:
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameters: there is no initialisation to explain")
    lazy = [p.name for p in parameters if isinstance(p.tensor, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(f"{', '.join(lazy[:3])} has no shape yet (lazy module): run one forward first")
    meta = [p.name for p in parameters if p.tensor.is_meta]
    if meta:
        raise InputError(
            f"{', '.join(meta[:3])} lives on the meta device and holds no values: materialise the model, "
            "for example model.to_empty(device='cpu') and then its own initialisation"
        )


def _is_bias(parameter: NamedParameter) -> bool:
    name = parameter.attribute
    return name.startswith("bias") or name.endswith("_bias")


def _is_reparametrised(parameter: NamedParameter) -> bool:
    # weight_norm and spectral_norm keep weight_g, weight_v or weight_orig, and a computed weight beside them.
    base, _, suffix = parameter.attribute.rpartition("_")
    return suffix in ("g", "v", "orig") and base != "" and base in vars(parameter.owner)


def _why_skipped(parameter: NamedParameter) -> str | None:
    tensor, owner = parameter.tensor, parameter.owner
    if tensor.is_complex():
        return "complex values"
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} values"
    if tensor.numel() == 0:
        return "no elements"
    if type(owner).__name__ == "ParametrizationList" or _is_reparametrised(parameter):
        return "reparametrised: the weight that the forward uses is computed from it"
    if layer_kind(owner) == "normalization":
        return "normalisation"
    if tensor.dim() < 2 and not _is_bias(parameter):
        return "slope of an activation" if layer_kind(owner) == "activation" else "a vector outside the known layers"
    return None


def _matrices(parameter: NamedParameter, layer: str, surroundings: Surroundings, depth: int) -> Iterator[Matrix]:
    tensor, owner = parameter.tensor.detach(), parameter.owner
    layout = weight_layout(parameter)
    added = added_bias(parameter)
    parts = tensor.chunk(len(layout.blocks)) if len(layout.blocks) > 1 else (tensor,)
    spot = _spot(parameter, layout, surroundings)
    padding = owner.padding_idx if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else None
    for index, (block, part) in enumerate(zip(layout.blocks, parts, strict=True)):
        bias = None if added is None else added.chunk(len(layout.blocks))[index] if len(layout.blocks) > 1 else added
        kind = "logits" if block in ("query", "key") else layout.kind
        activation, function = (spot.activation, spot.function) if kind == "layer" else (None, None)
        if kind == "gate" and block is not None:
            activation = _GATE_ACTIVATION.get(block, "sigmoid")
        elif kind in ("gate", "recurrent"):
            activation = str(getattr(owner, "nonlinearity", "tanh"))
        shown = part
        if padding is not None:
            shown = torch.cat([part[:padding], part[padding + 1 :]]) if part.shape[0] > 1 else part
        yield Matrix(
            parameter=parameter,
            block=block,
            layer=layer,
            shape=tuple(part.shape),
            fan_in=layout.fans[0],
            fan_out=layout.fans[1],
            values=describe_values(shown, _candidates(layout, part, depth)),
            kind=kind,
            activation=activation,
            function=function,
            normalized_input=spot.normalized_input,
            normalized_output=spot.normalized_output,
            bias_variance=0.0 if bias is None else float(bias.double().square().mean()),
            notes=tuple(layout.notes),
        )


def _spot(parameter: NamedParameter, layout: Layout, surroundings: Surroundings) -> Spot:
    owner = parameter.owner
    if layout.kind != "layer":
        return Spot()
    around = surroundings.of(owner)
    attention = surroundings.parent_of(owner)
    if isinstance(owner, nn.MultiheadAttention):  # a value is mixed over positions, then projected
        return Spot("linear", normalized_input=around.normalized_input)
    if isinstance(attention, nn.MultiheadAttention):  # out_proj, which the attention applies without calling it
        after = surroundings.of(attention)
        return Spot(after.activation, after.function, False, after.normalized_output)
    return around


def _candidates(layout: Layout, part: Tensor, depth: int) -> list[Candidate]:
    fans = layout.torch_fans
    if fans is None:
        receptive = math.prod(part.shape[2:])
        fans = part.shape[1] * receptive, part.shape[0] * receptive
    found = [*([layout.default] if layout.default else []), *standard_candidates(max(fans[0], 1), max(fans[1], 1))]
    if depth > 1:  # Radford et al., Language Models are Unsupervised Multitask Learners, 2019: GPT-2's residual scaling
        label = f"normal_(std=0.02/√(2·{depth})), GPT-2's rule for residual projections"
        found.append(Candidate(label, "normal", 0.02**2 / (2.0 * depth)))
    return found + plain_candidates()


def _depth_of_stack(names: list[str]) -> int:
    """How many like blocks the names count: the most indices under one prefix, such as ``h.0``, ``h.1``, ..."""
    runs: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                runs.setdefault(".".join(parts[:i]), set()).add(part)
    return max((len(found) for found in runs.values()), default=0)
