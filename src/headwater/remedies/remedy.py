"""What a remedy is: it reads a patient and gives code that changes the model, or the reason why it cannot help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from headwater.records import Verdict
from headwater.records.remedy import RemedyKind
from headwater.remedies.patient import Patient

__all__ = ["NotApplicable", "Remedy", "Stage", "Treatment"]


class Stage:
    """When a remedy acts within a pair: what changes the structure comes before what draws weights for it.

    Attributes:
        INPUT: what the model is given.
        OPERATION: functions inside a forward.
        OUTPUT: the last activation.
        ACTIVATION: the hidden activations.
        NORMALIZATION: normalisation layers.
        SHORTCUT: residual connections.
        WEIGHTS: the values of the weights.
        RESCALING: factors on the weights, which drawing them would undo.
        TRAINING: the training loop.
    """

    INPUT = 0
    OPERATION = 1
    OUTPUT = 2
    ACTIVATION = 3
    NORMALIZATION = 4
    SHORTCUT = 5
    WEIGHTS = 6
    RESCALING = 7
    TRAINING = 8


@dataclass(frozen=True, slots=True)
class NotApplicable:
    """Why a remedy cannot help this patient.

    Attributes:
        reason: in words.
    """

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """A change, as code and in words.

    Attributes:
        code: Python that changes ``model``, with its imports. It draws random numbers from a seed of its own and leaves
            the global random state as it was. For ``kind="training"`` it defines ``before_step(model, optimizer)``, to be
            called between ``backward()`` and ``step()``, or ``scale_loss(loss)``, or ``make_optimizer(model)``.
        changes: layer by layer, one line each.
        kind: whether it changes the model or the training loop.
        notes: what to know before taking it.
    """

    code: str
    changes: tuple[str, ...]
    kind: RemedyKind = "model"
    notes: tuple[str, ...] = ()


class Remedy(Protocol):
    """Any object with a stable code, a name, and one call; users pass a list."""

    @property
    def code(self) -> str:
        """Stable and unique, such as ``HR101``."""
        ...

    @property
    def name(self) -> str:
        """What is done, in a few words."""
        ...

    @property
    def treats(self) -> Mapping[Verdict, int]:
        """The verdicts that it may heal, each with its turn: 1 is tried first."""
        ...

    @property
    def stage(self) -> int:
        """When it acts within a pair; see :class:`Stage`."""
        ...

    @property
    def invasiveness(self) -> int:
        """How much it changes, from 0 (nothing but the training loop); chosen by us, orders equals."""
        ...

    def __call__(self, patient: Patient) -> Treatment | NotApplicable:
        """Plan the change for one model; nothing is changed.

        Args:
            patient: the model, its diagnosis and what one forward showed.

        Returns:
            The change, or why there is none.
        """
        ...
