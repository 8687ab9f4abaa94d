"""The log2 histogram of a tensor, on demand."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from headwater.records.histogram import Histogram
from headwater.stats.elements import implicit_zero_count, stored_pieces

__all__ = ["log2_histogram"]

# Elements of a block, and so the size of a temporary (chosen by us).
_BLOCK_ON_HOST = 2**18
_BLOCK_ON_ACCELERATOR = 2**22

# Exponents e of [2**e, 2**(e + 1)) of any float64, subnormal ones included: -1074 to 1023.
_LOWEST, _BINS = -1074, 2098


@torch.no_grad()
def log2_histogram(tensor: Tensor) -> Histogram:
    """Count the elements of a tensor by power of two and sign.

    Args:
        tensor: of any shape, dtype, layout and device. An expanded tensor counts every repetition, a sparse one its
            implicit zeros, a complex one its real and imaginary parts.

    Returns:
        The histogram. Counting waits for an accelerator: this is a statistic to look at, not one for every step.

    Example:
        >>> log2_histogram(torch.tensor([1.0, 1.5, -3.0, 0.0])).positive
        ((0, 2),)
    """
    block = _BLOCK_ON_HOST if tensor.device.type == "cpu" else _BLOCK_ON_ACCELERATOR
    sides: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    zero = nan = inf = stored = 0
    for piece, repeats in stored_pieces(tensor, block):
        stored += piece.numel() * repeats
        finite = piece[torch.isfinite(piece)]
        nans = int(torch.isnan(piece).sum())
        nonzero = finite[finite != 0.0]
        nan += nans * repeats
        inf += (piece.numel() - finite.numel() - nans) * repeats
        zero += (finite.numel() - nonzero.numel()) * repeats
        # frexp writes x = m * 2**e with 0.5 <= |m| < 1, exact for subnormal numbers too.
        bins = torch.frexp(nonzero).exponent.long() - 1 - _LOWEST + _BINS * (nonzero > 0.0)
        for index, count in enumerate(torch.bincount(bins, minlength=2 * _BINS).tolist()):
            if count:
                sign, offset = divmod(index, _BINS)
                sides[sign][_LOWEST + offset] += count * repeats
    return Histogram.from_counts(*sides, zero + implicit_zero_count(tensor, stored), nan, inf)
