"""A diagnosis: the verdict, the findings it rests on, the budget and the profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.errors import UnhealthyError
from headwater.records.budget import Budget
from headwater.records.finding import Finding, Severity, Verdict
from headwater.records.json_codec import encode
from headwater.records.profile import Profile
from headwater.records.saved import Saved

__all__ = ["Diagnosis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis(Saved):
    """Whether the gradient reaches the first layer, and if not, where it is lost and why.

    Attributes:
        verdict: the root cause, or ``healthy``.
        findings: worst first; the root cause leads.
        budget: the change of the gradient along the trunk, step by step.
        profile: what was measured.
        undecided: what one measurement of this model could not settle, in words; empty when everything was.
    """

    SCHEMA: ClassVar[str] = "headwater.diagnosis"

    verdict: Verdict
    findings: tuple[Finding, ...]
    budget: Budget
    profile: Profile
    undecided: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the verdict is ``healthy``."""
        return self.verdict is Verdict.HEALTHY

    @property
    def root(self) -> Finding | None:
        """The finding that gives the verdict, or None for a healthy model."""
        return next((f for f in self.findings if f.verdict is self.verdict and f.severity is Severity.CRITICAL), None)

    def worst(self) -> Severity | None:
        """The highest severity among the findings, or None without any."""
        return max((f.severity for f in self.findings), key=lambda s: s.rank, default=None)

    def raise_if_unhealthy(self, at: Severity | str = Severity.CRITICAL) -> None:
        """Raise when a finding is at least this severe.

        Args:
            at: ``info``, ``warning`` or ``critical``.

        Raises:
            UnhealthyError: with the findings in its text and in ``findings``.
        """
        limit = Severity(at).rank
        bad = tuple(f for f in self.findings if f.severity.rank >= limit)
        if bad:
            raise UnhealthyError(f"verdict: {self.verdict.value}\n" + "\n".join(f"  {f}" for f in bad), bad)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON values, with its schema's name and version."""
        data = encode(self)
        data["profile"] = self.profile.to_dict()
        return {"schema": self.SCHEMA, "schema_version": self.SCHEMA_VERSION, "ok": self.ok, **data}
