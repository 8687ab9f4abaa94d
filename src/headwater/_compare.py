"""Hold two recorded runs against each other: wiring only."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from headwater.records.run import RunSource
from headwater.records.run_comparison import DEFAULT_RTOL, RunComparison, compare_runs

__all__ = ["compare"]


def compare(
    a: RunSource | str | PathLike[str],
    b: RunSource | str | PathLike[str],
    *,
    rtol: float = DEFAULT_RTOL,
    renames: Mapping[str, str] | None = None,
) -> RunComparison:
    """Say at which step and tensor two runs first part, and how they drift apart.

    Args:
        a: the first run, or its folder.
        b: the second run, or its folder.
        rtol: relative difference up to which two numbers are the same.
        renames: old start to new start of the first run's names, such as ``{"encoder": "body"}``.

    Returns:
        The comparison.
    """
    return compare_runs(_opened(a), _opened(b), rtol=rtol, renames=renames)


def _opened(run: RunSource | str | PathLike[str]) -> RunSource:
    if isinstance(run, str | PathLike):
        from headwater.store import open_run

        return open_run(Path(run))
    return run
