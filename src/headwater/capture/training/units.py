"""Dead and saturated units of an activation, from its derivative, over a window of sampled steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headwater.capture.slopes import DEAD_SLOPE, SATURATED_SLOPE, Elementwise, SlopeReader
from headwater.records.step import WatchedTensor
from headwater.stats import alive_units

__all__ = ["PACE", "UNIT_COLUMNS", "WINDOW_STEPS", "UnitReading", "UnitWindows", "read_units"]

WINDOW_STEPS = 3
"""Sampled steps over which a unit must be flat for every sample to be called dead: with fewer, one odd batch decides; with
more, a unit that has died goes on being called alive for as many looks as it was still alive in (chosen by us)."""

PACE = 2
"""By what factor the distance between looks may grow within one window. The early looks (0, 1, 2, 4, 8) are a few steps
apart, the later ones hundreds: together they would ask whether a unit was off for the network of both times. So the early
ones leave as soon as there is a later one (chosen by us: the factor by which the early looks, and a throttled schedule,
grow)."""

UNIT_COLUMNS = ("unit_count", "dead_count", "saturated_fraction", "window_steps")


@dataclass(slots=True)
class UnitReading:
    """Of one call: which units were alive, and how many elements were saturated.

    Attributes:
        alive: shape (units,), uint8.
        saturated: 0-dimensional count; None for an activation that is not flat at both ends.
        elements: of the output.
    """

    alive: Tensor
    saturated: Tensor | None
    elements: int


@torch.no_grad()
def read_units(
    reader: SlopeReader, function: Elementwise, in_place: bool, x: Any, y: Tensor, *, channels_first: bool
) -> UnitReading | None:
    """Look at one call of an activation.

    Args:
        reader: what is known about each function.
        function: the activation.
        in_place: whether it overwrites its input.
        x: its first argument.
        y: its output.
        channels_first: whether dimension 1 holds the units of an output with more than two dimensions.

    Returns:
        The reading; None where the slope cannot be had: a random activation, one that overwrote its input and whose
        slope does not follow from the output, a complex or empty output, parameters on an accelerator.
    """
    if y.numel() == 0 or y.dim() < 2 or y.is_complex() or not y.is_floating_point():
        return None
    if function.device is not None and function.device.type != "cpu":
        return None
    units_last = y.dim() > 2 and not channels_first
    if function.name == "relu":
        slope, limit = y.detach(), 0.0
    else:
        if function.name is None and (in_place or not isinstance(x, Tensor)):
            return None
        if function.name is None and x.shape != y.shape:
            return None
        slope = function.slope(x if function.name is None else y, y.detach())
        limit = DEAD_SLOPE * reader.shape(function).largest
    units = slope.flatten(0, -2) if units_last else slope
    alive = torch.zeros(units.shape[1], dtype=torch.uint8, device=y.device)
    alive_units(units, limit, alive)
    if function.name == "relu":
        return UnitReading(alive, None, y.numel())
    shape = reader.shape(function)
    saturated = (slope.abs() < SATURATED_SLOPE * shape.largest).sum() if shape.bounded else None
    return UnitReading(alive, saturated, y.numel())


@dataclass
class UnitWindows:
    """What the recorder's thread remembers of each layer's units: one mask per sampled step, the last few of them.

    Attributes:
        masks: by the layer's name.
        last_step: of the look before; None before the first.
        gap_steps: from the look before that to it; None before the second.
    """

    masks: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)
    last_step: int | None = None
    gap_steps: int | None = None

    def rows(
        self, step: int, layers: Sequence[tuple[WatchedTensor, int, bool, int]], masks: Tensor, saturated: Tensor | None
    ) -> tuple[tuple[WatchedTensor, ...], tuple[str, ...], list[list[float]]]:
        """The block of one sampled step.

        Args:
            step: the optimizer step.
            layers: (layer, number of units, whether there is a saturated count, elements of the output).
            masks: of all layers, one after the other, in main memory.
            saturated: the counts, in the same order.

        Returns:
            Layers, columns and rows.
        """
        self._keep_pace(step)
        # A byte per unit, 1 for alive: their OR is that of two large integers. Flags from an accelerator come as numbers.
        found = masks.tolist()
        flags = bytes(found if masks.dtype == torch.uint8 else map(int, found))
        counts = iter([] if saturated is None else saturated.tolist())
        rows: list[list[float]] = []
        start = 0
        for layer, units, has_saturated, elements in layers:
            window = self.masks.setdefault(layer.name, deque(maxlen=WINDOW_STEPS))
            if window and window[-1][1] != units:
                window.clear()
            window.append((int.from_bytes(flags[start : start + units], "little"), units))
            start += units
            alive = 0
            for mask, _ in window:
                alive |= mask
            share = float(next(counts)) / max(1, elements) if has_saturated else float("nan")
            rows.append([float(units), float(units - alive.bit_count()), share, float(len(window))])
        return tuple(layer for layer, *_ in layers), UNIT_COLUMNS, rows

    def _keep_pace(self, step: int) -> None:
        """Let the looks before go when this one is much farther from them than they are from each other."""
        if step == self.last_step:
            return
        gap = None if self.last_step is None else step - self.last_step
        if gap is not None and self.gap_steps is not None and gap > PACE * self.gap_steps:
            self.masks.clear()
        self.last_step, self.gap_steps = step, gap
