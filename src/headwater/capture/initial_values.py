"""What the values of one parameter look like: moments, special structure, law, initialiser."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.records.initialization import Distribution
from headwater.theory.initializers import Candidate, ValueMoments, fitting_laws, matching_initializers

__all__ = ["NO_STANDARD", "Values", "describe_values"]

NO_STANDARD = "no standard initialiser"
_CHUNK = 1 << 19  # elements per float64 copy: 4 MiB
_LARGEST_GRAM = 256  # rows of W Wᵀ looked at: rows of an orthogonal matrix stay orthonormal among themselves


@dataclass(frozen=True)
class Values:
    """What the values of one tensor look like.

    Attributes:
        moments: of the values; None when one is not finite or there is none.
        zero_fraction: share of exact zeros.
        distribution: the shape of the values.
        initializer: what drew them.
        also: what else could have.
    """

    moments: ValueMoments | None
    zero_fraction: float
    distribution: Distribution
    initializer: str
    also: tuple[str, ...] = ()


def _moments(tensor: Tensor) -> tuple[ValueMoments | None, float]:
    chunks = tensor.flatten().split(_CHUNK)
    n = tensor.numel()
    zero_fraction = 1.0 - sum(int(c.count_nonzero()) for c in chunks) / n
    ends = [c.aminmax() for c in chunks]
    low, high = (float(torch.stack(part).double().aminmax()[i]) for i, part in enumerate(zip(*ends, strict=True)))
    if not (math.isfinite(low) and math.isfinite(high)):
        return None, zero_fraction
    # Powers of the distance from a pilot mean, in one pass; a shift then gives the central moments.
    pilot = low if low == high else float(chunks[0].double().mean())
    sums = torch.zeros(4, dtype=torch.float64, device=tensor.device)
    for chunk in chunks:
        d = chunk.double() - pilot  # out of place: double() of a float64 weight is the weight itself
        squares = d * d
        sums += torch.stack([d.sum(), squares.sum(), torch.dot(d, squares), torch.dot(squares, squares)])
    m1, m2, m3, m4 = (sums / n).tolist()
    variance = max(m2 - m1**2, 0.0)
    fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1**2 * m2 - 3.0 * m1**4
    moments = ValueMoments(
        count=n,
        mean=pilot + m1,
        variance=variance,
        kurtosis=fourth / variance**2 if variance > 1e-150 else math.nan,
        low=low,
        high=high,
        resolution=torch.finfo(tensor.dtype).eps,
    )
    return moments, zero_fraction


def describe_values(tensor: Tensor, candidates: list[Candidate]) -> Values:
    """Moments, law and initialiser of the values of a tensor.

    Args:
        tensor: real floating point, at least one element; only read.
        candidates: initialisers in order of preference.

    Returns:
        The description.
    """
    moments, zero_fraction = _moments(tensor)
    if moments is None:
        return Values(None, zero_fraction, "unknown", NO_STANDARD)
    special = _special(tensor, moments, zero_fraction)
    if special is not None:
        return Values(moments, zero_fraction, *special)
    laws = fitting_laws(moments)
    if not laws and moments.count < 8:
        laws = ("uniform", "normal")  # too few values to tell a law, enough to agree with an initialiser or not
    matched = matching_initializers(moments, laws, candidates)
    if not matched:
        return Values(moments, zero_fraction, laws[0] if laws else "unknown", NO_STANDARD)
    (label, law), *rest = matched
    return Values(moments, zero_fraction, law, label, tuple(other for other, _ in rest))


def _special(tensor: Tensor, moments: ValueMoments, zero_fraction: float) -> tuple[Distribution, str] | None:
    if moments.max_abs == 0.0:
        return "zeros", "zeros_()"
    if moments.max_deviation == 0.0 and moments.count > 1:
        return "constant", "ones_()" if moments.mean == 1.0 else f"constant_({moments.mean:.6g})"
    if tensor.dim() >= 2:
        diagonal = _diagonal_scale(tensor) if zero_fraction > 0.0 else None
        if diagonal is not None:
            kind = "eye_()" if tensor.dim() == 2 else "dirac_()"
            return "identity", kind if diagonal == 1.0 else f"{diagonal:.4g} · {kind}"
        gain = _orthogonal_gain(tensor)
        if gain is not None:
            shown = round(gain, 3)
            return "orthogonal", "orthogonal_()" if shown == 1.0 else f"orthogonal_(gain={shown:g})"
    if zero_fraction >= 0.1:
        rest = tensor.flatten()
        std = float(rest[rest != 0].double().square().mean().sqrt())
        return "sparse", f"sparse_(sparsity={zero_fraction:.2g}, std={std:.3g})"
    return None


def _diagonal_scale(tensor: Tensor) -> float | None:
    """Scale c when the matrix is c times the identity (a kernel: at its centre, as ``dirac_`` leaves it), else None."""
    matrix = tensor
    if tensor.dim() > 2:
        for size in tensor.shape[2:]:
            matrix = matrix.select(2, size // 2)
    if min(matrix.shape) < 2 or int((tensor != 0).sum()) != min(matrix.shape):
        return None
    diagonal = matrix.diagonal()
    return float(diagonal[0]) if bool((diagonal == diagonal[0]).all()) and float(diagonal[0]) != 0.0 else None


def _orthogonal_gain(tensor: Tensor) -> float | None:
    """Gain g when W Wᵀ = g² I (or WᵀW, for a tall matrix), to the dtype's accuracy; else None."""
    matrix = tensor.reshape(tensor.shape[0], -1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.t()
    if matrix.shape[0] < 2:
        return None
    tolerance = max(1e-4, 4.0 * torch.finfo(tensor.dtype).eps)
    scale: float | None = None
    for rows in (4, _LARGEST_GRAM):  # four rows rule most matrices out
        scale = _row_scale(matrix[:rows].double(), tolerance)
        if scale is None:
            return None
    return scale


def _row_scale(matrix: Tensor, tolerance: float) -> float | None:
    """The common length of rows that are orthogonal to one another and equally long, else None."""
    gram = matrix @ matrix.t()
    squares = gram.diagonal()
    scale = float(squares.mean())
    off = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device) * scale).abs().max()
    return math.sqrt(scale) if scale > 0.0 and float(off) <= tolerance * scale else None
