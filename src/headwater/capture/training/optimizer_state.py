"""What a step did to the parameters, and the state the optimizer did it with."""

from __future__ import annotations

import math
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
        self._plans: dict[int, _MomentPlan] = {}
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
            self._plans.clear()
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
            plan = self._plans.get(id(sample))
            if plan is None or not plan.holds(optimizer, sample.tensors):
                plan = self._plans[id(sample)] = _MomentPlan(optimizer, sample.tensors)
            if plan.known:
                device = sample.read_fraction.device
                epsilon = _on([float(group["eps"]) for group in plan.groups], device)
                table = sample.second_moments(plan.moments, plan.corrections(device), epsilon)
                self._found.append(("second_moment", positions, table))

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
        self._plans.clear()
        self._found.clear()


class _MomentPlan:
    """Where the second moments of the sampled parameters are, for an optimizer of Adam's kind.

    Attributes:
        states: the optimizer's state of each parameter: as long as these are the same objects, so are the moments.
        moments: ``exp_avg_sq`` of each.
        groups: the parameter group of each.
    """

    def __init__(self, optimizer: Optimizer, tensors: Sequence[Tensor]) -> None:
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.states = [optimizer.state.get(t) for t in tensors]
        self.groups = [group_of.get(id(t), {}) for t in tensors]
        self.moments: list[Tensor] = []
        self.known = bool(self.states)
        for tensor, state, group in zip(tensors, self.states, self.groups, strict=True):
            moment = None if state is None else state.get("exp_avg_sq")
            if (
                not isinstance(moment, Tensor)
                or moment.shape != tensor.shape
                or moment.stride() != tensor.stride()
                or moment.device != tensor.device
                or "step" not in (state or {})
                or group.get("betas") is None
                or group.get("eps") is None
            ):
                self.known = False
                return
            self.moments.append(moment)

    def holds(self, optimizer: Optimizer, tensors: Sequence[Tensor]) -> bool:
        """Whether the optimizer's state is still where it was (it moves when a checkpoint is loaded)."""
        states = optimizer.state
        return all(states.get(t) is s for t, s in zip(tensors, self.states, strict=True))

    def corrections(self, device: torch.device) -> Tensor:
        """1 - β₂ᵗ of each, shape (k,)."""
        steps = [state["step"] for state in self.states if state is not None]
        decays = [float(group["betas"][1]) for group in self.groups]
        if any(isinstance(step, Tensor) and step.device.type != "cpu" for step in steps):  # capturable: counted there
            counted = torch.stack([step.reshape(()) for step in steps])
            logs = _on([math.log(decay) for decay in decays], device)
            return 1.0 - torch.exp(counted.to(logs.dtype) * logs)
        if all(isinstance(step, Tensor) for step in steps):
            steps = torch.stack([step.reshape(()) for step in steps]).tolist()
        return _on([1.0 - decay ** float(step) for decay, step in zip(decays, steps, strict=True)], device)


def _on(numbers: Sequence[float], device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    host = torch.tensor(numbers, dtype=dtype)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
