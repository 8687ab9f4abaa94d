"""What a run on the meta device shows: the forecast of every layer, parameter and point of the trunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwater.capture.recurrent_on_meta import StateOverTime
from headwater.records import LayerKind, ParameterRole
from headwater.records.profile import LossSource, TrunkKind

__all__ = ["Moments", "PredictedLayer", "PredictedParameter", "PredictedPoint", "Prediction"]


@dataclass(frozen=True)
class Moments:
    """What is forecast of one tensor.

    Attributes:
        rms_log10: mean over draws of log10 rms; -inf for zeros.
        spread: relative variance of the mean square between draws.
    """

    rms_log10: float
    spread: float


@dataclass
class PredictedLayer:
    """One tensor of one module call."""

    name: str
    type: str
    kind: LayerKind
    on_trunk: bool
    shape: tuple[int, ...]
    aliases: tuple[str, ...]
    parameters: tuple[str, ...]
    activation: Moments | None
    gradient: Moments | None
    unknown: str | None
    input_rms_log10: float | None = None


@dataclass
class PredictedParameter:
    """One parameter's gradient."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    layer: str | None
    role: ParameterRole
    value_mean: float
    value_variance: float
    gradient: Moments | None
    unknown: str | None


@dataclass
class PredictedPoint:
    """One tensor on the trunk."""

    kind: TrunkKind
    layer: str | None
    next_layer: str | None
    elements: int
    gradient: Moments | None


@dataclass
class Prediction:
    """What a run on the meta device showed."""

    layers: list[PredictedLayer]
    parameters: list[PredictedParameter]
    trunk: list[PredictedPoint]
    unruled: dict[str, str]
    operations: int
    loss_source: LossSource
    batch_size: int | None
    model_type: str
    dtype: str
    times: dict[str, list[StateOverTime]] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
