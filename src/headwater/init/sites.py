"""Which weights of a model an initialiser may set, block by block, and why the others are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from headwater.capture.following import Spot, Surroundings
from headwater.capture.names import clean_names, layer_kind, make_filter
from headwater.capture.parameters import NamedParameter, list_parameters
from headwater.capture.weight_layout import weight_layout
from headwater.errors import InputError
from headwater.theory.elementwise import Elementwise

__all__ = ["Site", "find_sites", "refuse_what_has_no_values"]


@dataclass(frozen=True)
class Site:
    """One weight matrix of a linear map, and what surrounds it.

    Attributes:
        name: of the parameter, the block in brackets.
        owner: the module it belongs to.
        parameter: the whole parameter.
        part: the block itself: a view that may be written to.
        bias: the part of the owner's bias that is added to this block's output; None without one.
        bias_name: its name.
        fan_in: inputs per output.
        activation: name of what follows; ``linear`` when nothing elementwise does, None when it cannot be told.
        function: the activation; None for ``linear`` and unknown.
        normalized_input: a normalisation gives the layer its input.
        normalized_output: a normalisation takes the layer's output.
    """

    name: str
    owner: nn.Module
    parameter: nn.Parameter
    part: Tensor
    bias: Tensor | None
    bias_name: str
    fan_in: int
    activation: str | None
    function: Elementwise | None
    normalized_input: bool
    normalized_output: bool


def find_sites(model: nn.Module, only: object = None) -> tuple[list[Site], dict[str, str]]:
    """Weights of linear layers, convolutions and attention (value and output), and what is left alone.

    Args:
        model: only read.
        only: see :func:`headwater.capture.names.make_filter`; matched with parameters and with their modules.

    Returns:
        The sites in registration order, and parameter name to the reason it is not one of them.

    Raises:
        InputError: no module, no parameter, a lazy parameter, or ``only`` matches nothing.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected an nn.Module, got {type(model).__name__}; for one tensor use orthogonal_")
    names = clean_names(model)
    parameters = list_parameters(names)
    refuse_what_has_no_values(model, parameters)
    keep = make_filter(only, None)
    chosen = [p for p in parameters if keep(p.name, p.tensor, names[p.owner][0], p.owner)]
    if not chosen:
        raise InputError(
            f"only={only!r} matches no parameter; names are those of named_parameters(), such as {parameters[0].name!r}"
        )
    surroundings = Surroundings(model)
    sites: list[Site] = []
    kept = {p.name: "not selected by only" for p in parameters if p not in chosen}
    biases: list[NamedParameter] = []
    weights: list[NamedParameter] = []
    for parameter in chosen:
        reason = _why_kept(parameter)
        if reason is not None:
            kept[parameter.name] = reason
        else:
            (biases if parameter.tensor.dim() < 2 else weights).append(parameter)
    settable = {id(parameter.tensor) for parameter in biases}
    for parameter in weights:
        for site, why in _blocks(parameter, surroundings, settable):
            if why is None:
                sites.append(site)
            else:
                kept[site.name] = why
    with_weight = {id(site.owner) for site in sites}
    kept |= {p.name: "its weight is kept as well" for p in biases if id(p.owner) not in with_weight}
    return sites, kept


def refuse_what_has_no_values(model: nn.Module, parameters: list[NamedParameter]) -> None:
    """Raise for models without parameters and for lazy ones.

    Args:
        model: for the message.
        parameters: of the model.

    Raises:
        InputError: there is nothing to initialise, or no shape yet.
    """
    if not parameters:
        raise InputError(f"{type(model).__name__} has no parameters: there is nothing to initialise")
    lazy = [p.name for p in parameters if isinstance(p.tensor, nn.parameter.UninitializedParameter)]
    if lazy:
        raise InputError(f"{', '.join(lazy[:3])} has no shape yet (lazy module): run one forward first")


def _why_kept(parameter: NamedParameter) -> str | None:
    tensor, owner = parameter.tensor, parameter.owner
    kind = layer_kind(owner)
    base, _, suffix = parameter.attribute.rpartition("_")
    if type(owner).__name__ == "ParametrizationList" or (suffix in ("g", "v", "orig") and base in vars(owner)):
        return "reparametrised: the weight that the forward uses is computed from it"
    if not tensor.is_floating_point():
        return f"{str(tensor.dtype).removeprefix('torch.')} values"
    if tensor.numel() == 0:
        return "no elements"
    if hasattr(tensor, "full_tensor"):
        return "sharded over devices: initialise before sharding"
    if not tensor.requires_grad:
        return "frozen"
    if parameter.aliases:
        return f"shared with {', '.join(parameter.aliases)}"
    if kind == "normalization":
        return "normalisation: weight 1 and bias 0 are its neutral values"
    if kind == "embedding":
        return "look-up: its rows are the signal, they multiply nothing"
    if kind == "recurrent":
        return "recurrent: all gates together decide; orthogonal_ for weight_hh and a forget bias of 1 are usual"
    if kind == "activation":
        return "slope of an activation"
    if kind not in ("linear", "convolution", "attention") and not hasattr(owner, "in_features"):
        return "a parameter of your own: what it multiplies cannot be told"
    if kind == "attention" and parameter.attribute in ("bias_k", "bias_v"):
        return "a vector that is added to the sequence"
    return None


def _blocks(
    parameter: NamedParameter, surroundings: Surroundings, settable: set[int]
) -> Iterator[tuple[Site, str | None]]:
    """The blocks of one weight, each with the reason to leave it alone or None."""
    owner, tensor = parameter.owner, parameter.tensor
    layout = weight_layout(parameter)
    spot = _spot(owner, surroundings)
    attribute = "in_proj_bias" if isinstance(owner, nn.MultiheadAttention) else "bias"
    bias = getattr(owner, attribute, None)
    if not isinstance(bias, nn.Parameter) or id(bias) not in settable:
        bias = None
    many = len(layout.blocks) > 1
    parts = tensor.detach().chunk(len(layout.blocks)) if many else (tensor.detach(),)
    position = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}.get(parameter.attribute)
    for index, (block, part) in enumerate(zip(layout.blocks, parts, strict=True)):
        added = None if bias is None else bias.detach()
        if added is not None and isinstance(owner, nn.MultiheadAttention):
            added = added.chunk(3)[index if many else position or 0]
        stem = parameter.name.removesuffix(parameter.attribute)
        suffix = f"[{block}]" if block is not None else ""
        site = Site(
            name=parameter.name + suffix,
            owner=owner,
            parameter=tensor,
            part=part,
            bias=added,
            bias_name=stem + attribute + suffix,
            fan_in=layout.fans[0],
            activation=spot.activation,
            function=spot.function,
            normalized_input=spot.normalized_input,
            normalized_output=spot.normalized_output,
        )
        logits = block in ("query", "key") or layout.kind == "logits"
        yield site, "query and key set the attention logits: no rule for one layer's signal applies" if logits else None


def _spot(owner: nn.Module, surroundings: Surroundings) -> Spot:
    if isinstance(owner, nn.MultiheadAttention):  # a value is mixed over positions, then projected
        return Spot("linear", normalized_input=surroundings.of(owner).normalized_input)
    attention = surroundings.parent_of(owner)
    if isinstance(attention, nn.MultiheadAttention):  # out_proj, which the attention applies without calling it
        after = surroundings.of(attention)
        return Spot(after.activation, after.function, False, after.normalized_output)
    if attention is None:
        return Spot("linear")  # the model is this one layer
    return surroundings.of(owner)
