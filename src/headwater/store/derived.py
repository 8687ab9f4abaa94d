"""Statistics by name out of stored rows: ``rms`` of a row of sums, ``dead_fraction`` of a row of counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import get_args

from headwater.records.lookup import no_such
from headwater.records.statistics import LOG10_2, Statistics
from headwater.records.step import STATISTICS_COLUMNS, Quantity
from headwater.store.rows import element_count
from headwater.store.schema import FORMS

__all__ = ["DERIVED", "Reading", "Readings", "derived_of", "known_statistics", "parse_statistic", "statistics_of"]

Row = Sequence[float | None]

DERIVED: tuple[str, ...] = (
    "rms", "rms_log10", "l2_norm", "mean", "mean_abs", "std", "variance", "max_abs", "min_abs_nonzero", "kurtosis",
    "zero_fraction", "nonfinite_count",
)  # fmt: skip
"""What a row of whole statistics gives beside its columns."""

_FORMS_OF_QUANTITY: dict[str, tuple[str, ...]] = {
    "value": ("statistics", "norms"),
    "gradient": ("statistics", "norms"),
    "activation": ("statistics", "norms"),
    "output_gradient": ("statistics", "norms"),
    "update": ("updates",),
    "second_moment": ("second_moments",),
    "units": ("units",),
    "histogram": (),
}
_DERIVED_BY_FORM = {
    "statistics": DERIVED,
    "norms": ("rms", "rms_log10", "nonfinite_count"),
    "units": ("dead_fraction",),
}
_LOG = "_log10"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a statistic is read from a table.

    Attributes:
        columns: that are needed.
        value: of their values (None for NULL) and the tensor's shape; NaN where it is undefined.
    """

    columns: tuple[str, ...]
    value: Callable[[Row, tuple[int, ...]], float]

    @property
    def is_column(self) -> bool:
        """Whether it is the one column as it stands."""
        return self.value is _alone


def statistics_of(row: Row) -> Statistics:
    """The record of a stored row of whole statistics; a NULL is NaN."""
    counts = (0 if value is None else int(value) for value in row[:5])
    return Statistics(*counts, *(math.nan if value is None else value for value in row[5:]))


def derived_of(row: Row) -> tuple[float, ...]:
    """Everything in :data:`DERIVED` of a stored row of whole statistics, at a third of the cost of the record."""
    count, zeros, nans, infs, exponent, total, total_abs, deviations, fourths, max_abs, min_abs = (
        math.nan if value is None else value for value in row
    )
    broken = nans + infs
    finite = count - broken
    zero_fraction = zeros / count if count > 0.0 else math.nan
    if not finite > 0.0:
        return (*(math.nan,) * (len(DERIVED) - 2), zero_fraction, broken)
    scale = int(exponent)
    squares = deviations + total * total / finite
    mean_square, variance = squares / finite, deviations / finite
    return (
        _scaled(math.sqrt(mean_square), scale),
        0.5 * math.log10(mean_square) + scale * LOG10_2 if squares > 0.0 else -math.inf if squares == 0.0 else math.nan,
        _scaled(math.sqrt(squares), scale),
        _scaled(total / finite, scale),
        _scaled(total_abs / finite, scale),
        _scaled(math.sqrt(variance), scale),
        _scaled(variance, 2 * scale),
        _scaled(max_abs, scale),
        min_abs or math.nan,
        fourths * finite / squares**2 if squares > 0.0 else math.nan,
        zero_fraction,
        broken,
    )


def known_statistics(quantity: str, measures: Sequence[str] = ()) -> list[str]:
    """Names of the statistics of a quantity, without those that add ``_log10``.

    Args:
        quantity: see ``records.Quantity``.
        measures: further columns that the run has for it.

    Returns:
        Each once.
    """
    names: dict[str, None] = {}
    for form in _FORMS_OF_QUANTITY[quantity]:
        names.update(dict.fromkeys((*_DERIVED_BY_FORM.get(form, ()), *FORMS[form])))
    return list({**names, **dict.fromkeys(measures)})


