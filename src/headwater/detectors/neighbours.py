"""What stands next to a layer: the row that feeds it, and the parameters behind a name people cannot look up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from headwater.records import LayerProfile, Profile

__all__ = ["behind_function", "decades_below_median", "feeding_row"]


def feeding_row(profile: Profile, row: LayerProfile) -> LayerProfile | None:
    """The row that most likely feeds an elementwise one: the nearest one before it of the same shape."""
    position = next((i for i, r in enumerate(profile.layers) if r.name == row.name), 0)
    return next((r for r in reversed(profile.layers[:position]) if r.shape == row.shape), None)


def decades_below_median(profile: Profile, names: Sequence[str]) -> float:
    """How far the largest weight gradient among some parameters lies below the median weight gradient.

    Args:
        profile: the profile.
        names: of the parameters.

    Returns:
        Decades of rms; infinite where all of them are exactly zero, NaN without any weight among them.
    """
    weights = [
        q for q in profile.parameters if q.role in ("weight", "attention", "recurrent") and q.gradient is not None
    ]
    sizes = {q.name: q.gradient.rms_log10 for q in weights if q.gradient is not None}
    finite = [s for s in sizes.values() if math.isfinite(s)]
    mine = [sizes[name] for name in names if name in sizes]
    if not mine or not finite:
        return math.nan
    return statistics.median(finite) - max(mine)


def behind_function(profile: Profile, name: str) -> tuple[str, ...]:
    """Modules or parameters to look at for a row that no module made, such as ``fc:tanh`` or ``(model):softmax``.

    Args:
        profile: the profile.
        name: of a row or of a layer.

    Returns:
        The module the function ran in, the parameters that module owns itself, and the last layer before it; nothing
        for an ordinary layer.
    """
    base = name.split(":", 1)[0].split("#")[0]
    functional = ":" in name
    if not functional and base != "(model)":
        return ()
    found = [] if base == "(model)" else [base]
    own = [q for q in profile.parameters if q.layer is not None and q.layer.split(":")[0].split("#")[0] == base]
    position = next((i for i, r in enumerate(profile.layers) if r.name == name), len(profile.layers))
    before = next((r for r in reversed(profile.layers[:position]) if r.parameters and ":" not in r.name), None)
    found += [q.name for q in own]
    if before is not None and before.name != "(model)":
        found.append(before.name)
    return tuple(found)
