"""Where a run had elements that were NaN or infinite, without reading what had none."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.store.history import History, StoredBlock
from headwater.store.schema import CELL_SHIFT

__all__ = ["nonfinite_elements"]


def nonfinite_elements(history: History, blocks: Sequence[StoredBlock]) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Tensors and steps with elements that are not finite.

    One pass over the whole file, which is remembered; SQLite looks at every row, and only those with such elements are
    taken out of it.

    Args:
        history: of the run.
        blocks: one per recorded step and group, in the order of the steps.

    Returns:
        By tensor, (step, NaN elements, infinite elements) in the order of the steps.
    """
    broken = history.remembered("nonfinite", lambda: _read(history))
    tensors = history.tensors()
    found: dict[str, list[tuple[int, int, int]]] = {}
    for block in blocks:
        for tensor, nans, infs in broken.get((block.form, block.id), ()):
            found.setdefault(tensors[tensor].name, []).append((block.at.row.step, nans, infs))
    return {name: tuple(sorted(cells)) for name, cells in found.items()}


def _read(history: History) -> dict[tuple[str, int], list[tuple[int, int, int]]]:
    found: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for form in ("statistics", "norms"):
        for cell, nans, infs in history.database.rows(
            f"SELECT id, nan_count, inf_count FROM {form} WHERE nan_count > 0 OR inf_count > 0 ORDER BY id"
        ):
            tensor = cell & ((1 << CELL_SHIFT) - 1)
            found.setdefault((form, cell >> CELL_SHIFT), []).append((tensor, nans or 0, infs or 0))
    return found
