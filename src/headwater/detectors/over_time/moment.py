"""One recorded step as the alerts see it: sizes that several of them need are worked out once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from headwater.records import Profile
from headwater.records.statistics import LOG10_2
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS, Block, StepRecord, WatchedTensor

__all__ = ["WEIGHT_ROLES", "Moment", "Sizes", "log10_sum_of_squares", "nonfinite_tensors", "sizes_of", "written"]

WEIGHT_ROLES = frozenset({"weight", "attention", "recurrent", "embedding"})
"""Roles of the parameters that are meant to learn a map; biases and normalisation parameters are another population."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The norms of the tensors of one block.

    Attributes:
        tensors: which.
        l2_log10: log10 of ‖x‖ over the finite elements; -inf when all are zero, NaN when there is none or none was observed.
    """

    tensors: tuple[WatchedTensor, ...]
    l2_log10: list[float]

    def rms_log10(self) -> list[float]:
        """log10 of ‖x‖/√count, in the order of ``tensors``; scalars have the count 1."""
        return [size - half for size, half in zip(self.l2_log10, _half_log10_counts(self.tensors), strict=True)]


_COUNTS: dict[int, tuple[tuple[WatchedTensor, ...], list[float]]] = {}
"""By the identity of a block's tensors, which a run's steps share; the entry keeps them, so that no other has it."""


def _half_log10_counts(tensors: tuple[WatchedTensor, ...]) -> list[float]:
    found = _COUNTS.get(id(tensors))
    if found is None or found[0] is not tensors:
        if len(_COUNTS) >= 16:
            _COUNTS.clear()
        found = _COUNTS[id(tensors)] = tensors, [0.5 * math.log10(max(1, math.prod(t.shape))) for t in tensors]
    return found[1]


def sizes_of(block: Block) -> Sizes:
    """The norms of a block of whole statistics, or of norms alone.

    Args:
        block: with :data:`~headwater.records.step.STATISTICS_COLUMNS` or :data:`~headwater.records.step.NORM_COLUMNS`.

    Returns:
        The norms.
    """
    found: list[float] = []
    append, log10 = found.append, math.log10
    if len(block.columns) == len(STATISTICS_COLUMNS):
        # count, zeros, NaN, infinite, scale_log2, sum, sum |x|, squared deviations: Σx² = deviations + (Σx)²/n
        for row in block.rows:
            n = row[0] - row[2] - row[3]
            if n > 0:
                squares = row[7] + row[5] * row[5] / n
                append(0.5 * log10(squares) + row[4] * LOG10_2 if squares > 0.0 else -math.inf)
            else:
                append(math.nan)
    elif tuple(block.columns) == NORM_COLUMNS:
        for row in block.rows:
            size = row[0]
            append(log10(size) if 0.0 < size < math.inf else -math.inf if size == 0.0 else math.nan)
    else:
        raise ValueError(f"a block of {block.quantity} has no norms: columns {', '.join(block.columns)}")
    return Sizes(block.tensors, found)


def log10_sum_of_squares(sizes_log10: list[float]) -> float:
    """log10 of √Σ‖x‖² from log10 ‖x‖, without leaving the range of a double; -inf for nothing but zeros."""
    known = [size for size in sizes_log10 if size > -math.inf]  # NaN compares false
    if not known:
        return -math.inf
    top = max(known)
    return top + 0.5 * math.log10(math.fsum([10.0 ** (2.0 * (size - top)) for size in known]))


def written(size_log10: float) -> str:
    """A positive number whose log10 is given, for a sentence.

    Args:
        size_log10: log10 of it; -inf for zero.

    Returns:
        Three digits, also where the number is beyond a double.

    Example:
        >>> written(1.19), written(-7.5), written(412.3), written(-math.inf)
        ('15.5', '3.16e-08', '2e+412', '0')
    """
    if -300 < size_log10 < 300:
        return f"{10.0**size_log10:.3g}"
    if not math.isfinite(size_log10):
        return "0" if size_log10 < 0 else str(size_log10)
    exponent = math.floor(size_log10)
    return f"{10.0 ** (size_log10 - exponent):.3g}e{exponent:+d}"


class Moment:
    """One recorded step and what the alerts read off it.

    Attributes:
        record: the step.
        profile: its gradient profile; None where layers were not looked at (or nobody asked for one).
    """

    def __init__(self, record: StepRecord, profile: Profile | None = None) -> None:
        self.record = record
        self.profile = profile

    @cached_property
    def gradient_block(self) -> Block | None:
        """The gradient as the backward gave it: before clipping where that was seen."""
        record = self.record
        return (
            record.block("gradient", "pre_clip")
            or record.block("gradient", "backward")
            or record.block("gradient", "post_clip")
        )

    @cached_property
    def gradients(self) -> Sizes | None:
        """Norms of the gradients in :attr:`gradient_block`, divided by the loss scale; None without any."""
        block = self.gradient_block
        if block is None:
            return None
        sizes = sizes_of(block)
        scale = self.record.loss_scale
        if block.phase == "backward" and scale is not None and scale > 0 and scale != 1.0:
            shift = math.log10(scale)
            return Sizes(sizes.tensors, [size - shift for size in sizes.l2_log10])
        return sizes

    @cached_property
    def gradient_norm_log10(self) -> float:
        """log10 of the norm of the whole gradient; NaN when it was not observed or is not finite."""
        if self.gradients is None or self.gradient_is_nonfinite:
            return math.nan
        return log10_sum_of_squares(self.gradients.l2_log10)

    @cached_property
    def gradient_is_nonfinite(self) -> bool:
        """Whether some gradient holds NaN or infinity."""
        return bool(self.nonfinite_gradients)

    @cached_property
    def nonfinite_gradients(self) -> list[tuple[WatchedTensor, int, int]]:
        """The tensors of :attr:`gradient_block` that hold NaN or infinity, with the counts of both."""
        return [] if self.gradient_block is None else nonfinite_tensors(self.gradient_block)

    @cached_property
    def updates(self) -> tuple[tuple[WatchedTensor, ...], list[float]]:
        """Weights (see :data:`WEIGHT_ROLES`) and log10 of their ‖Δw‖/‖w‖; -inf for a weight that did not move."""
        block = self.record.block("update")
        if block is None or self.record.skipped is not None:
            return (), []
        tensors, sizes = [], []
        for tensor, ratio in zip(block.tensors, block.column("update_ratio"), strict=True):
            if tensor.role in WEIGHT_ROLES and 0.0 <= ratio < math.inf:  # NaN: w is all zero, or not read
                tensors.append(tensor)
                sizes.append(math.log10(ratio) if ratio else -math.inf)
        return tuple(tensors), sizes


def nonfinite_tensors(block: Block) -> list[tuple[WatchedTensor, int, int]]:
    """The tensors of a block that hold NaN or infinity, with the counts of both, in the order of the block."""
    if len(block.columns) == len(STATISTICS_COLUMNS):
        nan, inf = 2, 3
    elif tuple(block.columns) == NORM_COLUMNS:
        nan, inf = 1, 2
    else:
        return []
    rows = block.rows
    found = [i for i, row in enumerate(rows) if row[nan] > 0 or row[inf] > 0]  # an unobserved NaN compares false
    return [(block.tensors[i], int(rows[i][nan]), int(rows[i][inf])) for i in found]
