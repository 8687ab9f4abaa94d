"""A phase diagram in words."""

from __future__ import annotations

import math

from headwater.records.phase import CriticalPoint, PhaseDiagram, PhasePoint

__all__ = ["count_layers", "read_diagram", "read_point"]


def count_layers(depth_scale: float) -> str:
    """A depth scale with its unit.

    Args:
        depth_scale: ξ in layers.

    Returns:
        Such as ``3.6 layers``, ``infinitely many layers``.
    """
    if math.isinf(depth_scale):
        return "infinitely many layers"
    if depth_scale >= 1000.0:
        return f"{round(depth_scale, -2):,.0f} layers"
    return f"{depth_scale:.2g} layers" if depth_scale < 100.0 else f"{depth_scale:.0f} layers"


def read_point(point: PhasePoint) -> str:
    """What a deep stack does at one place.

    Args:
        point: the place.

    Returns:
        A predicate without a full stop, such as ``is in the ordered phase: ...``.
    """
    if point.phase == "critical":
        return "sits on the critical line and keeps its gradient"
    if point.multiplier <= 0.0:
        return "lets no gradient through a layer"
    change = "lost" if point.phase == "ordered" else "won"
    return (
        f"is in the {point.phase} phase: {abs(point.decades_per_layer):.2g} decades of gradient are {change} per layer "
        f"(depth scale {count_layers(point.depth_scale)})"
    )


def read_diagram(diagram: PhaseDiagram) -> str:
    """The diagram in one sentence, about the network when there is one.

    Args:
        diagram: the record.

    Returns:
        The sentence.
    """
    if diagram.network is not None:
        mean, wanted = diagram.network.mean, diagram.network.critical
        where = f"σ_w² = {mean.weight_variance:.3g}, σ_b² = {mean.bias_variance:.3g}"
        hint = "" if mean.phase == "critical" or wanted is None else _hint(wanted)
        return f"{diagram.network.name} ({where}) {read_point(mean)}{hint}."
    passed = [p for p in diagram.critical if not p.jumps]
    if not diagram.critical:
        phase = "vanish" if diagram.multipliers[-1][-1] < 1.0 else "explode"
        return f"In the whole range shown gradients {phase} with depth."
    if not passed:
        first = diagram.critical[0]
        return (
            f"Gradients vanish left of the dotted line (σ_w² = {first.weight_variance:.3g} without a bias) and explode "
            "right of it; on it the signal leaps from one level to another, and no σ_w² keeps the gradient."
        )
    first, last = passed[0], passed[-1]
    ends = [f"{p.weight_variance:.3g} at σ_b² = {p.bias_variance:.2g}" for p in (first, last)]
    where = f"σ_w² = {', '.join(ends)}"
    if abs(last.weight_variance - first.weight_variance) < 1e-6 * first.weight_variance:
        where = f"σ_w² = {first.weight_variance:.4g}"
    text = (
        f"On the line ({where}) the gradient of a deep network keeps its size; left of it gradients vanish, right of it "
        "they explode, the faster the stronger the colour."
    )
    if len(passed) < len(diagram.critical):
        text += " Where it is dotted the signal leaps from one level to another, and no σ_w² keeps the gradient."
    return text


def _hint(point: CriticalPoint) -> str:
    if point.jumps:
        return "; no σ_w² would keep it at this bias variance"
    return f"; at this bias variance σ_w² = {point.weight_variance:.3g} would keep it"
