"""The only code that reads a live model: hooks, execution order, trunk, recurrent unrolling, initialisers."""

from headwater.capture.loss_run import LossRun
from headwater.capture.second_look import CopyError, look_again
from headwater.capture.session import Observation, observe
from headwater.capture.tensors import tensors_in

__all__ = ["CopyError", "LossRun", "Observation", "look_again", "observe", "tensors_in"]
