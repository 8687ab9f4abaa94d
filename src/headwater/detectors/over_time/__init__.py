"""Alerts: what only several recorded steps of one training run can show. One defect per file, no torch."""

from headwater.detectors.over_time.clip_starved import ClipStarved
from headwater.detectors.over_time.desk import AlertDesk, Decision, with_actions
from headwater.detectors.over_time.drift import Drift
from headwater.detectors.over_time.growing_dead_units import GrowingDeadUnits
from headwater.detectors.over_time.moment import Moment
from headwater.detectors.over_time.nonfinite import NonFiniteStep
from headwater.detectors.over_time.on_profile import OnProfile
from headwater.detectors.over_time.protocol import Action, Alert, Memory
from headwater.detectors.over_time.spike import Spike
from headwater.detectors.over_time.stalled_layer import StalledLayer
from headwater.detectors.over_time.update_ratio import UpdateRatio

__all__ = [
    "DEFAULT_ALERTS",
    "Action",
    "Alert",
    "AlertDesk",
    "ClipStarved",
    "Decision",
    "Drift",
    "GrowingDeadUnits",
    "Memory",
    "Moment",
    "NonFiniteStep",
    "OnProfile",
    "Spike",
    "StalledLayer",
    "UpdateRatio",
    "with_actions",
]

DEFAULT_ALERTS: tuple[Alert, ...] = (
    NonFiniteStep(),
    OnProfile(),
    Spike(),
    Drift(),
    StalledLayer(),
    GrowingDeadUnits(),
    ClipStarved(),
    UpdateRatio(),
)
"""All built-in alerts, the root cause before its symptoms; each only warns. See :func:`with_actions` for another policy."""
