"""A training run that is being watched, from attaching to detaching."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from headwater._watch.joint import Joint, connected, equal_notice, event_of
from headwater._watch.metadata import context_of, metadata_of
from headwater._watch.outlets import LOG
from headwater._watch.pipeline import Pipeline
from headwater.capture.training.pair import Pair
from headwater.capture.training.ranks import CLOSE_SECONDS, FAULT_SECONDS
from headwater.capture.training.receiver import Options
from headwater.capture.training.schedule import Schedule
from headwater.detectors.over_time import Alert
from headwater.errors import InputError, NothingObservedError, TrainingStopped
from headwater.records import Finding
from headwater.records.step import RunEvent, StepRecord
from headwater.store import RunWriter

__all__ = ["Overhead", "Watch"]


@dataclass(frozen=True)
class Overhead:
    """What watching has cost.

    Attributes:
        seconds: of the training thread, inside headwater's hooks.
        recorder_seconds: processor time of the recorder's own thread.
        bytes: of memory that headwater holds on the devices of the model.
        elapsed_seconds: since watching began.
        share: seconds / elapsed_seconds; 0 before the first step.
    """

    seconds: float
    recorder_seconds: float
    bytes: int
    elapsed_seconds: float
    share: float


class Watch:
    """A training run that is being watched; made by :func:`watch`."""

    def __init__(
        self,
        pairs: Sequence[tuple[str, nn.Module, Sequence[Optimizer]]],
        run: str | os.PathLike[str] | None,
        schedule: Schedule,
        options: Options,
        alerts: Sequence[Alert],
        sinks: Sequence[Any],
        keep: Callable[..., bool],
        scaler: Any,
        on_record: Callable[[StepRecord], object] | None,
        enabled: bool,
        distributed: bool | None = None,
    ) -> None:
        self._distributed = distributed
        self._joint: Joint | None = None
        self._given = [(name, weakref.ref(model), [weakref.ref(o) for o in opts]) for name, model, opts in pairs]
        self._run = None if run is None else Path(run)
        self._schedule, self._options = schedule, options
        self._alerts, self._sinks = tuple(alerts), tuple(sinks)
        self._keep, self._scaler, self._on_record = keep, scaler, on_record
        self._enabled = enabled
        self._pairs: list[Pair] = []
        self._pipeline: Pipeline | None = None
        self._began = 0.0
        self._ended: float | None = None
        self._held_bytes = 0  # until it ended; nothing is held any more once the model is gone
        self._state: Mapping[str, Any] | None = None

    # ---------------------------------------------------------------- life

    def attach(self) -> Self:
        """Put the hooks on; a second time does nothing but say so.

        Returns:
            This watch.

        Raises:
            OutputError: the run cannot be written, or something else is writing it.
        """
        if not self._enabled:
            return self
        if self._pipeline is not None and self._ended is None:
            LOG.warning("this watch is attached already; nothing was done")
            return self
        live = [(name, model(), [o() for o in opts]) for name, model, opts in self._given]
        if any(model is None or any(o is None for o in opts) for _, model, opts in live):
            raise InputError("the model or its optimizer is gone; make a new watch")
        contexts = {name: context_of(model) for name, model, _ in live if model is not None}
        metadata = metadata_of(contexts, self._schedule, self._options)
        joint = self._joint = connected([model for _, model, _ in live if model is not None], self._distributed)
        writer = None
        try:
            if joint is None or not joint.listens:
                writer = None if self._run is None else RunWriter(self._run, metadata)
            sinks = () if joint is not None and joint.listens else self._sinks
            self._pipeline = Pipeline(self._alerts, writer, sinks, contexts, self._on_record, joint)
            self._began, self._ended = time.perf_counter(), None
            self._pairs = [
                Pair(
                    name, model, [o for o in opts if o is not None], self._schedule, self._options, self._pipeline,
                    self._keep, self._scaler, self._began,
                )
                for name, model, opts in live
                if model is not None
            ]  # fmt: skip
            notices = [] if joint is None else joint.agree(self._pairs, self._options.tier, None)
        except BaseException as error:
            if writer is not None:
                writer.close()
            self._pipeline = None
            if joint is not None and joint.ranks.broken is None:
                joint.agree((), self._options.tier, error if isinstance(error, Exception) else RuntimeError(str(error)))
            raise
        self._pipeline.watched = weakref.ref(self)
        resumed = self._state is not None
        if self._state is not None:
            self._restore(self._state)
        now = time.time()
        first = min((p.step for p in self._pairs), default=0)
        self._pipeline.tell(
            RunEvent(
                kind="resumed" if resumed else "attached",
                step=first,
                time=now,
                message=f"watching {sum(len(p.inventory.tracked) for p in self._pairs)} parameters "
                + (f"again from step {first}" if resumed else f"every {self._schedule.every} steps"),
            )
        )
        for notice in notices:
            event = event_of(notice, first)
            self._pipeline.tell(event)
            if joint is None or not joint.listens:
                LOG.warning("%s: %s", event.message, ", ".join(event.names))
        for pair in self._pairs:
            self._tell_what_is_not_seen(pair)
            pair.attach()
        _attached.add(self)
        return self

    def detach(self) -> None:
        """Take the hooks off, write what is left and close the run; a second time does nothing.

        Raises:
            NothingObservedError: optimizers stepped, and not one gradient was seen at any of the recorded steps.
        """
        self._detach(complain=True)

    def _detach(self, *, complain: bool) -> None:
        if self._pipeline is None or self._ended is not None:
            return
        for pair in self._pairs:
            pair.detach()
        self._ended = time.perf_counter()
        self._held_bytes = sum(p.held_bytes() for p in self._pairs)
        _attached.discard(self)
        steps = max((p.step for p in self._pairs), default=0)
        recorded = sum(p.recorded_steps for p in self._pairs)
        observed = any(p.observed_anything for p in self._pairs)
        if self._joint is not None:
            self._joint.ranks.hurry(CLOSE_SECONDS if complain else FAULT_SECONDS)
            self._pipeline.catch_up()
            observed = observed or self._joint.ranks.observed or self._joint.ranks.broken is not None
        self._pipeline.tell(
            RunEvent(
                kind="detached",
                step=steps,
                time=time.time(),
                message=f"{steps} optimizer steps, {recorded} rows recorded",
            )
        )
        self._pipeline.close({"overhead": asdict(self.overhead)})
        if complain and recorded and not observed:
            raise NothingObservedError(
                f"{steps} optimizer steps, and no parameter of the watched model had a gradient at any recorded one. Is it "
                "the model that the optimizer was made for, and does the loss depend on it?"
            )

    def __enter__(self) -> Self:
        return self.attach() if self._pipeline is None or self._ended is not None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._detach(complain=kind is None)
        return isinstance(error, TrainingStopped)

    # ---------------------------------------------------------------- during training

    def record(
        self, loss: float | Tensor | None = None, *, group: str | None = None, **scalars: float | Tensor
    ) -> None:
        """Give numbers of the step in progress, or of the one just taken, to the record.

        Args:
            loss: of the step; a tensor is not waited for.
            group: name of the model/optimizer pair; None gives them to all.
            **scalars: other numbers, handed to the sinks by name.
        """
        if isinstance(loss, Tensor):
            loss = loss.detach().reshape(()) if loss.numel() == 1 else None
        for pair in self._pairs:
            if group is None or pair.group == group:
                pair.give(loss, dict(scalars))

    @property
    def enabled(self) -> bool:
        """False for a watch that does nothing at all."""
        return self._enabled

    @property
    def should_stop(self) -> bool:
        """Whether an alert has asked to stop."""
        if self._joint is not None and self._pipeline is not None:
            self._pipeline.catch_up()  # every rank has to answer the same at the same step
        return self._pipeline is not None and self._pipeline.stopping

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts have found so far, in the order of the steps."""
        self._catch_up()
        return () if self._pipeline is None else tuple(self._pipeline.findings)

    @property
    def events(self) -> tuple[RunEvent, ...]:
        """What has happened so far and is no number."""
        self._catch_up()
        return () if self._pipeline is None else tuple(self._pipeline.events)

    def _catch_up(self) -> None:
        if self._pipeline is not None and self._ended is None:
            self._pipeline.wait()

    @property
    def run(self) -> Path | None:
        """Where the run is written."""
        return self._run

    @property
    def step(self) -> int:
        """Optimizer steps taken so far (of the model furthest ahead); skipped ones count."""
        return max((p.step for p in self._pairs), default=0)

    def spent_seconds(self) -> float:
        """Seconds of the training thread and of the recorder's that watching has cost so far."""
        recorder = 0.0 if self._pipeline is None else self._pipeline.seconds
        return sum(p.own_seconds for p in self._pairs) + recorder

    @property
    def overhead(self) -> Overhead:
        """What watching has cost so far."""
        elapsed = (self._ended or time.perf_counter()) - self._began if self._pipeline is not None else 0.0
        seconds = sum(p.own_seconds for p in self._pairs)
        recorder = 0.0 if self._pipeline is None else self._pipeline.seconds
        held = sum(p.held_bytes() for p in self._pairs) if self._ended is None else self._held_bytes
        return Overhead(seconds, recorder, held, elapsed, seconds / elapsed if elapsed else 0.0)

    def summary(self) -> str:
        """A few lines: what was seen, what was not and why, what it cost."""
        if not self._enabled:
            return "headwater is switched off"
        if self._pipeline is None:
            return "not attached yet"
        self._catch_up()
        cost = self.overhead
        lines = []
        for pair in self._pairs:
            lines += pair.coverage_lines()
        lines.append(f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}")
        lines += [f"  {finding}" for finding in self.findings]
        lines.append(
            f"cost {cost.seconds:.3g} s of {cost.elapsed_seconds:.3g} s ({100 * cost.share:.2g} %), "
            f"{cost.recorder_seconds:.3g} s in the recorder's thread, {cost.bytes:,} bytes held"
        )
        return "\n".join(lines)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same step numbers and the same alarms, as strict JSON values."""
        self._catch_up()
        return {
            "version": 1,
            "groups": {p.group: p.state_dict() for p in self._pairs},
            "schedule": self._schedule.state_dict(),
            "alerts": None if self._pipeline is None else self._pipeline.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run ended; before or after attaching, before the first step.

        Args:
            state: from :meth:`state_dict`.

        Raises:
            InputError: it is of something else.
        """
        if state.get("version") != 1 or "groups" not in state:
            raise InputError("this is no state of a watch: expected version 1 and groups")
        self._state = state
        if self._pipeline is not None:
            self._restore(state)
            for pair in self._pairs:
                pair.rearm()

    def _restore(self, state: Mapping[str, Any]) -> None:
        for pair in self._pairs:
            if pair.group in state["groups"]:
                pair.load_state_dict(state["groups"][pair.group])
        self._schedule.load_state_dict(state["schedule"])
        if state.get("alerts") is not None and self._pipeline is not None:
            self._pipeline.load_state_dict(state["alerts"])

    # ---------------------------------------------------------------- what is said at the start

    def _tell_what_is_not_seen(self, pair: Pair) -> None:
        assert self._pipeline is not None
        equal = [] if self._joint is not None else [n for names in pair.inventory.equal_weights() for n in names]
        if equal:
            self._pipeline.tell(event_of(equal_notice(equal, pair.group), pair.step))
        for message, names in pair.not_seen():
            self._pipeline.tell(
                RunEvent(
                    kind="not_observed",
                    step=pair.step,
                    group=pair.group,
                    time=time.time(),
                    message=message,
                    names=names,
                )
            )


_attached: weakref.WeakSet[Watch] = weakref.WeakSet()


def _end_all() -> None:
    """A program that ends without detaching still gets its last rows."""
    for watch_ in list(_attached):
        watch_._detach(complain=False)


atexit.register(_end_all)
