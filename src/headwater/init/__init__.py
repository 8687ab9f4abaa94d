"""Initialisers that keep the signal: one tensor, or a whole model in place.

Every function here that ends in ``_`` changes what it is given, as torch's do. The ``plan_`` functions say beforehand
what would change.
"""

from headwater.init.critical import critical_, plan_critical
from headwater.init.lsuv import LsuvLayer, LsuvReport, lsuv_
from headwater.init.orthogonal import delta_orthogonal_, orthogonal_
from headwater.init.plan import Change, Plan
from headwater.init.residual import depth_scaled_residual_, plan_depth_scaled_residual

__all__ = [
    "Change",
    "LsuvLayer",
    "LsuvReport",
    "Plan",
    "critical_",
    "delta_orthogonal_",
    "depth_scaled_residual_",
    "lsuv_",
    "orthogonal_",
    "plan_critical",
    "plan_depth_scaled_residual",
]
