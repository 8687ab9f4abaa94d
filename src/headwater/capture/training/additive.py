"""Rows of several ranks as one, in two reductions: the largest of what has an extreme, then the sum of what adds up.

Every function takes and gives double-precision tables in main memory with one row per tensor, the same rows on every rank.
A rank that holds nothing of a tensor (or holds a replica that another rank counts) contributes ``present = False``.

The first reduction settles what the second needs: a common power of two per row, and a point K near the mean. Sums of
squared deviations about K add up, and those about the mean M follow from Σ(x - M)² = Σ(x - K)² - n (M - K)². K lies between
the smallest and the largest mean of a rank; with shares of n_1 … n_W elements the subtraction then loses no more than a
factor of about n / min(n_r) of the precision of a double (Chan, Golub, LeVeque 1982 for the identity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS

__all__ = ["CHANGE_COLUMNS", "Additive", "Changes", "Moments", "Norms", "SecondMoments", "kind_of", "ratios"]

CHANGE_COLUMNS = ("moved_norm", "before_norm", "read_fraction")
"""What a rank contributes to ``update_ratio``: ‖Δw‖ and ‖w‖ over the elements it read, and their share."""

_NOTHING = -math.inf


class Additive:
    """One kind of table: what goes into the two reductions, and what comes out of them.

    Attributes:
        extremes: numbers per row in the first reduction (MAX).
        sums: numbers per row in the second (SUM).
    """

    extremes: int
    sums: int

    def to_extremes(self, table: Tensor, present: Tensor) -> Tensor:
        """This rank's part of the first reduction.

        Args:
            table: shape (k, columns).
            present: shape (k,), bool.

        Returns:
            Shape (k, extremes); -inf where nothing is present.
        """
        raise NotImplementedError

    def to_sums(self, table: Tensor, present: Tensor, elements: Tensor, agreed: Tensor) -> Tensor:
        """This rank's part of the second reduction.

        Args:
            table: as before.
            present: as before.
            elements: shape (k,), how many elements of each tensor this rank holds.
            agreed: shape (k, extremes), out of the first reduction.

        Returns:
            Shape (k, sums); 0 where nothing is present.
        """
        raise NotImplementedError

    def to_table(self, agreed: Tensor, total: Tensor) -> Tensor:
        """What all ranks hold together.

        Args:
            agreed: out of the first reduction.
            total: shape (k, sums), out of the second.

        Returns:
            Shape (k, columns of a block).
        """
        raise NotImplementedError


def power_of_two(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """2**exponent as two factors, neither of which leaves the range of a double for exponents within ±2,000."""
    half = torch.floor(exponent / 2)
    return torch.exp2(half), torch.exp2(exponent - half)


def _shifted(values: Tensor, exponent: Tensor) -> Tensor:
    first, second = power_of_two(exponent.clamp(-2000.0, 2000.0))
    return values * first * second


def _masked(values: Tensor, present: Tensor, otherwise: float) -> Tensor:
    return torch.where(present.reshape(-1, *[1] * (values.dim() - 1)), values, torch.full_like(values, otherwise))


@dataclass(frozen=True)
class Moments(Additive):
    """Tables with the columns of :class:`~headwater.records.statistics.Statistics`."""

    extremes: int = 5
    sums: int = 8

    def to_extremes(self, table: Tensor, present: Tensor) -> Tensor:
        """Largest |x|, minus the smallest |x| that is not zero, the mean and minus the mean, all without a scale; the scale."""
        finite = table[:, 0] - table[:, 2] - table[:, 3]
        some = present & (finite > 0)
        largest = _shifted(table[:, 9], table[:, 4])
        smallest = torch.where(table[:, 10] > 0, -table[:, 10], torch.full_like(largest, _NOTHING))
        mean = _shifted(table[:, 5] / finite.clamp_min(1.0), table[:, 4])
        scale = torch.where(table[:, 9] > 0, table[:, 4], torch.full_like(largest, _NOTHING))
        columns = torch.stack([largest, smallest, mean, -mean, scale], dim=1)
        return torch.nan_to_num(_masked(columns, some, _NOTHING), nan=_NOTHING, posinf=math.inf, neginf=_NOTHING)

    def to_sums(self, table: Tensor, present: Tensor, elements: Tensor, agreed: Tensor) -> Tensor:
        """The counts, and the sums at the common scale, squared deviations about the common point."""
        scale, point = self._scale(agreed)
        finite = table[:, 0] - table[:, 2] - table[:, 3]
        shift = torch.where(table[:, 9] > 0, table[:, 4] - scale, torch.zeros_like(scale))
        first = _shifted(table[:, 5], shift)
        mean = first / finite.clamp_min(1.0)
        about = _shifted(table[:, 7], 2 * shift) + finite * (mean - point).square()
        columns = [
            table[:, 0], table[:, 1], table[:, 2], table[:, 3], first, _shifted(table[:, 6], shift), about,
            _shifted(table[:, 8], 4 * shift),
        ]  # fmt: skip
        return _masked(torch.stack(columns, dim=1), present, 0.0)

    def to_table(self, agreed: Tensor, total: Tensor) -> Tensor:
        """The columns of the statistics."""
        scale, point = self._scale(agreed)
        finite = total[:, 0] - total[:, 2] - total[:, 3]
        mean = total[:, 4] / finite.clamp_min(1.0)
        deviations = (total[:, 6] - finite * (mean - point).square()).clamp_min(0.0)
        largest = agreed[:, 0].clamp_min(0.0)
        smallest = torch.where(agreed[:, 1] > _NOTHING, -agreed[:, 1], torch.zeros_like(scale))
        columns = [
            *total[:, :4].unbind(1), scale, total[:, 4], total[:, 5], deviations, total[:, 7],
            _shifted(largest, -scale), smallest,
        ]  # fmt: skip
        return torch.stack(columns, dim=1)

    @staticmethod
    def _scale(agreed: Tensor) -> tuple[Tensor, Tensor]:
        """The common exponent (the largest, as :meth:`Statistics.merge` takes it), and K at that scale."""
        scale = torch.where(agreed[:, 4] > _NOTHING, agreed[:, 4], torch.zeros_like(agreed[:, 4]))
        point = torch.where(agreed[:, 2] > _NOTHING, agreed[:, 2] / 2 - agreed[:, 3] / 2, torch.zeros_like(scale))
        return scale, _shifted(point, -scale)


@dataclass(frozen=True)
class Norms(Additive):
    """Tables with an l2 norm and two counts."""

    extremes: int = 1
    sums: int = 3

    def to_extremes(self, table: Tensor, present: Tensor) -> Tensor:
        """The norm."""
        return torch.nan_to_num(_masked(table[:, :1], present, _NOTHING), nan=_NOTHING, neginf=_NOTHING)

    def to_sums(self, table: Tensor, present: Tensor, elements: Tensor, agreed: Tensor) -> Tensor:
        """Its square against the largest, and the counts."""
        return _masked(torch.cat([_against(table[:, :1], agreed), table[:, 1:]], dim=1), present, 0.0)

    def to_table(self, agreed: Tensor, total: Tensor) -> Tensor:
        """Norm and counts."""
        return torch.cat([agreed.clamp_min(0.0) * total[:, :1].sqrt(), total[:, 1:]], dim=1)


@dataclass(frozen=True)
class Changes(Additive):
    """What a step did: :data:`CHANGE_COLUMNS` in, ``update_ratio`` and ``read_fraction`` out.

    Each rank's squares are divided by the share of the elements they were read from, so that a rank that reads less of what
    it holds counts as much.
    """

    extremes: int = 2
    sums: int = 4

    def to_extremes(self, table: Tensor, present: Tensor) -> Tensor:
        """The two norms."""
        return torch.nan_to_num(_masked(table[:, :2], present, _NOTHING), nan=_NOTHING, neginf=_NOTHING)

    def to_sums(self, table: Tensor, present: Tensor, elements: Tensor, agreed: Tensor) -> Tensor:
        """Squares of the norms against the largest; elements read, elements held."""
        squares = _against(table[:, :2], agreed) / table[:, 2:3]
        return _masked(torch.cat([squares, (table[:, 2] * elements)[:, None], elements[:, None]], dim=1), present, 0.0)

    def to_table(self, agreed: Tensor, total: Tensor) -> Tensor:
        """Ratio and share."""
        norms = agreed.clamp_min(0.0) * total[:, :2].sqrt()
        return ratios(torch.cat([norms, (total[:, 2] / total[:, 3])[:, None]], dim=1))


@dataclass(frozen=True)
class SecondMoments(Additive):
    """The optimizer's second moment: root of its mean, eps, share of the elements below."""

    extremes: int = 2
    sums: int = 3

    def to_extremes(self, table: Tensor, present: Tensor) -> Tensor:
        """Root and eps."""
        return torch.nan_to_num(_masked(table[:, :2], present, _NOTHING), nan=_NOTHING, neginf=_NOTHING)

    def to_sums(self, table: Tensor, present: Tensor, elements: Tensor, agreed: Tensor) -> Tensor:
        """The mean against the largest, and the share below, both times the elements; the elements."""
        means = _against(table[:, :1], agreed[:, :1]) * elements[:, None]
        below = (table[:, 2] * elements)[:, None]
        return _masked(torch.cat([means, below, elements[:, None]], dim=1), present, 0.0)

    def to_table(self, agreed: Tensor, total: Tensor) -> Tensor:
        """Root, eps, share."""
        root = agreed[:, 0].clamp_min(0.0) * (total[:, 0] / total[:, 2]).sqrt()
        return torch.stack([root, agreed[:, 1], total[:, 1] / total[:, 2]], dim=1)


