"""Frozen records, strict JSON in and out; they know neither torch nor a model."""

from headwater.records.budget import Budget, BudgetStep, WeightShare, gradient_budget
from headwater.records.diagnosis import Diagnosis
from headwater.records.finding import Evidence, Finding, Severity, Verdict, fold_names
from headwater.records.forecast import (
    BlockForecast,
    Comparison,
    ComparisonRow,
    FailurePoint,
    Forecast,
    ForecastCoverage,
    LayerForecast,
    ParameterForecast,
)
from headwater.records.profile import (
    Coverage,
    GradientState,
    LayerKind,
    LayerProfile,
    ParameterProfile,
    ParameterRole,
    Profile,
    SecondLook,
    TimeProfile,
    TrunkPoint,
    UpdateProfile,
)
from headwater.records.statistics import Spread, Statistics
from headwater.records.study import StudyResult

__all__ = [
    "BlockForecast",
    "Budget",
    "BudgetStep",
    "Comparison",
    "ComparisonRow",
    "Coverage",
    "Diagnosis",
    "Evidence",
    "FailurePoint",
    "Finding",
    "Forecast",
    "ForecastCoverage",
    "GradientState",
    "LayerForecast",
    "LayerKind",
    "LayerProfile",
    "ParameterForecast",
    "ParameterProfile",
    "ParameterRole",
    "Profile",
    "SecondLook",
    "Severity",
    "Spread",
    "Statistics",
    "StudyResult",
    "TimeProfile",
    "TrunkPoint",
    "UpdateProfile",
    "Verdict",
    "WeightShare",
    "fold_names",
    "gradient_budget",
]
