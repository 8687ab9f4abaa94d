"""How far a step moved the parameters, and the optimizer's second moment, from a sample of the elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwater.capture.training.additive import ratios
from headwater.stats import norm_table

__all__ = ["SAMPLED_FRACTION", "ElementSample", "WholeTensors", "is_sampleable"]

SAMPLED_FRACTION = 1 / 200
"""Share of all parameter elements in a sample: before and after together stay below 1 % of the parameters' memory
(chosen by us). Small tensors are read whole."""
_LEAST = 16  # elements per tensor, however small the model
_ROUND = 64  # a row of the sample is a multiple of it


class ElementSample:
    """The same elements of the same tensors, before a step and after it, as one matrix.

    Row i holds up to m evenly spaced elements of tensor i, padded with zeros. The spacing shares no divisor with the
    tensor's last dimension, so that a row is no single column of a weight.

    Args:
        tensors: on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        sizes = [t.numel() for t in tensors]
        share = int(sum(sizes) * SAMPLED_FRACTION) // max(1, len(sizes))
        self.width = min(max(_LEAST, share // _ROUND * _ROUND if share > _ROUND else share), max(sizes, default=1))
        self.counts = [min(n, self.width) for n in sizes]
        self.strides = [_spacing(t, n) for t, n in zip(tensors, self.counts, strict=True)]
        first = tensors[0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        self._dtype, self._device = dtype, first.device
        padding = torch.zeros(self.width, dtype=dtype, device=first.device)
        self._pads = [padding[: self.width - n] for n in self.counts]
        self._before: Tensor | None = None
        self._own_parts: list[Tensor] = []
        self._pointers: list[int] = []
        self._moment_parts: list[Tensor] = []
        self._moments: list[Tensor] = []
        read = [n / max(1, size) for n, size in zip(self.counts, sizes, strict=True)]
        self.read_fraction = torch.tensor(read, dtype=torch.float64).to(first.device)
        self._count = torch.tensor([max(1, n) for n in self.counts], dtype=torch.float64).to(first.device)

    def _parts(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """The sampled elements of each source as a view, each followed by its padding."""
        parts: list[Tensor] = []
        for source, n, stride, pad in zip(sources, self.counts, self.strides, self._pads, strict=True):
            parts.append(source.detach().as_strided((n,), (stride,), source.storage_offset()))
            if pad.numel():
                parts.append(pad)
        return parts

    def _matrix(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat(parts)
        return joined.to(self._dtype).view(len(self.counts), self.width)

    def _own(self) -> Tensor:
        # A parameter whose .data was replaced lies elsewhere.
        pointers = [t.data_ptr() for t in self.tensors]
        if pointers != self._pointers:
            self._own_parts, self._pointers = self._parts(self.tensors), pointers
        return self._matrix(self._own_parts)

    def held_bytes(self) -> int:
        """Memory held: the elements as they were before the step, padding, counts."""
        return len(self.counts) * (self.width * self._dtype.itemsize + 16) + self.width * self._dtype.itemsize

    @torch.no_grad()
    def snapshot(self) -> None:
        """Keep the elements as they are before the step."""
        self._before = self._own()

    @torch.no_grad()
    def ratios(self) -> Tensor:
        """‖Δw‖/‖w‖ since :meth:`snapshot`, and the share of the elements it was read from.

        Returns:
            Shape (k, 2), float64 (float32 where the device has no float64). The ratio of a tensor that was zero and
            moved is infinite; of one that was zero and stayed, zero.
        """
        return ratios(self.changes())

    @torch.no_grad()
    def changes(self) -> Tensor:
        """‖Δw‖ since :meth:`snapshot` and ‖w‖ before, of the elements read, and their share.

        Returns:
            Shape (k, 3), as :data:`~headwater.capture.training.additive.CHANGE_COLUMNS`.
        """
        assert self._before is not None, "snapshot() comes first"
        before = torch.linalg.vector_norm(self._before, dim=1)
        moved = torch.linalg.vector_norm(self._own().sub_(self._before), dim=1)
        self._before = None
        dtype = self.read_fraction.dtype
        return torch.stack([moved.to(dtype), before.to(dtype), self.read_fraction], dim=1)

    @torch.no_grad()
    def second_moments(self, sources: Sequence[Tensor], corrections: Tensor, epsilon: Tensor) -> Tensor:
        """The optimizer's second moment v̂ = v / (1 - β₂ᵗ) against its eps, from the same elements.

        Args:
            sources: v of each tensor, of its shape and layout.
            corrections: shape (k,), 1 - β₂ᵗ.
            epsilon: shape (k,).

        Returns:
            Shape (k, 3): √mean(v̂), eps, share of the elements with √v̂ < eps.
        """
        if len(sources) != len(self._moments) or any(a is not b for a, b in zip(sources, self._moments, strict=True)):
            self._moments, self._moment_parts = list(sources), self._parts(sources)
        table = self._matrix(self._moment_parts)
        corrections = corrections.clamp_min(1e-30)
        mean = table.sum(1, dtype=corrections.dtype) / (corrections * self._count)
        limit = (epsilon.square() * corrections).to(table.dtype)
        # Padding is zero, and so below every eps but 0.
        below = (table < limit[:, None]).sum(1) - torch.where(limit > 0.0, self.width - self._count, 0.0)
        return torch.stack([mean.sqrt(), epsilon, below / self._count], dim=1)


class WholeTensors(ElementSample):
    """Updates from every element, at the price of a copy of the parameters during a recorded step.

    The second moment is still read from the sample.

    Args:
        tensors: on one device.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors)
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def snapshot(self) -> None:
        """Copy the tensors as they are before the step."""
        self._copies = [t.detach().clone() for t in self.tensors]

    @torch.no_grad()
    def changes(self) -> Tensor:
        """‖Δw‖ since :meth:`snapshot` and ‖w‖ before; the share of the elements is 1.

        Returns:
            Shape (k, 3), as for the sample.
        """
        before = norm_table(self._copies)[:, 0]
        for copy, tensor in zip(self._copies, self.tensors, strict=True):
            copy.sub_(tensor.detach())
        moved = norm_table(self._copies)[:, 0]
        self._copies = []
        return torch.stack([moved, before, torch.ones_like(moved)], dim=1)


def _spacing(tensor: Tensor, count: int) -> int:
    stride = max(1, tensor.numel() // max(1, count))
    row = int(tensor.shape[-1]) if tensor.dim() else 1
    while stride > 1 and math.gcd(stride, row) != 1:
        stride -= 1
    return stride


def is_sampleable(tensor: Any) -> bool:
    """Whether elements can be picked by address: dense, in one block of memory, real floating point."""
    return (
        type(tensor.data) in (torch.Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and tensor.device.type != "meta"
        and tensor.numel() > 0
        and (tensor.is_contiguous() or _is_dense(tensor))
    )


def _is_dense(tensor: Tensor) -> bool:
    """Non-overlapping and without holes, such as channels_last."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True), key=lambda pair: (pair[0], pair[1])):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
