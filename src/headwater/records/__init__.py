"""Frozen records, strict JSON in and out; they know neither torch nor a model."""

from headwater.records.profile import (
    Coverage,
    GradientState,
    LayerKind,
    LayerProfile,
    ParameterProfile,
    ParameterRole,
    Profile,
    TimeProfile,
    TrunkPoint,
)
from headwater.records.statistics import Spread, Statistics

__all__ = [
    "Coverage",
    "GradientState",
    "LayerKind",
    "LayerProfile",
    "ParameterProfile",
    "ParameterRole",
    "Profile",
    "Spread",
    "Statistics",
    "TimeProfile",
    "TrunkPoint",
]
