"""One model and its optimizers during training: what the hooks do at each moment of a step."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from headwater.capture._torch_compat import at_end_of_backward, backward_number, is_flat_parameter
from headwater.capture.names import Filter
from headwater.capture.training.coverage import ADVICE, coverage_lines, not_seen
from headwater.capture.training.gradients import GradientReading, Marks, columns_of, read_table, versions
from headwater.capture.training.hooks import Hook, forget_all
from headwater.capture.training.inventory import Inventory, gradient_of
from headwater.capture.training.layers import LayerWatch
from headwater.capture.training.loss_scale import ScaledSteps, current_scale
from headwater.capture.training.micro import MicroBatches
from headwater.capture.training.optimizer_state import OptimizerReader
from headwater.capture.training.raw import Piece, RawStep
from headwater.capture.training.receiver import Options, Receiver
from headwater.capture.training.schedule import Schedule
from headwater.capture.training.sharding import local
from headwater.errors import InputError, UnhealthyError
from headwater.records.step import RunEvent

__all__ = ["Pair"]

_SENTINELS = 4
Gradients = tuple[list[int], list[Tensor]]  # positions in the inventory, and the gradients there


class Pair:
    """Watches one model and its optimizers, between them one row per optimizer step.

    Args:
        group: its name, empty when there is only one.
        model: held weakly.
        optimizers: of this model, held weakly. Several make one row together: a row ends when each has stepped.
        schedule: which steps.
        options: what of them.
        receiver: where it goes.
        keep: filter of modules and parameters.
        scaler: the GradScaler, when it was given; else it is found when it steps.
        began: ``time.perf_counter()`` when watching began.
    """

    def __init__(
        self, group: str, model: nn.Module, optimizers: Sequence[Optimizer], schedule: Schedule, options: Options,
        receiver: Receiver, keep: Filter, scaler: Any = None, began: float = 0.0,
    ) -> None:  # fmt: skip
        self.group, self.schedule, self.options, self.receiver = group, schedule, options, receiver
        self.inventory = Inventory(model, group, keep)
        self.optimizers = [weakref.ref(o) for o in optimizers]
        self._optimizer_ids = [id(o) for o in optimizers]
        self.layers = LayerWatch(model, group, keep) if schedule.activations is not None else None
        if schedule.activations == "recorded" and self.layers is not None and self.layers.compiled:
            where = ", ".join(self.layers.compiled)
            raise InputError(
                f'{where} is compiled, and hooks do not fire in compiled code: activations="recorded" cannot be had. Watch '
                "without activations, or watch the model before it is compiled"
            )
        self._reader = OptimizerReader(options.updates, together=receiver.together)
        # The sample holds on to the parameters between steps: not longer than the model lives.
        self._model = weakref.ref(
            model, functools.partial(forget_all, weakref.ref(self._reader), weakref.ref(self.layers or self._reader))
        )
        self.scaler = scaler
        self.step = 0
        self.recording = self.sampling = False
        self._next_recorded = self._held_by_optimizers = 0
        self._alone = len(optimizers) == 1
        self.own_seconds = 0.0
        self.observed_anything = False
        self.recorded_steps = 0
        self._began = began
        self._handles: list[Any] = []
        self._sentinels: list[Any] = []
        self._held: RawStep | None = None
        self._expected_backwards = 1
        self._first_step = 0
        self._last_recorded = -1
        self._clipped = False
        self._gives_before_step: bool | None = None
        self._micro = MicroBatches(options.tier) if options.micro else None
        self.missing: dict[str, str] = {}
        self._dropped_noticed = self._stepped_in_scaled_step = self._left_a_step_out = False
        self._loss: float | Tensor | None = None
        self._scalars: dict[str, float | Tensor] = {}
        self._clear()

    # ---------------------------------------------------------------- life

    def attach(self) -> None:
        """Put the hooks on and prepare for the next step."""
        for reference in self.optimizers:
            optimizer = reference()
            if optimizer is None:
                continue
            self._handles.append(optimizer.register_step_pre_hook(Hook(self, "_guarded_before_step")))
            self._handles.append(optimizer.register_step_post_hook(Hook(self, "_guarded_after_step")))
            ScaledSteps.listen(optimizer, self)
        self._first_step = self.step
        self._arm()

    def detach(self) -> None:
        """Take every hook off and hand over what is still open; the last step too, where its gradients are still there."""
        self._off()
        if self._held is not None or self.step:
            last = self._last_step()
            self.release()
            if last is not None:
                self.receiver.take(last)

    def _off(self) -> None:
        for handle in (*self._handles, *self._sentinels):
            handle.remove()
        self._handles.clear()
        self._sentinels.clear()
        if self._micro is not None:
            self._micro.remove()
        if self.layers is not None:
            self.layers.remove()
        for reference, number in zip(self.optimizers, self._optimizer_ids, strict=True):
            ScaledSteps.forget(reference(), number)

    def release(self) -> None:
        """Hand over the row that waits for a late loss."""
        held, self._held = self._held, None
        if held is not None:
            self.receiver.take(held)

    def give(self, loss: float | Tensor | None, scalars: dict[str, float | Tensor]) -> None:
        """Numbers from the training loop: of the step in progress, or of the one just taken.

        Which of the two is told by when the first ones came: before any step was taken, or after a backward whose step has
        not been taken yet, they are those of the step in progress; else of the one just taken.

        Args:
            loss: of the step.
            scalars: others.
        """
        if self._gives_before_step is None or self._marks is not None:
            self._gives_before_step = self._marks is not None or self._in_step or self.step == self._first_step
        if self._gives_before_step:
            self._loss = loss if loss is not None else self._loss
            self._scalars.update(scalars)
        elif self._held is not None:
            self._held.loss = loss if loss is not None else self._held.loss
            self._held.scalars.update(scalars)

    # ---------------------------------------------------------------- preparing a step

    def _clear(self) -> None:
        self._marks: Marks | None = None  # gradient identities and versions after the backward
        self._pre: GradientReading | None = None
        self._post: GradientReading | None = None
        self._in_step = False
        self._closure_calls: list[RawStep] = []
        self._backwards = 0
        self._queued = False  # whether the end of a backward is awaited
        self._stepped: set[int] = set()
        self._left_out: set[int] = set()
        self._parts: list[GradientReading] = []
        self._loss = None
        self._scalars = {}
        self._scale: float | Tensor = 1.0
        self._found_infinity: Tensor | None = None
        self._begun = self._looked = False
        self._row: RawStep | None = None

    def _arm(self) -> None:
        """Decide what the next step needs, and hang up the hooks for it."""
        self._clear()
        was_sampling = self.sampling
        self.recording = self.schedule.records(self.step)
        self._next_recorded = self.step if self.recording else self.schedule.following(self.step)
        self.sampling = self.recording and self.layers is not None and self.schedule.samples(self.step)
        if self.layers is not None and was_sampling and not self.sampling:
            self.layers.rest()
        if self._micro is not None:
            self._micro.begin(recording=self.recording)
        if not self.recording:
            for handle in self._sentinels:
                handle.remove()
            self._sentinels.clear()
            return
        if not self._sentinels:
            self._place_sentinels()
        if self._micro is not None:
            self._micro.watch(self.inventory)
        if self.sampling and self.layers is not None:
            self.layers.install(units=self.schedule.reads_values(self.step))

    def _look_again(self) -> None:
        """Parameters may have been frozen, unfrozen or added since the last recorded step."""
        self._looked = True
        changes = self.inventory.look_again(for_new=self.schedule.reads_values(self.step) or self._optimizers_grew())
        for kind, names in (("frozen", changes.frozen), ("unfrozen", changes.unfrozen)):
            if names:
                self._tell(kind, f"{len(names)} parameter{'s' * (len(names) > 1)} {kind}", names)
        if changes.unfrozen or changes.added:
            self._place_sentinels()
            if self._micro is not None:
                self._micro.remove()

    def _optimizers_grew(self) -> bool:
        held = sum(len(g["params"]) for r in self.optimizers if (o := r()) is not None for g in o.param_groups)
        before, self._held_by_optimizers = self._held_by_optimizers, held
        return before != held

    def _place_sentinels(self) -> None:
        """A few parameters tell when a backward is over; all of them would cost a call each."""
        for handle in self._sentinels:
            handle.remove()
        trainable = [p for p in self.inventory.tensors() if p is not None and p.requires_grad and p.is_leaf]
        trainable = [p for p in trainable if p.grad is not None] or trainable  # those that the backward reaches
        trainable = self.inventory.sentinels(trainable)
        count = len(trainable)
        spread = sorted({count - 1, 0, count // 2, count // 4}) if count else []
        self._sentinels = [
            trainable[i].register_post_accumulate_grad_hook(Hook(self, "_guarded_accumulated"))
            for i in spread[:_SENTINELS]
        ]

    # ---------------------------------------------------------------- hooks, each behind a guard

    def _guarded_before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self.recording and self._held is None:
            return None
        start = time.perf_counter()
        if self._held is not None:
            self._run(self.release)
            if not self.recording:
                self._run(self.receiver.raise_late)
        if self.recording:
            with self.inventory.standing_still():
                self._run(self._before_step, optimizer, args, kwargs)
        self.own_seconds += time.perf_counter() - start
        return self._with_telling_closure(optimizer, args, kwargs) if self._in_step and not self._begun else None

    def _with_telling_closure(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        """The step's arguments with a closure that tells when it returns: only then are the gradients what they will be."""
        # args[0] is the optimizer
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._telling(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._telling(optimizer, kwargs["closure"])}
        return None

    def _telling(self, optimizer: Optimizer, closure: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            if not self._begun:  # an optimizer that calls it again has already changed the weights
                start = time.perf_counter()
                self._run(self._about_to_step, optimizer)
                self.own_seconds += time.perf_counter() - start
            return result

        return call

    def _guarded_after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped_in_scaled_step = True
        if self.step + 1 < self._next_recorded and self._alone:  # a step of no interest
            self.step += 1
            return
        start = time.perf_counter()
        self._run(self._after_step, optimizer)
        self.own_seconds += time.perf_counter() - start

    def _guarded_accumulated(self, parameter: Tensor) -> None:
        if self._queued or not self.recording:
            return
        start = time.perf_counter()
        self._run(self._accumulated, parameter)
        self.own_seconds += time.perf_counter() - start

    def _guarded_end_of_backward(self) -> None:
        start = time.perf_counter()
        self._run(self._end_of_backward)
        self.own_seconds += time.perf_counter() - start

    def _run(self, function: Callable[..., None], *args: Any) -> None:
        """A fault of headwater's own must not end the training; what an alert raises on purpose does."""
        try:
            function(*args)
        except UnhealthyError:
            raise
        except Exception as error:
            self._off()
            self.recording = False
            self.receiver.failed(error)

    # ---------------------------------------------------------------- backward

    def _accumulated(self, parameter: Tensor) -> None:
        self._queued = True  # also through the backwards that reentrant checkpoints start inside this one
        if self._marks is not None:
            # Added to the gradient of before it is the same tensor, one version on.
            gradient = None if parameter.grad is None or is_flat_parameter(parameter) else local(parameter.grad)
            if gradient is not None and not self.inventory.knows(gradient, self._marks):
                self._dropped()
        at_end_of_backward(Hook(self, "_guarded_end_of_backward"))

    def _dropped(self) -> None:
        """The gradients of an earlier backward went away without a step: another closure call, or a step left out."""
        marks, pre = self._marks, self._pre
        self._backwards = 0
        self._marks, self._pre = None, None
        if self._in_step:
            self._end_closure_call(pre)
            return
        if marks and pre is not None and not self.receiver.together and pre.is_nonfinite():
            raw = self._raw()
            raw.skipped = "not stepped"
            self._add_gradients(raw, pre, None)
            self._finish(raw)
            self._left_a_step_out = True
        elif not self._dropped_noticed:
            self._dropped_noticed = True
            self._tell(
                "notice",
                f"the gradients of a backward before step {self.step} were dropped without an optimizer step; if this was "
                "another model's backward passing through, nothing is missing",
            )

    def _end_of_backward(self) -> None:
        self._queued = False
        self._backwards += 1
        if self.layers is not None and self.sampling:
            self.layers.end_of_backward(self.inventory)
        found = self.inventory.gradients()
        self._marks = versions(found[1])
        if self._micro is not None and (piece := self._micro.piece(self.inventory)) is not None:
            raw = self._raw()
            raw.micro = self._micro.count - 1
            raw.loss_scale = 1.0 if self.scaler is None else current_scale(self.scaler)
            raw.pieces.append(piece)
            self.receiver.take(raw)
        # With accumulation only the last backward counts: as many as the last recorded step had. Should it be another one,
        # the gradients are read when the optimizer steps, if nothing has changed them until then.
        if self._in_step or self._backwards >= self._expected_backwards:
            self._pre = self._read(found, scaled=True, marks=self._marks)
        if self._left_a_step_out:  # a loop that leaves every bad step out never comes to the next optimizer step
            self._left_a_step_out = False
            self.receiver.raise_late()

    def _read(self, found: Gradients, *, scaled: bool, marks: Marks | None = None) -> GradientReading:
        positions, gradients = found
        return GradientReading(
            positions=positions,
            table=read_table(self.inventory.complete(positions, gradients), self.options.tier),
            marks=versions(gradients) if marks is None else marks,
            scaled=scaled,
        )

    # ---------------------------------------------------------------- step

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) in self._stepped:  # it steps again before all others have: what there is makes a row
            self._finish(self._complete())
            if not self.recording:
                return
        if not self._looked:
            self.receiver.raise_late()
            self._look_again()
        if len(self.optimizers) > 1 and backward_number() != -1:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            tensors = self.inventory.tensors()
            own = [(i, g) for i, p in enumerate(tensors) if id(p) in held and (g := gradient_of(p)) is not None]
            if own:
                self._parts.append(self._read(([i for i, _ in own], [local(g) for _, g in own]), scaled=False))
            self._reader.before(self.inventory, optimizer, held)
            return
        self._in_step = True
        closure = any(map(callable, args[1:])) or callable(kwargs.get("closure"))  # args[0] is the optimizer
        self._reader.before(self.inventory, optimizer, None)
        if not closure and not self._begun:
            self._about_to_step(optimizer)

    def _about_to_step(self, optimizer: Optimizer) -> None:
        """The gradients are what the optimizer will use: after the first call of a closure, where there is one."""
        self._begun = True
        self._compare_with_backward(optimizer)
        row = self._row = self._raw()
        self._describe(row)
        if self.receiver.blocks:
            try:
                self.receiver.decide(row)
            except UnhealthyError:
                row.pieces, row.skipped = [], "not stepped"
                self._finish(row)
                raise
            row.pieces = []

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

    def _after_step(self, optimizer: Optimizer) -> None:
        if not self.recording:
            self._count(optimizer)
            return
        self._reader.after(self.inventory, optimizer)
        self._end_of_optimizer(optimizer)

    def _end_of_optimizer(self, optimizer: Optimizer) -> None:
        self._stepped.add(id(optimizer))
        if len(self._stepped) < len([o for o in self.optimizers if o() is not None]):
            return
        self._finish(self._complete())

    def _count(self, optimizer: Optimizer) -> None:
        """A step that is not recorded: as little as possible."""
        if len(self.optimizers) > 1:
            if id(optimizer) in self._stepped:
                self._stepped = {id(optimizer)}
            else:
                self._stepped.add(id(optimizer))
                if len(self._stepped) < len(self.optimizers):
                    return
                self._stepped = set()
        self.step += 1
        if self.step >= self._next_recorded:
            self._arm()

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

    # ---------------------------------------------------------------- skipped by a scaler

    def scaled_step_begins(self, scaler: Any, optimizer: Optimizer) -> None:
        """``scaler.step(optimizer)`` was called."""
        self.scaler = scaler
        self._stepped_in_scaled_step = False

    def scaled_step_ends(self, scaler: Any, optimizer: Optimizer) -> None:
        """``scaler.step(optimizer)`` returns; if no hook fired in between, the step was skipped."""
        if not self._stepped_in_scaled_step:
            start = time.perf_counter()
            self._run(self._skipped, optimizer)
            self.own_seconds += time.perf_counter() - start

    def _skipped(self, optimizer: Optimizer) -> None:
        self._tell("skipped", f"step {self.step} was skipped: the loss scaler found an infinity")
        if not self.recording:
            self._count(optimizer)
            return
        self._left_out.add(id(optimizer))
        if self._row is None:
            self._scale = current_scale(self.scaler)
            self._pre = self._pre or self._read(self.inventory.gradients(), scaled=False)
            self._row = self._raw()
            self._describe(self._row)
        self._end_of_optimizer(optimizer)
        if not self.receiver.together:  # a scaler that skips for good never comes to the next optimizer step
            self.receiver.raise_late()

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

    def _finish(self, raw: RawStep) -> None:
        """Close the row, and on to the next step."""
        self.release()  # a skipped step comes without the hook that lets the row before it go
        self.recorded_steps += 1
        self._held = raw
        self._last_recorded = self.step
        self.step += 1
        if self.receiver.throttle(self.schedule, time.perf_counter() - self._began):
            interval = self.schedule.every * self.schedule.stretch
            self._tell("throttled", f"recording every {interval} steps now, to keep its cost within max_overhead")
        if self._post is None and not self._sentinel_fired() and raw.pieces:
            self._place_sentinels()
        self._arm()

    def _sentinel_fired(self) -> bool:
        return self._marks is not None or bool(self._parts)

    def _values(self) -> list[Piece]:
        pairs = [(i, p.detach()) for i, p in enumerate(self.inventory.local_tensors()) if p is not None]
        if not pairs:
            return []
        table = read_table([p for _, p in pairs], self.options.tier)
        watched = self.inventory.watched([i for i, _ in pairs])
        return [Piece("value", None, watched, columns_of(self.options.tier), table)]

    def _last_step(self) -> RawStep | None:
        """The row of the last step, if it is not there yet and its gradients still are.

        They are what the optimizer used; that nothing clipped them is taken from the rows before.
        """
        last = self.step - 1
        if self._clipped or self.scaler is not None or last <= self._last_recorded or not self.schedule.contains(last):
            return None
        found = self.inventory.gradients()
        together = self.receiver.together  # then every rank gives its row, and all of them leave it out or none
        if (not found[0] and not together) or self._marks is not None:
            return None
        reading = self._read(found, scaled=False)
        # All zeros: zero_grad(set_to_none=False) came after the step.
        largest = reading.table[:, reading.columns.index("scaled_max_abs" if self.options.tier == "all" else "l2_norm")]
        if reading.table.device.type == "cpu" and not together and not bool((largest != 0).any()):
            return None
        self.step, now = last, self.step
        raw = self._raw()
        raw.last = True
        self._add_gradients(raw, reading, None)
        self.step = now
        self.recorded_steps += 1
        return raw

    # ---------------------------------------------------------------- what is said about it

    def held_bytes(self) -> int:
        """Memory that stays allocated between steps on the devices of the model."""
        return self._reader.held_bytes()

    def not_seen(self) -> list[tuple[str, tuple[str, ...]]]:
        """Sentences and names: what this run cannot show, known before the first step."""
        return not_seen(self.inventory, self.layers, [o for r in self.optimizers if (o := r()) is not None])

    def coverage_lines(self) -> list[str]:
        """What was observed and what was not, with reasons."""
        return coverage_lines(self.inventory, self.layers, self.step, self.recorded_steps, self.missing)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the step numbers of a saved run.

        Args:
            state: from :meth:`state_dict`.
        """
        self.step = int(state["step"])

    def rearm(self) -> None:
        """Prepare for the next step anew: its number has changed."""
        if self._handles:
            self._arm()

    def _tell(self, kind: str, message: str, names: tuple[str, ...] = ()) -> None:
        self.receiver.tell(
            RunEvent(kind=kind, step=self.step, group=self.group, time=time.time(), message=message, names=names)
        )
