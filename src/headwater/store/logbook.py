"""What a run file says beside its numbers: sessions, metadata, findings, events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headwater.records.finding import Finding
from headwater.records.json_codec import decode
from headwater.records.step import RunEvent
from headwater.store.database import Database
from headwater.store.history import History

__all__ = ["Session", "events", "findings", "metadata", "sessions"]

_FINDING = ("step", "code", "defect", "severity", "verdict", "symptom_of", "cause", "advice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One stretch of recording: from an attach to its detach.

    Attributes:
        number: from 1.
        begun: wall clock, seconds since the epoch.
        ended: wall clock; None while it is being written, and for one that was killed.
        host: name of the machine.
        process: id of the process.
        metadata: as it was given when the session began.
    """

    number: int
    begun: float
    ended: float | None
    host: str
    process: int
    metadata: Mapping[str, Any]


def metadata(history: History) -> Mapping[str, Any]:
    """Entries of the run's metadata, the latest of each name."""
    database = history.database
    return history.remembered(
        "metadata", lambda: {key: database.json(text) for key, text in database.rows("SELECT key, value FROM metadata")}
    )


def sessions(database: Database) -> tuple[Session, ...]:
    """Every attach, in order."""
    return tuple(
        Session(number=number, begun=begun, ended=ended, host=host, process=process, metadata=database.json(text))
        for number, begun, ended, host, process, text in database.rows(
            "SELECT id, begun, ended, host, process, metadata FROM sessions ORDER BY id"
        )
    )


def events(database: Database) -> tuple[RunEvent, ...]:
    """What happened, in order; of every session."""
    return tuple(
        RunEvent(kind=kind, step=step, group=group, time=at, message=message, names=tuple(database.json(names)))
        for kind, step, group, at, message, names in database.rows(
            "SELECT kind, step, group_name, time, message, names FROM events ORDER BY session_id, id"
        )
    )


def findings(history: History) -> tuple[Finding, ...]:
    """What was found at the steps that count, in their order; first what belongs to no step."""
    database = history.database
    found = []
    for session, group, names, evidence, *values in database.rows(
        f"SELECT session_id, group_name, names, evidence, {', '.join(_FINDING)} FROM findings ORDER BY id"
    ):
        data = dict(zip(_FINDING, values, strict=True))
        if not history.is_superseded(session, group, data["step"]):
            found.append(decode(Finding, {**data, "where": database.json(names), "evidence": database.json(evidence)}))
    return tuple(sorted(found, key=lambda finding: -1 if finding.step is None else finding.step))
