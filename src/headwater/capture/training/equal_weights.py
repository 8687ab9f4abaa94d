"""Weights that should not be equal and are, and copies that should be equal and are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["checksums", "equal_weights", "varied"]

_CHUNK = 1 << 20  # elements read at a time: a temporary of 8 MiB
_PERIOD = 65_521  # the largest prime below 2**16: positions count by their remainder, so that an exchange shows
_PROBED = 64  # elements compared before two tensors are compared whole
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    """The elements of a tensor as integers, flat."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.reshape(-1).view(_INTEGERS[tensor.element_size()])


def _is_readable(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and tensor.element_size() in _INTEGERS
    )


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> list[tuple[int, int] | None]:
    """Two 64-bit numbers of each tensor that equal bits make equal: Σ b and Σ b (1 + i mod 65,521), modulo 2**64.

    Two tensors that differ in one element, or in the order of two elements, differ in them; others do with a probability
    that is not worth a comparison of a whole model over the network (chosen by us; no cryptography).

    Args:
        tensors: plain ones on any device.

    Returns:
        The numbers; None for a tensor whose memory cannot be read. One copy from each device.
    """
    sums: list[Tensor] = []
    for tensor in tensors:
        total = torch.zeros(2, dtype=torch.int64, device=tensor.device if _is_readable(tensor) else "cpu")
        if _is_readable(tensor) and tensor.numel():
            bits = _bits(tensor)
            for start in range(0, bits.numel(), _CHUNK):
                piece = bits[start : start + _CHUNK].to(torch.int64)
                place = torch.arange(start, start + piece.numel(), device=piece.device).remainder_(_PERIOD).add_(1)
                total += torch.stack([piece.sum(), (piece * place).sum()])
        sums.append(total)
    devices = {total.device for total in sums}
    found: dict[int, tuple[int, int]] = {}
    for device in devices:
        indices = [i for i, total in enumerate(sums) if total.device == device]
        rows = torch.stack([sums[i] for i in indices]).tolist()
        found.update((i, (int(row[0]), int(row[1]))) for i, row in zip(indices, rows, strict=True))
    return [found[i] if _is_readable(tensor) else None for i, tensor in enumerate(tensors)]


@torch.no_grad()
def varied(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether tensors hold more than one number, told from up to 64 of their elements.

    Args:
        tensors: plain ones on any device.

    Returns:
        False for zeros, ones and other constants, and for what cannot be read.
    """
    return [tensor.numel() > 1 and _is_readable(tensor) and len(set(_probe(tensor).tolist())) > 1 for tensor in tensors]


@torch.no_grad()
def equal_weights(tensors: Sequence[tuple[str, Tensor]]) -> list[tuple[str, ...]]:
    """Groups of tensors of one shape that hold the same numbers, bit for bit, and not one number throughout.

    Args:
        tensors: names and plain tensors; tied ones once.

    Returns:
        The names of each group, in order. Copies of one layer (``copy.deepcopy``, as ``nn.TransformerEncoder`` makes them)
        start alike, and so does what was filled under the same seed.
    """
    alike: dict[tuple[object, ...], list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.numel() > 1 and _is_readable(tensor):
            alike.setdefault((tensor.shape, tensor.dtype, tensor.device), []).append((name, tensor))
    found: list[tuple[str, ...]] = []
    for members in alike.values():
        if len(members) < 2:
            continue
        probes = torch.stack([_probe(tensor) for _, tensor in members]).tolist()
        candidates: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
        for probe, member in zip(probes, members, strict=True):
            candidates.setdefault(tuple(probe), []).append(member)
        for group in candidates.values():
            found += _equal_among(group)
    return found


def _probe(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    picked = flat[:: max(1, flat.numel() // _PROBED)][:_PROBED]
    return _bits(picked.contiguous()).to(torch.int64)


def _equal_among(group: Sequence[tuple[str, Tensor]]) -> list[tuple[str, ...]]:
    left = list(group)
    found: list[tuple[str, ...]] = []
    while len(left) > 1:
        (name, first), *rest = left
        bits = _bits(first)
        if bool((bits == bits[0]).all()):  # zeros, ones: filled on purpose, and so are those that equal it
            left = rest
            continue
        same = [other for other, tensor in rest if torch.equal(bits, _bits(tensor))]
        if same:
            found.append((name, *same))
        left = [(other, tensor) for other, tensor in rest if other not in same]
    return found
