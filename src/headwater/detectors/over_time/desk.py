"""Where records go in and alarms come out: patience, de-duplication, actions, the flight recorder."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.protocol import Action, Alert, Memory
from headwater.errors import InputError, RecordError
from headwater.records import Finding, Profile, Severity
from headwater.records.step import StepRecord

__all__ = ["AlertDesk", "Decision", "with_actions"]

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One finding of one recorded step, and what is to be done about it.

    Attributes:
        finding: with the step at which it began.
        action: of the alert that found it; to be taken only when ``is_new``.
        is_new: False for an alarm that merely goes on: to be counted, not said again.
        grows: the alarm said a few steps ago has reached more places; this finding, with all of them and the same step, takes
            the place of that one. Only where the action is ``warn``.
        group: the model/optimizer pair it is about.
        flight: for a new alarm of an alert that ``keeps_flight_record``, the last full records of this pair, oldest first,
            the present one last; else empty. They are *recorded* steps: what was not recorded in between is not there.
    """

    finding: Finding
    action: Action
    is_new: bool
    grows: bool = False
    group: str = ""
    flight: tuple[StepRecord, ...] = ()


def with_actions(
    alerts: Iterable[Alert], actions: Mapping[str, Action], patience: int | None = None
) -> tuple[Alert, ...]:
    """The same alerts with other actions.

    Args:
        alerts: dataclasses with the fields ``action`` and ``patience``, such as the built-in ones.
        actions: code to action.
        patience: for the alerts named; None leaves theirs.

    Returns:
        New alerts; those not named as they were.

    Raises:
        InputError: a code that none of the alerts has.

    Example:
        >>> from headwater.detectors.over_time import DEFAULT_ALERTS, with_actions
        >>> [a.action for a in with_actions(DEFAULT_ALERTS, {"HW601": "stop"})][:2]
        ['stop', 'warn']
    """
    alerts = tuple(alerts)
    unknown = sorted(set(actions) - {alert.code for alert in alerts})
    if unknown:
        raise InputError(f"no alert has the code {', '.join(unknown)}; there are {', '.join(a.code for a in alerts)}")
    changed: list[Alert] = []
    for alert in alerts:
        if alert.code in actions:
            if not is_dataclass(alert) or isinstance(alert, type):
                raise InputError(f"{type(alert).__name__} is no dataclass: give it its action where it is made")
            fields: dict[str, Any] = {"action": actions[alert.code]}
            alert = replace(alert, **fields, **({} if patience is None else {"patience": patience}))
        changed.append(alert)
    return tuple(changed)


