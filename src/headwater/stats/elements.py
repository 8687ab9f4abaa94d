"""The elements of any tensor as flat pieces of bounded size, without a copy of the whole tensor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headwater.errors import InputError

__all__ = ["as_computable", "flat_pieces", "flat_view", "implicit_zero_count", "stored_pieces", "stored_values"]

# Integers of 24 bits and less are exact in float32; wider ones are read as float64.
_EXACT_IN_FLOAT32 = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16})
_COMPRESSED = frozenset({torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})


def as_computable(x: Tensor) -> Tensor:
    """The elements in the floating type that sums are taken in.

    Args:
        x: a strided tensor of any dtype.

    Returns:
        ``x`` itself for float32 and float64; float32 for the shorter floats and integers; float64 for wider integers
        (float32 where the device has no float64). A complex tensor of shape (...) becomes a real one of shape
        (..., 2): real and imaginary parts are elements of their own.
    """
    if x.dtype in (torch.float32, torch.float64):
        return x.resolve_neg() if x.is_neg() else x
    if x.is_complex():
        return as_computable(torch.view_as_real(x.resolve_conj()))
    wide = not x.is_floating_point() and x.dtype not in _EXACT_IN_FLOAT32 and x.device.type != "mps"
    return x.to(torch.float64 if wide else torch.float32)


def stored_values(tensor: Tensor) -> list[Tensor]:
    """The stored elements of a tensor of any layout.

    Args:
        tensor: strided, sparse (COO, CSR, CSC, BSR, BSC), nested or opaque.

    Returns:
        Strided tensors that together hold every stored element.

    Raises:
        InputError: a meta tensor has no elements to read.
    """
    if tensor.device.type == "meta":
        raise InputError(
            f"a meta tensor of shape {tuple(tensor.shape)} has no data to take statistics of; "
            "materialise the model first, e.g. with model.to_empty(device='cpu') and an initialisation"
        )
    tensor = tensor.detach()
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor.coalesce().values()]
    if tensor.layout in _COMPRESSED:
        return [tensor.values()]
    return [tensor.to_dense()]


def implicit_zero_count(tensor: Tensor, stored: int) -> int:
    """Zeros of a sparse tensor that are not stored.

    Args:
        tensor: of any layout.
        stored: the number of real numbers that are.

    Returns:
        How many real numbers there are besides (two per element of a complex tensor).
    """
    if tensor.is_nested or tensor.layout is torch.strided:
        return 0
    return tensor.numel() * (2 if tensor.is_complex() else 1) - stored


def stored_pieces(tensor: Tensor, limit: int) -> Iterator[tuple[Tensor, int]]:
    """The stored elements of any tensor as real numbers, a bounded number at a time.

    Args:
        tensor: of any shape, dtype and layout.
        limit: the largest number of elements of a piece (twice as many numbers where they are complex).

    Yields:
        1-D floating tensors, and how often each of their elements occurs (more than once where the tensor is expanded).
    """
    for values in stored_values(tensor):
        single, repeats = _without_expanded_dimensions(values)
        for piece in flat_pieces(single, limit):
            yield as_computable(piece).view(-1), repeats


def _without_expanded_dimensions(x: Tensor) -> tuple[Tensor, int]:
    """One copy of every element of a tensor that repeats itself (stride 0), and how often each is repeated.

    Args:
        x: a strided tensor.

    Returns:
        The tensor with each expanded dimension reduced to its first entry, and the product of their sizes.
    """
    repeats = 1
    for dim, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            repeats *= size
            x = x.narrow(dim, 0, 1)
    return x, repeats


def flat_view(x: Tensor) -> Tensor | None:
    """All elements in one dimension, in any order, as a view.

    Args:
        x: a strided tensor.

    Returns:
        A view of shape (numel,), or None where the elements do not lie side by side in memory.
    """
    if not x.is_contiguous():
        # A transposed or channels-last tensor is dense: in the order of its strides it is contiguous.
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
        if not x.is_contiguous():
            return None
    return x.view(-1)


def flat_pieces(x: Tensor, limit: int) -> Iterator[Tensor]:
    """The elements of a strided tensor in pieces that fit in a bounded temporary.

    Args:
        x: a strided tensor.
        limit: the largest number of elements of a piece.

    Yields:
        1-D tensors whose elements together are those of ``x``: views where the tensor is dense, else copies, one
        piece at a time.
    """
    if x.numel() == 0:
        return
    flat = flat_view(x)
    if flat is not None:
        yield from torch.split(flat, limit) if flat.numel() > limit else (flat,)
    elif x.numel() <= limit:
        yield x.reshape(-1)
    else:
        entry = x.numel() // x.shape[0]
        for part in torch.split(x, max(1, limit // entry)):
            yield from flat_pieces(part[0] if part.shape[0] == 1 else part, limit)
