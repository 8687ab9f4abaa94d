"""Reading gradients: one table per moment, and whether anything changed them since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor

from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS
from headwater.stats import moment_table, norm_table

__all__ = ["GradientReading", "columns_of", "read_table", "versions"]

Tier = Literal["all", "norms"]
Marks = list[tuple[int, int]]
_ON_CPU, _VERSION = attrgetter("is_cpu"), attrgetter("_version")


def columns_of(tier: Tier) -> tuple[str, ...]:
    """What :func:`read_table` gives.

    Args:
        tier: ``all`` or ``norms``.

    Returns:
        The names of the columns.
    """
    return STATISTICS_COLUMNS if tier == "all" else NORM_COLUMNS


def read_table(tensors: Sequence[Tensor], tier: Tier) -> Tensor:
    """Statistics of tensors on any devices.

    Args:
        tensors: which.
        tier: ``all`` or ``norms``.

    Returns:
        Shape (k, 11) or (k, 3), in the order of the tensors, on their device; on that of the first when there are several.
    """
    function = moment_table if tier == "all" else norm_table
    if all(map(_ON_CPU, tensors)):
        return function(tensors)
    first = tensors[0].device
    if all(t.device == first for t in tensors):
        return function(tensors)
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    parts = [function([tensors[i] for i in indices]).to(first, non_blocking=True) for indices in by_device.values()]
    order = [i for indices in by_device.values() for i in indices]
    back = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(parts)[back]


def versions(gradients: Sequence[Tensor]) -> Marks:
    """Identity and version of every gradient: equal as long as nothing wrote to them.

    ``GradScaler.unscale_`` does not count as a change: it leaves the version as it is.

    Args:
        gradients: in the order of the inventory.

    Returns:
        (``id``, version) of each.
    """
    return list(zip(map(id, gradients), map(_VERSION, gradients), strict=True))


@dataclass(slots=True)
class GradientReading:
    """Gradients read at one moment.

    Attributes:
        positions: of the parameters in the inventory.
        table: one row each.
        marks: what :func:`versions` said then.
        scaled: whether they were still multiplied by the loss scale.
    """

    positions: list[int]
    table: Tensor
    marks: Marks
    scaled: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the table."""
        return STATISTICS_COLUMNS if self.table.shape[1] == len(STATISTICS_COLUMNS) else NORM_COLUMNS

    def is_nonfinite(self) -> bool:
        """Whether some element is NaN or infinite; False where finding out would wait for a device."""
        if self.table.device.type != "cpu" or not len(self.positions):
            return False
        nan, inf = self.columns.index("nan_count"), self.columns.index("inf_count")
        return bool((self.table[:, nan] + self.table[:, inf]).sum() > 0)

    @classmethod
    def joined(cls, parts: Sequence[GradientReading]) -> GradientReading:
        """Readings of different parameters as one, in the order of the inventory.

        Args:
            parts: at least one.

        Returns:
            All of them.
        """
        positions = [p for part in parts for p in part.positions]
        order = sorted(range(len(positions)), key=positions.__getitem__)
        table = torch.cat([part.table for part in parts])
        index = torch.tensor(order).to(table.device, non_blocking=True)
        return cls([positions[i] for i in order], table[index], [], False)
