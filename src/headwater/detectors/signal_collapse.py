"""The samples of a batch become indistinguishable on the way forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, LayerProfile, Profile, Severity, Verdict

__all__ = ["SignalCollapse", "smallest_step"]

_EPSILON = {"float64": 2.3e-16, "float32": 1.2e-7, "bfloat16": 7.8e-3, "float16": 9.8e-4}


def smallest_step(dtype: str) -> float:
    """Relative distance of neighbouring numbers of a dtype; that of float32 for an unknown one."""
    return _EPSILON.get(dtype, 1.2e-7)


@dataclass(frozen=True)
class SignalCollapse:
    """The signal collapses: samples become indistinguishable.

    ## What it finds
    A trunk layer below the head whose output hardly depends on the sample: the part of its second moment that varies
    between samples is below ``fraction``.

    ## Why it matters
    What the samples share cannot tell them apart; the head then learns the mean of the targets, and the gradient that
    would separate the samples is lost in the rounding of what they share.

    ## Evidence and threshold
    ``between_sample_fraction`` (variance across samples over second moment). A warning below ``fraction`` = 1e-6, an
    amplitude of 1e-3; critical where the amplitude is below the rounding unit of the layer's dtype, so that the
    samples are the same number: arithmetic, not a choice.

    ## Known false alarms
    A batch of identical samples; a network that starts from a learned constant.

    ## What to try
    Larger weights (the critical scale) or smaller biases; normalisation; a shortcut.

    ## References
    Schoenholz et al., *Deep information propagation*, ICLR 2017: in the ordered phase inputs merge.
    """

    code: ClassVar[str] = "HW103"
    fraction: float = 1e-6

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        rows = [r for r in _below_head(profile) if r.between_sample_fraction is not None]
        if not rows or (rows[0].between_sample_fraction or 0.0) < self.fraction:
            return  # the input itself hardly varies: nothing collapsed on the way
        collapsed = [r for r in rows if (r.between_sample_fraction or 0.0) < self.fraction]
        if not collapsed:
            return
        least = min(collapsed, key=lambda r: r.between_sample_fraction or 0.0)
        value = least.between_sample_fraction or 0.0
        lost = value < smallest_step(least.dtype) ** 2
        yield Finding(
            code=self.code,
            defect="signal collapse",
            severity=Severity.CRITICAL if lost else Severity.WARNING,
            verdict=Verdict.VANISHING,
            where=tuple(r.name for r in collapsed),
            evidence=(
                Evidence(
                    "between-sample fraction",
                    value,
                    "",
                    f"limit {self.fraction:g}; {rows[0].name} has {rows[0].between_sample_fraction:.2g}",
                ),
            ),
            cause=(
                f"From {collapsed[0].name} on, the samples differ by less than {self.fraction**0.5:.0e} of the signal's "
                f"size; at {least.name} by {value**0.5:.1e}" + (f", which {least.dtype} cannot hold." if lost else ".")
            ),
            advice="Raise the weights towards the critical scale, lower the biases, or add normalisation or a shortcut.",
        )


def _below_head(profile: Profile) -> list[LayerProfile]:
    """Trunk rows on the input side of the last layer that owns parameters: a zero-initialised head is no collapse."""
    rows = list(profile.trunk_layers)
    last = max((i for i, r in enumerate(rows) if r.parameters), default=0)
    return rows[:last]
