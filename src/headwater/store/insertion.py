"""Rows of a run file from records, within the writer's transaction."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.records.finding import Finding
from headwater.records.json_codec import encode
from headwater.records.step import Block, RunEvent, StepRecord, WatchedTensor
from headwater.store.rows import gradient_norm_log10, roots
from headwater.store.schema import CELL_SHIFT, FORMS, form_of

__all__ = ["Insertion"]

_STEP_COLUMNS = (
    "session_id", "group_name", "step", "micro", "time", "elapsed_seconds", "skipped", "loss", "learning_rate",
    "loss_scale", "clip_coefficient", "activations", "gradient_norm_log10", "nan_columns", "missing",
)  # fmt: skip
_NAN_ABLE = ("loss", "learning_rate", "loss_scale", "clip_coefficient")


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table}({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


_INSERT_STEP = _insert("steps", _STEP_COLUMNS)
_INSERT_BLOCK = _insert("blocks", ("step_id", "quantity", "phase", "form", "columns"))
_INSERT_ROWS = {
    form: _insert(form, ("id", *(("rms_log10",) if form in ("statistics", "norms") else ()), *columns))
    for form, columns in FORMS.items()
}
_INSERT_MEASURE = _insert("measures", ("block_id", "tensor_id", "name", "value"))
_TENSOR_COLUMNS = (
    "kind", "name", "group_name", "aliases", "shape", "dtype", "type", "role", "layer_kind", "layer",
    "execution_order", "on_trunk", "fan_in", "fan_out", "trainable",
)  # fmt: skip
_INSERT_TENSOR = _insert("tensors", _TENSOR_COLUMNS)
_UPDATE_TENSOR = f"UPDATE tensors SET {', '.join(f'{name} = ?' for name in _TENSOR_COLUMNS)} WHERE id = ?"


class Insertion:
    """Writes records as rows; remembers which tensors the file knows.

    Args:
        connection: inside a transaction whenever a method is called.
        session: that the rows belong to.
    """

    def __init__(self, connection: sqlite3.Connection, session: int) -> None:
        self.session = session
        self._connection = connection
        self._ids: dict[tuple[str, str], int] = {}
        self._latest: dict[int, WatchedTensor] = {}
        # The tensors of a block are the same tuple step after step: looked up once.
        self._of_blocks: dict[int, tuple[Sequence[WatchedTensor], list[int]]] = {}
        self._started: set[str] = set()

    def forget(self) -> None:
        """After a rollback: what was remembered may not be in the file."""
        self._ids.clear()
        self._latest.clear()
        self._of_blocks.clear()
        self._started.clear()

    def metadata(self, entries: Mapping[str, Any]) -> None:
        """Add or replace entries of the run's metadata."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO metadata(key, value) VALUES (?, ?)",
            [(key, json.dumps(value, allow_nan=False)) for key, value in entries.items()],
        )

    def event(self, event: RunEvent) -> None:
        """Add an event."""
        self._connection.execute(
            "INSERT INTO events(session_id, kind, step, group_name, time, message, names) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.session, event.kind, event.step, event.group, event.time, event.message, _text(event.names)),
        )

    def finding(self, finding: Finding, group: str, grown: bool = False) -> None:
        """Add a finding, or put it in place of the one that it is a grown form of."""
        names = ("step", "code", "defect", "severity", "verdict", "symptom_of", "cause", "advice")
        values = [encode(getattr(finding, name)) for name in names]
        if grown:
            changed = self._connection.execute(
                "UPDATE findings SET severity = ?, verdict = ?, symptom_of = ?, cause = ?, advice = ?, names = ?, evidence = ? "
                "WHERE id = (SELECT max(id) FROM findings WHERE session_id = ? AND group_name = ? AND step IS ? AND code = ? "
                "AND defect = ?)",
                (*values[3:], _text(finding.where), _text(finding.evidence), self.session, group, *values[:3]),
            )
            if changed.rowcount:
                return
        self._connection.execute(
            _insert("findings", ("session_id", "group_name", *names, "names", "evidence")),
            (self.session, group, *values, _text(finding.where), _text(finding.evidence)),
        )

    def step(self, record: StepRecord) -> None:
        """Add a step with its blocks."""
        found = [roots(block) for block in record.blocks]
        gradients = {
            block.phase: each
            for block, each in zip(record.blocks, found, strict=True)
            if block.quantity == "gradient" and each is not None
        }
        norm = gradient_norm_log10(gradients, record.loss_scale)
        # SQL has no NaN: it becomes NULL, and the column's name is kept.
        undefined = [name for name in _NAN_ABLE if (value := getattr(record, name)) is not None and math.isnan(value)]
        if norm is not None and math.isnan(norm):
            undefined.append("gradient_norm_log10")
        step_id = self._connection.execute(
            _INSERT_STEP,
            (
                self.session, record.group, record.step, record.micro, record.time, record.elapsed_seconds,
                record.skipped, record.loss, record.learning_rate, record.loss_scale, record.clip_coefficient,
                record.activations, norm, ",".join(undefined) or None,
                _text(dict(record.missing)) if record.missing else None,
            ),
        ).lastrowid  # fmt: skip
        assert step_id is not None
        if record.group not in self._started:
            self._connection.execute(
                "INSERT OR IGNORE INTO session_starts(session_id, group_name, first_step) VALUES (?, ?, ?)",
                (self.session, record.group, record.step),
            )
            self._started.add(record.group)
        for block, each in zip(record.blocks, found, strict=True):
            self._block(step_id, block, None if each is None else each.rms_log10)

    # ---------------------------------------------------------------- blocks

    def _block(self, step_id: int, block: Block, logs: Sequence[float] | None) -> None:
        form = form_of(block)
        columns = _text(block.columns) if form == "measures" else None
        block_id = self._connection.execute(
            _INSERT_BLOCK, (step_id, block.quantity, block.phase, form, columns)
        ).lastrowid
        assert block_id is not None
        ids = self._tensor_ids(block.tensors)
        if form == "measures":
            self._connection.executemany(
                _INSERT_MEASURE,
                [
                    (block_id, tensor_id, name, value)
                    for tensor_id, row in zip(ids, block.rows, strict=True)
                    if _observed(row)
                    for name, value in zip(block.columns, row, strict=True)
                ],
            )
            return
        base = block_id << CELL_SHIFT
        if logs is None:
            rows = [
                (base + i, *row) for i, row in zip(ids, block.rows, strict=True) if row[0] == row[0] or _observed(row)
            ]
        else:
            # NaN is the only number that differs from itself; a row of nothing else was not observed and is left out.
            rows = [
                (base + i, log, *row)
                for i, log, row in zip(ids, logs, block.rows, strict=True)
                if row[0] == row[0] or _observed(row)
            ]
        self._connection.executemany(_INSERT_ROWS[form], rows)

    # ---------------------------------------------------------------- tensors

    def _tensor_ids(self, tensors: Sequence[WatchedTensor]) -> list[int]:
        known = self._of_blocks.get(id(tensors))
        if known is not None and known[0] is tensors:
            return known[1]
        if not self._ids:
            self._ids = {
                (kind, name): number
                for number, kind, name in self._connection.execute("SELECT id, kind, name FROM tensors")
            }
        ids = [self._tensor_id(tensor) for tensor in tensors]
        if len(self._of_blocks) >= 64:  # a caller that makes new tuples every step gains nothing by them
            self._of_blocks.clear()
        self._of_blocks[id(tensors)] = tensors, ids
        return ids

    def _tensor_id(self, tensor: WatchedTensor) -> int:
        key = tensor.kind, tensor.name
        number = self._ids.get(key)
        if number is None:
            number = self._connection.execute(_INSERT_TENSOR, _tensor_row(tensor)).lastrowid
            assert number is not None
            if number >= 1 << CELL_SHIFT:
                raise ValueError(f"a run holds at most {(1 << CELL_SHIFT) - 1} tensors; exclude some")
            self._ids[key] = number
        elif self._latest.get(number) is not tensor and self._latest.get(number) != tensor:
            self._connection.execute(_UPDATE_TENSOR, (*_tensor_row(tensor), number))
        self._latest[number] = tensor
        return number


def _tensor_row(tensor: WatchedTensor) -> tuple[object, ...]:
    return (
        tensor.kind, tensor.name, tensor.group, _text(tensor.aliases), _text(tensor.shape), tensor.dtype, tensor.type,
        tensor.role, tensor.layer_kind, tensor.layer, tensor.order, tensor.on_trunk, tensor.fan_in, tensor.fan_out,
        tensor.trainable,
    )  # fmt: skip


def _observed(row: Sequence[float]) -> bool:
    return any(value == value for value in row)


def _text(value: object) -> str:
    return json.dumps(encode(value), allow_nan=False, ensure_ascii=False)
