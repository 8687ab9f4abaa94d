"""What a step did to the parameters, and the state the optimizer did it with."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from headwater.capture.training.inventory import Inventory
from headwater.capture.training.raw import Piece
from headwater.capture.training.updates import ElementSample, WholeTensors, is_sampleable

__all__ = ["OptimizerReader"]

_UPDATE_COLUMNS = ("update_ratio", "read_fraction")
_MOMENT_COLUMNS = ("root_rms", "epsilon", "below_epsilon_fraction")


class _Samples:
    """The samples of the parameters of one optimizer, one per device, for as long as the parameters stay the same."""

    def __init__(self, key: tuple[Any, ...], members: Sequence[tuple[int, Tensor]], exact: bool) -> None:
        self.key = key
        by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for position, tensor in members:
            by_device.setdefault(tensor.device, []).append((position, tensor))
        self.parts = [
            ([i for i, _ in part], (WholeTensors if exact else ElementSample)([t for _, t in part]))
            for part in by_device.values()
        ]


class OptimizerReader:
    """Reads the same elements of every parameter before and after a step, per optimizer.

    Args:
        updates: ``sampled``, ``exact`` (every element), or None for nothing at all.
    """

    def __init__(self, updates: Literal["sampled", "exact"] | None) -> None:
        self.updates = updates
        self._samples: dict[int, _Samples] = {}
        self._found: list[tuple[str, list[int], Tensor]] = []

    def before(self, inventory: Inventory, optimizer: Optimizer, held: set[int] | None) -> None:
        """Keep the elements as they are before the step.

        Args:
            inventory: the parameters.
            optimizer: the one that is about to step.
            held: ``id`` of its parameters, or None to find out.
        """
        if self.updates is None:
            return
        tensors = inventory.tensors()
        key = (tuple(map(id, tensors)), sum(len(g["params"]) for g in optimizer.param_groups))
        samples = self._samples.get(id(optimizer))
        if samples is None or samples.key != key:
            held = held or {id(p) for group in optimizer.param_groups for p in group["params"]}
            members = [(i, p) for i, p in enumerate(tensors) if p is not None and id(p) in held and is_sampleable(p)]
            samples = self._samples[id(optimizer)] = _Samples(key, members, self.updates == "exact")
        for _, sample in samples.parts:
            sample.snapshot()

    def after(self, inventory: Inventory, optimizer: Optimizer) -> None:
        """Read the elements again.

        Args:
            inventory: the parameters.
            optimizer: the one that has stepped.
        """
        samples = self._samples.get(id(optimizer))
        if self.updates is None or samples is None:
            return
        for positions, sample in samples.parts:
            self._found.append(("update", positions, sample.ratios()))
            moments = _second_moments(optimizer, positions, sample)
            if moments is not None:
                self._found.append(moments)

    def pieces(self, inventory: Inventory) -> list[Piece]:
        """What was read since the last call.

        Args:
            inventory: the parameters.

        Returns:
            The pieces of the row.
        """
        found, self._found = self._found, []
        pieces = []
        for quantity, columns in (("update", _UPDATE_COLUMNS), ("second_moment", _MOMENT_COLUMNS)):
            parts = [(positions, table) for name, positions, table in found if name == quantity]
            if not parts:
                continue
            positions = [i for part, _ in parts for i in part]
            tables = [table for _, table in parts]
            table = (
                tables[0]
                if len(tables) == 1
                else torch.cat([t.to(tables[0].device, non_blocking=True) for t in tables])
            )
            pieces.append(Piece(quantity, None, inventory.watched(positions), columns, table))  # type: ignore[arg-type]
        return pieces

    def held_bytes(self) -> int:
        """Memory that the samples hold on to."""
        return sum(part.held_bytes() for samples in self._samples.values() for _, part in samples.parts)

    def forget(self) -> None:
        """Let go of every tensor."""
        self._samples.clear()
        self._found.clear()


_group_of: weakref.WeakKeyDictionary[Optimizer, tuple[int, dict[int, dict[str, Any]]]] = weakref.WeakKeyDictionary()


def _groups(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    size = sum(len(group["params"]) for group in optimizer.param_groups)
    known = _group_of.get(optimizer)
    if known is None or known[0] != size:
        known = (size, {id(p): group for group in optimizer.param_groups for p in group["params"]})
        _group_of[optimizer] = known
    return known[1]


def _second_moments(
    optimizer: Optimizer, positions: Sequence[int], sample: ElementSample
) -> tuple[str, list[int], Tensor] | None:
    """Of an optimizer of Adam's kind: one with ``exp_avg_sq``, ``betas`` and ``eps``."""
    groups = _groups(optimizer)
    sources: list[Tensor] = []
    steps: list[float | Tensor] = []
    decays: list[float] = []
    epsilons: list[float] = []
    for tensor in sample.tensors:
        state, group = optimizer.state.get(tensor) or {}, groups.get(id(tensor))
        moment = state.get("exp_avg_sq")
        if moment is None or group is None or moment.shape != tensor.shape or moment.stride() != tensor.stride():
            return None
        step, betas, epsilon = state.get("step"), group.get("betas"), group.get("eps")
        if step is None or betas is None or epsilon is None:
            return None
        sources.append(moment)
        steps.append(step)
        decays.append(float(betas[1]))
        epsilons.append(float(epsilon))
    if not sources:
        return None
    device = sample.read_fraction.device
    if any(isinstance(step, Tensor) and step.device.type != "cpu" for step in steps):  # capturable: counted there
        counted = torch.stack([step.reshape(()) for step in steps if isinstance(step, Tensor)])
        powers = torch.exp(counted.to(sample.read_fraction.dtype) * _on([math.log(d) for d in decays], device))
        corrections = 1.0 - powers
    else:
        corrections = _on([1.0 - d ** float(t) for d, t in zip(decays, steps, strict=True)], device)
    table = sample.second_moments(sources, corrections, _on(epsilons, device))
    return "second_moment", list(positions), table


def _on(numbers: Sequence[float], device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    host = torch.tensor(numbers, dtype=dtype)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
