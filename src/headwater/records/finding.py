"""What a detector says: a finding, and the verdict that a set of findings adds up to."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Evidence", "Finding", "Severity", "Verdict", "fold_names"]


class Severity(enum.StrEnum):
    """How much a finding matters: ``critical`` decides the verdict, ``warning`` deserves a look, ``info`` informs."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for critical."""
        return ("info", "warning", "critical").index(self.value)


class Verdict(enum.StrEnum):
    """The one root cause; symptoms of it are findings, not verdicts."""

    HEALTHY = "healthy"
    VANISHING = "vanishing"
    EXPLODING = "exploding"
    DEAD_UNITS = "dead_units"
    SATURATED = "saturated"
    SYMMETRIC = "symmetric"
    NAN = "nan"
    ZERO_GRADIENT = "zero_gradient"
    VANISHING_IN_TIME = "vanishing_in_time"
    EXPLODING_IN_TIME = "exploding_in_time"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One number a finding rests on.

    Attributes:
        name: what it is.
        value: the number.
        unit: such as ``decades`` or ``fraction``; empty for a pure number.
        reference: what it was compared with, in words.
    """

    name: str
    value: float
    unit: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        # A count is given as an int and read back from JSON as a float: one type, so that both are written alike.
        object.__setattr__(self, "value", float(self.value))

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        reference = f" ({self.reference})" if self.reference else ""
        return f"{self.name} {self.value:.4g}{unit}{reference}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing a detector found.

    Attributes:
        code: stable, such as ``HW101``.
        defect: its name in a few words, such as ``vanishing gradient``.
        severity: how much it matters.
        verdict: what the model would be called if this were the root cause; None for a finding that cannot be one.
        where: exact layer or parameter names, unfolded, nearest the input first.
        evidence: the numbers, with units and what they were compared with.
        cause: one sentence that names the mechanism with its number.
        advice: what to try, and why.
        symptom_of: code of the finding that explains this one, once a diagnosis has ordered them.
        step: the optimizer step at which it began, for a finding of a watched run; else None.
    """

    code: str
    defect: str
    severity: Severity
    verdict: Verdict | None = None
    where: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    cause: str
    advice: str
    symptom_of: str | None = None
    step: int | None = None

    def __str__(self) -> str:
        when = "" if self.step is None else f" at step {self.step}"
        place = f" at {', '.join(fold_names(self.where))}" if self.where else ""
        return f"{self.code} {self.severity.value}: {self.defect}{when}{place}. {self.cause} {self.advice}"


_NUMBER = re.compile(r"\d+")


def fold_names(names: Iterable[str], limit: int = 6) -> list[str]:
    """Ranges of names that differ in one number only, in the short form people read.

    Args:
        names: exact names.
        limit: how many folded names are listed before "and n more".

    Returns:
        Such as ``["blocks.3–7.fc1", "head"]``, each range where its first name stands.

    Example:
        >>> fold_names(["blocks.3", "blocks.4", "blocks.5", "head"])
        ['blocks.3–5', 'head']
        >>> fold_names(["0", "2", "4", "6"])
        ['0, 2 … 6']
        >>> fold_names(["fc1", "act1", "fc2", "act2", "fc3", "act3"])
        ['fc1–3', 'act1–3']
    """
    left = dict.fromkeys(names)
    folded: list[str] = []
    while left:
        text, members = _longest_range(next(iter(left)), left)
        folded.append(text)
        for member in members:
            del left[member]
    if len(folded) > limit:
        folded = [*folded[:limit], f"and {len(folded) - limit} more"]
    return folded


def _longest_range(first: str, names: Iterable[str]) -> tuple[str, list[str]]:
    """The longest even progression of at least three names that starts at ``first``, varying one of its numbers."""
    best: tuple[str, list[str]] = (first, [first])
    for match in _NUMBER.finditer(first):
        head, tail, start = first[: match.start()], first[match.end() :], int(match.group())
        alike = re.compile(rf"{re.escape(head)}(\d+){re.escape(tail)}$")
        found = {int(m.group(1)): name for name in names if (m := alike.match(name)) and int(m.group(1)) >= start}
        following = min((value for value in found if value > start), default=start)
        step = following - start
        values = [start]
        while step and values[-1] + step in found:
            values.append(values[-1] + step)
        if len(values) >= 3 and len(values) > len(best[1]):
            span = f"{start}–{values[-1]}" if step == 1 else f"{start}, {following} … {values[-1]}"
            best = (f"{head}{span}{tail}", [found[value] for value in values])
    return best
