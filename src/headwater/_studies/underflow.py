"""The depth at which a falling gradient leaves each number format: predicted, and tried in that format."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from headwater._studies.ensemble import draw_ensemble
from headwater._studies.run import VariantRun
from headwater.records.study import Cell, StudyTable
from headwater.theory.finite_width import underflow_depth

__all__ = ["flushes_subnormals", "underflow_table", "zero_depth"]

_DTYPES = (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16))
_DRAWS = 8  # networks per depth, 10,000 weight-gradient elements each; chosen by us


def underflow_table(one: VariantRun, loss: str, statistic: str, seed: int) -> StudyTable | None:
    """The depth at which the first layer's gradient leaves each number format: predicted, and tried.

    Below the smallest normal number precision is lost; below half of the smallest subnormal one a value rounds to
    zero, unless the machine flushes subnormal numbers, and then it is zero as soon as it is not normal.

    Args:
        one: a network whose gradient falls.
        loss: a key of :data:`headwater.studies.LOSSES`.
        statistic: what the study prints.
        seed: of the trial.

    Returns:
        The table; None where the gradient does not fall.
    """
    trend = one.result.trend("∂L/∂W")
    if trend is None or trend.high >= 0.0:
        return None
    per_layer = trend.decades_per_layer
    depth = one.variant.network.hidden
    # the line through the ensemble, continued: layer 1 of a network of depth d has 10^(first + rate · (d − depth))
    first = float(one.ensemble.statistic[:, 0].median())
    at_zero = first - per_layer * depth
    rows: list[tuple[Cell, ...]] = []
    kept_until: dict[str, int] = {}  # where a machine that keeps subnormal numbers would find zeros
    for name, dtype in _DTYPES:
        flushed = flushes_subnormals(dtype, one.variant.network.width)
        normal = underflow_depth(per_layer, dtype, start=10.0**at_zero, limit="normal")
        kept_until[name] = math.ceil(underflow_depth(per_layer, dtype, start=10.0**at_zero, limit="subnormal"))
        zero = math.ceil(normal) if flushed else kept_until[name]
        tried = zero_depth(one, loss, statistic, dtype, zero, seed)
        subnormal = "flushed" if flushed else "kept"
        rows.append((name, float(torch.finfo(dtype).tiny), math.ceil(normal), subnormal, zero, tried))
    return StudyTable(
        title="Depth at which the first layer's gradient leaves the number format",
        columns=(
            "format",
            "smallest\nnormal number",
            "precision lost\nfrom layer (theory)",
            "subnormals\nin this run",
            "zero from\nlayer (theory)",
            "half of ∂L/∂W₁ is 0\nfrom layer (run)",
        ),
        rows=tuple(rows),
        reading=_reading(rows, kept_until),
    )


def _reading(rows: list[tuple[Cell, ...]], kept_until: dict[str, int]) -> str:
    parts = []
    for number, (name, _, normal, _, zero, tried) in enumerate(rows):
        lead = "" if number else "precision is lost "
        verb = "and" if number else "layers on, and the typical element is zero from"
        run = "not found" if tried is None else tried
        parts.append(f"in {name} {lead}from {normal} {verb} {zero} (networks of that depth, run in it: {run})")
    text = f"{'; '.join(parts)}.".replace("in", "In", 1)
    for row in rows:
        if row[3] == "flushed":
            text += (
                f" This machine's matrix products flush subnormal {row[0]} numbers to zero; one that keeps them would "
                f"reach {kept_until[str(row[0])]} layers."
            )
    return text


def flushes_subnormals(dtype: torch.dtype, width: int) -> bool:
    """Whether a matrix product of the size that the networks need turns subnormal numbers into zero on this machine.

    x86 processors with AVX512-BF16 do: their product of bf16 numbers (VDPBF16PS) treats subnormal inputs as zero and
    flushes subnormal results, whatever the floating-point mode (Intel, *64 and IA-32 Architectures Software
    Developer's Manual*, VDPBF16PS). Whether that instruction is used depends on the size of the matrices.

    Args:
        dtype: of the numbers.
        width: units of a hidden layer.

    Returns:
        True when δ W or δᵀ a of a subnormal δ comes out as zero.
    """
    delta = torch.full((_DRAWS, 1, width), torch.finfo(dtype).tiny / 4, dtype=dtype)
    weight = torch.eye(width, dtype=dtype).expand(_DRAWS, width, width).contiguous()
    through_weights = torch.bmm(delta, weight)
    into_weights = torch.bmm(delta.mT, torch.ones_like(delta))
    return not bool(through_weights.all() and into_weights.all())


def zero_depth(one: VariantRun, loss: str, statistic: str, dtype: torch.dtype, guess: int, seed: int) -> int | None:
    """The smallest depth near a guess at which at least half of ∂L/∂W₁ is exactly zero, by running the networks.

    Args:
        one: the network to deepen.
        loss: a key of :data:`headwater.studies.LOSSES`.
        statistic: what the study prints.
        dtype: of weights, activations and gradients.
        guess: where to look.
        seed: of the draws.

    Returns:
        Hidden layers; None when it is not within four of the guess.
    """
    for hidden in range(max(1, guess - 4), guess + 5):
        network = replace(one.variant.network, hidden=hidden)
        ensemble = draw_ensemble(
            network, one.variant.data, loss=loss, statistic=statistic, printed=network.weight_names[:1],
            draws=_DRAWS, seed=seed, dtype=dtype,
        )  # fmt: skip
        if float(ensemble.zero_fraction[:, 0].mean()) >= 0.5:
            return hidden
    return None
