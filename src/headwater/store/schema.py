"""The layout of a run file: tables, views, and how a file of another kind or version is told."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from headwater.errors import RecordError
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS, Block

__all__ = [
    "APPLICATION_ID",
    "CELL_SHIFT",
    "FILE_NAME",
    "FORMS",
    "SCHEMA_VERSION",
    "VIEW_FUNCTIONS",
    "check_identity",
    "create",
    "form_of",
    "run_file",
]

FILE_NAME = "run.sqlite"
"""Name of the database inside a run's folder."""

APPLICATION_ID = 0x48574154  # "HWAT"
"""``PRAGMA application_id`` of a run file; ``file(1)`` shows it."""

SCHEMA_VERSION = 1
"""``PRAGMA user_version``; a reader refuses a larger one."""

CELL_SHIFT = 20
"""``id`` of a row of numbers is ``block_id << 20 | tensor_id``.

One integer key instead of two columns and an index: rows are always appended at the end of the table, so the cost of a
row does not grow with the file, and one tensor of one block is found by arithmetic. It bounds a run to 2²⁰ watched
tensors (chosen by us) and 2⁴³ blocks.
"""

VIEW_FUNCTIONS = ("sqrt", "pow", "log10")
"""SQL functions that the views need: part of SQLite since 3.35 where it was built with its mathematical functions (the
``sqlite3`` shell is)."""

FORMS: dict[str, tuple[str, ...]] = {
    "statistics": STATISTICS_COLUMNS,
    "norms": NORM_COLUMNS,
    "updates": ("update_ratio", "read_fraction"),
    "second_moments": ("root_rms", "epsilon", "below_epsilon_fraction"),
    "units": ("unit_count", "dead_count", "saturated_fraction", "window_steps"),
}
"""Table to the columns of the blocks that it holds, in their order. Blocks with other columns go to ``measures``."""

_FORM_BY_COLUMNS = {columns: form for form, columns in FORMS.items()}
_INTEGERS = {"count", "zero_count", "nan_count", "inf_count", "scale_log2", "unit_count", "dead_count", "window_steps"}


def form_of(block: Block) -> str:
    """The table that holds a block: one of :data:`FORMS`, else ``measures``."""
    return _FORM_BY_COLUMNS.get(tuple(block.columns), "measures")


def run_file(path: str | Path) -> Path:
    """The database of a run that is named by its folder or by the file itself."""
    place = Path(path)
    return place if place.is_file() or place.suffix == ".sqlite" else place / FILE_NAME


def _table(form: str) -> str:
    leading = "rms_log10 REAL, " if form in ("statistics", "norms") else ""
    columns = ", ".join(f"{name} {'INTEGER' if name in _INTEGERS else 'REAL'}" for name in FORMS[form])
    return f"CREATE TABLE {form}(id INTEGER PRIMARY KEY, {leading}{columns})"


