"""Real training as step records: a slow, obvious twin of what ``headwater.watch`` records."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

import headwater as hw
from headwater.records import (
    NORM_COLUMNS,
    STATISTICS_COLUMNS,
    Block,
    Profile,
    RunContext,
    Statistics,
    StepRecord,
    WatchedTensor,
    profile_of_step,
)
from headwater.stats import moment_table

Batch = tuple[Tensor, Tensor]


@dataclass
class Training:
    """A training run, recorded at every ``every``-th step from the start.

    Attributes:
        model: leaf modules are watched.
        optimizer: over its parameters.
        batches: step to (inputs, targets).
        loss_fn: of (outputs, targets).
        loss_factor: the loss times this; what should change nothing.
        clip: limit of ``clip_grad_norm_``, or None.
        every: recorded steps; the first five at 0, 1, 2, 4, 8 in any case.
        layers: look at layers at every so many recorded steps, and at the first five.
        before_backward: called with the step before the forward: the place to plant a fault.
        before_step: called with the step after the backward and the reading of its gradients.
        window: how many looked-at steps a unit must be dead for.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], Batch]
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    loss_factor: float = 1.0
    clip: float | None = None
    every: int = 1
    layers: int = 1
    norms_only: bool = False
    before_forward: Callable[[int], None] | None = None
    before_step: Callable[[int], None] | None = None
    scheduler: object | None = None
    window: int = 4
    losses: list[float] = field(default_factory=list)

    def records(self, steps: int) -> Iterator[tuple[StepRecord, Profile | None]]:
        inputs, targets = self.batches(0)
        base = hw.measure(self.model, inputs, targets, self.loss_fn)
        by_name = {q.name: q for q in base.parameters}
        self._watched = {
            name: WatchedTensor(
                kind="parameter", name=name, shape=tuple(p.shape), dtype=str(p.dtype)[6:],
                role=by_name[name].role, layer=by_name[name].layer, order=order,
                fan_in=by_name[name].fan_in, fan_out=by_name[name].fan_out,
            )
            for order, name in enumerate(q.name for q in base.parameters)
            for p in [self.model.get_parameter(name)]
        }  # fmt: skip
        self._layers = {row.name: row for row in base.layers}
        self._dead: dict[str, deque[Tensor]] = {}
        recorded = 0
        for step in range(steps):
            if self.before_forward is not None:
                self.before_forward(step)
            is_recorded = step % self.every == 0 or step in (0, 1, 2, 4, 8)
            looked = is_recorded and (recorded < 5 or recorded % self.layers == 0)
            recorded += is_recorded
            record = self._step(step, looked, is_recorded)
            if is_recorded:
                assert record is not None
                yield record, profile_of_step(record, RunContext()) if looked else None

    def _step(self, step: int, looked: bool, is_recorded: bool) -> StepRecord | None:
        inputs, targets = self.batches(step)
        outputs: dict[str, Tensor] = {}
        handles = []
        if looked:
            for name, module in self.model.named_modules():
                if name in self._layers:
                    handles.append(module.register_forward_hook(_Keep(name, outputs)))
        self.model.train()
        loss = self.loss_fn(self.model(inputs), targets)
        for handle in handles:
            handle.remove()
        self.losses.append(loss.item())
        self.optimizer.zero_grad()
        (loss * self.loss_factor).backward()
        named = [(name, p) for name, p in self.model.named_parameters() if p.grad is not None and name in self._watched]
        blocks: list[Block] = []
        rate = self.optimizer.param_groups[0]["lr"]
        coefficient = 1.0
        if is_recorded:
            blocks.append(self._block("gradient", "pre_clip", [(n, p.grad) for n, p in named]))
            blocks.append(self._block("value", None, [(n, p.detach()) for n, p in named]))
            if looked:
                blocks += self._of_layers(outputs)
        if self.clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip))
            coefficient = min(1.0, self.clip / (norm + 1e-6)) if math.isfinite(norm) else math.nan
            if coefficient < 1.0 and is_recorded:
                blocks.append(self._block("gradient", "post_clip", [(n, p.grad) for n, p in named]))
        if self.before_step is not None:
            self.before_step(step)
        before = {n: p.detach().clone() for n, p in named} if is_recorded else {}
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if not is_recorded:
            return None
        rows = []
        for name, p in named:
            size = float(before[name].double().norm())
            rows.append((float((p.detach() - before[name]).double().norm()) / size if size else math.nan, 1.0))
        tensors = tuple(self._watched[n] for n, _ in named)
        blocks.append(Block(quantity="update", tensors=tensors, columns=("update_ratio", "read_fraction"), rows=rows))
        blocks += self._second_moments(named)
        return StepRecord(
            step=step, time=0.0, elapsed_seconds=0.0, loss=self.losses[-1] * self.loss_factor, learning_rate=rate,
            clip_coefficient=coefficient, activations=looked, blocks=tuple(blocks),
        )  # fmt: skip

    def _block(self, quantity: str, phase: str | None, tensors: list[tuple[str, Tensor]]) -> Block:
        watched = tuple(self._watched[name] for name, _ in tensors)
        rows = moment_table([t for _, t in tensors]).tolist()
        if self.norms_only:
            rows = [[s.l2_norm, s.nan_count, s.inf_count] for s in (Statistics(*map(int, r[:5]), *r[5:]) for r in rows)]
        columns = NORM_COLUMNS if self.norms_only else STATISTICS_COLUMNS
        return Block(quantity=quantity, phase=phase, tensors=watched, columns=columns, rows=rows)

    def _of_layers(self, outputs: dict[str, Tensor]) -> list[Block]:
        rows = sorted(((self._layers[name], t) for name, t in outputs.items()), key=lambda row: row[0].order)
        watched = [
            WatchedTensor(
                kind="layer", name=row.name, shape=tuple(t.shape), dtype="float32", type=row.type, layer_kind=row.kind,
                order=row.order, on_trunk=row.on_trunk,
            )
            for row, t in rows
        ]  # fmt: skip
        blocks = [
            Block(quantity="activation", tensors=tuple(watched), columns=STATISTICS_COLUMNS,
                  rows=moment_table([t.detach() for _, t in rows]).tolist())
        ]  # fmt: skip
        with_gradient = [(w, t.grad) for w, (_, t) in zip(watched, rows, strict=True) if t.grad is not None]
        blocks.append(
            Block(quantity="output_gradient", tensors=tuple(w for w, _ in with_gradient), columns=STATISTICS_COLUMNS,
                  rows=moment_table([g for _, g in with_gradient]).tolist())
        )  # fmt: skip
        units = [(w, u) for w, (_, t) in zip(watched, rows, strict=True) if (u := self._units(w, t)) is not None]
        if units:
            columns = ("unit_count", "dead_count", "saturated_fraction", "window_steps")
            tensors = tuple(w for w, _ in units)
            blocks.append(Block(quantity="units", tensors=tensors, columns=columns, rows=[u for _, u in units]))
        return blocks

    def _units(self, watched: WatchedTensor, output: Tensor) -> tuple[float, ...] | None:
        y = output.detach()
        if watched.type == "ReLU":
            off = y <= 0
        elif watched.type == "Tanh":
            off = 1 - y**2 < 1e-3
        elif watched.type == "Sigmoid":
            off = 4 * y * (1 - y) < 1e-3
        else:
            return None
        flat = off.transpose(0, 1).flatten(1) if y.dim() == 4 else off.flatten(0, -2).T
        kept = self._dead.setdefault(watched.name, deque(maxlen=self.window))
        kept.append(flat.all(1))
        slope = {"Tanh": lambda: 1 - y**2, "Sigmoid": lambda: 4 * y * (1 - y)}.get(watched.type)
        saturated = float((slope() < 0.05).double().mean()) if slope is not None else math.nan
        return len(flat), float(torch.stack(list(kept)).all(0).sum()), saturated, len(kept)

    def _second_moments(self, named: list[tuple[str, nn.Parameter]]) -> list[Block]:
        rows, tensors = [], []
        for group in self.optimizer.param_groups:
            for name, p in named:
                state = self.optimizer.state.get(p, {})
                if "exp_avg_sq" in state and any(p is q for q in group["params"]):
                    v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                    rows.append((
                        float(v.double().mean().sqrt()), group["eps"], float((v.sqrt() < group["eps"]).double().mean())
                    ))  # fmt: skip
                    tensors.append(self._watched[name])
        columns = ("root_rms", "epsilon", "below_epsilon_fraction")
        return [Block(quantity="second_moment", tensors=tuple(tensors), columns=columns, rows=rows)] if rows else []


class _Keep:
    def __init__(self, name: str, outputs: dict[str, Tensor]) -> None:
        self.name, self.outputs = name, outputs

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.retain_grad()
            self.outputs[self.name] = tensor


def replaced(record: StepRecord, **changes: object) -> StepRecord:
    """A record with some fields changed."""
    return replace(record, **changes)
