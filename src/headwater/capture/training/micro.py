"""Rows for the micro-batches of a step: the gradient of each backward by itself."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from headwater.capture.training.gradients import columns_of, read_table
from headwater.capture.training.hooks import ParameterHook
from headwater.capture.training.inventory import Inventory
from headwater.capture.training.raw import Piece
from headwater.capture.training.sharding import readable

__all__ = ["MicroBatches"]


class MicroBatches:
    """A hook on every parameter sees the gradient of each backward before it is added to the others.

    Args:
        tier: which statistics.
    """

    def __init__(self, tier: Literal["all", "norms"]) -> None:
        self.tier = tier
        self.open = False
        self.count = 0
        self._handles: list[Any] = []
        self._tables: dict[int, Tensor] = {}

    def watch(self, inventory: Inventory) -> None:
        """Hang up the hooks, where they are not there yet.

        Args:
            inventory: the parameters.
        """
        if not self._handles:
            self._handles = [
                p.register_hook(ParameterHook(self, position))
                for position, p in enumerate(inventory.tensors())
                if p is not None and p.requires_grad
            ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def begin(self, *, recording: bool) -> None:
        """A new step.

        Args:
            recording: whether it is recorded.
        """
        self.open, self.count = recording, 0
        self._tables.clear()

    def arrived(self, position: int, gradient: Tensor) -> None:
        """The gradient of one backward arrived at a parameter."""
        if self.open and (piece := readable(gradient)) is not None:
            self._tables[position] = read_table([piece.detach()], self.tier)

    def piece(self, inventory: Inventory) -> Piece | None:
        """What the backward that is now over brought.

        Args:
            inventory: the parameters.

        Returns:
            One block; None when no gradient arrived.
        """
        tables, self._tables = self._tables, {}
        if not tables:
            return None
        self.count += 1
        positions = sorted(tables)
        first = tables[positions[0]].device
        table = torch.cat([tables[i].to(first, non_blocking=True) for i in positions])
        return Piece("gradient", "pre_clip", inventory.watched(positions), columns_of(self.tier), table, scaled=True)
