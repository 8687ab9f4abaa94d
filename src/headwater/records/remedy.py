"""Prescriptions: what was tried on a copy, what it did to the gradient and to the loss, and the code that does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, overload

from headwater.errors import RecordError
from headwater.records.finding import Verdict
from headwater.records.json_codec import decode, encode
from headwater.records.profile import Profile
from headwater.records.saved import Saved

__all__ = ["Cost", "NotTried", "Prescription", "Prescriptions", "RemedyKind", "Trial"]

SOLVED = 0.01

RemedyKind = Literal["model", "training"]
"""``model``: the code changes the model. ``training``: it defines a function that the training loop calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A few optimizer steps on two copies with the same batch, the same seed and the same optimizer.

    Attributes:
        before: the loss of the model as it was, before each step and after the last one.
        after: the loss of the repaired model, likewise.
        optimizer: class name.
        learning_rate: of its first group.
        seed: of every random number drawn in a step (dropout).
        note: what to know about the trial, such as a step that failed; empty otherwise.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    optimizer: str
    learning_rate: float
    seed: int
    note: str = ""

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return max(0, max(len(self.before), len(self.after)) - 1)

    @property
    def final_before(self) -> float:
        """The loss that the unrepaired model ends with; NaN without one."""
        return self.before[-1] if self.before else math.nan

    @property
    def final_after(self) -> float:
        """The loss that the repaired model ends with; NaN without one."""
        return self.after[-1] if self.after else math.nan

    @property
    def mean_before(self) -> float:
        """Mean loss of the unrepaired model over the trial: small when it falls fast; NaN without one."""
        return math.fsum(self.before) / len(self.before) if self.before else math.nan

    @property
    def mean_after(self) -> float:
        """Mean loss of the repaired model over the trial; NaN without one."""
        return math.fsum(self.after) / len(self.after) if self.after else math.nan

    @property
    def improved(self) -> bool:
        """Whether the repaired model ends with a finite loss below that of the unrepaired one (or that one has none).

        Where both have solved the batch (losses below ``SOLVED`` = 1 % of the first one, chosen by us), the smaller mean
        over the trial decides: which of two zeros is the smaller says nothing.
        """
        if not math.isfinite(self.final_after):
            return False
        if not math.isfinite(self.final_before):
            return True
        limit = SOLVED * self.before[0]
        if 0.0 <= self.final_before < limit and 0.0 <= self.final_after < limit:
            return self.mean_after < self.mean_before
        return self.final_after < self.final_before


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a repair costs.

    Attributes:
        parameters_added: number of elements of new parameters.
        step_time_ratio: median seconds of a trial step after over before; NaN without a trial.
    """

    parameters_added: int = 0
    step_time_ratio: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Prescription:
    """One repair, tried on a copy.

    Attributes:
        name: what is done, in a few words; a pair is joined by ``+``.
        codes: of the remedies it consists of, such as ``("HR201", "HR101")``.
        kind: see :data:`RemedyKind`.
        changes: layer by layer, one line each.
        code: Python that makes the change to ``model``; running it is what :meth:`apply` does, and what was tried.
        before: the model as it was.
        after: the repaired copy.
        verdict_before: of the model as it was.
        verdict_after: of the repaired copy.
        trial: None when the time budget was spent before it.
        cost: parameters added, and time per step.
        invasiveness: how much of the model it changes, from 0 (nothing but the training loop); orders equals.
        notes: what to know before taking it.
    """

    name: str
    codes: tuple[str, ...]
    kind: RemedyKind = "model"
    changes: tuple[str, ...]
    code: str
    before: Profile
    after: Profile
    verdict_before: Verdict
    verdict_after: Verdict
    trial: Trial | None = None
    cost: Cost = Cost()
    invasiveness: int = 0
    notes: tuple[str, ...] = ()

    @property
    def healed(self) -> bool:
        """Whether the repaired copy has a healthy verdict."""
        return self.verdict_after is Verdict.HEALTHY

    @property
    def proven(self) -> bool:
        """Whether it healed, and the loss of the trial ended below that of the unrepaired model."""
        return self.healed and self.trial is not None and self.trial.improved

    def apply(self, model: Any) -> Any:
        """Run :attr:`code` on your model, in place.

        Args:
            model: the model that was prescribed for, or another one with the same layers.

        Returns:
            The model: the same object, changed. For a training remedy unchanged: its code belongs in the training loop.

        Raises:
            AttributeError: the model lacks a layer or parameter that the code names.
        """
        return run_code(self.code, model)["model"]


def run_code(code: str, model: Any) -> dict[str, Any]:
    """Execute a snippet with ``model`` in its namespace.

    Args:
        code: the text.
        model: what it changes.

    Returns:
        The namespace: ``model``, and the functions that the snippet defines.
    """
    namespace: dict[str, Any] = {"__name__": "headwater_prescription", "model": model}
    exec(compile(code, "<headwater prescription>", "exec"), namespace)
    return namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried:
    """A remedy that is not among the prescriptions.

    Attributes:
        name: of the remedy.
        code: its stable code.
        reason: why it does not apply, why it failed, or that the time was spent.
        failed: whether it was tried and raised.
    """

    name: str
    code: str
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prescriptions(Saved, Sequence[Prescription]):
    """Repairs, best first: healed before not, then the lower loss of the trial, then the smaller change.

    Attributes:
        items: the prescriptions; empty for a healthy model.
        verdict: of the model as it was.
        cause: the root cause, in words; empty for a healthy model.
        before: the profile of the model as it was.
        not_tried: the other remedies, each with its reason.
        keep_weights: whether remedies that draw weights anew were left out.
        weights_note: how that was decided.
        notes: what else to know, such as that the time was spent.
        seconds: what the search took.
        budget_seconds: what it was allowed to take.
    """

    SCHEMA: ClassVar[str] = "headwater.prescriptions"

    items: tuple[Prescription, ...]
    verdict: Verdict
    cause: str = ""
    before: Profile
    not_tried: tuple[NotTried, ...] = ()
    keep_weights: bool = False
    weights_note: str = ""
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    budget_seconds: float = 60.0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Prescription]:
        return iter(self.items)

    def __bool__(self) -> bool:
        return bool(self.items)

    @overload
    def __getitem__(self, index: int) -> Prescription: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Prescription, ...]: ...

    def __getitem__(self, index: int | slice) -> Prescription | tuple[Prescription, ...]:
        return self.items[index]

    @property
    def best(self) -> Prescription | None:
        """The first; None when there is none. Look at its ``healed``: when nothing heals, it is the best attempt."""
        return self.items[0] if self.items else None

    @property
    def healed(self) -> bool:
        """Whether the best one heals."""
        return bool(self.items) and self.items[0].healed

    @property
    def table(self) -> list[dict[str, Any]]:
        """One flat mapping per prescription: what CSV and pandas show; None where a value does not apply."""
        return [
            {
                "rank": rank,
                "name": p.name,
                "codes": "+".join(p.codes),
                "kind": p.kind,
                "verdict_before": p.verdict_before.value,
                "verdict_after": p.verdict_after.value,
                "healed": p.healed,
                "loss_before": None if p.trial is None else p.trial.final_before,
                "loss_after": None if p.trial is None else p.trial.final_after,
                "trial_steps": None if p.trial is None else p.trial.steps,
                "parameters_added": p.cost.parameters_added,
                "step_time_ratio": p.cost.step_time_ratio,
            }
            for rank, p in enumerate(self.items, 1)
        ]

    def to_pandas(self) -> Any:
        """The table as a ``pandas.DataFrame`` (needs ``pip install headwater[pandas]``)."""
        from headwater.records.table import rows_to_pandas

        return rows_to_pandas(self.table)

    def to_dict(self) -> dict[str, Any]:
        """The prescriptions as plain JSON values, with the schema's name and version; the profile before is held once."""
        data = encode(self)
        data["before"] = self.before.to_dict()
        for item, record in zip(data["items"], self.items, strict=True):
            del item["before"]
            item["after"] = record.after.to_dict()
            item["healed"] = record.healed
        return {"schema": self.SCHEMA, "schema_version": self.SCHEMA_VERSION, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Args:
            data: the mapping.

        Returns:
            Equal prescriptions.

        Raises:
            RecordError: the mapping is something else.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("items"), list):
            raise RecordError("this is not a headwater.prescriptions file: it lists no items")
        items = [{**item, "before": data.get("before")} for item in data["items"] if isinstance(item, Mapping)]
        return decode(cls, {**data, "items": items}, schema=cls.SCHEMA, version=cls.SCHEMA_VERSION)
