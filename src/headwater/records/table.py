"""Records as flat rows: CSV and pandas."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.errors import HeadwaterError
from headwater.records.json_codec import write_text

if TYPE_CHECKING:
    from headwater.records.profile import Profile
    from headwater.records.statistics import Statistics

__all__ = ["profile_rows", "rows_to_csv", "rows_to_pandas"]

_SHOWN = (
    "count", "mean", "mean_abs", "rms", "l2_norm", "std", "min_abs_nonzero", "max_abs", "zero_fraction", "nan_count",
    "inf_count",
)  # fmt: skip


def _flat(prefix: str, statistics: Statistics | None) -> dict[str, Any]:
    return {f"{prefix}.{name}": None if statistics is None else getattr(statistics, name) for name in _SHOWN}


def profile_rows(profile: Profile) -> list[dict[str, Any]]:
    """One flat row per layer, then one per parameter; ``row`` says which it is.

    Args:
        profile: what to flatten.

    Returns:
        Mappings with the same keys, None where a value was not observed or does not apply.
    """
    rows: list[dict[str, Any]] = [
        {
            "row": "layer", "name": layer.name, "type": layer.type, "kind": layer.kind,
            "order": layer.order, "on_trunk": layer.on_trunk,
            "shape": "x".join(map(str, layer.shape)), "dtype": layer.dtype, "state": layer.gradient_missing,
            **_flat("value", layer.activation), **_flat("gradient", layer.gradient),
            "dead_fraction": layer.dead_fraction, "saturated_fraction": layer.saturated_fraction,
            "between_sample_fraction": layer.between_sample_fraction, "position_cosine": layer.position_cosine,
        }
        for layer in profile.layers
    ]  # fmt: skip
    rows += [
        {
            "row": "parameter", "name": q.name, "type": q.role, "kind": q.role, "order": order, "on_trunk": None,
            "shape": "x".join(map(str, q.shape)), "dtype": q.dtype, "state": q.state,
            **_flat("value", q.value), **_flat("gradient", q.gradient),
            "dead_fraction": None, "saturated_fraction": None, "between_sample_fraction": None, "position_cosine": None,
        }
        for order, q in enumerate(profile.parameters)
    ]  # fmt: skip
    return rows


def rows_to_csv(rows: Sequence[Mapping[str, Any]], path: str | Path | None = None) -> str:
    """Rows as CSV text.

    Args:
        rows: flat mappings with the same keys.
        path: where to write as well, or None.

    Returns:
        The text; None and NaN are empty cells.
    """
    stream = io.StringIO()
    if rows:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()}
            )
    text = stream.getvalue()
    if path is not None:
        write_text(text, path)
    return text


def rows_to_pandas(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a ``pandas.DataFrame``.

    Args:
        rows: flat mappings.

    Returns:
        The data frame.

    Raises:
        HeadwaterError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise HeadwaterError("to_pandas() needs pandas: pip install 'headwater[pandas]', or use to_csv()") from None
    return pd.DataFrame(list(rows))
