"""Some weights get a gradient far below that of all others, though the trunk is sound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity, Verdict

__all__ = ["StarvedWeights"]


@dataclass(frozen=True)
class StarvedWeights:
    """Weights off the trunk are starved, most often because tokens became identical (rank collapse).

    ## What it finds
    Weight matrices whose gradient (rms) lies many decades below the upper quartile over the network's weights. Where the
    positions of a sample have become parallel, it names rank collapse as the cause.

    ## Why it matters
    With identical tokens every attention pattern gives the same output, so queries and keys receive no gradient; the
    same happens to a deep branch beside a short path.

    ## Evidence and threshold
    ``critical_decades``: 6.9 below the upper quartile, the rounding unit of float32: at one learning rate such a weight
    does not move while the others do. The quartile and not the median, because in a deep network the starved weights
    are the larger part: two of three in attention whose tokens are identical. ``warning_decades``: 4. Rank collapse is
    named where the mean cosine between positions on the trunk exceeds ``cosine`` = 0.99. Chosen by us.

    ## Known false alarms
    Layers behind a deliberately tiny gate (LayerScale at 1e-6) in a network where most weights are not.

    ## What to try
    A skip connection and normalisation around attention; for a branch, its own initialisation.

    ## References
    Dong, Cordonnier, Loukas, *Attention is not all you need*, ICML 2021. Noci et al., *Signal propagation in
    transformers*, NeurIPS 2022.
    """

    code: ClassVar[str] = "HW104"
    critical_decades: float = 6.9
    warning_decades: float = 4.0
    cosine: float = 0.99

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        weights = [
            q
            for q in profile.parameters
            if q.role in ("weight", "attention", "recurrent")
            and q.gradient is not None
            and not q.gradient.nonfinite_count
        ]
        logs = {q.name: q.gradient.rms_log10 for q in weights if q.gradient is not None and q.state != "exact_zero"}
        if len(logs) < 4:
            return
        fed = statistics.quantiles(logs.values(), n=4)[2]
        below = {name: fed - value for name, value in logs.items() if fed - value >= self.warning_decades}
        if not below:
            return
        collapsed = [
            r for r in profile.trunk_layers if r.position_cosine is not None and r.position_cosine > self.cosine
        ]
        started_apart = any(r.position_cosine is not None and r.position_cosine < 0.9 for r in profile.layers)
        rank = bool(collapsed) and started_apart
        if rank:  # in the collapsed layers exact zeros are the same thing, rounded
            below |= {q.name: math.inf for q in weights if q.state == "exact_zero"}
        depth = max((v for v in below.values() if math.isfinite(v)), default=0.0)
        yield Finding(
            code=self.code,
            defect="rank collapse" if rank else "starved weights",
            severity=Severity.CRITICAL if depth >= self.critical_decades else Severity.WARNING,
            verdict=Verdict.VANISHING,
            where=tuple(q.name for q in weights if q.name in below),
            evidence=(
                Evidence(
                    "below the upper quartile of the weights", depth, "decades", f"limit {self.critical_decades:g}"
                ),
                *(
                    (
                        Evidence(
                            "mean cosine between positions",
                            collapsed[0].position_cosine or 0.0,
                            "",
                            f"at {collapsed[0].name}",
                        ),
                    )
                    if rank
                    else ()
                ),
            ),
            cause=(
                f"From {collapsed[0].name} on, the positions of a sample are parallel (mean cosine "
                f"{collapsed[0].position_cosine:.4f}), so what attention looks at makes no difference: {len(below)} weights get "
                f"up to {depth:.1f} decades less than the best-fed quarter of the weights."
                if rank
                else f"{len(below)} weights get up to {depth:.1f} decades less gradient than the best-fed quarter of the weights "
                f"(10^{fed:.1f} and more)."
            ),
            advice=(
                "Put a skip connection (and normalisation) around each attention layer."
                if rank
                else "Look at what stands between these weights and the loss: a gate near zero, a deep branch, a saturated unit."
            ),
        )