_TABLES = (
    "CREATE TABLE metadata(key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE sessions(
        id INTEGER PRIMARY KEY, begun REAL NOT NULL, ended REAL, host TEXT NOT NULL, process INTEGER NOT NULL,
        metadata TEXT NOT NULL)""",
    """CREATE TABLE session_starts(
        session_id INTEGER NOT NULL REFERENCES sessions(id), group_name TEXT NOT NULL, first_step INTEGER NOT NULL,
        PRIMARY KEY(session_id, group_name))""",
    """CREATE TABLE tensors(
        id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, group_name TEXT NOT NULL, aliases TEXT NOT NULL,
        shape TEXT NOT NULL, dtype TEXT NOT NULL, type TEXT NOT NULL, role TEXT, layer_kind TEXT, layer TEXT,
        execution_order INTEGER NOT NULL, on_trunk INTEGER, fan_in INTEGER, fan_out INTEGER, trainable INTEGER NOT NULL,
        UNIQUE(name, kind))""",
    """CREATE TABLE steps(
        id INTEGER PRIMARY KEY, session_id INTEGER NOT NULL REFERENCES sessions(id), group_name TEXT NOT NULL,
        step INTEGER NOT NULL, micro INTEGER, time REAL NOT NULL, elapsed_seconds REAL NOT NULL, skipped TEXT,
        loss REAL, learning_rate REAL, loss_scale REAL, clip_coefficient REAL, activations INTEGER NOT NULL,
        gradient_norm_log10 REAL, nan_columns TEXT, missing TEXT)""",
    "CREATE INDEX steps_by_step ON steps(group_name, step, micro)",
    """CREATE TABLE blocks(
        id INTEGER PRIMARY KEY, step_id INTEGER NOT NULL REFERENCES steps(id), quantity TEXT NOT NULL, phase TEXT,
        form TEXT NOT NULL, columns TEXT)""",
    "CREATE INDEX blocks_by_step ON blocks(step_id)",
    *(_table(form) for form in FORMS),
    """CREATE TABLE measures(
        block_id INTEGER NOT NULL REFERENCES blocks(id), tensor_id INTEGER NOT NULL REFERENCES tensors(id),
        name TEXT NOT NULL, value REAL, PRIMARY KEY(block_id, tensor_id, name)) WITHOUT ROWID""",
    """CREATE TABLE events(
        id INTEGER PRIMARY KEY, session_id INTEGER NOT NULL REFERENCES sessions(id), kind TEXT NOT NULL, step INTEGER,
        group_name TEXT NOT NULL, time REAL NOT NULL, message TEXT NOT NULL, names TEXT NOT NULL)""",
    """CREATE TABLE findings(
        id INTEGER PRIMARY KEY, session_id INTEGER NOT NULL REFERENCES sessions(id), group_name TEXT NOT NULL,
        step INTEGER, code TEXT NOT NULL, defect TEXT NOT NULL, severity TEXT NOT NULL, verdict TEXT, symptom_of TEXT,
        names TEXT NOT NULL, evidence TEXT NOT NULL, cause TEXT NOT NULL, advice TEXT NOT NULL)""",
)

# What counts when a run was resumed: not the rows at and after the step where a later session began, and of two rows
# of one step in one session the later one.
_CURRENT_STEPS = """CREATE VIEW current_steps AS
    SELECT s.* FROM steps AS s
    WHERE NOT EXISTS (SELECT 1 FROM session_starts AS later WHERE later.group_name = s.group_name
                      AND later.session_id > s.session_id AND later.first_step <= s.step)
      AND NOT EXISTS (SELECT 1 FROM steps AS again WHERE again.group_name = s.group_name AND again.step = s.step
                      AND again.micro IS s.micro AND again.session_id = s.session_id AND again.id > s.id)"""

_KEYS = """s.step, s.group_name, s.micro, t.name AS tensor, t.kind, t.role, t.layer, t.execution_order,
        b.quantity, b.phase"""
# CROSS JOIN keeps SQLite from turning the order around: a row is then found by its key and nothing is scanned.
_JOINED = f"""FROM current_steps AS s JOIN blocks AS b ON b.step_id = s.id CROSS JOIN tensors AS t
        JOIN {{form}} AS x ON x.id = (b.id << {CELL_SHIFT}) + t.id"""
_SQUARES = "(x.scaled_sum_squared_deviations + x.scaled_sum * x.scaled_sum / {n})".format(
    n=(_N := "(x.count - x.nan_count - x.inf_count)")
)
_SCALE = "pow(2.0, x.scale_log2)"

_VIEWS = (
    _CURRENT_STEPS,
    f"""CREATE VIEW tensor_statistics AS
    SELECT {_KEYS}, x.rms_log10, sqrt({_SQUARES} / {_N}) * {_SCALE} AS rms, sqrt({_SQUARES}) * {_SCALE} AS l2_norm,
        x.scaled_sum / {_N} * {_SCALE} AS mean, x.scaled_sum_abs / {_N} * {_SCALE} AS mean_abs,
        sqrt(x.scaled_sum_squared_deviations / {_N}) * {_SCALE} AS std, x.scaled_max_abs * {_SCALE} AS max_abs,
        nullif(x.unscaled_min_abs_nonzero, 0.0) AS min_abs_nonzero,
        x.scaled_sum_fourth_powers * {_N} / nullif({_SQUARES} * {_SQUARES}, 0.0) AS kurtosis,
        1.0 * x.zero_count / nullif(x.count, 0) AS zero_fraction, x.count, x.zero_count, x.nan_count, x.inf_count
    {_JOINED.format(form="statistics")}
    UNION ALL
    SELECT {_KEYS}, x.rms_log10, pow(10.0, x.rms_log10), x.l2_norm, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        x.nan_count, x.inf_count
    {_JOINED.format(form="norms")}""",
    *(
        f"CREATE VIEW tensor_{form} AS SELECT {_KEYS}, {', '.join('x.' + name for name in FORMS[form])} "
        f"{_JOINED.format(form=form)}"
        for form in ("updates", "second_moments", "units")
    ),
)


def create(connection: sqlite3.Connection) -> None:
    """Lay out an empty database as a run file, within the caller's transaction.

    Args:
        connection: of an empty database.
    """
    for statement in (*_TABLES, *_VIEWS):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_identity(connection: sqlite3.Connection, where: Path) -> bool:
    """Whether a database is a run file that this program reads.

    Args:
        connection: to the database.
        where: its path, for the message.

    Returns:
        True for a run file, False for a database without any table.

    Raises:
        RecordError: it belongs to another program, or to a newer headwater.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == 0 and version == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        return False
    if application != APPLICATION_ID:
        raise RecordError(f"{where} is an SQLite database of another program, not a run that headwater recorded")
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{where} has run schema version {version}, newer than this headwater reads (up to {SCHEMA_VERSION}): "
            "upgrade headwater"
        )
    return True
