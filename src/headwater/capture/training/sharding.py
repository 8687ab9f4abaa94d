"""What one process holds of each parameter: DTensor (FSDP2, tensor parallelism) and FSDP1, without any communication.

Only pieces in this process's own memory are read, and the pieces add up: every element of a parameter lies in the pieces
of some ranks, each piece under a key (where it is of the whole), replicas of a piece under the same key.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture._torch_compat import flat_parameter_pieces, is_flat_parameter
from headwater.records.step import WatchedTensor

__all__ = [
    "Held",
    "Holding",
    "PartialSums",
    "flat_shapes",
    "has_shards",
    "holding",
    "local",
    "readable",
    "reads_through",
    "sentinels",
]

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one rank holds of one parameter.

    Attributes:
        key: which piece: the coordinates along the mesh dimensions that it is split over; empty when it is whole.
        elements: in this piece.
        reason: why it cannot be read, or None.
    """

    key: Key
    elements: int
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """One parameter as one rank has it.

    Attributes:
        tensor: its record.
        holding: which piece.
        checksum: of the piece, None where it cannot be read or was not asked for.
        varied: whether the piece holds more than one number.
    """

    tensor: WatchedTensor
    holding: Holding
    checksum: tuple[int, int] | None = None
    varied: bool = True


def _distributed_tensor() -> Any:
    """The class DTensor, if anything has loaded it: without that there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else getattr(module, "DTensor", None)


def _is_distributed(tensor: object) -> bool:
    cls = _distributed_tensor()
    return cls is not None and isinstance(tensor, cls)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor, the memory itself; the tensor where it is not split.

    Args:
        tensor: any.

    Returns:
        A plain tensor.
    """
    if not _is_distributed(tensor):
        return tensor
    piece: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return piece


def readable(tensor: Tensor) -> Tensor | None:
    """This process's piece of an activation or its gradient.

    Args:
        tensor: any.

    Returns:
        A plain tensor; None for a partial sum, whose pieces do not add up to statistics.
    """
    if not _is_distributed(tensor):
        return tensor
    if any(p.is_partial() for p in tensor.placements):  # type: ignore[attr-defined]
        return None
    return local(tensor)


def reads_through(parameter: Tensor) -> bool:
    """Whether this process has a piece of a parameter at all.

    Args:
        parameter: any.

    Returns:
        False for a DTensor on a mesh that this rank is not part of.
    """
    return not _is_distributed(parameter) or parameter.device_mesh.get_coordinate() is not None  # type: ignore[attr-defined]


def has_shards(model: nn.Module) -> bool:
    """Whether some parameter of a model is split over processes.

    Args:
        model: any.

    Returns:
        True for DTensor parameters and for FSDP1.
    """
    return any(_is_distributed(p) or is_flat_parameter(p) for p in model.parameters()) or bool(flat_shapes(model))


def holding(parameter: Tensor, flat_key: int | None = None) -> Holding:
    """Which piece of a parameter this process holds.

    Args:
        parameter: as the model has it between steps.
        flat_key: for a parameter of FSDP1, the rank within its sharding group; -1 where it is not split.

    Returns:
        The piece.
    """
    if is_flat_parameter(parameter):
        reason = "sharded: FSDP with use_orig_params=False shows no parameters; use fully_shard or use_orig_params=True"
        return Holding((), parameter.numel(), reason)
    if flat_key is not None:
        return Holding((flat_key,) if flat_key >= 0 else (), parameter.numel())
    if not _is_distributed(parameter):
        return Holding((), parameter.numel())
    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        return Holding((), 0)
    if any(p.is_partial() for p in placements):
        return Holding((), 0, "sharded: the parameter itself is a partial sum")
    # Not is_shard(): the strided shards of FSDP over tensor parallelism are none.
    key = tuple(-1 if p.is_replicate() else int(c) for c, p in zip(coordinates, placements, strict=True))
    whole = all(k == -1 for k in key)
    return Holding(() if whole else key, local(parameter).numel())


def flat_shapes(model: nn.Module) -> Mapping[int, tuple[tuple[int, ...], int]]:
    """Parameters that FSDP1 keeps as pieces of one flat parameter.

    Args:
        model: any.

    Returns:
        ``id`` of the parameter to its whole shape and the rank within its sharding group.
    """
    found: dict[int, tuple[tuple[int, ...], int]] = {}
    for module in model.modules():
        for parameter, shape, rank in flat_parameter_pieces(module):
            found[id(parameter)] = (tuple(shape), rank)
    return found


