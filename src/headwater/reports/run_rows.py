"""The recorded steps of a run as CSV."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from headwater.records.run import RecordedStep, RunSource
from headwater.records.table import rows_to_csv

__all__ = ["run_to_csv"]

_NAMES = tuple(field.name for field in dataclasses.fields(RecordedStep))


def run_to_csv(run: RunSource) -> str:
    """One row per recorded step: loss, learning rate, loss scale, clipping, gradient norm.

    The numbers of single tensors are in the run file itself; ``headwater.open_run`` exports them.

    Args:
        run: from ``headwater.open_run``.

    Returns:
        CSV with a header; a number that was not observed is an empty cell, an exact zero's logarithm ``-inf``.
    """
    rows: list[dict[str, Any]] = [{name: _plain(getattr(row, name)) for name in _NAMES} for row in run.recorded_steps()]
    return rows_to_csv(rows) if rows else ",".join(_NAMES) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return "nan"  # a loss that is NaN was observed: it is no empty cell
    return value
