"""Remedies: each reads a copy of the model and gives code that changes it, or the reason why it cannot help."""

from headwater.remedies.add_shortcut import AddShortcut
from headwater.remedies.break_symmetry import BreakSymmetry
from headwater.remedies.clip_gradients import ClipGradients
from headwater.remedies.critical_initialization import CriticalInitialization
from headwater.remedies.forget_bias import RaiseForgetBias
from headwater.remedies.guard_domain import GuardDomain
from headwater.remedies.he_initialization import HeInitialization
from headwater.remedies.insert_normalization import InsertNormalization
from headwater.remedies.learning_rate import LayerwiseLearningRate
from headwater.remedies.lsuv_initialization import LsuvInitialization
from headwater.remedies.orthogonal_initialization import OrthogonalInitialization
from headwater.remedies.orthogonal_recurrence import OrthogonalRecurrence
from headwater.remedies.patient import Call, Operation, Patient, examine
from headwater.remedies.remedy import NotApplicable, Remedy, Stage, Treatment
from headwater.remedies.replace_output import ReplaceOutput
from headwater.remedies.revive_dead_units import ReviveDeadUnits
from headwater.remedies.scale_loss import ScaleLoss
from headwater.remedies.scale_query_key import ScaleQueryKey
from headwater.remedies.scale_residual_branches import ScaleResidualBranches
from headwater.remedies.standardize_input import StandardizeInput
from headwater.remedies.straight_through import StraightThrough
from headwater.remedies.swap_activation import SwapActivation
from headwater.remedies.xavier_initialization import XavierInitialization

__all__ = [
    "DEFAULT_REMEDIES",
    "AddShortcut",
    "BreakSymmetry",
    "Call",
    "ClipGradients",
    "CriticalInitialization",
    "GuardDomain",
    "HeInitialization",
    "InsertNormalization",
    "LayerwiseLearningRate",
    "LsuvInitialization",
    "NotApplicable",
    "Operation",
    "OrthogonalInitialization",
    "OrthogonalRecurrence",
    "Patient",
    "RaiseForgetBias",
    "Remedy",
    "ReplaceOutput",
    "ReviveDeadUnits",
    "ScaleLoss",
    "ScaleQueryKey",
    "ScaleResidualBranches",
    "Stage",
    "StandardizeInput",
    "StraightThrough",
    "SwapActivation",
    "Treatment",
    "XavierInitialization",
    "examine",
]

DEFAULT_REMEDIES: tuple[Remedy, ...] = (
    CriticalInitialization(),
    HeInitialization(),
    XavierInitialization(),
    OrthogonalInitialization(),
    LsuvInitialization(),
    SwapActivation("relu"),
    SwapActivation("tanh"),
    SwapActivation("gelu"),
    SwapActivation("silu"),
    SwapActivation("leaky_relu"),
    InsertNormalization("layer"),
    InsertNormalization("rms"),
    InsertNormalization("batch"),
    AddShortcut(),
    AddShortcut(normalize=True),
    ScaleResidualBranches(),
    ScaleResidualBranches(zero=True),
    ScaleQueryKey(),
    BreakSymmetry(),
    ReviveDeadUnits(),
    StandardizeInput(),
    ReplaceOutput("identity"),
    ReplaceOutput("sigmoid"),
    ReplaceOutput("softmax"),
    ReplaceOutput("softplus"),
    RaiseForgetBias(),
    OrthogonalRecurrence(),
    OrthogonalRecurrence("identity"),
    ClipGradients(),
    ScaleLoss(),
    LayerwiseLearningRate(),
    GuardDomain(),
    StraightThrough(),
)
