"""What the pictures of a run draw: its numbers as log10, repeated blocks folded, long courses thinned out."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.records.run import RecordedStep, RunSource, StatisticMatrix
from headwater.records.run_matrix import in_order, observed_log10, rms_matrix, weights_first
from headwater.records.run_summary import RunSummary, summarize_run
from headwater.records.step import Quantity
from headwater.reports.folding import Fold, fold_rows

__all__ = ["QUANTITIES", "Grid", "GridRow", "RunView", "quantile", "thin", "without_common_end"]

COLUMNS = 300
"""Columns of a picture over the run; about three pixels each on a wide screen. Chosen by us."""
CELLS = 120_000
"""Cells of one heatmap, about 0.8 MB of a page. Chosen by us."""
ROWS = 2_000
"""Rows of the largest heatmap; above, neighbours are folded. Chosen by us."""
COURSE_POINTS = 1_000
"""Points of a line over the run; the smallest and the largest of each stretch are kept. Chosen by us."""

QUANTITIES: dict[Quantity, str] = {
    "gradient": "gradient of weights",
    "output_gradient": "gradient of outputs",
    "activation": "activations",
    "update": "update ratio",
}
"""What a heatmap can show, in the order of its switch."""


@dataclass(frozen=True, slots=True)
class GridRow:
    """One line of a heatmap.

    Attributes:
        label: a name, or that of several folded blocks; unique within the grid.
        names: whose numbers it stands for.
        values: log10 per column: -inf for exactly zero, NaN and inf where an element was, None for not observed. Of
            several tensors the median, unless one has such an element.
    """

    label: str
    names: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A quantity over layers and steps.

    Attributes:
        quantity: a key of :data:`QUANTITIES`.
        rows: in execution order.
        steps: first optimizer step of each column.
        stride: recorded steps per column.
        count: tensors, before folding.
    """

    quantity: Quantity
    rows: tuple[GridRow, ...]
    steps: tuple[int, ...]
    stride: int
    count: int

    @property
    def folded(self) -> bool:
        """Whether a row stands for several tensors."""
        return self.count > len(self.rows)

    def finite(self) -> list[float]:
        """Every finite value, ascending."""
        return sorted(v for row in self.rows for v in row.values if v is not None and math.isfinite(v))


class RunView:
    """A run and what has been read of it so far; everything is read once.

    Args:
        run: from ``headwater.open_run``.
    """

    def __init__(self, run: RunSource) -> None:
        self.run = run
        self._matrices: dict[Quantity, StatisticMatrix] = {}
        self._grids: dict[tuple[Quantity, int], Grid | None] = {}

    @functools.cached_property
    def summary(self) -> RunSummary:
        """The run in short."""
        return summarize_run(self.run)

    @functools.cached_property
    def recorded_steps(self) -> tuple[RecordedStep, ...]:
        """The rows of all recorded steps."""
        return self.run.recorded_steps()

    def _matrix(self, quantity: Quantity) -> StatisticMatrix:
        """log10 of the quantity, rows in execution order."""
        if quantity not in self._matrices:
            self._matrices[quantity] = self._read(quantity)
        return self._matrices[quantity]

    def _read(self, quantity: Quantity) -> StatisticMatrix:
        if quantity == "update":
            names = [tensor.name for tensor in weights_first(self.run.tensors)]
            found = in_order(self.run.matrix("update", "update_ratio", tensors=names, max_columns=COLUMNS))
            logs = tuple(tuple(observed_log10(v) for v in row) for row in found.values)
            return dataclasses.replace(found, values=logs)
        return rms_matrix(self.run, quantity, COLUMNS)

    def grid(self, quantity: Quantity, max_rows: int = ROWS) -> Grid | None:
        """A quantity over layers and steps.

        Args:
            quantity: a key of :data:`QUANTITIES`.
            max_rows: repeated blocks are folded above that many tensors.

        Returns:
            The grid without columns in which nothing was observed; None when nothing was observed at all.
        """
        key = quantity, min(max_rows, ROWS)
        if key not in self._grids:
            self._grids[key] = _fold(self._matrix(quantity), quantity, key[1])
        return self._grids[key]

    def grids(self, max_rows: int = ROWS) -> list[Grid]:
        """Every quantity that was observed.

        Args:
            max_rows: as in :meth:`grid`.

        Returns:
            Grids in the order of :data:`QUANTITIES`.
        """
        return [grid for quantity in QUANTITIES if (grid := self.grid(quantity, max_rows)) is not None]


