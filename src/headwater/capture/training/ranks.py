"""Several processes, one record: the rows of a sharded or replicated model, put together in the recorder's threads.

Each process reads what it holds and hands it to its recorder; the recorders of all ranks meet over a ``gloo`` group of
their own. The training threads take part in none of this, and their collectives are not delayed by it: a rank may be
several recorded steps ahead of its recorder. One recorded step costs a fixed number of small collectives, whatever the
number of parameters and ranks: a header (are we at the same step?), who has a gradient of what, one MAX, one SUM, and what
rank 0 decided.
"""

from __future__ import annotations

import math
import pickle
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from headwater.capture._torch_compat import default_store
from headwater.capture.training.additive import CHANGE_COLUMNS, Additive, kind_of, ratios
from headwater.capture.training.layout import Layout, Notice, compared
from headwater.capture.training.raw import Piece, RawStep
from headwater.capture.training.sharding import Held
from headwater.errors import InputError
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS, GradientPhase, Quantity

__all__ = ["CLOSE_SECONDS", "FAULT_SECONDS", "HANDSHAKE_SECONDS", "RECORD_SECONDS", "Notice", "Ranks", "is_distributed"]

HANDSHAKE_SECONDS = 60.0
"""How long ``attach()`` waits for the other ranks. Ranks build their models at different speeds, but a minute apart is
rather a call that only some of them make, and that must not end as a hang (chosen by us)."""

RECORD_SECONDS = 1800.0
"""How long a recorder waits for the others at a recorded step: one rank may be writing a checkpoint. Training does not wait
meanwhile, unless an alert is to decide before the optimizer steps (chosen by us: what torch allows a gloo collective)."""

CLOSE_SECONDS = 30.0
"""How long ``detach()`` waits for the others to come to the steps that this rank has still to record (chosen by us)."""

FAULT_SECONDS = 3.0
"""The same after an exception: the launcher ends the other ranks only when this process has ended (chosen by us)."""

_WIRE_SECONDS = 60.0  # for one collective, once every rank has said that it is there (chosen by us)
_POLLS = (0.0005, 0.05)  # seconds between two looks at the store, from the first to the longest (chosen by us)

_SECTIONS: tuple[tuple[Quantity, GradientPhase | None], ...] = (
    ("value", None), ("gradient", "backward"), ("gradient", "pre_clip"), ("gradient", "post_clip"), ("update", None),
    ("second_moment", None),
)  # fmt: skip
_PRE, _POST = 2, 3
_MOMENT_COLUMNS = ("root_rms", "epsilon", "below_epsilon_fraction")
_FINAL: dict[tuple[str, ...], tuple[str, ...]] = {CHANGE_COLUMNS: ("update_ratio", "read_fraction")}
_LAYERS: tuple[Quantity, ...] = ("activation", "output_gradient")
_HEADER = 9 + 2 * len(_SECTIONS)
_NOTHING = float("-inf")


def is_distributed() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


