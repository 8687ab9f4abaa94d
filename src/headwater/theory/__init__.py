"""Signal-propagation theory: floats and small tensors in, floats out; it has never seen a model."""

from headwater.theory.elementwise import derivative
from headwater.theory.finite_width import born_dead_probability, log_gradient_variance, underflow_depth
from headwater.theory.gain import GainRow, gain, gain_table, torch_gain
from headwater.theory.gaussian import ActivationMoments, correlated_expectation, expectation
from headwater.theory.propagation import (
    correlation_map,
    critical_init,
    default_linear_factor,
    depth_scale,
    fixed_point,
    gradient_multiplier,
    variance_map,
    weight_gradient_second_moment,
)

__all__ = [
    "ActivationMoments",
    "GainRow",
    "born_dead_probability",
    "correlated_expectation",
    "correlation_map",
    "critical_init",
    "default_linear_factor",
    "depth_scale",
    "derivative",
    "expectation",
    "fixed_point",
    "gain",
    "gain_table",
    "gradient_multiplier",
    "log_gradient_variance",
    "torch_gain",
    "underflow_depth",
    "variance_map",
    "weight_gradient_second_moment",
]
