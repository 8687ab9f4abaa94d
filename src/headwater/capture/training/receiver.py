"""What a pair of model and optimizers is told to record, and whom it hands it to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headwater.capture.training.raw import RawStep
from headwater.capture.training.schedule import Schedule
from headwater.records.step import RunEvent

__all__ = ["Options", "Receiver"]


@dataclass(frozen=True)
class Options:
    """What is recorded; see :func:`headwater.watch`."""

    tier: Literal["all", "norms"] = "all"
    updates: Literal["sampled", "exact"] | None = "sampled"
    micro: bool = False
    histograms: bool = False


class Receiver:
    """Where a pair hands over what it has; the recorder of the run implements it."""

    def take(self, raw: RawStep) -> None:
        """A step is complete; it is not shipped yet."""
        raise NotImplementedError

    def decide(self, raw: RawStep) -> None:
        """A step is about to be taken: return once the alerts that may end the training have seen it.

        Raises:
            UnhealthyError: an alert asked for it.
            TrainingStopped: an alert asked to stop.
        """
        raise NotImplementedError

    def raise_late(self) -> None:
        """Between two steps: what an alert that sees complete steps only has asked for since.

        Raises:
            UnhealthyError: an alert asked for it.
            TrainingStopped: an alert asked to stop.
        """
        raise NotImplementedError

    def tell(self, event: RunEvent) -> None:
        """Something happened."""
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        """A hook of headwater's own raised: training goes on without it."""
        raise NotImplementedError

    def spent_seconds(self) -> float:
        """What recording has cost so far: of every pair, and of the recorder's own thread."""
        raise NotImplementedError

    def throttle(self, schedule: Schedule, elapsed_seconds: float) -> bool:
        """Stretch or relax the interval according to what recording has cost.

        Args:
            schedule: to be changed.
            elapsed_seconds: since watching began.

        Returns:
            Whether it changed.
        """
        return schedule.max_overhead is not None and schedule.adapt(self.spent_seconds(), elapsed_seconds)

    @property
    def together(self) -> bool:
        """Whether several ranks record together, so that nothing may depend on the numbers of one of them."""
        return False

    @property
    def blocks(self) -> bool:
        """Whether some alert must decide before the optimizer steps."""
        raise NotImplementedError
