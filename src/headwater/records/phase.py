"""Where a deep network of one activation keeps its gradient, as a map over weight and bias variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from headwater.records.saved import Saved

__all__ = ["ActivationGains", "ActivationTable", "CriticalPoint", "PhaseDiagram", "PhaseNetwork", "PhasePoint"]


Phase = Literal["ordered", "critical", "chaotic"]
"""``ordered``: gradients vanish with depth and inputs become alike. ``chaotic``: they explode, inputs separate."""

_CRITICAL = 0.01  # |ln χ| of a depth scale of 100 layers; drawn weights scatter by about as much. Chosen by us


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePoint:
    """What a deep stack of equal layers does at one place of the diagram.

    Attributes:
        weight_variance: σ_w² = fan_in · Var(W).
        bias_variance: σ_b² = Var(b).
        preactivation_variance: q*, where the signal settles; 0 when it dies out, ``inf`` when it grows without end.
        multiplier: χ = σ_w² E[φ'(√q* z)²], by which a layer multiplies the squared gradient.
    """

    weight_variance: float
    bias_variance: float
    preactivation_variance: float
    multiplier: float

    @property
    def depth_scale(self) -> float:
        """ξ = 1/|ln χ|: layers over which the squared gradient changes e-fold; 0 when χ is 0, ``inf`` when it is 1."""
        if self.multiplier <= 0.0:
            return 0.0
        rate = abs(math.log(self.multiplier))
        return 1.0 / rate if rate > 0.0 else math.inf

    @property
    def decades_per_layer(self) -> float:
        """log10 √χ: decades of rms gradient won (+) or lost (-) per layer."""
        return 0.5 * math.log10(self.multiplier) if self.multiplier > 0.0 else -math.inf

    @property
    def phase(self) -> Phase:
        """Which side of χ = 1 this is; ``critical`` where the depth scale is above 100 layers."""
        if self.multiplier <= 0.0:
            return "ordered"
        rate = math.log(self.multiplier)
        return "critical" if abs(rate) < _CRITICAL else "chaotic" if rate > 0.0 else "ordered"


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalPoint:
    """The border between the phases at one bias variance.

    Attributes:
        bias_variance: σ_b².
        weight_variance: σ_w² of the border.
        preactivation_variance: q* there.
        jumps: χ leaps over 1 instead of passing it, because the signal settles elsewhere on the other side: no σ_w²
            keeps the gradient at this bias variance.
    """

    bias_variance: float
    weight_variance: float
    preactivation_variance: float
    jumps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseNetwork:
    """A network placed in the diagram.

    Attributes:
        name: what it is called.
        mean: at the mean σ_w² and σ_b² of its layers.
        critical: the border at its mean σ_b²; None where there is none.
        layers: name of the weight to its own place.
        activations: what follows these layers, as named there.
        matches: whether these are the diagram's activation.
    """

    name: str
    mean: PhasePoint
    critical: CriticalPoint | None = None
    layers: Mapping[str, PhasePoint]
    activations: tuple[str, ...] = ()
    matches: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDiagram(Saved):
    """The phases of deep networks with one activation, over (σ_w², σ_b²).

    Attributes:
        activation: its name.
        weight_variances: σ_w² of the columns, increasing.
        bias_variances: σ_b² of the rows, increasing.
        multipliers: χ, one row per bias variance.
        preactivation_variances: q*, one row per bias variance; 0 and ``inf`` as in :class:`PhasePoint`.
        critical: the border by increasing bias variance, finer than the rows near 0; empty where there is none in the
            diagram.
        network: a network placed in it, or None.
        headwater_version: that computed it.
    """

    SCHEMA: ClassVar[str] = "headwater.phase"

    activation: str
    weight_variances: tuple[float, ...]
    bias_variances: tuple[float, ...]
    multipliers: tuple[tuple[float, ...], ...]
    preactivation_variances: tuple[tuple[float, ...], ...]
    critical: tuple[CriticalPoint, ...] = ()
    network: PhaseNetwork | None = None
    headwater_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGains:
    """The gains of one activation at unit pre-activation variance, and its critical point without a bias.

    Attributes:
        name: of the activation.
        forward: 1/√E[φ²].
        backward: 1/√E[φ'²].
        std: 1/√Var[φ].
        torch: what ``torch.nn.init.calculate_gain`` gives; None where it raises.
        critical_weight_variance: σ_w² that keeps the gradient of a deep stack without biases; None where there is none
            that the signal stays at (GELU, SiLU).
        critical_preactivation_variance: q* there; about 0 for the limit of small signals.
    """

    name: str
    forward: float
    backward: float
    std: float
    torch: float | None = None
    critical_weight_variance: float | None = None
    critical_preactivation_variance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationTable(Saved):
    """The gains of every elementwise activation that torch has.

    Attributes:
        rows: one per activation.
        torch_version: whose ``calculate_gain`` stands beside.
        headwater_version: that computed it.
    """

    SCHEMA: ClassVar[str] = "headwater.activations"

    rows: tuple[ActivationGains, ...]
    torch_version: str
    headwater_version: str
