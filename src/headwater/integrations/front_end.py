"""What the front ends share: one watch, begun when the framework is ready, and the loss of the step in progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from torch import Tensor

import headwater
from headwater.integrations.stopping import StoppableStep
from headwater.records.finding import Finding

__all__ = ["FrontEnd", "StepLoss"]


class StepLoss:
    """The loss of one optimizer step out of those of its backwards, without waiting for a device.

    Where what is added is what was differentiated (without a loss scaler's factor), the sum is the loss whose gradient
    the optimizer sees; where a framework divides by the number of backwards afterwards, it is the mean.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor | float] = []

    def add(self, loss: Any) -> None:
        """Add the loss of one backward.

        Args:
            loss: a tensor of one element, or a number; anything else is no loss and is passed over.
        """
        if isinstance(loss, Tensor):
            if loss.numel() == 1:
                # A copy: what comes after the backward may change the tensor in place.
                self._parts.append(loss.detach().clone().reshape(()))
        elif isinstance(loss, int | float) and not isinstance(loss, bool):
            self._parts.append(float(loss))

    def take(self, *, mean: bool = False) -> Tensor | float | None:
        """What the loss of the step is, and forget its parts.

        Args:
            mean: of the parts, instead of their sum.

        Returns:
            One number, on the device of the parts; None when nothing was added.
        """
        parts, self._parts = self._parts, []
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts) if mean else total


class FrontEnd:
    """One watch that a framework's events begin and end, again for every fit.

    Args:
        run: where the run is written; None writes nothing.
        every: record every that many optimizer steps.
        options: passed on to :func:`headwater.watch`.

    Attributes:
        watch: the latest watch; None before the first.
        loss: of the step in progress.
    """

    def __init__(self, run: str | PathLike[str] | None, every: int, options: Mapping[str, Any]) -> None:
        self.watch: Any = None
        self.loss = StepLoss()
        self._run = run
        self._options = {"every": every, **options}
        self._attached = False
        self._restored: Mapping[str, Any] | None = None
        self._stopped = False
        self._guards: list[StoppableStep] = []

    def begin(self, model: Any, optimizer: Any = None, *, scaler: Any = None, stoppable: Iterable[Any] = ()) -> None:
        """Begin to watch; what was watched before is let go.

        Args:
            model: as for :func:`headwater.watch`.
            optimizer: as for :func:`headwater.watch`.
            scaler: the framework's own loss scaler; an option that the user gave comes first.
            stoppable: what the framework calls ``step`` of, where it is not to see
                :class:`~headwater.errors.TrainingStopped`; then ``should_stop`` tells.
        """
        self.end()
        options = dict(self._options)
        if scaler is not None:
            options.setdefault("scaler", scaler)
        watch = headwater.watch(model, optimizer, self._run, **options)
        if self._restored is not None:
            watch.load_state_dict(self._restored)
            self._restored = None
        watch.attach()
        self.watch, self.loss, self._attached, self._stopped = watch, StepLoss(), True, False
        if self.is_on:
            self._guards = [StoppableStep(each, self._stop) for each in stoppable]

    def end(self) -> None:
        """Let the model go and write what is buffered; nothing happens when nothing is watched."""
        for guard in self._guards:
            guard.remove()
        self._guards = []
        if self.watch is not None and self._attached:
            self._attached = False
            self.watch.detach()

    def _stop(self) -> None:
        self._stopped = True

    def give_loss(self, *, mean: bool = False, group: str | None = None) -> None:
        """Tell the watch the loss of the step in progress; nothing is told when none was seen.

        Args:
            mean: of the parts seen, instead of their sum.
            group: whose step it is, where several models are watched.
        """
        loss = self.loss.take(mean=mean)
        if self.watch is not None and self._attached and loss is not None:
            self.watch.record(loss=loss, **({} if group is None else {"group": group}))

    @property
    def is_on(self) -> bool:
        """Whether a watch is attached and not switched off."""
        return self.watch is not None and self._attached and self.watch.enabled

    @property
    def should_stop(self) -> bool:
        """Whether an alert asked to stop."""
        return self._stopped or (self.watch is not None and self.watch.should_stop)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found so far."""
        return () if self.watch is None else tuple(self.watch.findings)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty before the first watch."""
        return {} if self.watch is None else dict(self.watch.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved run was; takes effect now, or when watching begins.

        Args:
            state: from :meth:`state_dict`.
        """
        if not state:
            return
        if self.watch is not None and self._attached:
            self.watch.load_state_dict(state)
        else:
            self._restored = state
