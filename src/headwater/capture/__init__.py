"""The only code that reads a live model: hooks, execution order, trunk, recurrent unrolling, initialisers."""

from headwater.capture.session import Observation, observe
from headwater.capture.tensors import tensors_in

__all__ = ["Observation", "observe", "tensors_in"]
