"""Which parameters there are on all ranks, who counts which piece, and whether the pieces are as they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from headwater.capture.training.sharding import Held, Holding, Key
from headwater.records.step import WatchedTensor

__all__ = ["Layout", "Notice", "compared"]


@dataclass(frozen=True, slots=True)
class Notice:
    """What the ranks found out about each other: fields as in :class:`~headwater.records.step.RunEvent`."""

    kind: str
    message: str
    names: tuple[str, ...] = ()
    group: str = ""


@dataclass(slots=True)
class Layout:
    """The parameters of one model on all ranks, in the same order everywhere.

    Attributes:
        tensors: their records.
        place: name to row.
        whole: bool (k,), whether every holder has all of it.
        counted: bool (k,), whether this rank is the one that counts its piece.
        elements: float (k,), in this rank's piece.
        holders: int (k,), how many ranks have some of it.
    """

    tensors: list[WatchedTensor]
    place: dict[str, int]
    whole: Tensor
    counted: Tensor
    elements: Tensor
    holders: Tensor
    seen: int = 0
    shown: dict[int, tuple[bytes, tuple[WatchedTensor, ...]]] = field(default_factory=dict)

    def refresh(self, tensors: tuple[WatchedTensor, ...]) -> None:
        """Take over what this rank has learnt since: the order of execution, what is frozen."""
        if id(tensors) == self.seen:
            return
        self.seen = id(tensors)
        for tensor in tensors:
            row = self.place.get(tensor.name)
            if row is not None and self.tensors[row] != tensor:
                self.tensors[row] = tensor
                self.shown.clear()

    def rows(self, section: int, present: Tensor) -> tuple[WatchedTensor, ...]:
        """The records of some rows; the same object as long as nothing changes."""
        key = bytes(map(int, present.tolist()))
        known = self.shown.get(section)
        if known is None or known[0] != key:
            known = self.shown[section] = (key, tuple(t for t, p in zip(self.tensors, key, strict=True) if p))
        return known[1]

    @classmethod
    def of(cls, lists: Sequence[Sequence[Held]], own_rank: int) -> Layout:
        """The layout of what every rank says that it holds.

        Args:
            lists: one per rank.
            own_rank: this one.

        Returns:
            It.
        """
        tensors: dict[str, WatchedTensor] = {}
        for each in (lists[own_rank], *lists):
            for h in each:
                tensors.setdefault(h.tensor.name, h.tensor)
        # The same order everywhere: that of rank 0, then what only later ranks have.
        names = list(dict.fromkeys(h.tensor.name for each in lists for h in each))
        holders: dict[str, int] = dict.fromkeys(names, 0)
        first: dict[tuple[str, Key], int] = {}
        for rank, each in enumerate(lists):
            for h in each:
                holders[h.tensor.name] += h.holding.elements > 0
                if h.holding.elements:
                    first.setdefault((h.tensor.name, h.holding.key), rank)
        own = {h.tensor.name: h.holding for h in lists[own_rank]}
        split = {h.tensor.name for each in lists for h in each if h.holding.key}
        nothing = Holding((), 0)
        own_of = [own.get(name, nothing) for name in names]
        return cls(
            [replace(tensors[name], order=i) if name not in own else tensors[name] for i, name in enumerate(names)],
            {name: i for i, name in enumerate(names)},
            torch.tensor([name not in split for name in names], dtype=torch.bool),
            torch.tensor(
                [first.get((n, h.key)) == own_rank for n, h in zip(names, own_of, strict=True)], dtype=torch.bool
            ),
            torch.tensor([float(h.elements) for h in own_of], dtype=torch.float64),
            torch.tensor([holders[name] for name in names], dtype=torch.int64),
        )


def compared(group: str, lists: Sequence[Sequence[Held]]) -> list[Notice]:
    """Copies that are not equal; shards of one parameter that are; what cannot be read.

    Args:
        group: name of the model.
        lists: what every rank holds, with checksums.

    Returns:
        What is not as it should be.
    """
    pieces: dict[tuple[str, Key], dict[int, tuple[int, int]]] = {}
    by_name: dict[str, dict[tuple[Key, int, tuple[int, int]], None]] = {}
    unread: dict[str, list[str]] = {}
    for rank, each in enumerate(lists):
        for h in each:
            name, holding = h.tensor.name, h.holding
            if holding.reason is not None and rank == 0:
                unread.setdefault(holding.reason, []).append(name)
            if h.checksum is not None and holding.elements and holding.reason is None:
                pieces.setdefault((name, holding.key), {})[rank] = h.checksum
                if holding.key and h.varied and h.tensor.role in ("weight", "embedding", "recurrent", "attention"):
                    by_name.setdefault(name, {})[holding.key, holding.elements, h.checksum] = None
    differing: dict[str, set[int]] = {}
    for (name, _), sums in pieces.items():
        reference = sums[min(sums)]
        others = {rank for rank, checksum in sums.items() if checksum != reference}
        if others:
            differing.setdefault(name, set()).update(others)
    notices = [Notice("not_observed", reason, tuple(names), group) for reason, names in unread.items()]
    if differing:
        ranks = ", ".join(map(str, sorted(set().union(*differing.values()))))
        notices.append(
            Notice(
                "ranks_differ",
                f"{len(differing)} parameters that should be copies of each other differ between ranks (from the first holder: "
                f"rank {ranks}); rows are those of the first holder",
                tuple(differing),
                group,
            )
        )
    twins = tuple(
        name
        for name, shards in by_name.items()
        if len(shards) > 1 and len({(size, checksum) for _, size, checksum in shards}) < len(shards)
    )
    if twins:
        notices.append(
            Notice(
                "equal_weights",
                f"shards of {len(twins)} parameters on different ranks hold the same numbers",
                twins,
                group,
            )
        )
    return notices
