"""Which parameters make up the norm of a gradient."""

from __future__ import annotations

import math

from headwater.records.step import Block
from headwater.store.rows import roots

__all__ = ["shares"]


def shares(block: Block) -> tuple[tuple[str, float], ...]:
    """Share of every tensor in the sum of squares of all of them, Σx² of one over Σx² of all.

    Args:
        block: of whole statistics or norms.

    Returns:
        (name, share), largest first, summing to 1. Where there are NaN or infinite elements: the share of these. Empty
        when everything is zero, or nothing was observed.
    """
    found = roots(block)
    if found is None:
        return ()
    names = [tensor.name for tensor in block.tensors]
    nans, infs = block.column("nan_count"), block.column("inf_count")
    parts = [nan + inf for nan, inf in zip(nans, infs, strict=True)]
    if not any(parts):
        # Relative to the largest scale, so that squares outside the range of a double do no harm.
        pairs = list(zip(found.squares, found.exponents, strict=True))
        top = max((exponent for square, exponent in pairs if square > 0.0), default=0.0)
        parts = [square * 4.0 ** (exponent - top) if square > 0.0 else 0.0 for square, exponent in pairs]
    total = math.fsum(parts)
    if not total > 0.0:
        return ()
    by_name = ((name, part / total) for name, part in zip(names, parts, strict=True))
    return tuple(sorted(by_name, key=lambda part: -part[1]))
