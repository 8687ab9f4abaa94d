"""Orthogonal matrices and convolutions, drawn in double precision whatever the tensor holds."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from headwater.errors import InputError

__all__ = ["delta_orthogonal_", "orthogonal_"]


@torch.no_grad()
def orthogonal_(tensor: Tensor, gain: float = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor in place with a (semi-)orthogonal matrix, drawn uniformly, times ``gain``.

    The tensor is read as a matrix Q (first dimension × the rest): QᵀQ = gain²·I when it is tall, QQᵀ = gain²·I when it
    is wide. The matrix is drawn and decomposed in float64 (float32 where the device has no float64) and cast at the
    end, so that bfloat16 and float16 tensors work as well, up to their own rounding. Multiplying the columns of the QR
    factor with the signs of R's diagonal makes the law uniform (Mezzadri 2007).

    Args:
        tensor: of two or more dimensions, any floating dtype. On the meta device nothing is computed; one normal law of
            the same second moment, gain²/max(rows, columns), stands for the initialiser.
        gain: what the singular values are.
        generator: of the random numbers; None for torch's global one of the tensor's device.

    Returns:
        The same tensor.

    Raises:
        InputError: fewer than two dimensions, no floating dtype, or a tensor that is sharded over devices.

    Example:
        >>> q = orthogonal_(torch.empty(6, 4, dtype=torch.bfloat16)).double()
        >>> bool((q.T @ q - torch.eye(4)).abs().max() < 0.02)
        True

    References:
        Saxe, McClelland & Ganguli, *Exact solutions to the nonlinear dynamics of learning in deep linear neural
        networks*, ICLR 2014. Mezzadri, *How to generate random matrices from the classical compact groups*, Notices
        of the AMS, 2007.
    """
    _refuse(tensor, "orthogonal_", at_least=2)
    if tensor.numel() == 0:
        return tensor
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    if tensor.is_meta:
        return tensor.normal_(0.0, gain / math.sqrt(max(rows, columns)), generator=generator)
    return tensor.copy_(_orthogonal(rows, columns, tensor, generator).mul_(gain).view(tensor.shape))


@torch.no_grad()
def delta_orthogonal_(
    tensor: Tensor, gain: float = 1.0, *, groups: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Fill a convolution's weight in place: zero but for an orthogonal matrix at the centre of the kernel.

    Such a convolution preserves the norm of every input, at every pixel, exactly; with an odd kernel and "same" padding
    a stack of them has all singular values equal to ``gain`` at any depth. The centre of an even kernel is taken to be
    the tap before its middle.

    Args:
        tensor: (out_channels, in_channels / groups, *kernel) of Conv1d, Conv2d or Conv3d, any floating dtype.
        gain: what the singular values are.
        groups: of the convolution; every group gets a matrix of its own.
        generator: of the random numbers; None for torch's global one of the tensor's device.

    Returns:
        The same tensor.

    Raises:
        InputError: not the weight of a convolution, or fewer output than input channels per group: the norm cannot be
            kept then.

    Example:
        >>> weight = delta_orthogonal_(torch.empty(8, 4, 3, 3))
        >>> int(weight.abs().sum((0, 1)).count_nonzero())
        1

    References:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs*, ICML 2018.
    """
    _refuse(tensor, "delta_orthogonal_", at_least=3)
    out, into = tensor.shape[0], tensor.shape[1]
    if tensor.dim() > 5:
        raise InputError(f"delta_orthogonal_ needs the weight of a 1-d to 3-d convolution, got shape {_shape(tensor)}")
    if groups < 1 or out % groups:
        raise InputError(f"{out} output channels cannot be divided into {groups} groups")
    if out // groups < into:
        raise InputError(
            f"delta_orthogonal_ needs at least as many output as input channels per group, got shape {_shape(tensor)} "
            f"with {groups} group(s): fewer outputs cannot keep the norm of every input; use orthogonal_"
        )
    tensor.zero_()
    centre = tensor
    for size in tensor.shape[2:]:
        centre = centre.select(2, (size - 1) // 2)
    for part in centre.chunk(groups):
        orthogonal_(part, gain, generator=generator)
    return tensor


def _orthogonal(rows: int, columns: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    dtype = torch.complex128 if like.is_complex() else torch.float64
    if like.device.type == "mps":  # has neither float64 nor complex128
        dtype = torch.complex64 if like.is_complex() else torch.float32
    tall, wide = max(rows, columns), min(rows, columns)
    drawn = torch.randn(tall, wide, dtype=dtype, device=like.device, generator=generator)
    q, r = torch.linalg.qr(drawn)
    diagonal = r.diagonal()
    # R's diagonal is zero with probability zero; its phase makes the law of Q uniform.
    q *= torch.where(diagonal == 0, torch.ones_like(diagonal), diagonal.sgn())
    return cast("Tensor", q if rows >= columns else q.mT.contiguous())


def _refuse(tensor: Tensor, name: str, at_least: int) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} fills a tensor, got {type(tensor).__name__}; for a layer pass layer.weight")
    if tensor.dim() < at_least:
        what = "the weight of a convolution" if at_least > 2 else "a matrix: two or more dimensions"
        raise InputError(f"{name} needs {what}, got shape {_shape(tensor)}")
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise InputError(f"{name} needs a floating dtype, got {tensor.dtype}")
    if hasattr(tensor, "full_tensor"):  # a DTensor: the shards of a matrix are not orthogonal on their own
        raise InputError(f"{name} needs the whole tensor, this one is sharded over devices: initialise before sharding")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
