"""What a step did to the parameters, and the state the optimizer did it with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from headwater.capture.training.additive import CHANGE_COLUMNS
from headwater.capture.training.inventory import Inventory
from headwater.capture.training.raw import Piece
from headwater.capture.training.sharding import local
from headwater.capture.training.updates import ElementSample, WholeTensors, is_sampleable

__all__ = ["OptimizerReader"]

_UPDATE_COLUMNS = ("update_ratio", "read_fraction")
_STEPS_ASKED_EVERY = 16  # recorded steps; chosen by us
_MOMENT_COLUMNS = ("root_rms", "epsilon", "below_epsilon_fraction")


class _Samples:
    """The samples of the parameters of one optimizer, one per device, for as long as the parameters stay the same."""

    def __init__(self, key: tuple[Any, ...], members: Sequence[tuple[int, Tensor, Tensor]], exact: bool) -> None:
        self.key = key
        by_device: dict[torch.device, list[tuple[int, Tensor, Tensor]]] = {}
        for member in members:
            by_device.setdefault(member[2].device, []).append(member)
        self.parts = [
            (
                [i for i, _, _ in part],
                [p for _, p, _ in part],
                (WholeTensors if exact else ElementSample)([t for _, _, t in part]),
            )
            for part in by_device.values()
        ]


class OptimizerReader:
    """Reads the same elements of every parameter before and after a step, per optimizer.

    Args:
        updates: ``sampled``, ``exact`` (every element), or None for nothing at all.
        together: whether other ranks hold pieces too: the norms before and of the change are then kept apart.
    """

    def __init__(self, updates: Literal["sampled", "exact"] | None, *, together: bool = False) -> None:
        self.updates, self.together = updates, together
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
        tensors = inventory.local_tensors()
        key = (tuple(map(id, tensors)), sum(len(g["params"]) for g in optimizer.param_groups))
        samples = self._samples.get(id(optimizer))
        if samples is None or samples.key != key:
            held = held or {id(p) for group in optimizer.param_groups for p in group["params"]}
            members = [
                (i, p, t)
                for i, (p, t) in enumerate(zip(inventory.tensors(), tensors, strict=True))
                if p is not None and t is not None and id(p) in held and is_sampleable(t)
            ]
            self._plans.clear()
            samples = self._samples[id(optimizer)] = _Samples(key, members, self.updates == "exact")
        for _, _, sample in samples.parts:
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
        for positions, owners, sample in samples.parts:
            table = sample.changes() if self.together else sample.ratios()
            self._found.append(("update", positions, table))
            plan = self._plans.get(id(sample))
            if plan is None or not plan.holds(optimizer, owners):
                plan = self._plans[id(sample)] = _MomentPlan(optimizer, owners, sample.tensors)
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
        changes = CHANGE_COLUMNS if self.together else _UPDATE_COLUMNS
        for quantity, columns in (("update", changes), ("second_moment", _MOMENT_COLUMNS)):
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
        return sum(part.held_bytes() for samples in self._samples.values() for *_, part in samples.parts)

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

    def __init__(self, optimizer: Optimizer, owners: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self.states = [optimizer.state.get(p) for p in owners]
        self.groups = [group_of.get(id(p), {}) for p in owners]
        self.moments: list[Tensor] = []
        self._asked = 0
        self._behind: list[float] = []
        self.known = bool(self.states)
        for tensor, state, group in zip(tensors, self.states, self.groups, strict=True):
            moment = None if state is None else state.get("exp_avg_sq")
            moment = local(moment) if isinstance(moment, Tensor) else None
            if (
                moment is None
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

    def holds(self, optimizer: Optimizer, owners: Sequence[Tensor]) -> bool:
        """Whether the optimizer's state is still where it was (it moves when a checkpoint is loaded)."""
        ends = (0, -1) if self.states else ()
        return all(optimizer.state.get(owners[i]) is self.states[i] for i in ends)

    def corrections(self, device: torch.device) -> Tensor:
        """1 - β₂ᵗ of each, shape (k,)."""
        steps = [state["step"] for state in self.states if state is not None]
        decays = [float(group["betas"][1]) for group in self.groups]
        if any(isinstance(step, Tensor) and step.device.type != "cpu" for step in steps):  # capturable: counted there
            counted = torch.stack([step.reshape(()) for step in steps])
            logs = _on([math.log(decay) for decay in decays], device)
            return 1.0 - torch.exp(counted.to(logs.dtype) * logs)
        # They count together; which were behind is looked up now and then.
        first = float(steps[0])
        if self._asked % _STEPS_ASKED_EVERY == 0:
            self._behind = [first - float(step) for step in steps]
        self._asked += 1
        behind = zip(decays, self._behind, strict=True)
        return _on([1.0 - decay ** (first - less) for decay, less in behind], device)


def _on(numbers: Sequence[float], device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    host = torch.tensor(numbers, dtype=dtype)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
