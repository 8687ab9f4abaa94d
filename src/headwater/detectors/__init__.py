"""Profile to findings: one defect per file, plain functions over plain records, no torch."""

from headwater.detectors.dead_units import DeadUnits
from headwater.detectors.exploding_gradient import ExplodingGradient
from headwater.detectors.gradient_over_time import ExplodingInTime, VanishingInTime
from headwater.detectors.loss_saturation import LossSaturation
from headwater.detectors.loss_shape import LossBroadcast
from headwater.detectors.nonfinite_values import NonFiniteValues
from headwater.detectors.protocol import Detector
from headwater.detectors.root_cause import diagnosis_of
from headwater.detectors.saturated_activation import SaturatedActivation
from headwater.detectors.signal_collapse import SignalCollapse
from headwater.detectors.starved_weights import StarvedWeights
from headwater.detectors.symmetric_units import SymmetricUnits
from headwater.detectors.underflow import Underflow
from headwater.detectors.update_size import UpdateSize
from headwater.detectors.vanishing_gradient import VanishingGradient
from headwater.detectors.zero_gradient import ZeroGradient

__all__ = [
    "DEFAULT_DETECTORS",
    "DeadUnits",
    "Detector",
    "ExplodingGradient",
    "ExplodingInTime",
    "LossBroadcast",
    "LossSaturation",
    "NonFiniteValues",
    "SaturatedActivation",
    "SignalCollapse",
    "StarvedWeights",
    "SymmetricUnits",
    "Underflow",
    "UpdateSize",
    "VanishingGradient",
    "VanishingInTime",
    "ZeroGradient",
    "diagnosis_of",
]

DEFAULT_DETECTORS: tuple[Detector, ...] = (
    VanishingGradient(),
    ExplodingGradient(),
    SignalCollapse(),
    StarvedWeights(),
    DeadUnits(),
    SaturatedActivation(),
    SymmetricUnits(),
    NonFiniteValues(),
    ZeroGradient(),
    Underflow(),
    VanishingInTime(),
    ExplodingInTime(),
    UpdateSize(),
    LossBroadcast(),
    LossSaturation(),
)
