"""One model and its optimizers during training: what the hooks do at each moment of a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from headwater.capture._torch_compat import at_end_of_backward, backward_number, is_flat_parameter
from headwater.capture.training.gradients import versions
from headwater.capture.training.hooks import Hook
from headwater.capture.training.inventory import gradient_of
from headwater.capture.training.loss_scale import ScaledSteps, current_scale
from headwater.capture.training.pair_row import RowMaker
from headwater.capture.training.raw import RawStep
from headwater.capture.training.sharding import local
from headwater.errors import UnhealthyError

__all__ = ["Pair"]

_SENTINELS = 4


class Pair(RowMaker):
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
        """Take every hook off and hand over what is still open; the last step too, with its gradients if they are there."""
        watching = bool(self._handles)  # not after a fault, since when no step was counted
        self._off()
        if self._held is not None or self.step:
            last = self._last_step() if watching else None
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

    # ---------------------------------------------------------------- preparing a step

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
        if not self.recording and id(optimizer) == self._optimizer_ids[0]:
            self._rate = optimizer.param_groups[0].get("lr")
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
            self._skipped_step = self.step
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

    # ---------------------------------------------------------------- the end of the row

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

    def rearm(self) -> None:
        """Prepare for the next step anew: its number has changed."""
        if self._handles:
            self._arm()
