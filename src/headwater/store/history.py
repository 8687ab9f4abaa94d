"""Which rows of a run count, across resumed sessions, and where the numbers of a quantity lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from headwater.records.run import RecordedStep
from headwater.records.step import Block, GradientPhase, Quantity, WatchedTensor
from headwater.store.database import Database
from headwater.store.schema import CELL_SHIFT, FORMS

__all__ = ["CHUNK", "History", "StoredBlock", "StoredStep"]

T = TypeVar("T")
CHUNK = 500  # keys per query; SQLite takes at least 999 parameters
FEW = 64  # tensors that are looked up one by one rather than found while reading the whole block (chosen by us)

_STEP = """id, session_id, group_name, step, micro, time, elapsed_seconds, skipped, loss, learning_rate, loss_scale,
    clip_coefficient, activations, gradient_norm_log10, nan_columns"""
_PREFERENCE = {"post_clip": 0, "pre_clip": 1, "backward": 2, None: 0}


class StoredStep(NamedTuple):
    """A row of ``steps``."""

    id: int
    session: int
    row: RecordedStep


class StoredBlock(NamedTuple):
    """A row of ``blocks``, with the step that it belongs to."""

    id: int
    at: StoredStep
    quantity: Quantity
    phase: GradientPhase | None
    form: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    version: int
    values: dict[str, Any]


class History:
    """What counts in a run file: the steps of the last session that took them, their blocks, the tensors.

    Everything is remembered until another process has written.

    Args:
        database: the open file.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._snapshot = _Snapshot(-1, {})
        self._all_steps: list[StoredStep] = []  # rows are only ever added: read once

    def remembered(self, key: str, compute: Callable[[], T]) -> T:
        """``compute()``, once for each state of the file."""
        version = self.database.version()
        if version != self._snapshot.version:
            self._snapshot = _Snapshot(version, {})
        values = self._snapshot.values
        if key not in values:
            values[key] = compute()
        found: T = values[key]
        return found

    # ---------------------------------------------------------------- steps

    def starts(self) -> dict[str, list[tuple[int, int]]]:
        """By group: (session, first step) of every session that recorded it, latest session first."""

        def read() -> dict[str, list[tuple[int, int]]]:
            found: dict[str, list[tuple[int, int]]] = {}
            for session, group, first in self.database.rows(
                "SELECT session_id, group_name, first_step FROM session_starts ORDER BY session_id DESC"
            ):
                found.setdefault(group, []).append((session, first))
            return found

        return self.remembered("starts", read)

    def is_superseded(self, session: int, group: str, step: int | None) -> bool:
        """Whether a later session began at this step or before it."""
        return step is not None and any(
            later > session and first <= step for later, first in self.starts().get(group, ())
        )

    def steps(self) -> list[StoredStep]:
        """The rows that count, micro-batches included, in the order of (step, group, micro-batch)."""

        def read() -> list[StoredStep]:
            last = self._all_steps[-1].id if self._all_steps else 0
            self._all_steps += [
                _stored_step(row)
                for row in self.database.rows(f"SELECT {_STEP} FROM steps WHERE id > ? ORDER BY id", (last,))
            ]
            several = any(len(sessions) > 1 for sessions in self.starts().values())
            current: dict[tuple[int, str, int], StoredStep] = {}
            for each in self._all_steps:
                row = each.row
                if not several or not self.is_superseded(each.session, row.group, row.step):
                    current[row.step, row.group, -1 if row.micro is None else row.micro] = each  # the later row wins
            return [each for _, each in sorted(current.items())]

        return self.remembered("steps", read)

    def whole_steps(self) -> list[StoredStep]:
        """The rows that count, without micro-batches."""
        return self.remembered("whole_steps", lambda: [each for each in self.steps() if each.row.micro is None])

    # ---------------------------------------------------------------- blocks

    def blocks(self, quantity: Quantity) -> list[StoredBlock]:
        """Blocks of a quantity at the whole steps that count, in their order."""

        def read() -> list[StoredBlock]:
            at = {each.id: (place, each) for place, each in enumerate(self.whole_steps())}
            found = []
            for number, step_id, phase, form, columns in self.database.rows(
                "SELECT id, step_id, phase, form, columns FROM blocks WHERE quantity = ?", (quantity,)
            ):
                if step_id in at:
                    place, step = at[step_id]
                    found.append(
                        (place, number, StoredBlock(number, step, quantity, phase, form, self._columns(form, columns)))
                    )
            return [block for *_, block in sorted(found, key=lambda each: each[:2])]

        return self.remembered(f"blocks:{quantity}", read)

    def preferred(self, quantity: Quantity, phase: GradientPhase | None) -> list[StoredBlock]:
        """One block per step: of the given phase, or of the one the optimizer used."""
        best: dict[int, StoredBlock] = {}
        for block in self.blocks(quantity):
            if phase is not None and block.phase != phase:
                continue
            known = best.get(block.at.id)
            if known is None or _rank(block) <= _rank(known):
                best[block.at.id] = block
        return list(best.values())

    def blocks_of(self, step: StoredStep) -> list[StoredBlock]:
        """All blocks of one step."""
        return [
            StoredBlock(number, step, quantity, phase, form, self._columns(form, columns))
            for number, quantity, phase, form, columns in self.database.rows(
                "SELECT id, quantity, phase, form, columns FROM blocks WHERE step_id = ? ORDER BY id", (step.id,)
            )
        ]

    def _columns(self, form: str, columns: str | None) -> tuple[str, ...]:
        return tuple(self.database.json(columns)) if columns is not None else FORMS.get(form, ())

    def rows_of(self, block: StoredBlock) -> list[tuple[int, tuple[float | None, ...]]]:
        """(tensor id, row) of a block, in the order of the tensor ids."""
        if block.form == "measures":
            cells: dict[int, dict[str, float | None]] = {}
            for tensor, name, value in self.database.rows(
                "SELECT tensor_id, name, value FROM measures WHERE block_id = ? ORDER BY tensor_id", (block.id,)
            ):
                cells.setdefault(tensor, {})[name] = value
            return [(tensor, tuple(row.get(name) for name in block.columns)) for tensor, row in cells.items()]
        base = block.id << CELL_SHIFT
        found = self.database.rows(
            f"SELECT id, {', '.join(FORMS[block.form])} FROM {block.form} WHERE id > ? AND id < ? ORDER BY id",
            (base, base + (1 << CELL_SHIFT)),
        )
        return [(row[0] - base, row[1:]) for row in found]

    def cells(
        self, block: StoredBlock, columns: tuple[str, ...], tensors: Collection[int]
    ) -> list[tuple[int, tuple[float | None, ...]]]:
        """Some columns of some tensors of one block.

        Args:
            block: where to look.
            columns: which.
            tensors: ids of the tensors.

        Returns:
            (tensor id, row) of those that were observed; others may be among them.
        """
        if block.form == "measures":
            places = [block.columns.index(name) for name in columns]
            return [(tensor, tuple(row[place] for place in places)) for tensor, row in self.rows_of(block)]
        base = block.id << CELL_SHIFT
        if len(tensors) <= FEW:
            where, values = f"id IN ({','.join('?' * len(tensors))})", [base + tensor for tensor in tensors]
        else:
            where, values = "id > ? AND id < ?", [base, base + (1 << CELL_SHIFT)]
        found = self.database.rows(f"SELECT id, {', '.join(columns)} FROM {block.form} WHERE {where}", values)
        return [(row[0] - base, row[1:]) for row in found]

    def cell_by_block(
        self, blocks: Sequence[StoredBlock], columns: tuple[str, ...], tensor: int
    ) -> dict[int, tuple[float | None, ...]]:
        """Some columns of one tensor in many blocks of one form: block id to row, where it was observed."""
        found: dict[int, tuple[float | None, ...]] = {}
        if blocks and blocks[0].form == "measures":
            for block in blocks:
                found.update((block.id, row) for number, row in self.cells(block, columns, ()) if number == tensor)
            return found
        for first in range(0, len(blocks), CHUNK):
            keys = [(block.id << CELL_SHIFT) + tensor for block in blocks[first : first + CHUNK]]
            for row in self.database.rows(
                f"SELECT id, {', '.join(columns)} FROM {blocks[0].form} WHERE id IN ({','.join('?' * len(keys))})", keys
            ):
                found[row[0] >> CELL_SHIFT] = row[1:]
        return found

    # ---------------------------------------------------------------- tensors

    def tensors(self) -> dict[int, WatchedTensor]:
        """By id, in execution order."""

        def read() -> dict[int, WatchedTensor]:
            found = {
                row[0]: self._tensor(row[1:])
                for row in self.database.rows(
                    """SELECT id, kind, name, group_name, aliases, shape, dtype, type, role, layer_kind, layer,
                    execution_order, on_trunk, fan_in, fan_out, trainable FROM tensors
                    ORDER BY execution_order, kind, id"""
                )
            }
            return found

        return self.remembered("tensors", read)

    def _tensor(self, row: tuple[Any, ...]) -> WatchedTensor:
        (kind, name, group, aliases, shape, dtype, type_name, role, layer_kind, layer, order, trunk, fan_in, fan_out,
         trainable) = row  # fmt: skip
        return WatchedTensor(
            kind=kind,
            name=name,
            group=group,
            aliases=tuple(self.database.json(aliases)),
            shape=tuple(self.database.json(shape)),
            dtype=dtype,
            type=type_name,
            role=role,
            layer_kind=layer_kind,
            layer=layer,
            order=order,
            on_trunk=None if trunk is None else bool(trunk),
            fan_in=fan_in,
            fan_out=fan_out,
            trainable=bool(trainable),
        )

    def block(self, stored: StoredBlock) -> Block:
        """A block as it was recorded, without the tensors that were not observed."""
        tensors = self.tensors()
        rows = self.rows_of(stored)
        return Block(
            quantity=stored.quantity,
            phase=stored.phase,
            tensors=tuple(tensors[number] for number, _ in rows),
            columns=stored.columns,
            rows=[[float("nan") if value is None else float(value) for value in row] for _, row in rows],
        )


def _rank(block: StoredBlock) -> int:
    return _PREFERENCE.get(block.phase, 3)


def _stored_step(row: tuple[Any, ...]) -> StoredStep:
    (number, session, group, step, micro, time, elapsed, skipped, loss, rate, scale, clip, activations, norm,
     undefined) = row  # fmt: skip
    nan = float("nan")
    missing = set(undefined.split(",")) if undefined else ()
    return StoredStep(
        number,
        session,
        RecordedStep(
            group=group,
            step=step,
            micro=micro,
            time=time,
            elapsed_seconds=elapsed,
            skipped=skipped,
            loss=nan if "loss" in missing else loss,
            learning_rate=nan if "learning_rate" in missing else rate,
            loss_scale=nan if "loss_scale" in missing else scale,
            clip_coefficient=nan if "clip_coefficient" in missing else clip,
            activations=bool(activations),
            gradient_norm_log10=nan if "gradient_norm_log10" in missing else norm,
        ),
    )
