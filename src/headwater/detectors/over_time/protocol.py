"""What an alert is: thresholds, a policy, and one call per recorded step; its memory belongs to the desk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from headwater.detectors.over_time.moment import Moment
from headwater.records import Finding

__all__ = ["Action", "Alert", "Memory"]

Action = Literal["warn", "raise", "stop"] | Callable[[Finding], object]
"""What an alarm does: ``warn`` (said once), ``raise`` (:class:`~headwater.errors.UnhealthyError`), ``stop``
(:class:`~headwater.errors.TrainingStopped`: the ``with`` block ends quietly), or a function that is called with the finding."""

Memory = dict[str, Any]
"""What an alert remembers of one model/optimizer pair, from one recorded step to the next: strict JSON values (no NaN, no
infinity, keys are strings), so that a resumed run goes on where the last one ended."""


class Alert(Protocol):
    """Reads one recorded step after the other and yields findings; it never touches a model.

    An alert holds no state of its own: the built-in ones are frozen dataclasses whose fields are their thresholds, and
    what they remember is the ``memory`` they are handed, which :class:`AlertDesk` keeps, saves and restores. So one object
    may serve several runs at a time.

    A few more attributes are looked at when they are there and True: ``per_place`` (an alarm that goes on is said again when
    it reaches a layer or parameter it had not named), ``keeps_flight_record`` (its alarms carry the last records),
    ``needs_profile`` (it reads ``moment.profile``), ``needs_update`` (it reads what the step did to the parameters: also
    with action ``raise`` or ``stop`` it is asked once the step is taken, and ends the training at the next hook, where others
    are asked before the optimizer steps), ``names_root_cause`` (other alerts' findings at the places of its alarm
    are symptoms of it).
    """

    @property
    def code(self) -> str:
        """Stable and unique, such as ``HW601``."""
        ...

    @property
    def action(self) -> Action:
        """What an alarm does."""
        ...

    @property
    def patience(self) -> int:
        """At how many recorded steps in a row a finding must be there before it becomes an alarm; 1 for at once."""
        ...

    def __call__(self, moment: Moment, memory: Memory) -> Iterable[Finding] | None:
        """Look at one recorded step.

        Args:
            moment: the step's record, and its profile where there is one.
            memory: what this alert remembers of this model/optimizer pair; changed in place.

        Returns:
            The findings, none for a step without the defect; None when this step cannot be judged (it then neither
            continues nor ends a streak).
        """
        ...
