"""What an initialiser of whole models is going to change, listed before it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Change", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One parameter (or block of a stacked parameter) and what becomes of it.

    Attributes:
        name: the parameter's name, the block in brackets: ``attn.in_proj_weight[value]``.
        rule: what is done, in words: ``normal``, ``zeros``, ``multiplied``.
        std: standard deviation of the new values; None when the present ones are multiplied.
        factor: what the present values are multiplied with; None when new ones are drawn.
        weight_variance: σ_w² = fan_in · std²; None for a bias and for a factor.
        activation: what follows the layer; ``linear`` when nothing elementwise does.
        note: why, where the rule is not the plain one.
    """

    name: str
    rule: str
    std: float | None = None
    factor: float | None = None
    weight_variance: float | None = None
    activation: str | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.factor is not None:
            what = f"multiplied with {self.factor:.4g}"
        elif self.std == 0.0:
            what = "zeros"
        elif self.weight_variance is None:
            what = f"{self.rule}, std {self.std:.4g}"
        else:
            what = f"{self.rule}, std {self.std:.4g} (fan_in · Var = {self.weight_variance:.4g}, {self.activation})"
        return f"{self.name}: {what}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is changed and what is left alone; nothing has happened yet.

    Attributes:
        changes: in registration order.
        kept: parameter name to the reason why it stays as it is.
    """

    changes: tuple[Change, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [str(change) for change in self.changes]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.kept.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"kept ({reason}): {', '.join(names)}" for reason, names in reasons.items()]
        return "\n".join(lines) or "nothing to change"
