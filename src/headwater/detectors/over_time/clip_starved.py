"""Updates that clipping, or a tiny gradient, has pushed below the optimizer's eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from headwater.detectors.over_time.moment import WEIGHT_ROLES, Moment, sizes_of, written
from headwater.detectors.over_time.protocol import Action, Memory
from headwater.records import Evidence, Finding, Severity

__all__ = ["ClipStarved"]


@dataclass(frozen=True)
class ClipStarved:
    """Clipping pushes gradients below the optimizer's eps, or every step is clipped hard.

    ## What it finds
    Weights whose gradient, as the optimizer uses it, is smaller than eps: Adam then divides by eps and the step shrinks with
    the gradient. When the gradient before clipping was above eps, clipping starved it. And, for information, runs in
    which nearly every step is clipped to a small part.

    ## Why it matters
    One tensor with a huge norm sets the clip coefficient for all; the others freeze, and nothing is NaN and no loss
    explodes.

    ## Evidence and threshold
    Clip coefficient times rms of the gradient below ``eps_factor`` = 1 times eps (arithmetic: a second moment made of such
    gradients is below eps, which then is the larger part of the denominator). Where clipping has no part in it the root of
    the mean second moment must be below eps too. Embeddings are left out:
    the rows a batch does not use have none. ``share`` = 0.1: reported from one weight in ten on (chosen by us). For
    information: coefficient below ``hard`` = 0.1 at ``often`` = 0.9 of the last ``window`` = 32 recorded steps (chosen by
    us). This one does depend on the scale of the loss, as eps does.

    ## Known false alarms
    The end of training on data that is fitted exactly, where gradients vanish because nothing is left to learn.

    ## What to try
    Find the tensor that sets the norm and clip or scale it alone; a smaller eps; a larger clipping norm.

    ## References
    Kingma and Ba, *Adam*, ICLR 2015 (the role of eps). Pascanu, Mikolov, Bengio, ICML 2013 (clipping the norm).
    """

    code: ClassVar[str] = "HW606"
    eps_factor: float = 1.0
    share: float = 0.1
    hard: float = 0.1
    often: float = 0.9
    window: int = 32
    patience: int = 2
    action: Action = "warn"

    def __call__(self, moment: Moment, memory: Memory) -> list[Finding] | None:
        """Return at most one finding for eps and one for hard clipping."""
        record = moment.record
        if record.skipped is not None or moment.gradient_is_nonfinite:
            return None
        found = self._starved(moment)
        coefficient = record.clip_coefficient
        if coefficient is not None and math.isfinite(coefficient):
            hard: list[int] = memory.setdefault("hard", [])
            hard.append(int(coefficient < self.hard))
            del hard[: -self.window]
            if len(hard) == self.window and sum(hard) >= self.often * self.window:
                found.append(self._hard(moment, coefficient, sum(hard)))
        return found

    def _starved(self, moment: Moment) -> list[Finding]:
        record = moment.record
        moments, before = record.block("second_moment"), moment.gradients
        if moments is None or before is None or "epsilon" not in moments.columns:
            return []
        largest = max((eps for eps in moments.column("epsilon") if eps > 0), default=0.0)
        sizes = before.rms_log10()
        coefficient = 1.0 if record.clip_coefficient is None else record.clip_coefficient
        if not largest:
            return []
        used_block = record.block("gradient", "post_clip")
        if used_block is not None:
            used_sizes = sizes_of(used_block).rms_log10()
        else:
            shift = math.log10(coefficient) if coefficient > 0 else -math.inf
            if math.isfinite(sum(sizes)) and min(sizes, default=0.0) + shift >= math.log10(self.eps_factor * largest):
                return []  # the usual step, at little cost
            used_sizes = [size + shift for size in sizes]
        floor = math.log10(self.eps_factor * largest)
        if all(size >= floor for size in used_sizes):
            return []
        epsilon = dict(zip((t.name for t in moments.tensors), moments.column("epsilon"), strict=True))
        roots = dict(zip((t.name for t in moments.tensors), moments.column("root_rms"), strict=True))
        used_tensors = before.tensors if used_block is None else used_block.tensors
        used = dict(zip((t.name for t in used_tensors), used_sizes, strict=True))
        rows: list[tuple[str, float, float]] = []
        judged = clipped = 0
        for tensor, size in zip(before.tensors, sizes, strict=True):
            name = tensor.name
            eps = epsilon.get(name, math.nan)
            if tensor.role not in WEIGHT_ROLES or tensor.role == "embedding" or not eps > 0 or name not in used:
                continue
            judged += 1
            limit = math.log10(self.eps_factor * eps)
            root = roots[name]
            by_clip = coefficient < 1.0 and size >= limit
            # Without clipping a gradient may be small for a moment: the second moment says what the step is divided by.
            if -math.inf < used[name] < limit and (by_clip or not root >= self.eps_factor * eps):
                rows.append((name, used[name], eps))
                clipped += by_clip
        if not rows or len(rows) < self.share * judged:
            return []
        name, size, eps = min(rows, key=lambda row: row[1])
        by_clip = 2 * clipped >= len(rows)
        told = (
            f"Clipping multiplies the gradient by {coefficient:.2g}: that of {name} was above eps and is now {written(size)}"
            if by_clip
            else f"The gradient of {name} has rms {written(size)}"
        )
        return [
            Finding(
                code=self.code,
                defect="clip-starved updates" if by_clip else "eps dominates the step",
                severity=Severity.WARNING,
                where=tuple(row[0] for row in rows),
                evidence=(
                    Evidence("gradient rms", 10.0 ** max(size, -300.0), "", f"of {name}; eps {eps:g}"),
                    Evidence("clip coefficient", coefficient),
                    Evidence("weights below eps", len(rows), "", f"of {judged}"),
                ),
                cause=f"{told}, below the optimizer's eps {eps:g}; so are {len(rows)} of {judged} weights, whose steps shrink.",
                advice=(
                    "Find the tensor that sets the norm and clip or scale it alone, or lower eps."
                    if by_clip
                    else "Scale the loss up or lower eps; the step is no longer independent of the gradient's scale."
                ),
            )
        ]

    def _hard(self, moment: Moment, coefficient: float, count: int) -> Finding:
        return Finding(
            code=self.code,
            defect="clipped hard all the time",
            severity=Severity.INFO,
            evidence=(
                Evidence(
                    "recorded steps", count, "", f"of the last {self.window}, with a coefficient below {self.hard:g}"
                ),
                Evidence("clip coefficient", coefficient, "", "now"),
            ),
            cause=f"At {count} of the last {self.window} recorded steps clipping left less than {self.hard:.0%} of the gradient.",
            advice=(
                "Clipping then is a learning rate divided by the norm, not a guard against rare steps: raise the limit to near "
                "the usual norm, or know that every step has the same length."
            ),
        )
