"""Where records go: the run file and the sinks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from headwater.records import Finding
from headwater.records.step import RunEvent, StepRecord
from headwater.records.step_scalars import Naming, summary_scalars

__all__ = ["LOG", "Sinks", "Writer"]

LOG = logging.getLogger("headwater")


class Writer(Protocol):
    """What a run is written with; :class:`headwater.store.RunWriter` is one."""

    def write(self, record: StepRecord) -> None:
        """Append one step."""

    def write_event(self, event: RunEvent) -> None:
        """Append one event."""

    def write_finding(self, finding: Finding, group: str = "", *, grown: bool = False) -> None:
        """Append one finding; ``grown``: in place of the one with its code, defect and step."""

    def update_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace entries of the metadata."""

    def flush(self) -> None:
        """Write what waits."""

    def close(self) -> None:
        """Write what waits and end."""


class Sinks:
    """The sinks of a run; one that fails gets no more, and the others go on.

    Args:
        sinks: objects with ``write(scalars, step)`` and ``close()``.
        tell: hears of a sink that failed.
    """

    def __init__(self, sinks: Sequence[Any], tell: Callable[[RunEvent], None]) -> None:
        self.sinks = tuple(sinks)
        self._tell = tell
        self._broken: set[int] = set()

    def write(self, record: StepRecord, extra: Mapping[str, float | None]) -> None:
        """Hand a step to each.

        Args:
            record: the step.
            extra: further numbers, by name.
        """
        for index, sink in enumerate(self.sinks):
            if index in self._broken:
                continue
            try:
                naming: Naming = getattr(sink, "naming", "headwater")
                scalars = summary_scalars(record, naming, per_layer=getattr(sink, "per_layer", ()))
                scalars |= {name: value for name, value in extra.items() if value is not None}
                if scalars:
                    sink.write(scalars, record.step)
            except Exception as error:  # a sink that fails must not cost the others their rows
                self._broken.add(index)
                message = f"the sink {type(sink).__name__} failed and gets no more: {type(error).__name__}: {error}"
                LOG.warning("%s", message)
                self._tell(RunEvent(kind="notice", step=record.step, time=time.time(), message=message))

    def close(self) -> None:
        """Close each that has not failed."""
        for index, sink in enumerate(self.sinks):
            if index not in self._broken:
                try:
                    sink.close()
                except Exception as error:  # the run file is still to be closed
                    LOG.warning("closing the sink %s failed: %s", type(sink).__name__, error)
