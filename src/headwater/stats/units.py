"""Which units of a layer were alive at least once."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.errors import InputError
from headwater.stats import kernels

__all__ = ["alive_units"]


@torch.no_grad()
def alive_units(tensor: Tensor, threshold: float, mask: Tensor) -> None:
    """Mark the units with an element of magnitude above a threshold: ``mask[u] |= any(|x[:, u]| > threshold)``.

    Called once per step with the same mask, it leaves unmarked the units that were dead over the whole window. With
    the slope of an activation instead of its output, it leaves those that were saturated.

    Args:
        tensor: shape (B, D) or (B, C, ...): units are dimension 1. (Tokens (B, T, D): give ``x.flatten(0, 1)``.)
        threshold: not negative; rounded to the tensor's dtype. NaN is not above it, an infinity is.
        mask: shape (D,) or (C,), uint8 or bool, on the device of the tensor; changed in place.

    Raises:
        InputError: the shapes or the dtype of the mask do not fit, or the threshold is negative or NaN.
    """
    if tensor.dim() < 2 or mask.shape != tensor.shape[1:2] or mask.dtype not in (torch.uint8, torch.bool):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)} needs at least two dimensions and a uint8 or bool mask of shape "
            f"{tuple(tensor.shape[1:2])}; got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if not threshold >= 0.0:
        raise InputError(f"a magnitude is above {threshold} always or never; the threshold should be 0 or more")
    compiled = kernels.load() if tensor.is_cpu else None
    if compiled is not None and compiled.alive(tensor, threshold, mask):
        return
    _alive_units_plain(tensor.detach(), threshold, mask)


def _alive_units_plain(tensor: Tensor, threshold: float, mask: Tensor) -> None:
    """The same in plain torch, without a look at any value."""
    real = tensor.dtype if not tensor.is_complex() else tensor.real.dtype
    limit = threshold if not real.is_floating_point else float(torch.tensor(threshold, dtype=real, device="cpu"))
    alive = (tensor.abs() > limit).movedim(1, 0).flatten(1).any(1)
    mask.logical_or_(alive) if mask.dtype == torch.bool else mask.bitwise_or_(alive.to(torch.uint8))