def _against(norms: Tensor, largest: Tensor) -> Tensor:
    """(norm / largest)², 0 where the largest is; squares of what is at most 1 stay in range."""
    top = largest.clamp_min(0.0)
    return torch.where(top > 0, norms / torch.where(top > 0, top, torch.ones_like(top)), norms * 0.0).square()


def ratios(changes: Tensor) -> Tensor:
    """``update_ratio`` and ``read_fraction`` from :data:`CHANGE_COLUMNS`.

    Args:
        changes: shape (k, 3).

    Returns:
        Shape (k, 2). The ratio of a tensor that was zero and moved is infinite; of one that stayed, zero.
    """
    moved, before = changes[:, 0], changes[:, 1]
    return torch.stack([torch.where(moved == 0.0, moved, moved / before), changes[:, 2]], dim=1)


def kind_of(columns: Sequence[str]) -> Additive | None:
    """How tables with these columns add up.

    Args:
        columns: of a piece.

    Returns:
        The kind, or None where they do not.
    """
    found: dict[tuple[str, ...], Additive] = {
        STATISTICS_COLUMNS: Moments(),
        NORM_COLUMNS: Norms(),
        CHANGE_COLUMNS: Changes(),
        ("root_rms", "epsilon", "below_epsilon_fraction"): SecondMoments(),
    }
    return found.get(tuple(columns))
