"""One step as the training thread leaves it, tables still on their device, and the record it becomes elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwater.records.step import STATISTICS_COLUMNS, Block, GradientPhase, Quantity, StepRecord, WatchedTensor

__all__ = ["Piece", "RawStep", "record_of"]

Rows = list[list[float]]
Finish = Callable[[Tensor, Tensor | None], tuple[tuple[WatchedTensor, ...], tuple[str, ...], Rows]]


@dataclass(slots=True)
class Piece:
    """One block before it is a block.

    Attributes:
        quantity: see :data:`headwater.records.step.Quantity`.
        phase: of a gradient.
        tensors: of the rows.
        columns: of each row.
        table: shape (k, columns), or whatever ``finish`` takes as rows; on any device.
        extra: further numbers that ``finish`` takes.
        scaled: whether it is still multiplied by the loss scale of the step.
        finish: makes tensors, columns and rows out of the table, where they are not simply its own.
    """

    quantity: Quantity
    phase: GradientPhase | None
    tensors: tuple[WatchedTensor, ...]
    columns: tuple[str, ...]
    table: Tensor
    scaled: bool = False
    finish: Finish | None = None
    extra: Tensor | None = None


@dataclass(slots=True)
class RawStep:
    """Fields as in :class:`~headwater.records.step.StepRecord`; numbers that live on a device are tensors.

    Attributes:
        found_infinity: from a scaler that leaves skipping to the optimizer: 0-dimensional, not 0 when it skipped.
        scalars: further numbers that the user gave, for the sinks.
        last: whether it is the row of the last step, read when everything was over.
        read_twice: whether the gradients were read again before the step without knowing that they had changed.
        base: the record so far, once the alerts that decide before the optimizer steps have seen it; ``pieces`` then
            holds what came after.
    """

    group: str
    step: int
    time: float
    elapsed_seconds: float
    micro: int | None = None
    skipped: str | None = None
    loss: float | Tensor | None = None
    learning_rate: float | Tensor | None = None
    loss_scale: float | Tensor | None = 1.0
    found_infinity: Tensor | None = None
    clip_known: bool = True
    activations: bool = False
    last: bool = False
    read_twice: bool = False
    pieces: list[Piece] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, float | Tensor] = field(default_factory=dict)
    base: StepRecord | None = None
    _shipped: list[tuple[Tensor, torch.cuda.Event | None]] = field(default_factory=list)

    def ship(self) -> None:
        """Start the one copy to main memory; nothing waits here. Without an accelerator there is nothing to copy."""
        waiting: dict[torch.device, list[Tensor]] = {}
        for tensor in self._tensors():
            if not tensor.is_cpu:
                waiting.setdefault(tensor.device, []).append(tensor)
        for device, tensors in waiting.items():
            dtype = torch.float64 if device.type != "mps" else torch.float32
            flat = torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors])
            if device.type == "cuda":
                host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
                host.copy_(flat, non_blocking=True)
                event = torch.cuda.Event()
                event.record(torch.cuda.current_stream(device))
                self._shipped.append((host, event))
            else:
                self._shipped.append((flat, None))
            start = 0
            for tensor in tensors:
                self._replace(tensor, self._shipped[-1][0][start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()

    def arrive(self) -> None:
        """Wait until the copy is there; for the recorder's thread."""
        for _, event in self._shipped:
            if event is not None:
                event.synchronize()
        self._shipped.clear()

    def _tensors(self) -> list[Tensor]:
        loose = (self.loss, self.learning_rate, self.loss_scale, self.found_infinity, *self.scalars.values())
        tables = [table for piece in self.pieces for table in (piece.table, piece.extra) if table is not None]
        return tables + [t for t in loose if isinstance(t, Tensor)]

    def _replace(self, old: Tensor, new: Tensor) -> None:
        for piece in self.pieces:
            if piece.table is old:
                piece.table = new
            if piece.extra is old:
                piece.extra = new
        for name in ("loss", "learning_rate", "loss_scale", "found_infinity"):
            if getattr(self, name) is old:
                setattr(self, name, new)
        for key, value in self.scalars.items():
            if value is old:
                self.scalars[key] = new


def number(value: float | Tensor | None) -> float | None:
    """A plain number out of either; the tensor must be in main memory."""
    return None if value is None else float(value)


