"""docs/run-file.md: every query runs, and the tables are those of the schema."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.unit.store.synthetic import LAYERS, PARAMETERS, statistics_block, step

from headwater.records import Block, RunEvent
from headwater.store import RunWriter
from headwater.store.schema import APPLICATION_ID, CELL_SHIFT, SCHEMA_VERSION

PAGE = (Path(__file__).parents[3] / "docs" / "run-file.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def connection(tmp_path: Path) -> sqlite3.Connection:
    update = Block(
        quantity="update", tensors=PARAMETERS, columns=("update_ratio", "read_fraction"), rows=[[0.5, 1.0], [1e-3, 1.0]]
    )
    units = Block(
        quantity="units", tensors=LAYERS, columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"),
        rows=[[8.0, 2.0, 0.5, 4.0]],
    )  # fmt: skip
    with RunWriter(tmp_path / "run") as writer:
        writer.write(step(0, statistics_block([[3.0, 4.0], [0.0]]), update, units))
        writer.write(step(1, statistics_block([[0.3, 0.4], [0.0]])))
        writer.write_event(RunEvent(kind="attached", time=0.0, message="begun"))
    return sqlite3.connect(tmp_path / "run" / "run.sqlite")


def test_every_query_of_the_page_runs(connection: sqlite3.Connection) -> None:
    with closing(connection):
        answers = [
            connection.execute(query).fetchall() for text in QUERIES for query in text.split(";") if query.strip()
        ]
    course, smallest, norms, updates, dead, events, findings = answers
    assert [at for at, _ in course] == [0, 1]
    assert [name for name, _ in smallest] == ["fc1.weight"]
    assert [norm for _, _, norm, _, _ in norms] == pytest.approx([5.0, 0.5])
    assert updates == [(0, "fc1.weight", 0.5)]
    assert dead == [(0, "fc1", 2, 8)]
    assert events == [(None, "attached", "begun")]
    assert findings == []


def test_the_page_names_every_table_view_and_column(connection: sqlite3.Connection) -> None:
    tables = PAGE.split("## Tables and views")[1].split("The `id` of a row")[0]
    with closing(connection):
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        ]
        for name in names:
            assert f"`{name}`" in tables, name
        for name in ("sessions", "tensors", "steps", "blocks", "norms", "measures", "events", "findings"):
            line = next(line for line in tables.splitlines() if line.startswith(f"| `{name}`"))
            columns = {column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")}
            assert columns <= set(re.findall(r"`(\w+)`", line)), name


def test_the_page_gives_the_constants_of_the_schema() -> None:
    assert f"`PRAGMA application_id` is {APPLICATION_ID} (`HWAT`)" in PAGE
    assert f"is the schema's version, now {SCHEMA_VERSION}" in PAGE
    assert f"`block_id * {1 << CELL_SHIFT} + tensor_id`" in PAGE
