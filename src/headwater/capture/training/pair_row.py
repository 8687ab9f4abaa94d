"""The row of a step, from what the hooks have read."""

from __future__ import annotations

import time

from torch import Tensor
from torch.optim import Optimizer

from headwater.capture.training.coverage import ADVICE
from headwater.capture.training.gradients import GradientReading, Marks, columns_of, read_table, versions
from headwater.capture.training.histograms import histogram_piece
from headwater.capture.training.loss_scale import current_scale
from headwater.capture.training.pair_state import PairState
from headwater.capture.training.raw import Piece, RawStep

__all__ = ["Gradients", "RowMaker"]

Gradients = tuple[list[int], list[Tensor]]  # positions in the inventory, and the gradients there


class RowMaker(PairState):
    """Reads gradients, and puts what was read together as one row; see :class:`PairState` for the arguments."""

    # ---------------------------------------------------------------- gradients

    def _read(self, found: Gradients, *, scaled: bool, marks: Marks | None = None) -> GradientReading:
        positions, gradients = found
        return GradientReading(
            positions=positions,
            table=read_table(self.inventory.complete(positions, gradients), self.options.tier),
            marks=versions(gradients) if marks is None else marks,
            scaled=scaled,
        )

    def _compare_with_backward(self, optimizer: Optimizer) -> None:
        """Settle which gradient was read, and read what is missing."""
        found = self.inventory.gradients()
        scale, infinity = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        fused = isinstance(scale, Tensor)
        if isinstance(infinity, Tensor):
            self._found_infinity = infinity.detach().clone().reshape(())
        if fused and isinstance(scale, Tensor):
            self._scale = scale.detach().clone().reshape(()) if scale.device.type != "cpu" else float(scale)
        elif self.scaler is not None:
            self._scale = current_scale(self.scaler)
        now = versions(found[1])
        if self._pre is not None and self._pre.marks == now:
            if self.inventory.sharded:  # what changes a DTensor in place leaves no mark: the recorder compares
                self._post = self._read(found, scaled=fused, marks=now)
        elif self._pre is not None and self._pre.marks == self._marks:
            self._post = self._read(found, scaled=fused, marks=now)
        elif self._marks == now:
            self._pre = self._read(found, scaled=fused, marks=now)
        else:
            self._post, self._pre = self._read(found, scaled=fused, marks=now), None
        self._expected_backwards = max(1, self._backwards)

    # ---------------------------------------------------------------- closures

    def _end_closure_call(self, reading: GradientReading | None) -> None:
        raw = self._raw()
        raw.micro = len(self._closure_calls)
        if reading is not None:
            self._add_gradients(raw, reading, None)
        self._closure_calls.append(raw)

    def _settle_closure(self) -> None:
        """After a step that called a closure more than once: a row for each call; the step's own is about the first."""
        if self._closure_calls:
            self._end_closure_call(self._pre)
            for raw in self._closure_calls:
                self.receiver.take(raw)
            self._closure_calls = []

    # ---------------------------------------------------------------- the row

    def _raw(self) -> RawStep:
        return RawStep(
            group=self.group,
            step=self.step,
            time=time.time(),
            elapsed_seconds=time.perf_counter() - self._began,
            loss=self._loss,
            scalars=dict(self._scalars),
            learning_rate=self._learning_rate(),
            loss_scale=self._scale,
            found_infinity=self._found_infinity,
        )

    def _learning_rate(self) -> float | Tensor | None:
        for reference in self.optimizers:
            optimizer = reference()
            if optimizer is not None and optimizer.param_groups:
                rate = optimizer.param_groups[0].get("lr")
                if isinstance(rate, Tensor):
                    return rate.detach().clone().reshape(()) if rate.device.type != "cpu" else float(rate)
                return None if rate is None else float(rate)
        return None

    def _complete(self) -> RawStep:
        """The row of the step that has just been taken."""
        self._settle_closure()
        raw = self._row
        if raw is None:  # optimizers that step inside the backward
            raw = self._raw()
            self._describe(raw)
        if self._left_out and self._left_out == self._stepped:
            raw.skipped = "amp"
        if self._loss is not None:
            raw.loss = self._loss
        raw.scalars.update(self._scalars)
        raw.pieces += self._reader.pieces(self.inventory)
        return raw

    def _describe(self, raw: RawStep) -> None:
        """What is known before the optimizer steps: gradients, and on a sampled step layers and values."""
        raw.read_twice = self.inventory.sharded
        if self._parts:
            raw.clip_known = False
            self._add_gradients(raw, GradientReading.joined(self._parts), None)
        else:
            self._add_gradients(raw, self._pre, self._post)
        if self.schedule.reads_values(self.step):
            raw.pieces += self._values()
            if self.options.histograms and not self.receiver.together:
                piece = histogram_piece(self.inventory, *self.inventory.gradients())
                raw.pieces += [] if piece is None else [piece]
        if self.sampling and self.layers is not None:
            raw.activations = self.layers.end_of_step()
            raw.pieces += self.layers.pieces(self.step)
            if not raw.activations and raw.pieces and not self.layers.silent:
                self.layers.silent = True  # tried once: hooks do not fire in what has been compiled around the model
                if not self.layers.compiled:
                    self._tell("not_observed", f"no layer was seen: the model was compiled, or is not called; {ADVICE}")

    def _add_gradients(self, raw: RawStep, before: GradientReading | None, after: GradientReading | None) -> None:
        columns = before.columns if before is not None else after.columns if after is not None else ()
        if before is not None and len(before.positions):
            watched = self.inventory.watched(before.positions)
            raw.pieces.append(Piece("gradient", "pre_clip", watched, columns, before.table, before.scaled))
        if after is not None and len(after.positions):
            self._clipped = True
            watched = self.inventory.watched(after.positions)
            raw.pieces.append(Piece("gradient", "post_clip", watched, columns, after.table, after.scaled))
        reading = after or before
        seen = [] if reading is None else reading.positions
        if seen:
            self.observed_anything = True
        if len(seen) < len(self.inventory.tracked):
            there = set(seen)
            for position, tracked in enumerate(self.inventory.tracked):
                if position not in there and tracked.watched.trainable:
                    raw.missing[tracked.watched.name] = self.inventory.reason(position)
            new = tuple(name for name in raw.missing if name not in self.missing)
            if new:
                self._tell(
                    "not_observed", f"{len(new)} of {len(self.inventory.tracked)} parameters have no gradient", new
                )
        self.missing = dict(raw.missing)
        raw.missing.update(self.inventory.excluded)

    def _values(self) -> list[Piece]:
        pairs = [(i, p.detach()) for i, p in enumerate(self.inventory.local_tensors()) if p is not None]
        if not pairs:
            return []
        table = read_table([p for _, p in pairs], self.options.tier)
        watched = self.inventory.watched([i for i, _ in pairs])
        return [Piece("value", None, watched, columns_of(self.options.tier), table)]

    def _last_step(self) -> RawStep | None:
        """The row of the last step, if it is not there yet: with its gradients where they still are, else without."""
        last = self.step - 1
        if last <= self._last_recorded or not self.schedule.contains(last):
            return None
        reading = self._last_gradients()
        if reading is None and self.receiver.together:  # all ranks give a row or none does
            return None
        self.step, now = last, self.step
        raw = self._raw()
        self.step = now
        raw.last = True
        given, raw.loss, scalars = self._given
        raw.scalars = dict(scalars)
        if given != last:
            raw.loss, raw.scalars = None, {}
        # A tensor may be another one's by now.
        raw.learning_rate = None if isinstance(self._rate, Tensor) else self._rate
        if reading is not None:
            # Where the rows before were clipped, this is the gradient after it; the one before is gone.
            raw.clip_known = not self._clipped
            self._add_gradients(raw, *((None, reading) if self._clipped else (reading, None)))
        else:
            raw.clip_known = False
            raw.loss_scale = 1.0 if self.scaler is None else None
            raw.skipped = "amp" if self._skipped_step == last else None
        self.recorded_steps += 1
        return raw

    def _last_gradients(self) -> GradientReading | None:
        """What the last step's optimizer used; whether it was clipped is taken from the rows before."""
        if self.scaler is not None or self._marks is not None:
            return None
        found = self.inventory.gradients()
        together = self.receiver.together  # then every rank gives its row, and all of them leave it out or none
        if not found[0] and not together:
            return None
        reading = self._read(found, scaled=False)
        # All zeros: zero_grad(set_to_none=False) came after the step.
        largest = reading.table[:, reading.columns.index("scaled_max_abs" if self.options.tier == "all" else "l2_norm")]
        if reading.table.device.type == "cpu" and not together and not bool((largest != 0).any()):
            return None
        return reading