class Ranks:
    """The processes that watch one run together.

    Args:
        limit_seconds: how long to wait for the others; None for :data:`HANDSHAKE_SECONDS`.

    Raises:
        InputError: not every rank attached, or there is no gloo.
    """

    _number: ClassVar[int] = 0

    def __init__(self, limit_seconds: float | None = None) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.broken: str | None = None
        self.observed = False
        self.collectives = 0
        self.notices: list[Notice] = []
        self._layouts: dict[str, Layout] = {}
        self._round = 0
        self._news = False
        self._bad: set[str] = set()
        self._uneven: set[str] = set()
        self._tier: tuple[str, ...] = STATISTICS_COLUMNS
        self._deadline = math.inf
        self._store: Any = default_store()
        if not distributed.is_gloo_available():
            raise InputError(
                "watching several ranks together needs torch.distributed with gloo; pass distributed=False"
            )
        self._meet(HANDSHAKE_SECONDS if limit_seconds is None else limit_seconds)
        self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=_WIRE_SECONDS))

    def _meet(self, limit: float) -> None:
        """Every rank says that it is here, then that it has seen all the others; before any collective is called."""
        store = self._store
        self._prefix = f"headwater/{Ranks._number}"
        for word in ("here", "ready"):
            keys = [f"{self._prefix}/{word}/{rank}" for rank in range(self.world)]
            store.set(keys[self.rank], word)
            try:
                store.wait(keys, timedelta(seconds=limit))
            except RuntimeError as error:
                missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
                for left in ("here", "ready"):
                    store.delete_key(f"{self._prefix}/{left}/{self.rank}")
                raise InputError(
                    f"rank {self.rank} of {self.world} attached a watch, and after {limit:g} s rank {', '.join(missing) or '?'} "
                    "had not: call headwater.watch on every rank (rank 0 alone writes the run), or pass distributed=False to "
                    "watch this process alone, which a model that is not sharded allows"
                ) from error
        Ranks._number += 1

    # ---------------------------------------------------------------- agreeing on what there is

    def gather(self, thing: Any) -> list[Any]:
        """What every rank gives, on every rank; for small things, while attaching.

        Args:
            thing: to be pickled.

        Returns:
            One per rank.
        """
        everything: list[Any] = [None] * self.world
        distributed.all_gather_object(everything, thing, group=self._group)
        return everything

    def agree(self, held: Mapping[str, Sequence[Held]], tier: str) -> list[Notice]:
        """Settle which parameters there are, which rank counts which piece, and whether copies are equal.

        Args:
            held: of each model, what this rank holds.
            tier: ``all`` or ``norms``.

        Returns:
            What is not as it should be.
        """
        self._tier = STATISTICS_COLUMNS if tier == "all" else NORM_COLUMNS
        everybody: list[dict[str, list[Held]]] = self.gather({name: list(h) for name, h in held.items()})
        notices: list[Notice] = []
        for group in dict.fromkeys(name for each in everybody for name in each):
            lists = [each.get(group, []) for each in everybody]
            self._layouts[group] = Layout.of(lists, self.rank)
            notices += compared(group, lists)
        return notices

    # ---------------------------------------------------------------- one step

    def merge(self, raw: RawStep) -> bool:
        """Put the numbers of all ranks in place of this one's.

        Args:
            raw: arrived in main memory.

        Returns:
            Whether there is anything to record; False once the ranks have lost each other and one cannot go on alone.
        """
        if self.broken is None:
            try:
                self._merge(raw)
                return True
            except Exception as error:  # whatever it is, the others must not wait for this rank, nor it for them
                self._part(f"{type(error).__name__}: {error}" if not isinstance(error, _Parted) else str(error))
        for piece in raw.pieces:
            _finish(piece)
        layout = self._layouts.get(raw.group)
        return self.rank == 0 and layout is not None and bool(layout.whole.all())

    def _part(self, reason: str) -> None:
        self.broken = reason
        alone = all(bool(layout.whole.all()) for layout in self._layouts.values())
        after = (
            "rank 0 goes on alone, its model is not sharded"
            if alone
            else "a part of a model is not recorded as if it were all"
        )
        self.notices.append(Notice("gap", f"the ranks no longer record together ({reason.splitlines()[0]}): {after}"))

    def _header(self, raw: RawStep, group: int, pieces: Mapping[int, Piece], layers: int, *, news: bool) -> Tensor:
        kind = 2 * (0 if raw.micro is None else raw.micro + 1) + (raw.base is not None)
        head = torch.zeros(_HEADER, dtype=torch.float64)
        same = (raw.step, kind, group, layers)
        head[:8] = torch.tensor([float(x) for pair in same for x in (pair, -pair)], dtype=torch.float64)
        head[8] = float(news)
        for section, piece in pieces.items():
            head[9 + section] = 1.0
            head[9 + len(_SECTIONS) + section] = float(piece.scaled)
        return head

    def _merge(self, raw: RawStep) -> None:
        raw.arrive()
        group = list(self._layouts).index(raw.group)
        layout = self._layouts[raw.group]
        self._come_together()
        own = {_SECTIONS.index((p.quantity, p.phase)): p for p in raw.pieces if (p.quantity, p.phase) in _SECTIONS}
        if raw.read_twice and _PRE in own and _POST in own and _repeats(raw, own[_PRE], own[_POST]):
            raw.pieces.remove(own.pop(_POST))  # by itself: sums over ranks come out a rounding apart
        layer_pieces = [p for p in raw.pieces if p.quantity in _LAYERS]
        words = "|".join(f"{p.quantity}:{t.name}" for p in layer_pieces for t in p.tensors)
        unknown = any(t.name not in layout.place for p in own.values() for t in p.tensors)
        head = self._header(raw, group, own, zlib.crc32(words.encode()), news=unknown)
        self._reduce(head, distributed.ReduceOp.MAX)
        for at, what in ((0, "the step"), (2, "the kind of row"), (4, "the model")):
            if head[at] != -head[at + 1]:
                raise _Parted(f"{what} differs between ranks: {-head[at + 1]:g} and {head[at]:g}")
        if head[8] > 0 and not self._news:
            self._news = True
            message = "parameters were added after the watch was attached: attach it again to see them"
            self.notices.append(Notice("notice", message, (), raw.group))
        sections = [s for s in range(len(_SECTIONS)) if head[9 + s] > 0]
        scaled = [bool(head[9 + len(_SECTIONS) + s] > 0) for s in sections]
        tables, present = self._tables(layout, own, sections)
        # Who has what: the lowest rank speaks for a tensor that every rank has whole.
        speakers = torch.where(present, torch.full(present.shape, -float(self.rank), dtype=torch.float64), _NOTHING)
        if sections:
            self._reduce(speakers, distributed.ReduceOp.MAX)
        takes_part = present & torch.where(layout.whole, speakers == -float(self.rank), layout.counted)
        layers = layer_pieces if head[6] == -head[7] else []
        jobs = [
            _Job(_kind(self._columns(s)), tables[i], takes_part[i], layout.elements) for i, s in enumerate(sections)
        ] + [
            _Job(_kind(p.columns), p.table.double(), torch.ones(len(p.tensors), dtype=torch.bool), None) for p in layers
        ]
        self._add_up(raw, jobs, present, sections)
        for index, piece in enumerate(layers):
            piece.table = jobs[len(sections) + index].result
        self._rebuild(raw, layout, sections, scaled, speakers > _NOTHING, jobs)

    def _columns(self, section: int) -> tuple[str, ...]:
        quantity = _SECTIONS[section][0]
        return {"update": CHANGE_COLUMNS, "second_moment": _MOMENT_COLUMNS}.get(quantity, self._tier)

    def _tables(self, layout: Layout, own: Mapping[int, Piece], sections: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """This rank's rows where all ranks have theirs."""
        size = len(layout.tensors)
        tables: list[Tensor] = []
        present = torch.zeros((len(sections), size), dtype=torch.bool)
        for index, section in enumerate(sections):
            table = torch.zeros((size, len(self._columns(section))), dtype=torch.float64)
            piece = own.get(section)
            if piece is None and section == _POST:
                piece = own.get(_PRE)  # nothing changed the gradients here: they are those of before
            if piece is not None:
                layout.refresh(piece.tensors)
                rows = [layout.place.get(t.name, -1) for t in piece.tensors]
                known = torch.tensor([r >= 0 for r in rows], dtype=torch.bool)
                places = torch.tensor([r for r in rows if r >= 0], dtype=torch.int64)
                table[places] = piece.table.double()[known]
                present[index, places] = True
            tables.append(table)
        return tables, present

    def _add_up(self, raw: RawStep, jobs: Sequence[_Job], present: Tensor, sections: Sequence[int]) -> None:
        """The two reductions, of all tables together."""
        bad = torch.full((len(sections), present.shape[1]), _NOTHING, dtype=torch.float64)
        for index, section in enumerate(sections):
            if _SECTIONS[section][0] == "gradient":
                columns = self._columns(section)
                counts = (
                    jobs[index].table[:, columns.index("nan_count")] + jobs[index].table[:, columns.index("inf_count")]
                )
                bad[index] = torch.where(present[index] & (counts > 0), -float(self.rank), _NOTHING)
        infinity = 0.0 if raw.found_infinity is None else float(raw.found_infinity)
        first = [job.kind.to_extremes(job.table, job.takes_part).reshape(-1) for job in jobs]
        flat = torch.cat([*first, bad.reshape(-1), torch.tensor([infinity], dtype=torch.float64)])
        self._reduce(flat, distributed.ReduceOp.MAX)
        if raw.found_infinity is not None:
            raw.found_infinity = flat[-1]
        start = 0
        for job in jobs:
            stop = start + len(job.table) * job.kind.extremes
            job.agreed = flat[start:stop].view(-1, job.kind.extremes)
            start = stop
        bad = flat[start:-1].view(bad.shape)
        loss = 0.0 if raw.loss is None else float(raw.loss)
        counts = present.double().reshape(-1)
        second = [job.kind.to_sums(job.table, job.takes_part, job.held(), job.agreed).reshape(-1) for job in jobs]
        flat = torch.cat([*second, counts, torch.tensor([loss, float(raw.loss is not None)], dtype=torch.float64)])
        self._reduce(flat, distributed.ReduceOp.SUM)
        start = 0
        for job in jobs:
            stop = start + len(job.table) * job.kind.sums
            job.result = job.kind.to_table(job.agreed, flat[start:stop].view(-1, job.kind.sums))
            start = stop
        if flat[-1] > 0:
            raw.loss = float(flat[-2] / flat[-1])
        self._say(raw.group, sections, bad, flat[start:-2].view(present.shape))

    def _say(self, group: str, sections: Sequence[int], bad: Tensor, counts: Tensor) -> None:
        """Which rank was the first with something that is not finite, and whose gradients only some ranks have."""
        layout = self._layouts[group]
        gradients = [i for i, s in enumerate(sections) if _SECTIONS[s][0] == "gradient"]
        now: set[str] = set()
        for index in gradients[:1]:
            found = [(int(-bad[index, row]), row) for row in torch.nonzero(bad[index] > _NOTHING).flatten().tolist()]
            now = {layout.tensors[row].name for _, row in found}
            if now - self._bad:
                rank = min(rank for rank, _ in found)
                names = tuple(layout.tensors[row].name for r, row in found if r == rank)
                self.notices.append(
                    Notice(
                        "notice", f"gradients are not finite; the lowest rank with such a piece is {rank}", names, group
                    )
                )
            self._bad = now
            uneven = layout.whole & (counts[index] > 0) & (counts[index] < layout.holders)
            names = tuple(layout.tensors[row].name for row in torch.nonzero(uneven).flatten().tolist())
            if set(names) - self._uneven:
                self.notices.append(
                    Notice("notice", f"{len(names)} parameters have a gradient on some ranks only", names, group)
                )
            self._uneven |= set(names)

    def _rebuild(
        self, raw: RawStep, layout: Layout, sections: Sequence[int], scaled: Sequence[bool], anywhere: Tensor,
        jobs: Sequence[_Job],
    ) -> None:  # fmt: skip
        """The pieces of all ranks, in the place of this one's."""
        rest = [p for p in raw.pieces if (p.quantity, p.phase) not in _SECTIONS]
        pieces: list[Piece] = []
        for index, section in enumerate(sections):
            quantity, phase = _SECTIONS[section]
            there = anywhere[index]
            if not bool(there.any()):
                continue
            columns = self._columns(section)
            tensors = layout.rows(section, there)
            table = jobs[index].result[there]
            pieces.append(Piece(quantity, phase, tensors, _FINAL.get(columns, columns), table, scaled[index]))
        raw.pieces = pieces + rest
        gradients = [i for i, s in enumerate(sections) if _SECTIONS[s][0] == "gradient"]
        if raw.base is None or gradients:
            seen = anywhere[gradients].any(0) if gradients else torch.zeros(len(layout.tensors), dtype=torch.bool)
            self.observed = self.observed or bool(seen.any())
            reasons = {name: why for name, why in raw.missing.items() if name not in layout.place}
            for tensor, is_seen in zip(layout.tensors, seen.tolist(), strict=True):
                if tensor.trainable and not is_seen:
                    reasons[tensor.name] = raw.missing.get(tensor.name, "none")
            raw.missing = reasons

    # ---------------------------------------------------------------- what rank 0 decided

    def verdict(self, said: Any) -> Any:
        """What rank 0 says, on every rank; said once per recorded step.

        Args:
            said: on rank 0, something to be pickled, or None; ignored elsewhere.

        Returns:
            It.
        """
        if self.broken is not None:
            return said if self.rank == 0 else None
        try:
            self._come_together()
            data = pickle.dumps(said) if self.rank == 0 and said is not None else b""
            size = torch.tensor([len(data)], dtype=torch.int64)
            self._broadcast(size)
            if not int(size):
                return None
            content = torch.tensor(list(data), dtype=torch.uint8) if data else torch.empty(int(size), dtype=torch.uint8)
            self._broadcast(content)
            return said if self.rank == 0 else pickle.loads(bytes(content.tolist()))
        except (RuntimeError, _Parted) as error:
            self._part(str(error))
            return said if self.rank == 0 else None

    # ---------------------------------------------------------------- the wire

    def _come_together(self) -> None:
        """Return when every rank is at this point; raise when one of them never will be.

        Through the store, which can be given up at any time: a collective that has begun cannot.
        """
        key, left = f"{self._prefix}/round/{self._round}", f"{self._prefix}/left"
        arrived = int(self._store.add(key, 1))
        limit, pause = time.monotonic() + RECORD_SECONDS, _POLLS[0]
        while arrived < self.world:
            if int(self._store.add(left, 0)):
                raise _Parted("a rank has stopped watching")
            if time.monotonic() > min(limit, self._deadline):
                raise _Parted(f"{self.world - arrived} of {self.world} ranks did not come to a recorded step in time")
            time.sleep(pause)
            pause = min(1.5 * pause, _POLLS[1])
            arrived = int(self._store.add(key, 0))
        if self.rank == 0 and self._round > 1:
            self._store.delete_key(f"{self._prefix}/round/{self._round - 2}")
        self._round += 1

    def _reduce(self, tensor: Tensor, operation: Any) -> None:
        options = distributed.distributed_c10d.AllreduceOptions()
        options.reduceOp = operation
        options.timeout = timedelta(seconds=_WIRE_SECONDS)
        self.collectives += 1
        self._group.allreduce([tensor], options).wait()

    def _broadcast(self, tensor: Tensor) -> None:
        options = distributed.distributed_c10d.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        options.timeout = timedelta(seconds=_WIRE_SECONDS)
        self.collectives += 1
        self._group.broadcast([tensor], options).wait()

    def hurry(self, seconds: float) -> None:
        """From now on wait for the others no longer than this; from any thread.

        Args:
            seconds: from now.
        """
        self._deadline = time.monotonic() + seconds

    def leave(self) -> None:
        """Say that this rank records nothing more, and let the group go. Waits shortly for the others to do the same."""
        if distributed.is_initialized():
            try:
                left = int(self._store.add(f"{self._prefix}/left", 1))
                limit = min(time.monotonic() + FAULT_SECONDS, self._deadline)
                while left < self.world and self.broken is None and time.monotonic() < limit:
                    time.sleep(_POLLS[1])
                    left = int(self._store.add(f"{self._prefix}/left", 0))
                distributed.destroy_process_group(self._group)
            except RuntimeError as error:  # the process that keeps the store has ended before
                self.broken = self.broken or str(error)
        self.broken = self.broken or "left"


class _Parted(Exception):
    """The ranks are not where they should be together."""


@dataclass(slots=True)
class _Job:
    """One table on its way through the two reductions."""

    kind: Additive
    table: Tensor
    takes_part: Tensor
    elements: Tensor | None
    agreed: Tensor = field(default_factory=lambda: torch.empty(0))
    result: Tensor = field(default_factory=lambda: torch.empty(0))

    def held(self) -> Tensor:
        return torch.ones(len(self.table), dtype=torch.float64) if self.elements is None else self.elements


def _kind(columns: Sequence[str]) -> Additive:
    found = kind_of(columns)
    assert found is not None, columns
    return found


def _repeats(raw: RawStep, before: Piece, after: Piece) -> bool:
    """Whether the gradients read again before the step are those of before."""
    alike = before.scaled == after.scaled or raw.loss_scale is None or float(raw.loss_scale) == 1.0
    return alike and before.tensors == after.tensors and torch.equal(before.table, after.table)


def _finish(piece: Piece) -> None:
    """Of a rank by itself."""
    if piece.columns == CHANGE_COLUMNS:
        piece.table, piece.columns = ratios(piece.table), _FINAL[CHANGE_COLUMNS]