def parse_statistic(statistic: str) -> tuple[Quantity, str]:
    """``"gradient.rms"`` in its two parts.

    Args:
        statistic: quantity and name.

    Returns:
        The quantity and the name.

    Raises:
        KeyError: there is no such quantity; the message lists near ones.
    """
    quantity, dot, name = statistic.partition(".")
    if quantity not in _FORMS_OF_QUANTITY or not dot:
        raise KeyError(
            no_such("statistic", statistic, [f"{q}.{n}" for q in get_args(Quantity) for n in known_statistics(q)])
        )
    return quantity, name  # type: ignore[return-value]  # checked against the same names above


class Readings:
    """How one statistic is read, whatever the block.

    Args:
        name: of the statistic, with or without a final ``_log10``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known: dict[tuple[str, tuple[str, ...]], Reading | None] = {}

    def __call__(self, form: str, columns: tuple[str, ...]) -> Reading | None:
        """How it is read from a block of this form and these columns; None when the block does not hold it."""
        key = form, columns
        if key not in self._known:
            self._known[key] = _reading(form, columns, self._name)
        return self._known[key]


def _reading(form: str, columns: tuple[str, ...], name: str) -> Reading | None:
    forms = (form,) if form in FORMS else tuple(FORMS)
    for base, logarithm in ((name, False), (name.removesuffix(_LOG), True)):
        if logarithm and base == name:
            continue
        if form not in FORMS and base in columns:
            found: Reading | None = Reading((base,), _alone)
        else:
            options = (_direct(each, base) for each in forms)
            found = next((r for r in options if r and (form in FORMS or set(r.columns) <= set(columns))), None)
        if found is not None:
            return _in_log10(found) if logarithm else found
    return None


def _in_log10(reading: Reading) -> Reading:
    value = reading.value
    return Reading(reading.columns, lambda row, shape: _log10(value(row, shape)))


def _direct(form: str, name: str) -> Reading | None:
    if name in FORMS[form] or (name == "rms_log10" and form in ("statistics", "norms")):
        return Reading((name,), _alone)
    if form == "statistics":
        if name in ("rms", "l2_norm"):
            return Reading(_ROOT_COLUMNS, _rms if name == "rms" else _l2_norm)
        if name in DERIVED:
            return Reading(STATISTICS_COLUMNS, lambda row, shape: float(getattr(statistics_of(row), name)))
    if form == "norms" and name == "rms":
        return Reading(("l2_norm", "nan_count", "inf_count"), _rms_of_norm)
    if form == "norms" and name == "nonfinite_count":
        return Reading(("nan_count", "inf_count"), lambda row, shape: _number(row[0]) + _number(row[1]))
    if form == "units" and name == "dead_fraction":
        return Reading(("dead_count", "unit_count"), lambda row, shape: _ratio(_number(row[0]), _number(row[1])))
    return None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _alone(row: Row, shape: tuple[int, ...]) -> float:
    return _number(row[0])


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _log10(value: float) -> float:
    if value > 0.0:
        return math.log10(value)
    return -math.inf if value == 0.0 else math.nan


# Without the record in between, because a heatmap reads these by the million; the formulas are those of Statistics.
_ROOT_COLUMNS = ("count", "nan_count", "inf_count", "scale_log2", "scaled_sum", "scaled_sum_squared_deviations")
assert set(_ROOT_COLUMNS) <= {f.name for f in fields(Statistics)}


def _squares(row: Row) -> tuple[float, int]:
    count, nans, infs, _, total, deviations = row
    if count is None or nans is None or infs is None or total is None or deviations is None:
        return math.nan, 0
    finite = int(count - nans - infs)
    return (deviations + total * total / finite if finite else math.nan), finite


def _rms(row: Row, shape: tuple[int, ...]) -> float:
    squares, finite = _squares(row)
    return _scaled(math.sqrt(squares / finite), row[3]) if finite else math.nan


def _l2_norm(row: Row, shape: tuple[int, ...]) -> float:
    squares, finite = _squares(row)
    return _scaled(math.sqrt(squares), row[3]) if finite else math.nan


def _scaled(value: float, exponent: float | None) -> float:
    try:
        return math.ldexp(value, int(exponent or 0))
    except OverflowError:
        return math.copysign(math.inf, value)


def _rms_of_norm(row: Row, shape: tuple[int, ...]) -> float:
    finite = element_count(shape) - _number(row[1]) - _number(row[2])
    return _number(row[0]) / math.sqrt(finite) if finite > 0.0 else math.nan
