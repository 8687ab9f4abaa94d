"""Statistics of many tensors as one table, so that a training step pays for one call and one copy."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from headwater.errors import InputError
from headwater.stats import kernels
from headwater.stats.moments import summarize_many, table_of, table_on_accelerator
from headwater.stats.rows_on_accelerator import COLUMNS

__all__ = ["MomentPlan", "moment_table", "norm_table"]

_NAN, _INF, _SCALE, _SUM, _DEVIATIONS = 2, 3, 4, 5, 7


def _on_host(tensors: Sequence[Tensor]) -> bool:
    if all(map(_ON_CPU, tensors)):
        return True
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise InputError(
            f"tensors on several devices ({', '.join(sorted(map(str, devices)))}); ask for one table per device"
        )
    return False


_ON_CPU = attrgetter("is_cpu")


def moment_table(tensors: Sequence[Tensor]) -> Tensor:
    """Additive statistics of several tensors, left on their device.

    Args:
        tensors: of any shape, dtype and layout, as for :func:`~headwater.stats.summarize`; all on one device.

    Returns:
        Shape (k, 11), float64 (float32 where the device has no float64), on the device of the tensors (in main
        memory for no tensor): the fields of :class:`~headwater.records.statistics.Statistics` in their order. Nothing
        waits for an accelerator.

    Raises:
        InputError: the tensors are on several devices, or on the meta device.
    """
    if not tensors:
        return torch.zeros((0, COLUMNS), dtype=torch.float64, device="cpu")
    if not _on_host(tensors):
        with torch.no_grad():
            return table_on_accelerator(tensors)
    compiled = kernels.load()
    if compiled is None:
        return _in_torch(tensors)
    entries, others = kernels.entries(tensors)
    table = compiled.moments(entries)
    if others:
        table[others] = _in_torch([tensors[index] for index in others])
    return table


@torch.no_grad()
def _in_torch(tensors: Sequence[Tensor]) -> Tensor:
    return table_of(summarize_many(tensors))


def norm_table(tensors: Sequence[Tensor]) -> Tensor:
    """Norms and non-finite counts of several tensors, left on their device: the cheapest look at a gradient.

    Args:
        tensors: as for :func:`moment_table`.

    Returns:
        Shape (k, 3), of the dtype and on the device of :func:`moment_table`: √Σx² over the finite elements, the
        number of NaN elements and the number of infinite ones. The norm overflows only where it is no double itself.

    Raises:
        InputError: the tensors are on several devices, or on the meta device.
    """
    compiled = kernels.load() if tensors and _on_host(tensors) else None
    if compiled is None:
        return _norms(moment_table(tensors))
    entries, others = kernels.entries(tensors)
    table = compiled.norms(entries)
    if others:
        table[others] = _norms(moment_table([tensors[index] for index in others]))
    return table


@torch.no_grad()
def _norms(table: Tensor) -> Tensor:
    finite = (table[:, 0] - table[:, _NAN] - table[:, _INF]).clamp(min=1.0)
    squares = table[:, _DEVIATIONS] + table[:, _SUM].square() / finite
    # In two steps: 2**1074 is no double, though the product with a small root may be one.
    half = torch.div(table[:, _SCALE], 2, rounding_mode="floor")
    norm = squares.sqrt() * torch.exp2(half) * torch.exp2(table[:, _SCALE] - half)
    return torch.stack([norm, table[:, _NAN], table[:, _INF]], dim=1)


class MomentPlan:
    """Tables of the same list of tensors, step after step.

    The tensors may be other ones every step (a gradient is a new tensor after ``set_to_none``); only their number
    stays.

    Args:
        tensors: those of the first step.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)

    def moments(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """:func:`moment_table` of the tensors of this step (by default those of the constructor).

        Args:
            tensors: as many as the constructor got.

        Returns:
            Shape (k, 11).
        """
        return moment_table(self._tensors if tensors is None else tensors)

    def norms(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """:func:`norm_table` of the tensors of this step (by default those of the constructor).

        Args:
            tensors: as many as the constructor got.

        Returns:
            Shape (k, 3).
        """
        return norm_table(self._tensors if tensors is None else tensors)
