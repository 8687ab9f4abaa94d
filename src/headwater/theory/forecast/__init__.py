"""Moment propagation: what the statistics of inputs and initial weights make of every activation and gradient."""

from headwater.theory.forecast import rules as _rules
from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import RULES, Call, Engine, rule
from headwater.theory.forecast.rules.recurrent import SAMPLES_ALONG_TIME, Recurrence
from headwater.theory.forecast.signals import Known, Law, Signal, Source
from headwater.theory.forecast.stats import Stats

__all__ = [
    "RULES",
    "SAMPLES_ALONG_TIME",
    "Atom",
    "Axes",
    "Call",
    "Engine",
    "Known",
    "Law",
    "NoRuleError",
    "Recurrence",
    "Signal",
    "Source",
    "Stats",
    "axes_of_shape",
    "rule",
]
del _rules
