"""Every exception headwater raises on purpose.

::

    HeadwaterError
    ├── InputError             the arguments cannot be measured (also a ValueError)
    │   ├── LossError          the loss is not a scalar, or depends on no parameter
    │   └── GradModeError      autograd is switched off: no_grad, inference_mode
    ├── NothingObservedError   no parameter and no layer received anything to record
    ├── RecordError            a saved file is damaged, foreign, or of a newer schema (also a ValueError)
    ├── TargetError            a command-line TARGET cannot be imported, called or understood
    ├── StudyError             a study's name or one of its options is unknown
    ├── OutputError            a report cannot be written where it was asked for
    └── UnhealthyError         raise_if_unhealthy(), assert_gradients_flow(), an alert that raises: carries the findings
        └── TrainingStopped    an alert with the action "stop"; ends a `with watch(...)` block without an error

Each message says what was wrong (names, shapes, values) and what to do.
"""

from __future__ import annotations

__all__ = [
    "GradModeError",
    "HeadwaterError",
    "InputError",
    "LossError",
    "NothingObservedError",
    "OutputError",
    "RecordError",
    "StudyError",
    "TargetError",
    "TrainingStopped",
    "UnhealthyError",
]


class HeadwaterError(Exception):
    """The base of every error that headwater raises on purpose."""


class InputError(HeadwaterError, ValueError):
    """The arguments cannot be measured as given."""


class LossError(InputError):
    """The loss is not a scalar, or no parameter influences it."""


class GradModeError(InputError):
    """Autograd is switched off where a gradient was asked for."""


class NothingObservedError(HeadwaterError):
    """No parameter and no layer received a gradient that could be recorded."""


class RecordError(HeadwaterError, ValueError):
    """A saved record is damaged, is something else, or has a newer schema."""


class TargetError(HeadwaterError):
    """A command-line TARGET cannot be imported, called or understood."""


class StudyError(HeadwaterError, ValueError):
    """A study's name or option is unknown."""


class OutputError(HeadwaterError, OSError):
    """A report cannot be written where it was asked for."""


class UnhealthyError(HeadwaterError, AssertionError):
    """The diagnosis found something; ``findings`` lists it."""

    findings: tuple[object, ...]

    def __init__(self, message: str, findings: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.findings = findings


class TrainingStopped(UnhealthyError):
    """An alert of a watched run asked to stop; the ``with`` block of ``headwater.watch`` ends quietly on it."""
