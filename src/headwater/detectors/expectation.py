"""What a forecast says of the gradient's course over depth, beside what was measured."""

from __future__ import annotations

import math
from typing import Any

from headwater.detectors.depth import DepthCourse, depth_steps
from headwater.records import Evidence

__all__ = ["expectation"]

# Chosen by us: a forecast explains a course when it comes within half a decade or a fifth of it.
_NEAR_DECADES = 0.5
_NEAR_FRACTION = 0.2


def expectation(course: DepthCourse, forecast: Any | None) -> tuple[tuple[Evidence, ...], str]:
    """Hold the measured change over depth against the forecast one. It informs; no verdict depends on it.

    Args:
        course: what was measured.
        forecast: what theory predicts for the same model (a :class:`headwater.Forecast`), or None.

    Returns:
        Evidence and a sentence with a leading space; both empty without a forecast of the whole way.
    """
    if forecast is None or forecast.budget.cut_at is not None:
        return (), ""
    steps = depth_steps(forecast.budget.steps)
    if not steps:
        return (), ""
    total = math.fsum(step.norm_decades for step in steps)
    evidence = (Evidence("change forecast at initialisation", total, "decades", "theory of wide networks"),)
    if abs(course.total_decades - total) <= max(_NEAR_DECADES, _NEAR_FRACTION * abs(course.total_decades)):
        return evidence, f" Theory forecasts {total:+.1f}: any draw of these initialisers does this."
    return evidence, (
        f" Theory forecasts {total:+.1f} at initialisation: the difference comes with these weights or inputs (trained, "
        "loaded, rescaled), not with the architecture and its initialisers."
    )
