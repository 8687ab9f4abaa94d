"""A histogram with one bin per power of two, the same bins for every tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from headwater.errors import RecordError

__all__ = ["Histogram"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many elements of a tensor lie in [2**e, 2**(e + 1)), for every exponent e and either sign.

    The edges depend on no tensor, so histograms of layers, steps and ranks add up exactly, and the cost is that of
    the exponents present, not of the range. A complex tensor counts its real and imaginary parts separately.

    Attributes:
        negative: pairs (exponent, count) of the elements below zero, by ascending exponent, counts positive.
        positive: the same for those above zero.
        zero_count: number of elements that are exactly zero.
        nan_count: number of NaN elements.
        inf_count: number of infinite elements.

    Example:
        >>> h = Histogram.of([1.0, 1.5, -3.0, 0.0]); h.positive, h.negative
        (((0, 2),), ((1, 1),))
        >>> (h + Histogram.of([float("nan"), 1.9])).positive
        ((0, 3),)
    """

    negative: tuple[tuple[int, int], ...] = ()
    positive: tuple[tuple[int, int], ...] = ()
    zero_count: int = 0
    nan_count: int = 0
    inf_count: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Histogram:
        """The histogram of plain numbers (for examples and tests).

        Args:
            values: any finite or non-finite numbers.

        Returns:
            Their histogram.
        """
        negative: Counter[int] = Counter()
        positive: Counter[int] = Counter()
        zero = nan = inf = 0
        for value in values:
            if math.isnan(value):
                nan += 1
            elif math.isinf(value):
                inf += 1
            elif value == 0.0:
                zero += 1
            else:
                (positive if value > 0.0 else negative)[math.frexp(value)[1] - 1] += 1
        return cls.from_counts(negative, positive, zero, nan, inf)

    @classmethod
    def from_counts(
        cls, negative: Mapping[int, int], positive: Mapping[int, int], zero_count: int, nan_count: int, inf_count: int
    ) -> Histogram:
        """The histogram with these counts per exponent; bins with none are left out.

        Args:
            negative: count per exponent of the elements below zero.
            positive: the same for those above zero.
            zero_count: number of zeros.
            nan_count: number of NaN elements.
            inf_count: number of infinite elements.

        Returns:
            The histogram.
        """

        def bins(side: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
            return tuple(sorted((exponent, count) for exponent, count in side.items() if count))

        return cls(bins(negative), bins(positive), zero_count, nan_count, inf_count)

    def __add__(self, other: Histogram) -> Histogram:
        if not isinstance(other, Histogram):
            return NotImplemented
        return Histogram.from_counts(
            Counter(dict(self.negative)) + Counter(dict(other.negative)),
            Counter(dict(self.positive)) + Counter(dict(other.positive)),
            self.zero_count + other.zero_count,
            self.nan_count + other.nan_count,
            self.inf_count + other.inf_count,
        )

    @property
    def finite_count(self) -> int:
        """Number of finite elements, zeros included."""
        return self.zero_count + sum(count for side in (self.negative, self.positive) for _, count in side)

    @property
    def count(self) -> int:
        """Number of elements, finite or not."""
        return self.finite_count + self.nan_count + self.inf_count

    def quantile_abs(self, q: float) -> float:
        """A quantile of |x| over the finite elements.

        Within its bin the quantile is interpolated on a log scale, so it is off by less than a factor of two.

        Args:
            q: from 0 to 1.

        Returns:
            The magnitude below which a share ``q`` of the elements lies; 0 where zeros make up that share (the first
            ``zero_count`` ranks are theirs), NaN without a finite element.

        Raises:
            ValueError: ``q`` lies outside 0 to 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile lies between 0 and 1, got {q!r}")
        total = self.finite_count
        if not total:
            return math.nan
        bins = sorted((Counter(dict(self.negative)) + Counter(dict(self.positive))).items())
        rank = q * total
        if rank < self.zero_count or not bins:
            return 0.0
        below = float(self.zero_count)
        for exponent, count in bins:
            if rank <= below + count:
                # Just below 2, so that the last bin of a double does not end beyond its range.
                inside = min(2.0 ** ((rank - below) / count), math.nextafter(2.0, 1.0))
                return math.ldexp(inside, exponent)
            below += count
        raise AssertionError("unreachable: the last bin holds the last rank")

    def to_dict(self) -> dict[str, Any]:
        """What is stored, as plain JSON values."""
        return {
            "negative": [list(pair) for pair in self.negative],
            "positive": [list(pair) for pair in self.positive],
            "zero_count": self.zero_count,
            "nan_count": self.nan_count,
            "inf_count": self.inf_count,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """The inverse of :meth:`to_dict`.

        Args:
            data: a mapping with every stored field.

        Returns:
            The histogram.

        Raises:
            RecordError: a field is missing, or is not made of integers.
        """
        return cls.from_counts(
            _bins(data, "negative"),
            _bins(data, "positive"),
            _integer(data, "zero_count"),
            _integer(data, "nan_count"),
            _integer(data, "inf_count"),
        )


def _bins(data: Mapping[str, Any], name: str) -> dict[int, int]:
    pairs = data.get(name)
    if not isinstance(pairs, list | tuple) or not all(_is_pair(pair) for pair in pairs):
        raise RecordError(f"histogram field {name!r} should be a list of [exponent, count], got {pairs!r}")
    return dict(pairs)


def _integer(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    if not _is_integer(value):
        raise RecordError(f"histogram field {name!r} should be an integer, got {value!r}")
    return int(value)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_integer(number) for number in value)