def record_of(raw: RawStep) -> StepRecord:
    """The record of a step, as plain numbers.

    Args:
        raw: shipped and arrived.

    Returns:
        The record. Asked again after more pieces were added, it holds these too.
    """
    raw.arrive()
    blocks: list[Block] = [] if raw.base is None else list(raw.base.blocks)
    scale = number(raw.loss_scale)
    for piece in raw.pieces:
        if piece.finish is not None:
            tensors, columns, rows = piece.finish(piece.table, piece.extra)
        else:
            tensors, columns, rows = piece.tensors, piece.columns, piece.table.tolist()
        if piece.scaled:
            rows = _divided(rows, columns, scale)
        if rows:
            blocks.append(
                Block(quantity=piece.quantity, phase=piece.phase, tensors=tensors, columns=columns, rows=rows)
            )
    skipped = raw.skipped
    if skipped is None and raw.found_infinity is not None and float(raw.found_infinity) != 0.0:
        skipped = "amp"
    learning_rate = number(raw.learning_rate)
    if raw.read_twice:
        blocks = _without_repetition(blocks)
    return StepRecord(
        group=raw.group,
        step=raw.step,
        micro=raw.micro,
        time=raw.time,
        elapsed_seconds=raw.elapsed_seconds,
        skipped=skipped,
        loss=number(raw.loss),
        learning_rate=learning_rate,
        loss_scale=scale,
        clip_coefficient=_clip_coefficient(blocks) if raw.clip_known else None,
        activations=raw.activations,
        blocks=tuple(blocks),
        missing=dict(raw.missing),
    )


def _without_repetition(blocks: list[Block]) -> list[Block]:
    """Without gradients "after clipping" that are those of before: read again where nothing tells of a change."""
    of = {b.phase: b for b in blocks if b.quantity == "gradient"}
    before, after = of.get("pre_clip"), of.get("post_clip")
    if before is None or after is None or before.rows != after.rows or before.tensors != after.tensors:
        return blocks
    return [b for b in blocks if b is not after]


def _divided(rows: Rows, columns: Sequence[str], scale: float | None) -> Rows:
    """Statistics of x / scale from those of x: exact for a power of two, which is what scalers use."""
    if scale is None or scale == 1.0 or scale <= 0.0 or not math.isfinite(scale):
        return rows
    if tuple(columns) != STATISTICS_COLUMNS:
        return [[row[0] / scale, *row[1:]] for row in rows]  # NORM_COLUMNS: the norm and two counts
    mantissa, exponent = math.frexp(scale)
    mantissa, exponent = 2.0 * mantissa, exponent - 1  # scale = mantissa * 2**exponent, mantissa in [1, 2)
    square = mantissa * mantissa
    return [
        [
            *row[:4], row[4] - exponent, row[5] / mantissa, row[6] / mantissa, row[7] / square,
            row[8] / (square * square), row[9] / mantissa, row[10] / scale,
        ]
        for row in rows
    ]  # fmt: skip


def _clip_coefficient(blocks: Sequence[Block]) -> float | None:
    phases: Mapping[GradientPhase | None, Block] = {b.phase: b for b in blocks if b.quantity == "gradient"}
    before = phases.get("pre_clip") or phases.get("backward")
    after = phases.get("post_clip")
    if before is None:
        return None if after is not None else 1.0
    if after is None:
        return 1.0
    numerator, denominator = _norm(after), _norm(before)
    if denominator is None or numerator is None or denominator == -math.inf:
        return None
    return math.exp2(numerator - denominator)


def _norm(block: Block) -> float | None:
    """log2 of the norm of everything together; None when something in it is not finite."""
    sizes: list[float] = []
    for row in block.rows:
        if len(row) == len(STATISTICS_COLUMNS):
            if row[2] or row[3]:
                return None
            squares = row[7] + (row[5] * row[5] / row[0] if row[0] else 0.0)
            sizes.append(0.5 * math.log2(squares) + row[4] if squares > 0.0 else -math.inf)
        else:
            if row[1] or row[2]:
                return None
            sizes.append(math.log2(row[0]) if row[0] > 0.0 else -math.inf)
    top = max(sizes, default=-math.inf)
    if top == -math.inf:
        return top
    return top + 0.5 * math.log2(math.fsum(math.exp2(2.0 * (s - top)) for s in sizes))