def sentinels(model: nn.Module, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Parameters at which a hook hears of the gradient of a backward.

    Args:
        model: the model.
        parameters: the leaves that require a gradient.

    Returns:
        The same; for FSDP1 its flat parameters, the only ones that autograd knows.
    """
    flat = [p for m in model.modules() for p in flat_parameters(m)]
    known = flat_shapes(model) if flat else {}
    return [*flat, *(p for p in parameters if id(p) not in known)]


def flat_parameters(module: nn.Module) -> list[Tensor]:
    """The flat parameter of an FSDP1 module.

    Args:
        module: any.

    Returns:
        One, or none.
    """
    handle = getattr(module, "_handle", None)
    flat = getattr(handle, "flat_param", None)
    return [flat] if isinstance(flat, Tensor) and is_flat_parameter(flat) and flat.requires_grad else []


class PartialSums:
    """Gradients that are partial sums over ranks, such as that of a norm's weight under sequence parallelism.

    All of them are added up together: one reduction per group of mesh dimensions and reading, whatever their number. They
    are gradients of parameters that every rank holds whole, small ones as a rule.
    """

    def __init__(self) -> None:
        self.found: dict[int, Any] = {}
        self.unread: dict[int, str] = {}

    def local(self, position: int, parameter: Tensor, gradient: Tensor) -> Tensor:
        """This process's piece of a gradient; remembers that it is no more than a part of a sum.

        Args:
            position: of the parameter.
            parameter: whose gradient.
            gradient: as the backward left it.

        Returns:
            A plain tensor.
        """
        self.found.pop(position, None)
        self.unread.pop(position, None)
        if not _is_distributed(gradient):
            return gradient
        placements: Any = gradient.placements  # type: ignore[attr-defined]
        wanted: Any = getattr(parameter, "placements", placements)
        if any(p.is_partial() for p in placements):
            sums = all(p == w or (_is_sum(p) and w.is_replicate()) for p, w in zip(placements, wanted, strict=True))
            if sums:
                self.found[position] = gradient
            else:
                self.unread[position] = f"sharded: the gradient is {_words(placements)}, the parameter {_words(wanted)}"
        elif tuple(placements) != tuple(wanted):
            self.unread[position] = f"sharded: the gradient is {_words(placements)}, the parameter {_words(wanted)}"
        return local(gradient)

    @torch.no_grad()
    def resolved(self, positions: Sequence[int], gradients: Sequence[Tensor]) -> list[Tensor]:
        """The gradients with partial sums added up.

        Args:
            positions: of the parameters.
            gradients: this process's pieces.

        Returns:
            The pieces to read, in the same order.
        """
        result = list(gradients)
        groups: dict[Any, list[int]] = {}
        for index, position in enumerate(positions):
            gradient = self.found.get(position)
            if gradient is None:
                continue
            dimensions = tuple(d for d, p in enumerate(gradient.placements) if p.is_partial())
            groups.setdefault((gradient.device_mesh, dimensions, result[index].dtype), []).append(index)
        for (mesh, dimensions, _), members in groups.items():
            flat = torch.cat([result[i].reshape(-1) for i in members])
            for dimension in dimensions:
                torch.distributed.all_reduce(flat, group=mesh.get_group(dimension))
            for index, piece in zip(members, flat.split([result[i].numel() for i in members]), strict=True):
                if any(_mean(p) for p in self.found[positions[index]].placements):
                    count = 1
                    for d, p in enumerate(self.found[positions[index]].placements):
                        count *= mesh.size(d) if _mean(p) else 1
                    piece = piece / count
                result[index] = piece.view(result[index].shape)
        return result


def _is_sum(placement: Any) -> bool:
    return bool(placement.is_partial()) and getattr(placement, "reduce_op", "") in ("sum", "avg")


def _mean(placement: Any) -> bool:
    return bool(placement.is_partial()) and getattr(placement, "reduce_op", "") == "avg"


def _words(placements: Any) -> str:
    return "/".join(str(p) for p in placements)
