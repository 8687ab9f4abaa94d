"""A run as data for other programs: one tidy table, or strict JSON with every number."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import math
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from headwater.errors import HeadwaterError, OutputError
from headwater.records.json_codec import encode
from headwater.records.step import STATISTICS_COLUMNS, Block, StepRecord
from headwater.store.derived import DERIVED, derived_of
from headwater.store.rows import element_count, roots
from headwater.store.schema import FORMS, SCHEMA_VERSION, form_of

if TYPE_CHECKING:
    import pandas as pd

    from headwater.store.reader import Run

__all__ = ["table", "table_columns", "table_rows", "write_csv", "write_json", "write_parquet"]

_LEADING = (
    "step", "group", "micro", "skipped", "loss", "learning_rate", "loss_scale", "clip_coefficient", "tensor", "kind",
    "role", "layer", "quantity", "phase",
)  # fmt: skip
_COUNTS = ("count", "zero_count", "nan_count", "inf_count")
_WORDS = ("group", "skipped", "tensor", "kind", "role", "layer", "quantity", "phase")
_OTHERS = tuple(name for form in ("updates", "second_moments", "units") for name in FORMS[form])
_BATCH = 10_000  # rows that are turned into columns at a time (chosen by us)


def table_columns() -> tuple[str, ...]:
    """The columns of the tidy table, in order."""
    return (*_LEADING, *DERIVED, *_COUNTS, *_OTHERS, "dead_fraction")


def table_rows(run: Run) -> Iterator[tuple[Any, ...]]:
    """The rows of the tidy table: one per step, tensor, quantity and phase.

    Args:
        run: the run.

    Yields:
        Values in the order of :func:`table_columns`; None where a column says nothing about the row or was not
        observed.
    """
    for record in run.records():
        for block in record.blocks:
            yield from _rows_of(record, block)


def _rows_of(record: StepRecord, block: Block) -> Iterator[tuple[Any, ...]]:
    at = (
        record.step, record.group, record.micro, record.skipped, record.loss, record.learning_rate, record.loss_scale,
        record.clip_coefficient,
    )  # fmt: skip
    form, after = form_of(block), len(_OTHERS) + 1
    names = table_columns()[len(_LEADING) :]
    for tensor, row, log in zip(block.tensors, block.rows, _logs(block, form), strict=True):
        where = (tensor.name, tensor.kind, tensor.role or tensor.layer_kind, tensor.layer, block.quantity, block.phase)
        if form == "statistics":
            counts = (None if value != value else int(value) for value in row[:4])
            yield (*at, *where, *derived_of(row), *counts, *(None,) * after)
            continue
        known: dict[str, Any] = dict(zip(block.columns, row, strict=True))
        if form == "norms":
            count, broken = element_count(tensor.shape), row[1] + row[2]
            known |= {"count": count, "nonfinite_count": broken, "rms_log10": log}
            known["rms"] = row[0] / math.sqrt(count - broken) if count > broken else math.nan
        elif form == "units" and row[0]:
            known["dead_fraction"] = row[1] / row[0]
        yield (*at, *where, *(known.get(name) for name in names))


def _logs(block: Block, form: str) -> Sequence[float]:
    found = roots(block) if form == "norms" else None
    return [math.nan] * len(block.rows) if found is None else found.rms_log10


def table(run: Run) -> pd.DataFrame:
    """The tidy table as a ``pandas.DataFrame``.

    Args:
        run: the run.

    Returns:
        The columns of :func:`table_columns`; numbers are floats (NaN where a column says nothing about the row), except
        ``step``.

    Raises:
        HeadwaterError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise HeadwaterError("to_pandas() needs pandas: pip install 'headwater[pandas]', or use to_csv()") from None
    # Column by column in packed arrays: a million rows of Python objects would be gigabytes.
    words: dict[str, list[Any]] = {name: [] for name in _WORDS}
    numbers = {name: array("d") for name in table_columns() if name not in _WORDS}
    rows = table_rows(run)
    while some := list(islice(rows, _BATCH)):
        for name, column in zip(table_columns(), zip(*some, strict=True), strict=True):
            if name in words:
                words[name] += column
            else:
                numbers[name].extend([math.nan if value is None else value for value in column])
    frame = pd.DataFrame({**words, **{name: pd.Series(column) for name, column in numbers.items()}})
    return frame[list(table_columns())].astype({"step": "int64"})


