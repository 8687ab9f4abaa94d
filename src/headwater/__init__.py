"""headwater: does the gradient reach the first layer, and if not, where is it lost, why, and what repairs it?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headwater.errors import HeadwaterError
from headwater.records import Diagnosis, Finding, Forecast, Profile, Severity, Statistics, Verdict

if TYPE_CHECKING:
    from headwater import init, testing
    from headwater._diagnose import diagnose
    from headwater._explain_init import explain_init
    from headwater._measure import measure
    from headwater._predict import predict
    from headwater._prescribe import prescribe
    from headwater._watch import watch
    from headwater.detectors import DEFAULT_DETECTORS, Detector
    from headwater.detectors.over_time import DEFAULT_ALERTS
    from headwater.store import open_run
    from headwater.theory import critical_init, gain

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_ALERTS",
    "DEFAULT_DETECTORS",
    "Detector",
    "Diagnosis",
    "Finding",
    "Forecast",
    "HeadwaterError",
    "Profile",
    "Severity",
    "Statistics",
    "Verdict",
    "critical_init",
    "diagnose",
    "explain_init",
    "gain",
    "init",
    "measure",
    "open_run",
    "predict",
    "prescribe",
    "testing",
    "watch",
]

# What needs torch is imported when it is first used, so that `headwater --help` answers at once.
_LAZY = {
    "DEFAULT_ALERTS": "headwater.detectors.over_time",
    "DEFAULT_DETECTORS": "headwater.detectors",
    "Detector": "headwater.detectors",
    "critical_init": "headwater.theory",
    "diagnose": "headwater._diagnose",
    "explain_init": "headwater._explain_init",
    "gain": "headwater.theory",
    "measure": "headwater._measure",
    "open_run": "headwater.store",
    "predict": "headwater._predict",
    "prescribe": "headwater._prescribe",
    "watch": "headwater._watch",
}


def __getattr__(name: str) -> Any:
    if name in ("init", "testing"):
        return importlib.import_module(f"headwater.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'headwater' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
