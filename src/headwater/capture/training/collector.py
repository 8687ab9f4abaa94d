"""Statistics of many tensors that pass one after the other, read a few at a time."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from headwater.capture.training.gradients import read_table
from headwater.stats import moment_table

__all__ = ["HELD_BYTES", "HELD_TENSORS", "Collector", "joined"]

_ON_CPU, _DEVICE = attrgetter("is_cpu"), attrgetter("device")

HELD_BYTES = 1 << 20
"""Tensors are held until together they are this large: as long as they are in the cache, and too little to be felt in
memory (chosen by us)."""
HELD_TENSORS = 16
"""And no more than this many (chosen by us)."""


class Collector:
    """Collects tensors and reads them in batches: one call of the statistics for many small tensors.

    A tensor that something wrote to between :meth:`add` and the reading is lost: its row is NaN, and :meth:`finish` says
    which.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._held: list[tuple[Tensor, int, int]] = []
        self._watched: list[tuple[Tensor, int, int]] = []
        self._bytes = 0
        self._count = 0
        self._tables: list[Tensor] = []
        self._lost: set[int] = set()

    def __len__(self) -> int:
        return self._count

    def add(self, tensor: Tensor, *, at_once: bool = False) -> int:
        """Take a tensor.

        Args:
            tensor: held until it is read.
            at_once: read it now; it is then held a little longer, to see whether something overwrites it.

        Returns:
            The number of its row.
        """
        slot = self._count
        self._count += 1
        if at_once:
            self._read()
            self._tables.append(read_table([tensor.detach()], "all"))
            self._look_back()
            self._watched.append((tensor, tensor._version, slot))
            return slot
        self._held.append((tensor, tensor._version, slot))
        self._bytes += tensor.nbytes
        if self._bytes >= HELD_BYTES or len(self._held) >= HELD_TENSORS:
            self._read()
        return slot

    def _look_back(self) -> None:
        self._lost |= {slot for tensor, version, slot in self._watched if tensor._version != version}
        del self._watched[:-4]

    def _read(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        if not held:
            return
        changed = [i for i, (tensor, version, _) in enumerate(held) if tensor._version != version]
        tensors = [tensor for tensor, _, _ in held]
        same = all(map(_ON_CPU, tensors)) or len(set(map(_DEVICE, tensors))) == 1
        table = moment_table(tensors) if same else read_table(tensors, "all")
        if changed:
            table[changed] = float("nan")
            self._lost |= {held[i][2] for i in changed}
        self._tables.append(table)

    def finish(self) -> set[int]:
        """Read what is still held.

        Returns:
            Numbers of the rows that were overwritten before they were read, or (read at once) soon after.
        """
        self._read()
        self._look_back()
        self._watched.clear()
        return self._lost

    def table(self, slots: Sequence[int] | None = None) -> Tensor:
        """The rows; call :meth:`finish` before.

        Args:
            slots: which, in this order; None for all of them.

        Returns:
            Shape (k, 11).
        """
        table = joined(self._tables)
        if slots is None:
            return table
        return table[torch.tensor(slots).to(table.device, non_blocking=True)]


def joined(tables: Sequence[Tensor]) -> Tensor:
    """Tables one after the other, on the device of the first.

    Args:
        tables: at least one.

    Returns:
        All rows.
    """
    first = tables[0].device
    return torch.cat([t if t.device == first else t.to(first, non_blocking=True) for t in tables])
