"""A loss that broadcasts its two arguments against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from headwater.records import Evidence, Finding, Profile, Severity

__all__ = ["LossBroadcast"]


@dataclass(frozen=True)
class LossBroadcast:
    """The loss compares every output with every target.

    ## What it finds
    Floating-point targets whose shape differs from the output's and broadcasts against it, such as (N, 1) against (N,).

    ## Why it matters
    An elementwise loss then compares all N×N pairs; its minimum is the mean of the targets, whatever the input.

    ## Evidence and threshold
    The two shapes; no threshold. Class indices (integer targets) are not compared.

    ## Known false alarms
    A loss that broadcasts on purpose.

    ## What to try
    Make the shapes equal: ``output.squeeze(-1)`` or ``targets.unsqueeze(-1)``.

    ## References
    PyTorch's own warning in ``mse_loss``, "Using a target size that is different to the input size".
    """

    code: ClassVar[str] = "HW502"

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Yield at most one finding."""
        out, target = profile.output_shape, profile.target_shape
        warned = [w for w in profile.warnings if "target size" in w and "different" in w]
        mismatch = (
            out is not None
            and target is not None
            and (profile.target_dtype or "").startswith(("float", "bfloat", "complex"))
            and out != target
            and _broadcast(out, target)
        )
        if not (mismatch or warned):
            return
        shapes = f"{out} against {target}" if out is not None and target is not None else "different sizes"
        yield Finding(
            code=self.code,
            defect="loss broadcasts",
            severity=Severity.WARNING,
            evidence=(Evidence("warnings by torch", len(warned)),),
            cause=f"Output and targets have different shapes ({shapes}) and are broadcast: every output meets every target.",
            advice="Make the shapes equal, for example with output.squeeze(-1) or targets.unsqueeze(-1).",
        )


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast to one that has more elements than the larger of them, or than either dimension."""
    padded = max(len(a), len(b))
    left, right = (1,) * (padded - len(a)) + a, (1,) * (padded - len(b)) + b
    return all(x == y or 1 in (x, y) for x, y in zip(left, right, strict=True)) and left != right
