"""Which optimizer steps are recorded, and how recording slows down when it costs too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from headwater.errors import InputError

__all__ = ["EARLY_STEPS", "GRACE_SECONDS", "SAMPLE_EVERY", "Activations", "Schedule"]

Activations = Literal["sampled", "recorded"] | None
"""When layers are looked at: on a subset of the recorded steps, on all of them, never."""

EARLY_STEPS = frozenset({0, 1, 2, 4, 8})
"""Steps that are recorded whatever ``every`` is, so that a short run shows something (chosen by us)."""

SAMPLE_EVERY = 10
"""Layers are looked at on every tenth of the steps that ``every`` picks, and on the early ones (chosen by us)."""

GRACE_SECONDS = 1.0
"""Cost in total below which nothing is throttled: a short run is not thinned out for a second (chosen by us)."""


@dataclass
class Schedule:
    """Counts nothing itself: says of a step number what is to be done with it.

    Attributes:
        every: record every that many steps; the early ones and the last one as well.
        start: first step that is recorded; the early ones are counted from here.
        stop: first step that is no longer recorded; None for never.
        activations: when layers are looked at.
        max_overhead: share of the elapsed time that recording may cost, or None for no limit.
        stretch: by what factor ``every`` is stretched now, a power of two; 1 when the cost is within the limit.
    """

    every: int = 10
    start: int = 0
    stop: int | None = None
    activations: Activations = "sampled"
    max_overhead: float | None = 0.01
    stretch: int = 1

    def __post_init__(self) -> None:
        for name, value, least in (("every", self.every, 1), ("start", self.start, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} should be an integer of at least {least}, got {value!r}")
        if self.stop is not None and (not isinstance(self.stop, int) or self.stop < self.start):
            raise InputError(f"stop should be None or an integer of at least start={self.start}, got {self.stop!r}")
        if self.activations not in ("sampled", "recorded", None):
            raise InputError(f'activations should be "sampled", "recorded" or None, got {self.activations!r}')
        if self.max_overhead is not None and self.max_overhead <= 0.0:
            raise InputError(f"max_overhead should be a positive share of the time or None, got {self.max_overhead!r}")

    def contains(self, step: int) -> bool:
        """Whether a step lies in the recorded part of the run.

        Args:
            step: optimizer step, from 0.

        Returns:
            True from ``start`` to just before ``stop``.
        """
        return step >= self.start and (self.stop is None or step < self.stop)

    def records(self, step: int) -> bool:
        """Whether a step is recorded.

        Args:
            step: optimizer step, from 0.

        Returns:
            True for the early steps and every ``every * stretch`` after ``start``.
        """
        if not self.contains(step):
            return False
        return step - self.start in EARLY_STEPS or step % (self.every * self.stretch) == 0

    def reads_values(self, step: int) -> bool:
        """Whether the parameters' values are read in a step: they change slowly, so on few steps, however often layers are.

        Args:
            step: optimizer step, from 0.

        Returns:
            True for the early steps and every tenth of those that ``every`` picks.
        """
        if not self.records(step):
            return False
        return step - self.start in EARLY_STEPS or step % (self.every * self.stretch * SAMPLE_EVERY) == 0

    def following(self, step: int) -> int:
        """The first recorded step after another one.

        Args:
            step: optimizer step, from 0.

        Returns:
            Its number; one that is never reached when none follows.
        """
        interval = self.every * self.stretch
        early = [self.start + i for i in EARLY_STEPS if self.start + i > step]
        candidates = [max(self.start, step + 1), *early, -(-max(self.start, step + 1) // interval) * interval]
        found = [i for i in candidates if i > step and self.records(i)]
        return min(found, default=2**62)

    def samples(self, step: int) -> bool:
        """Whether layers are looked at in a step.

        Args:
            step: optimizer step, from 0.

        Returns:
            Never for a step that is not recorded.
        """
        if self.activations is None or not self.records(step):
            return False
        return self.activations == "recorded" or self.reads_values(step)

    def adapt(self, spent_seconds: float, elapsed_seconds: float) -> bool:
        """Stretch the interval when recording costs more than it may, and relax it when it costs less than half.

        Args:
            spent_seconds: by recording, so far.
            elapsed_seconds: since watching began.

        Returns:
            Whether the interval changed.
        """
        if self.max_overhead is None:
            return False
        allowed = GRACE_SECONDS + self.max_overhead * elapsed_seconds
        if spent_seconds > allowed and self.stretch < 2**20:
            self.stretch *= 2
            return True
        if self.stretch > 1 and spent_seconds < allowed / 2:
            self.stretch //= 2
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"stretch": self.stretch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the interval of a saved run.

        Args:
            state: from :meth:`state_dict`.
        """
        self.stretch = int(state["stretch"])