class AlertDesk:
    """Shows every recorded step to every alert and decides what is new, and which finding is another one's symptom.

    A finding becomes an alarm when it was there at ``alert.patience`` recorded steps in a row. It is new once; as long as it
    goes on it is not, until it has been away for ``quiet`` judged steps (or, for an alert that is ``per_place``, until it
    names a new place: within ``quiet`` steps of having been said it then grows, later it is said again). An alarm that only
    warns is said at most ``limit`` times in a run. The count is the desk's own and no process-wide filter's, so a second run
    in one process warns like the first.

    Args:
        alerts: objects as :class:`~headwater.detectors.over_time.protocol.Alert`; the order is the one of the decisions.
        flight_steps: how many full records per model/optimizer pair the flight recorder holds.
        quiet: judged recorded steps without the finding after which its return is a new alarm (chosen by us).
        limit: how often one alarm that only warns is said in a run (chosen by us).

    Raises:
        InputError: two alerts share a code, an action is none, or a number is not positive.
    """

    def __init__(self, alerts: Iterable[Alert], *, flight_steps: int = 8, quiet: int = 10, limit: int = 10) -> None:
        self.alerts = tuple(alerts)
        codes = [alert.code for alert in self.alerts]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise InputError(f"two alerts share the code {', '.join(twice)}: give each its own")
        for alert in self.alerts:
            if alert.action not in ("warn", "raise", "stop") and not callable(alert.action):
                raise InputError(
                    f"{alert.code}: action should be warn, raise, stop or a function, got {alert.action!r}"
                )
            if isinstance(alert.patience, bool) or not isinstance(alert.patience, int) or alert.patience < 1:
                raise InputError(f"{alert.code}: patience should be a positive integer, got {alert.patience!r}")
        for name, number in (("flight_steps", flight_steps), ("quiet", quiet), ("limit", limit)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InputError(f"{name} should be a positive integer, got {number!r}")
        self._flight_steps, self._quiet, self._limit = flight_steps, quiet, limit
        self._memories: dict[str, dict[str, Memory]] = {}  # code -> group -> memory
        self._alarms: dict[str, dict[str, Memory]] = {}  # code -> "group|finding code|defect" -> what was said of it
        self._flights: dict[str, deque[StepRecord]] = {}
        self._lock = threading.Lock()

    @property
    def blocking(self) -> bool:
        """Whether training must wait for a decision: some alert raises or stops."""
        return any(alert.action in ("raise", "stop") for alert in self.alerts)

    @property
    def needs_profile(self) -> bool:
        """Whether some alert reads the profile of a step (it says so with an attribute ``needs_profile``)."""
        return any(getattr(alert, "needs_profile", False) for alert in self.alerts)

    def consider(self, record: StepRecord, profile: Profile | None = None) -> list[Decision]:
        """Show one recorded step to every alert.

        Micro-batch rows are left to the row of their whole step. An alert that crashes gives one finding that says so.

        Args:
            record: the step; per model/optimizer pair in the order of the steps.
            profile: its profile, when layers were looked at.

        Returns:
            The decisions, new alarms and those that go on, in the order of the alerts.
        """
        if record.micro is not None:
            return []
        moment = Moment(record, profile)
        with self._lock:
            flight = self._flights.setdefault(record.group, deque(maxlen=self._flight_steps))
            flight.append(record)
            return [decision for alert in self.alerts for decision in self._ask(alert, moment)]

    def _ask(self, alert: Alert, moment: Moment) -> list[Decision]:
        group = moment.record.group
        memory = self._memories.setdefault(alert.code, {}).setdefault(group, {})
        try:
            found = alert(moment, memory)
            findings = None if found is None else list(found)
        except Exception as error:  # one alert's fault must neither end the training nor hide the others' findings
            findings = [_failed(alert, error)]
        if findings is None:
            return []
        alarms = self._alarms.setdefault(alert.code, {})
        findings = [self._ordered(alert, group, finding) for finding in findings]
        keys = [f"{group}|{finding.code}|{finding.defect}" for finding in findings]
        decisions = []
        for key, finding in zip(keys, findings, strict=True):
            alarm = alarms.setdefault(key, {"streak": 0, "said": 0, "since": None, "active": False, "places": []})
            decision = self._decide(alert, alarm, finding, moment.record)
            if decision is not None:
                decisions.append(decision)
        present = set(keys)
        for key, alarm in alarms.items():
            if key.startswith(f"{group}|") and key not in present:
                self._absent(alarm)
        return decisions

    def _ordered(self, alert: Alert, group: str, finding: Finding) -> Finding:
        """The finding, as a symptom where an alarm that names a root cause is on and covers every place of it."""
        for root in self.alerts:
            if root is alert or not getattr(root, "names_root_cause", False) or not finding.where:
                continue
            for key, alarm in self._alarms.get(root.code, {}).items():
                its_group, code, _ = key.split("|", 2)
                if its_group == group and alarm["active"] and _covers(alarm["places"], finding.where):
                    return replace(finding, symptom_of=code)
        return finding

    def _decide(self, alert: Alert, alarm: Memory, finding: Finding, record: StepRecord) -> Decision | None:
        if alarm["streak"] <= 0:
            alarm["streak"] = 0
            if not alarm["active"]:
                alarm["since"] = record.step if finding.step is None else finding.step
        alarm["streak"] += 1
        alarm["age"] = alarm.get("age", 0) + 1
        patience = 1 if finding.defect == "alert failed" else alert.patience
        if alarm["streak"] < patience and not alarm["active"]:
            return None
        grows = getattr(alert, "per_place", False)
        places = set(finding.where) - set(alarm["places"]) if grows else set()
        is_new = not alarm["active"] or bool(places)
        began = record.step if finding.step is None else finding.step
        grown = (
            alarm["active"] and is_new and alert.action == "warn" and alarm["age"] <= self._quiet and "step" in alarm
        )
        if grown:
            where = dict.fromkeys((*finding.where, *alarm["places"]))
            finding = replace(finding, step=alarm["step"], where=tuple(where))
        else:
            finding = replace(finding, step=began if alarm["active"] and is_new else alarm["since"])
        alarm["active"] = True
        if is_new:
            alarm["said"] += not grown
            alarm.update(age=0, step=finding.step)
            keep_places = grows or getattr(alert, "names_root_cause", False)
            alarm["places"] = sorted({*alarm["places"], *finding.where}) if keep_places else []
            if alert.action == "warn" and alarm["said"] > self._limit:
                is_new = False
            elif alert.action == "warn" and alarm["said"] == self._limit and not grown:
                finding = replace(
                    finding, cause=f"{finding.cause} This is its alarm number {self._limit}, the last one said."
                )
        keep = is_new and not grown and getattr(alert, "keeps_flight_record", False)
        return Decision(
            finding=finding,
            action=alert.action,
            is_new=is_new,
            grows=grown and is_new,
            group=record.group,
            flight=tuple(self._flights[record.group]) if keep else (),
        )

    def _absent(self, alarm: Memory) -> None:
        """Count the judged steps without it as a negative streak."""
        alarm["streak"] = min(alarm["streak"], 0) - 1
        alarm["age"] = alarm.get("age", 0) + 1
        if -alarm["streak"] >= self._quiet:
            alarm.update(active=False, places=[])

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Everything that later alarms depend on, as strict JSON values; the flight recorder starts empty again."""
        with self._lock:
            return copy.deepcopy({"version": _STATE_VERSION, "memories": self._memories, "alarms": self._alarms})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved desk ended. State of alerts that are not here is ignored; new alerts start afresh.

        Args:
            state: what :meth:`state_dict` gave, also after a round trip through JSON.

        Raises:
            RecordError: it is something else, or of a newer version.
        """
        if not isinstance(state, Mapping) or not {"version", "memories", "alarms"} <= set(state):
            raise RecordError("this is no state of an AlertDesk: expected version, memories and alarms")
        if state["version"] != _STATE_VERSION:
            raise RecordError(
                f"the alerts' state has version {state['version']!r}, this headwater reads {_STATE_VERSION}"
            )
        codes: Sequence[str] = [alert.code for alert in self.alerts]
        with self._lock:
            for name, mine in (("memories", self._memories), ("alarms", self._alarms)):
                mine.clear()
                mine.update(copy.deepcopy({code: state[name][code] for code in codes if code in state[name]}))
            self._flights.clear()


def _covers(places: Sequence[str], names: Sequence[str]) -> bool:
    """Whether every name is one of the places, or belongs to one."""
    known = set(places)
    return all(name in known or any(name.startswith(f"{place}.") for place in known) for name in names)


def _failed(alert: Alert, error: Exception) -> Finding:
    return Finding(
        code=alert.code,
        defect="alert failed",
        severity=Severity.WARNING,
        cause=f"{type(alert).__name__} raised {type(error).__name__}: {error}",
        advice="Call the alert directly on the record to see the traceback, and report it.",
    )
