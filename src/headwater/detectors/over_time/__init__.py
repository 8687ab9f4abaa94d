"""Alerts: what only several recorded steps of one training run can show. One defect per file, no torch."""

from headwater.detectors.over_time.desk import AlertDesk, Decision, with_actions
from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.nonfinite import NonFiniteStep
from headwater.detectors.over_time.protocol import Action, Alert, Memory

__all__ = [
    "DEFAULT_ALERTS",
    "Action",
    "Alert",
    "AlertDesk",
    "Decision",
    "Memory",
    "Moment",
    "NonFiniteStep",
    "with_actions",
]

DEFAULT_ALERTS: tuple[Alert, ...] = (NonFiniteStep(),)
