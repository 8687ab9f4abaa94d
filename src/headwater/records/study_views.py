"""What a study shows: tables, charts, and weights beside gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Cell", "Chart", "MatrixView", "Series", "StudyTable"]

Cell = int | float | str | None
"""One cell of a table: None is "does not apply"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """A table that belongs to one study.

    Attributes:
        title: what it shows.
        columns: headings, with units.
        rows: cells in the order of the columns.
        reading: one sentence that reads it, from its numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    reading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend.
        x: positions, such as layer numbers.
        y: values; None leaves a gap.
        hover: one text per point, or empty.
        dashed: whether it is drawn dashed (references, published figures).
        low: lower edge of a band around the line, or empty.
        high: upper edge.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    hover: tuple[str, ...] = ()
    dashed: bool = False
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A line chart that belongs to one study.

    Attributes:
        title: what it shows.
        x_title: with unit.
        y_title: with unit.
        series: the lines.
        log_y: whether the y axis is logarithmic.
        log_x: whether the x axis is logarithmic.
        reading: one sentence that reads it, from its numbers.
    """

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    log_y: bool = True
    log_x: bool = False
    reading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """A weight matrix beside its gradient, every exact zero explained.

    Attributes:
        variant: which network.
        parameter: which matrix.
        rows_are: what a row is: ``input units`` or ``output units``.
        weight: the elements.
        gradient: ∂L/∂weight, same shape.
        reasons: same shape; empty where the gradient is not zero, else ``column``, ``row``, ``no path``,
            ``disjoint`` or ``underflow``.
        explanation: the zeros of this matrix in words.
    """

    variant: str
    parameter: str
    rows_are: Literal["input units", "output units"]
    weight: tuple[tuple[float, ...], ...]
    gradient: tuple[tuple[float, ...], ...]
    reasons: tuple[tuple[str, ...], ...]
    explanation: str
