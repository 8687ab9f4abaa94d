"""Frozen records, strict JSON in and out; they know neither torch nor a model."""

from headwater.records.budget import Budget, BudgetStep, WeightShare, gradient_budget
from headwater.records.comparison import Comparison, ComparisonRow
from headwater.records.diagnosis import Diagnosis
from headwater.records.finding import Evidence, Finding, Severity, Verdict, fold_names
from headwater.records.forecast import (
    BlockForecast,
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
from headwater.records.run import RecordedStep, RunSource, StatisticMatrix
from headwater.records.statistics import Spread, Statistics
from headwater.records.step import (
    NORM_COLUMNS,
    STATISTICS_COLUMNS,
    Block,
    GradientPhase,
    Quantity,
    RunEvent,
    StepRecord,
    WatchedTensor,
)
from headwater.records.step_profile import RunContext, profile_of_step
from headwater.records.study import StudyResult
from headwater.records.time_forecast import TimeComparison, TimeForecast

__all__ = [
    "NORM_COLUMNS",
    "STATISTICS_COLUMNS",
    "Block",
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
    "GradientPhase",
    "GradientState",
    "LayerForecast",
    "LayerKind",
    "LayerProfile",
    "ParameterForecast",
    "ParameterProfile",
    "ParameterRole",
    "Profile",
    "Quantity",
    "RecordedStep",
    "RunContext",
    "RunEvent",
    "RunSource",
    "SecondLook",
    "Severity",
    "Spread",
    "StatisticMatrix",
    "Statistics",
    "StepRecord",
    "StudyResult",
    "TimeComparison",
    "TimeForecast",
    "TimeProfile",
    "TrunkPoint",
    "UpdateProfile",
    "Verdict",
    "WatchedTensor",
    "WeightShare",
    "fold_names",
    "gradient_budget",
    "profile_of_step",
]
