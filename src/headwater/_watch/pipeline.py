"""From raw steps to the run file, the alerts and the sinks: the recorder's own thread."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headwater._watch.joint import Joint
from headwater._watch.outlets import LOG, Sinks, Writer
from headwater.capture.training.raw import RawStep, number, record_of
from headwater.capture.training.receiver import Receiver
from headwater.capture.training.schedule import Schedule
from headwater.detectors.over_time import Alert, AlertDesk, Decision
from headwater.errors import HeadwaterError, TrainingStopped, UnhealthyError
from headwater.records import Finding, Statistics
from headwater.records.finding import fold_names
from headwater.records.step import RunEvent, StepRecord
from headwater.records.step_profile import RunContext, profile_of_step

__all__ = ["Pipeline"]

QUEUE_LIMIT = 256
"""Raw steps that may wait for the recorder's thread; beyond that training waits for it (chosen by us)."""

POLL_SECONDS = 0.25
"""How often the recorder's thread looks for work nobody waits for. Waking it for every step would hand it the interpreter's
lock in the middle of a training step, once per step (chosen by us)."""


@dataclass(slots=True)
class _Request:
    """A thing for the recorder's thread to do, and who waits for it."""

    action: Callable[[], None]
    done: threading.Event | None = None


class Pipeline(Receiver):
    """Takes what the hooks hand over; everything that takes time happens in a thread of its own.

    Args:
        alerts: which alerts look at the steps.
        writer: of the run file, or None.
        sinks: objects with ``write(scalars, step)`` and ``close()``.
        contexts: what the profiles of each group say about the run.
        on_record: called with every record, in the recorder's thread.
        joint: the other ranks, where there are some.
    """

    def __init__(
        self,
        alerts: Sequence[Alert],
        writer: Writer | None,
        sinks: Sequence[Any],
        contexts: Mapping[str, RunContext],
        on_record: Callable[[StepRecord], object] | None = None,
        joint: Joint | None = None,
    ) -> None:
        self.joint = joint
        self._may_raise = any(a.action in ("raise", "stop") for a in alerts)
        # Alerts that may end the training see a step before the optimizer takes it, the others once it is complete. One
        # that reads what the step did to the parameters can only be asked afterwards.
        early = [a for a in alerts if a.action in ("raise", "stop") and not getattr(a, "needs_update", False)]
        self._early = AlertDesk(early)
        self._late = AlertDesk([a for a in alerts if a not in early])
        AlertDesk(alerts)  # the same code twice, in whichever half
        self._may_end_late = any(a.action in ("raise", "stop") for a in self._late.alerts)
        self.writer, self.sinks = writer, Sinks(sinks, self._event)
        self.contexts = dict(contexts)
        self.on_record = on_record
        self.watched: weakref.ref[Any] | None = None  # the Watch, which knows what its pairs have spent
        self.findings: list[Finding] = []
        self._said: dict[tuple[str, str, str, int | None], int] = {}  # which of the findings
        self.events: list[RunEvent] = []
        self.stopping = False
        self.failures: list[str] = []
        self._scales: dict[str, float] = {}
        self._values: dict[str, dict[str, Statistics]] = {}
        self._raising: UnhealthyError | None = None
        self._waiting: deque[_Request] = deque()
        self._wake = threading.Event()
        self._ending = False
        self._idle_since = time.monotonic()
        self._thread: threading.Thread | None = None
        self._seconds = 0.0
        self._closed = False

    # ---------------------------------------------------------------- from the training thread

    @property
    def blocks(self) -> bool:
        """Whether some alert must decide before the optimizer steps."""
        return bool(self._early.alerts)

    @property
    def together(self) -> bool:
        """Whether several ranks record together."""
        return self.joint is not None

    def throttle(self, schedule: Schedule, elapsed_seconds: float) -> bool:
        """Stretch or relax the interval; several ranks do it at the same step, as rank 0 wishes."""
        if self.joint is None:
            return super().throttle(schedule, elapsed_seconds)
        if schedule.max_overhead is None:
            return False
        self.catch_up()
        return self.joint.throttle(schedule, self.spent_seconds(), elapsed_seconds)

    def catch_up(self) -> None:
        """Return when every row handed over so far has been judged; several ranks then know the same."""
        self._send(_nothing, wait=True)

    def spent_seconds(self) -> float:
        """What recording has cost so far, in every pair and in the recorder's own thread."""
        watch = None if self.watched is None else self.watched()
        return self._seconds if watch is None else float(watch.spent_seconds())

    @property
    def seconds(self) -> float:
        """Processor time of the recorder's thread."""
        return self._seconds

    def take(self, raw: RawStep) -> None:
        """A step is complete."""
        raw.ship()
        self._send(lambda: self._complete(raw))

    def decide(self, raw: RawStep) -> None:
        """A step is about to be taken."""
        raw.ship()
        self._send(lambda: self._preliminary(raw), wait=True)
        error, self._raising = self._raising, None
        if error is not None:
            raise error

    def raise_late(self) -> None:
        """Raise what an alert that sees complete steps only has asked for since; between two steps.

        Raises:
            UnhealthyError: an alert asked for it.
        """
        if self._may_end_late or (self.joint is not None and self._may_raise):
            self.catch_up()
        error, self._raising = self._raising, None
        if error is not None:
            raise error

    def tell(self, event: RunEvent) -> None:
        """Something happened."""
        self._send(lambda: self._event(event))

    def failed(self, error: Exception) -> None:
        """A hook raised: what an alert asked for goes on to the training loop, a fault of headwater's own does not.

        Raises:
            Exception: the one that an alert asked for.
        """
        if isinstance(error, UnhealthyError):
            raise error
        text = "".join(traceback.format_exception(error))
        self.failures.append(text)
        message = (
            f"headwater stopped watching after a fault of its own, training goes on: {type(error).__name__}: {error}"
        )
        LOG.error("%s\n%s", message, text)
        self.tell(RunEvent(kind="notice", time=time.time(), message=message))

    def wait(self) -> None:
        """Return when everything handed over so far has been worked through and written."""
        self._send(self._flush, wait=True)

    def close(self, metadata: Mapping[str, Any]) -> None:
        """Work through what is left, write it, close the sinks and end the thread; nothing happens the second time.

        Args:
            metadata: last words about the run, such as its cost.
        """
        if self._closed:
            return
        self._send(lambda: self._end(metadata), wait=True)
        self._closed = True
        if self._thread is not None:
            self._ending = True
            self._wake.set()
            self._thread.join()
            self._thread = None

    def _send(self, action: Callable[[], None], *, wait: bool = False) -> None:
        if self._closed:
            return
        if threading.current_thread() is self._thread:  # a sink or a callback that asks for something
            action()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self,), name="headwater-recorder", daemon=True)
            self._thread.start()
        wait = wait or len(self._waiting) >= QUEUE_LIMIT
        done = threading.Event() if wait else None
        self._waiting.append(_Request(action, done))
        if done is not None:
            self._wake.set()
            done.wait()

    # ---------------------------------------------------------------- in the recorder's thread

    def serve(self) -> bool:
        """Do what waits.

        Returns:
            Whether there is more to come, now or later.
        """
        self._wake.wait(POLL_SECONDS)
        self._wake.clear()
        while self._waiting:
            self._run(self._waiting.popleft())
        if not self._ending and time.monotonic() - self._idle_since > 1.0:
            self._idle_since = time.monotonic()
            with contextlib.suppress(HeadwaterError):
                self._flush()
        return not self._ending or bool(self._waiting)

    def _run(self, request: _Request) -> None:
        """Do one thing; a fault is said, and never ends the thread."""
        start = time.thread_time()
        try:
            request.action()
        except Exception as error:  # nothing that goes wrong here may end the recording of what comes after
            self.failures.append("".join(traceback.format_exception(error)))
            LOG.exception("headwater could not work through one step")
        finally:
            self._seconds += time.thread_time() - start
            if request.done is not None:
                request.done.set()

    def _preliminary(self, raw: RawStep) -> None:
        raw.arrive()
        if self.joint is not None and not self.joint.merge(raw, self._warn):
            return
        record = raw.base = record_of(raw)
        try:
            self._act(self._judge(self._early, record), record)
        finally:
            self._hear()

    def _complete(self, raw: RawStep) -> None:
        seen_early = raw.base is not None
        raw.arrive()
        if self.joint is not None and not self.joint.merge(raw, self._warn):
            return
        record = record_of(raw)
        try:
            self._tell_scale(record)
            if self.writer is not None:
                self.writer.write(record)
            if not seen_early:
                self._act(self._judge(self._early, record), record)
            self._act(self._judge(self._late, record), record)
        finally:
            self._hear()
        self.sinks.write(record, {name: number(value) for name, value in raw.scalars.items()})
        if self.on_record is not None:
            self.on_record(record)

    def _hear(self) -> None:
        """Where another rank judges: what it found."""
        if self.joint is None:
            return
        for finding, action in self.joint.hear():
            self.findings.append(finding)
            if action != "warn":
                self._ask_to_end(finding, action)
        self.joint.tell(self._warn)

    def _warn(self, event: RunEvent) -> None:
        """An event that somebody should see now."""
        if event.kind == "gap" or self.joint is None or not self.joint.listens:
            LOG.warning("%s%s", event.message, f": {', '.join(fold_names(event.names))}" if event.names else "")
        self._event(event)

    def _tell_scale(self, record: StepRecord) -> None:
        """An event when the loss scale is another one than at the recorded step before."""
        before, now = self._scales.get(record.group), record.loss_scale
        if now is None:
            return
        self._scales[record.group] = now
        if before is not None and before != now:
            message = f"the loss scale went from {before:g} to {now:g}"
            self._event(
                RunEvent(kind="loss_scale", step=record.step, group=record.group, time=record.time, message=message)
            )

    def _judge(self, desk: AlertDesk, record: StepRecord) -> list[Decision]:
        if not desk.alerts or (self.joint is not None and self.joint.listens):
            return []
        profile = None
        known = self._values.setdefault(record.group, {})
        block = record.block("value")
        if record.activations and desk.needs_profile:
            profile = profile_of_step(record, self.contexts.get(record.group, RunContext()), known)
        if block is not None and len(block.columns) > 3:
            known.update((tensor.name, statistics) for tensor, statistics in block.statistics())
        return desk.consider(record, profile)

    def _act(self, decisions: Sequence[Decision], record: StepRecord) -> None:
        for decision in decisions:
            if not decision.is_new:
                continue
            finding = decision.finding
            key = (decision.group, finding.code, finding.defect, finding.step)
            if decision.grows and key in self._said:
                self.findings[self._said[key]] = finding
                if self.writer is not None:
                    self.writer.write_finding(finding, decision.group, grown=True)
                LOG.info("%s", finding)
                continue
            self._said[key] = len(self.findings)
            self.findings.append(finding)
            if self.joint is not None:
                self.joint.say(finding, decision.action)
            if self.writer is not None:
                self.writer.write_finding(finding, decision.group)
            if decision.flight:
                self._flight(decision, record)
            if callable(decision.action):
                decision.action(finding)
            elif decision.action == "warn":
                LOG.warning("%s", finding)
            else:
                self._ask_to_end(finding, decision.action)

    def _ask_to_end(self, finding: Finding, action: str) -> None:
        self.stopping = True
        cls = TrainingStopped if action == "stop" else UnhealthyError
        if self._raising is None or action == "raise":
            self._raising = cls(str(finding), (finding,))

    def _flight(self, decision: Decision, record: StepRecord) -> None:
        steps = ", ".join(str(r.step) for r in decision.flight)
        self._event(
            RunEvent(
                kind="flight_record",
                step=record.step,
                group=record.group,
                time=record.time,
                message=f"{decision.finding.code}: the recorded steps before it are {steps}",
                names=decision.finding.where,
            )
        )

    def _event(self, event: RunEvent) -> None:
        self.events.append(event)
        if self.writer is not None:
            self.writer.write_event(event)

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def _end(self, metadata: Mapping[str, Any]) -> None:
        if self.joint is not None:
            self.joint.ranks.leave()
            self.joint.tell(self._event)
        self.sinks.close()
        if self.writer is not None:
            self.writer.update_metadata(metadata)
            self.writer.close()

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What later alarms depend on."""
        return {"early": self._early.state_dict(), "late": self._late.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run ended.

        Args:
            state: from :meth:`state_dict`.
        """
        self._early.load_state_dict(state["early"])
        self._late.load_state_dict(state["late"])


def _work(pipeline: Pipeline) -> None:
    while pipeline.serve():
        pass


def _nothing() -> None:
    return None
