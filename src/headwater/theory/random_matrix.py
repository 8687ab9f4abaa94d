"""Whether a weight matrix looks like independent entries: its largest singular value against that of random matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["spectral_excess"]

# Chosen by us.
_LEAST = 8  # rows and columns below which the edge is too blurred to tell
_LARGEST = 512  # rows and columns that are looked at: part of a matrix of independent entries is one as well
_ITERATIONS = 40  # of the power method
_DEVIATIONS = 4.0  # of the Tracy-Widom law, whose standard deviation is 1.27 and whose mean is -1.21


def spectral_excess(weight: Tensor) -> float | None:
    """How far the largest singular value lies beyond the edge of a random matrix.

    m × n independent entries of variance s² have s_max² ≈ s² (√m + √n)², the edge of the Marchenko-Pastur law, up to
    fluctuations of the order s² (√m + √n)(1/√m + 1/√n)^(1/3). Training adds directions that the data ask for, and they
    stick out; so do copies of rows. An orthogonal matrix stays below the edge.

    Args:
        weight: of shape (outputs, inputs, ...); further dimensions count as inputs. Only its values are read.

    Returns:
        s_max² over the edge with four Tracy-Widom units of room: above 1, the entries are not independent. None for a
        matrix too small to tell, a constant one, or one with infinite values.

    References:
        Marchenko and Pastur, *Distribution of eigenvalues for some sets of random matrices*, 1967. Johnstone, *On the
        distribution of the largest eigenvalue in principal components analysis*, Annals of Statistics 2001 (the
        fluctuations). Martin and Mahoney, *Implicit self-regularization in deep neural networks*, JMLR 2021 (trained
        weights stick out).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> w = torch.randn(64, 64)
        >>> spectral_excess(w) < 1.0, spectral_excess(w + 3.0 * torch.randn(64, 1) @ torch.randn(1, 64)) > 1.0
        (True, True)
    """
    if weight.dim() < 2 or weight.is_complex() or not weight.is_floating_point():
        return None
    x = weight.detach().flatten(1)[:_LARGEST, :_LARGEST].to(device="cpu", dtype=torch.float64)
    rows, columns = x.shape
    if min(rows, columns) < _LEAST or not bool(torch.isfinite(x).all()):
        return None
    x = x - x.mean()  # a mean of its own is told apart from dependence
    variance = float(x.square().mean())
    if variance == 0.0:
        return None
    vector = torch.linspace(0.5, 1.5, columns, dtype=torch.float64)  # no draw: the caller's generator is not touched
    vector = vector * torch.cos(torch.arange(columns, dtype=torch.float64) ** 2)
    for _ in range(_ITERATIONS):
        vector = x.T @ (x @ (vector / vector.norm()))
    largest = float(vector.norm())
    root = math.sqrt(rows) + math.sqrt(columns)
    room = _DEVIATIONS * root * (1.0 / math.sqrt(rows) + 1.0 / math.sqrt(columns)) ** (1.0 / 3.0)
    return float(largest / (variance * (root**2 + room)))
