"""Scale residual branches with depth, so that a residual network starts out with bounded signals and gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from headwater.capture.names import clean_names, layer_kind, make_filter
from headwater.capture.parameters import list_parameters
from headwater.capture.residual_branches import find_residual_branches, last_layer
from headwater.errors import InputError
from headwater.init.plan import Change, Plan
from headwater.init.sites import refuse_what_has_no_values

__all__ = ["depth_scaled_residual_", "plan_depth_scaled_residual"]

_LOG = logging.getLogger("headwater.init")
Blocks = str | nn.Module | Iterable[str | nn.Module] | None


def plan_depth_scaled_residual(model: nn.Module, blocks: Blocks = None, *, scale: float | None = None) -> Plan:
    """Say what :func:`depth_scaled_residual_` would change, and change nothing.

    Args:
        model: only read.
        blocks: as in :func:`depth_scaled_residual_`.
        scale: as in :func:`depth_scaled_residual_`.

    Returns:
        The plan; ``print`` it.

    Raises:
        InputError: as in :func:`depth_scaled_residual_`.
    """
    return _plan(model, blocks, scale)[0]


@torch.no_grad()
def depth_scaled_residual_(model: nn.Module, blocks: Blocks = None, *, scale: float | None = None) -> nn.Module:
    """Multiply the last layer of each of the L residual branches with 1/√L, in place.

    With x + f(x) of equal second moments the signal and the gradient double in every block, 2^L in all. With
    x + f(x)/√L they grow by (1 + 1/L)^L, which stays below e at any depth. The weight and the bias of a branch's last
    layer are multiplied, so the whole branch is; where a normalisation comes last (as in ResNet blocks, which would undo
    a scaled convolution), its weight and bias are. Layers keep the values they have otherwise: draw them first.

    A transformer layer has two branches, attention and feed-forward, so that L is twice the number of its layers
    (GPT-2's rule). Branches are found in the source of the forwards: a sum a + b where b is computed from a.
    :func:`plan_depth_scaled_residual` lists them without changing anything.

    Args:
        model: on any device, also meta.
        blocks: modules, or their names (globs such as ``layers.*``): in each, the residual branches that its source
            shows, else its last layer. None finds the branches of the whole model.
        scale: what to multiply with instead of 1/√L.

    Returns:
        The same model.

    Raises:
        InputError: no module, no residual branch found, a name that matches nothing, or a bad ``scale``.

    Example:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        >>> print(str(plan_depth_scaled_residual(model)).splitlines()[0])
        layers.0.self_attn.out_proj.weight: multiplied with 0.5; 1/√4 on the last layer of a branch

    References:
        Hanin & Rolnick, *How to Start Training*, NeurIPS 2018. Zhang, Dauphin & Ma, *Fixup Initialization*, ICLR 2019.
        Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019 (1/√L for GPT-2's projections).
    """
    plan, parameters = _plan(model, blocks, scale)
    for change in plan.changes:
        if change.factor is not None:
            parameters[change.name].mul_(change.factor)
    _LOG.info("%s", plan)
    return model


def _plan(model: nn.Module, blocks: Blocks, scale: float | None) -> tuple[Plan, dict[str, nn.Parameter]]:
    if not isinstance(model, nn.Module):
        raise InputError(f"expected an nn.Module, got {type(model).__name__}")
    if scale is not None and not (isinstance(scale, int | float) and 0.0 <= scale < math.inf):
        raise InputError(f"scale should be a finite number, not negative; got {scale!r}")
    names = clean_names(model)
    listed = list_parameters(names)
    refuse_what_has_no_values(model, listed)
    ends = _ends_of(model) if blocks is None else _ends_in(_resolved(model, blocks, names))
    if not ends:
        raise InputError(
            f"no residual branch was found in the source of {type(model).__name__}'s modules: name the modules that hold "
            "them with blocks, for example blocks=['layers.*.mlp']"
        )
    factor = 1.0 / math.sqrt(len(ends)) if scale is None else float(scale)
    changes: list[Change] = []
    parameters: dict[str, nn.Parameter] = {}
    kept: dict[str, str] = {}
    owned = {id(end) for end in ends}
    note = f"1/√{len(ends)} on the last layer of a branch" if scale is None else "the last layer of a branch"
    for parameter in listed:
        if id(parameter.owner) not in owned:
            continue
        if not parameter.tensor.requires_grad:
            kept[parameter.name] = "frozen"
        elif parameter.aliases:
            kept[parameter.name] = f"shared with {', '.join(parameter.aliases)}"
        elif not parameter.tensor.is_floating_point():
            kept[parameter.name] = f"{str(parameter.tensor.dtype).removeprefix('torch.')} values"
        else:
            kind = "normalisation" if layer_kind(parameter.owner) == "normalization" else "layer"
            parameters[parameter.name] = parameter.tensor
            changes.append(
                Change(
                    name=parameter.name,
                    rule="multiplied",
                    factor=factor,
                    note=note.replace("layer", kind),
                )
            )
    return Plan(tuple(changes), kept), parameters


def _ends_of(model: nn.Module) -> list[nn.Module]:
    return list(dict.fromkeys(end for branch in find_residual_branches(model) for end in branch.ends))


def _ends_in(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    ends: dict[nn.Module, None] = {}
    for block in blocks:
        found = _ends_of(block)
        if not found:
            end = last_layer(block)
            if end is None:
                raise InputError(
                    f"the block {type(block).__name__} holds no layer with parameters that could be scaled"
                )
            found = [end]
        ends.update(dict.fromkeys(found))
    return list(ends)


def _resolved(model: nn.Module, blocks: Blocks, names: dict[nn.Module, tuple[str, ...]]) -> list[nn.Module]:
    given = [blocks] if isinstance(blocks, str | nn.Module) else list(blocks or ())
    found: dict[nn.Module, None] = {}
    for block in given:
        if isinstance(block, nn.Module):
            if block not in names:
                raise InputError(f"the block {type(block).__name__} is no part of this model")
            found[block] = None
            continue
        matches = make_filter(block, None)
        here = [module for module, known in names.items() if any(matches(name, module) for name in known if name)]
        if not here:
            raise InputError(f"blocks={block!r} matches no module; names are those of named_modules()")
        outer = [m for m in here if not any(o is not m and m in set(o.modules()) for o in here)]
        found.update(dict.fromkeys(outer))
    return list(found)
