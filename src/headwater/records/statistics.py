"""Additive statistics of a tensor: what is stored, and what is derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from headwater.errors import RecordError

__all__ = ["LOG10_2", "Spread", "Statistics"]

LOG10_2 = math.log10(2.0)


def _ldexp(value: float, exponent: int) -> float:
    """``value * 2**exponent``, with an infinity instead of an OverflowError."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Additive statistics of the elements of one tensor (or of several, merged).

    What is stored adds up exactly over layers, steps and ranks; what people read is derived. Sums run over the
    *finite* elements x, divided by a power of two so that neither a square nor a fourth power leaves the range of
    a double: the element is ``x = y * 2**scale_log2`` and the sums are those of y. A complex tensor counts its real
    and imaginary parts as separate elements.

    Attributes:
        count: number of elements, finite or not.
        zero_count: number of elements that are exactly zero.
        nan_count: number of NaN elements.
        inf_count: number of infinite elements.
        scale_log2: the common exponent e of the sums below.
        scaled_sum: Σ y.
        scaled_sum_abs: Σ |y|.
        scaled_sum_squared_deviations: Σ (y - mean(y))², so that a spread far below the mean survives rounding.
        scaled_sum_fourth_powers: Σ y⁴.
        scaled_max_abs: largest |y|, 0 when there is no finite element.
        unscaled_min_abs_nonzero: smallest |x| that is not zero, 0 when there is none. It is a minimum, not a sum, and
            is stored without the scale: a float64 tensor may hold both 1e-300 and 1e300, whose ratio is no double.

    Example:
        >>> a = Statistics.of([3.0, -4.0]); a.rms, a.mean_abs, a.max_abs
        (3.5355339059327378, 3.5, 4.0)
        >>> (a + Statistics.of([0.0, 0.0])).zero_fraction
        0.5

    References:
        Chan, Golub, LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances*, 1982
        (the merge of squared deviations).
    """

    count: int
    zero_count: int
    nan_count: int
    inf_count: int
    scale_log2: int
    scaled_sum: float
    scaled_sum_abs: float
    scaled_sum_squared_deviations: float
    scaled_sum_fourth_powers: float
    scaled_max_abs: float
    unscaled_min_abs_nonzero: float

    @classmethod
    def empty(cls) -> Statistics:
        """The statistics of no element: the neutral element of ``+``."""
        return cls(0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistics:
        """Statistics of plain numbers, in double precision (for examples and tests).

        Args:
            values: any finite or non-finite numbers.

        Returns:
            Their statistics.
        """
        xs = list(values)
        finite = [x for x in xs if math.isfinite(x)]
        top = max((abs(x) for x in finite), default=0.0)
        exponent = math.frexp(top)[1] if top else 0
        ys = [math.ldexp(x, -exponent) for x in finite]
        mean = math.fsum(ys) / len(ys) if ys else 0.0
        return cls(
            count=len(xs),
            zero_count=sum(x == 0.0 for x in finite),
            nan_count=sum(math.isnan(x) for x in xs),
            inf_count=sum(math.isinf(x) for x in xs),
            scale_log2=exponent,
            scaled_sum=math.fsum(ys),
            scaled_sum_abs=math.fsum(abs(y) for y in ys),
            scaled_sum_squared_deviations=math.fsum((y - mean) ** 2 for y in ys),
            scaled_sum_fourth_powers=math.fsum(y**4 for y in ys),
            scaled_max_abs=max((abs(y) for y in ys), default=0.0),
            unscaled_min_abs_nonzero=min((abs(x) for x in finite if x != 0.0), default=0.0),
        )

    # ---------------------------------------------------------------- merging

    def rescaled(self, scale_log2: int) -> Statistics:
        """The same statistics with another common exponent.

        Args:
            scale_log2: the new exponent.

        Returns:
            Equal statistics; sums that fall below the range of a double become 0.
        """
        shift = self.scale_log2 - scale_log2
        if shift == 0:
            return self
        return Statistics(
            self.count,
            self.zero_count,
            self.nan_count,
            self.inf_count,
            scale_log2,
            _ldexp(self.scaled_sum, shift),
            _ldexp(self.scaled_sum_abs, shift),
            _ldexp(self.scaled_sum_squared_deviations, 2 * shift),
            _ldexp(self.scaled_sum_fourth_powers, 4 * shift),
            _ldexp(self.scaled_max_abs, shift),
            self.unscaled_min_abs_nonzero,
        )

    def __add__(self, other: Statistics) -> Statistics:
        if not isinstance(other, Statistics):
            return NotImplemented
        return Statistics.merge((self, other))

    @staticmethod
    def merge(parts: Iterable[Statistics]) -> Statistics:
        """Statistics of the concatenation of several tensors.

        Args:
            parts: the statistics of each.

        Returns:
            The merged statistics; those of no element when ``parts`` is empty.
        """
        parts = tuple(parts)
        # An all-zero or empty part has no scale of its own: it takes that of the others.
        scale = max((part.scale_log2 for part in parts if part.scaled_max_abs > 0.0), default=0)
        parts = tuple(part.rescaled(scale) for part in parts)
        finite_count = sum(part.finite_count for part in parts)
        total = math.fsum(part.scaled_sum for part in parts)
        mean = total / finite_count if finite_count else 0.0
        squares = [part.scaled_sum_squared_deviations for part in parts]
        squares += [n * (part.scaled_sum / n - mean) ** 2 for part in parts if (n := part.finite_count)]
        smallest = (part.unscaled_min_abs_nonzero for part in parts if part.unscaled_min_abs_nonzero > 0.0)
        return Statistics(
            sum(part.count for part in parts),
            sum(part.zero_count for part in parts),
            sum(part.nan_count for part in parts),
            sum(part.inf_count for part in parts),
            scale,
            total,
            math.fsum(part.scaled_sum_abs for part in parts),
            math.fsum(squares),
            math.fsum(part.scaled_sum_fourth_powers for part in parts),
            max((part.scaled_max_abs for part in parts), default=0.0),
            min(smallest, default=0.0),
        )

    # ---------------------------------------------------------------- derived

    @property
    def finite_count(self) -> int:
        """Number of finite elements; every statistic below is over these."""
        return self.count - self.nan_count - self.inf_count

    @property
    def nonfinite_count(self) -> int:
        """Number of NaN and infinite elements."""
        return self.nan_count + self.inf_count

    @property
    def scaled_sum_squares(self) -> float:
        """Σ y²."""
        n = self.finite_count
        return self.scaled_sum_squared_deviations + self.scaled_sum * self.scaled_sum / n if n else 0.0

    def _per_element(self, total: float) -> float:
        n = self.finite_count
        return _ldexp(total / n, self.scale_log2) if n else math.nan

    @property
    def mean(self) -> float:
        """Σx / n; NaN when no element is finite."""
        return self._per_element(self.scaled_sum)

    @property
    def mean_abs(self) -> float:
        """Σ|x| / n; NaN when no element is finite."""
        return self._per_element(self.scaled_sum_abs)

    @property
    def rms(self) -> float:
        """√(Σx² / n); NaN when no element is finite."""
        n = self.finite_count
        return _ldexp(math.sqrt(self.scaled_sum_squares / n), self.scale_log2) if n else math.nan

    @property
    def rms_log10(self) -> float:
        """log10 of ``rms``, finite even where ``rms`` leaves the range of a double; -inf when all are zero."""
        n = self.finite_count
        if not n:
            return math.nan
        squares = self.scaled_sum_squares
        return 0.5 * math.log10(squares / n) + self.scale_log2 * LOG10_2 if squares > 0.0 else -math.inf

    @property
    def l2_norm(self) -> float:
        """√Σx²; NaN when no element is finite."""
        return _ldexp(math.sqrt(self.scaled_sum_squares), self.scale_log2) if self.finite_count else math.nan

    @property
    def variance(self) -> float:
        """Σ(x - mean)² / n (population variance); NaN when no element is finite."""
        n = self.finite_count
        return _ldexp(self.scaled_sum_squared_deviations / n, 2 * self.scale_log2) if n else math.nan

    @property
    def std(self) -> float:
        """√variance (population: divided by n, not n - 1); NaN when no element is finite."""
        n = self.finite_count
        return _ldexp(math.sqrt(self.scaled_sum_squared_deviations / n), self.scale_log2) if n else math.nan

    @property
    def kurtosis(self) -> float:
        """E[x⁴] / E[x²]²: 3 for a zero-mean Gaussian, 1 for constant magnitude; NaN when all are zero."""
        squares = self.scaled_sum_squares
        return self.scaled_sum_fourth_powers * self.finite_count / squares**2 if squares > 0.0 else math.nan

    @property
    def max_abs(self) -> float:
        """Largest |x| among the finite elements; NaN when there is none."""
        return _ldexp(self.scaled_max_abs, self.scale_log2) if self.finite_count else math.nan

    @property
    def min_abs_nonzero(self) -> float:
        """Smallest |x| that is finite and not zero; NaN when there is none."""
        return self.unscaled_min_abs_nonzero or math.nan

    @property
    def zero_fraction(self) -> float:
        """Share of elements that are exactly zero, 0 to 1; NaN for no element."""
        return self.zero_count / self.count if self.count else math.nan

    # ---------------------------------------------------------------- data

    def to_dict(self) -> dict[str, Any]:
        """What is stored, as plain JSON values (every one finite)."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Statistics:
        """The inverse of :meth:`to_dict`.

        Args:
            data: a mapping with every stored field.

        Returns:
            The statistics.

        Raises:
            RecordError: a field is missing or is not a finite number.
        """
        values: dict[str, Any] = {}
        for f in fields(cls):
            value = data.get(f.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise RecordError(f"statistics field {f.name!r} should be a finite number, got {value!r}")
            values[f.name] = int(value) if f.type == "int" else float(value)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of a log10 statistic over several draws of the weights.

    Attributes:
        mean: mean of log10 of the statistic over the draws where it was neither zero nor non-finite.
        std: sample standard deviation over those draws (decades); 0 for a single draw.
        count: how many draws entered.
    """

    mean: float
    std: float
    count: int