def write_csv(run: Run, path: Path) -> None:
    """The tidy table as comma-separated text (RFC 4180): empty for None, ``nan`` and ``inf`` in words.

    Args:
        run: the run.
        path: where.
    """
    with _whole(path) as place, open(place, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(table_columns())
        writer.writerows(table_rows(run))


def write_parquet(run: Run, path: Path) -> None:
    """The tidy table as a Parquet file, through whichever library is there.

    Args:
        run: the run.
        path: where.

    Raises:
        HeadwaterError: neither pandas with pyarrow nor duckdb is installed.
    """
    there = {name for name in ("pandas", "pyarrow", "duckdb") if importlib.util.find_spec(name)}
    if {"pandas", "pyarrow"} <= there:
        with _whole(path) as place:
            table(run).to_parquet(place, index=False, engine="pyarrow")
    elif "duckdb" in there:
        _write_parquet_with_duckdb(run, path)
    else:
        raise HeadwaterError(
            "to_parquet() needs pandas and pyarrow, or duckdb: pip install 'headwater[parquet]', or use to_csv()"
        )


def _write_parquet_with_duckdb(run: Run, path: Path) -> None:
    duckdb = importlib.import_module("duckdb")

    def quoted(text: str | Path) -> str:
        return "'" + str(text).replace("'", "''") + "'"

    integers = ("step", "micro")
    types = {
        name: "BIGINT" if name in integers else "VARCHAR" if name in _WORDS else "DOUBLE" for name in table_columns()
    }
    with _whole(path) as place, tempfile.TemporaryDirectory(prefix="headwater-") as folder:
        text = Path(folder) / "table.csv"
        write_csv(run, text)
        columns = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, kind in types.items())
        with duckdb.connect() as connection:
            connection.execute(
                # An empty group is a name; every other empty cell is a missing value.
                'COPY (SELECT * REPLACE (coalesce("group", \'\') AS "group") FROM '
                f"read_csv({quoted(text)}, header = true, nullstr = '', columns = {{{columns}}})) "
                f"TO {quoted(place)} (FORMAT parquet)"
            )


def write_json(run: Run, path: Path) -> None:
    """The whole run as one JSON document, record by record.

    Args:
        run: the run.
        path: where.
    """
    with _whole(path) as place, open(place, "w", encoding="utf-8", newline="") as stream:
        head = {
            "schema": "headwater.run",
            "schema_version": SCHEMA_VERSION,
            "name": run.name,
            "metadata": dict(run.metadata),
            "sessions": list(run.sessions),
            "tensors": list(run.tensors),
            "events": list(run.events),
            "findings": list(run.findings),
        }
        stream.write(_text(head)[:-1] + ',\n"records": [')
        _write_list(stream, (_compact(record) for record in run.records()))
        stream.write("\n]}\n")


def _write_list(stream: TextIO, items: Iterator[dict[str, Any]]) -> None:
    for position, item in enumerate(items):
        stream.write((",\n" if position else "\n") + _text(item))


def _compact(record: StepRecord) -> dict[str, Any]:
    """A record with names in place of the tensors, which are listed once."""
    data: dict[str, Any] = {
        name: getattr(record, name) for name in StepRecord.__dataclass_fields__ if name not in ("blocks", "missing")
    }
    data["missing"] = dict(record.missing)
    data["blocks"] = [
        {
            "quantity": block.quantity,
            "phase": block.phase,
            "columns": list(block.columns),
            "tensors": [tensor.name for tensor in block.tensors],
            "rows": _whole_numbers(block),
        }
        for block in record.blocks
    ]
    return data


def _whole_numbers(block: Block) -> Sequence[Sequence[float]]:
    if tuple(block.columns) != STATISTICS_COLUMNS:
        return block.rows
    return [[*(int(value) if math.isfinite(value) else value for value in row[:5]), *row[5:]] for row in block.rows]


def _text(value: Any) -> str:
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary neighbour that takes the file's place once it is complete; OutputError when it cannot."""
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is not a regular file; name a file in a folder that is writable")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would surprise who shares the folder
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; name a file in a folder that exists and is writable"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