def _fold(found: StatisticMatrix, quantity: Quantity, max_rows: int) -> Grid | None:
    kept = [j for j in range(len(found.steps)) if any(row[j] is not None for row in found.values)]
    pairs = [
        (tensor, row)
        for tensor, row in zip(found.tensors, found.values, strict=True)
        if any(v is not None for v in row)
    ]
    if not kept or not pairs:
        return None
    parts = fold_rows(pairs, lambda p: p[0].name, lambda p: f"{p[0].type} {p[0].role}", max_rows)
    thinner = max(1, math.ceil(len(parts) * len(kept) / CELLS))
    columns = [kept[i : i + thinner] for i in range(0, len(kept), thinner)]
    rows, labels = [], set()
    for part in parts:
        members = part.rows if isinstance(part, Fold) else (part,)
        label = part.label if isinstance(part, Fold) else part[0].name
        while label in labels:
            label += "'"
        labels.add(label)
        values = tuple(_middle([row[j] for _, row in members for j in column]) for column in columns)
        rows.append(GridRow(label, tuple(tensor.name for tensor, _ in members), values))
    return Grid(
        quantity=quantity,
        rows=tuple(rows),
        steps=tuple(found.steps[column[0]] for column in columns),
        stride=found.stride * thinner,
        count=len(pairs),
    )


def _middle(values: Sequence[float | None]) -> float | None:
    """The median; NaN as soon as one is, else inf, None when there is none."""
    logs = [v for v in values if v is not None]
    if not logs:
        return None
    if any(math.isnan(v) for v in logs):
        return math.nan
    if math.inf in logs:
        return math.inf
    return logs[0] if len(logs) == 1 else statistics.median_low(logs)


def quantile(ascending: Sequence[float], share: float) -> float:
    """A value that a share of the others lies under.

    Args:
        ascending: at least one.
        share: 0 to 1.

    Returns:
        The nearest one.

    Example:
        >>> quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.5), quantile([1.0, 2.0], 1.0)
        (3.0, 2.0)
    """
    return ascending[round(share * (len(ascending) - 1))]


def without_common_end(names: Sequence[str]) -> list[str]:
    """Names without the last part that all of them share.

    Args:
        names: of parameters.

    Returns:
        As many names, all different still.

    Example:
        >>> without_common_end(["fc1.weight", "fc2.weight"]), without_common_end(["fc1.weight", "head"])
        (['fc1', 'fc2'], ['fc1.weight', 'head'])
    """
    ends = {name.rpartition(".")[2] if "." in name else "" for name in names}
    if len(names) < 2 or len(ends) != 1 or "" in ends or next(iter(ends)).isdigit():
        return list(names)
    return [name.rpartition(".")[0] for name in names]


def thin(x: Sequence[float], y: Sequence[float | None], points: int = COURSE_POINTS) -> list[int]:
    """Which points of a line are drawn: of each stretch the smallest and the largest, so that no spike is lost.

    Args:
        x: positions.
        y: values; None and NaN where there is none.
        points: about how many.

    Returns:
        Indices in ascending order, the first and the last among them.

    Example:
        >>> thin(range(8), [0, 0, 9, 0, 0, 0, -5, 0], 4)
        [0, 2, 4, 6, 7]
    """
    count = len(x)
    if count <= points:
        return list(range(count))
    stretches = max(1, points // 2)
    chosen = {0, count - 1}
    for i in range(stretches):
        part = [
            j
            for j in range(i * count // stretches, (i + 1) * count // stretches)
            if (v := y[j]) is not None and math.isfinite(v)
        ]
        if part:
            chosen.add(min(part, key=lambda j: y[j] or 0.0))
            chosen.add(max(part, key=lambda j: y[j] or 0.0))
    return sorted(chosen)
