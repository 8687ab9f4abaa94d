"""The recorders of several ranks as one: rank 0 judges and writes, the others hear what it decided."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from headwater.capture.training.layout import Notice
from headwater.capture.training.pair import Pair
from headwater.capture.training.ranks import Ranks, is_distributed
from headwater.capture.training.raw import RawStep
from headwater.capture.training.schedule import Schedule
from headwater.capture.training.sharding import has_shards
from headwater.errors import HeadwaterError, InputError
from headwater.records import Finding
from headwater.records.step import RunEvent

__all__ = ["Heard", "Joint", "connected"]

Heard = tuple[Finding, Literal["warn", "raise", "stop"]]


class Joint:
    """What the recorder of one rank does together with the others.

    Args:
        ranks: the others.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._said: list[Heard] = []
        self._wish = 1
        self._agreed: int | None = None

    @property
    def listens(self) -> bool:
        """Whether another rank judges and writes."""
        return self.ranks.rank != 0

    def agree(self, pairs: Sequence[Pair], tier: str, failure: Exception | None) -> list[Notice]:
        """The last part of attaching: whether every rank got here, and what each of them holds.

        Args:
            pairs: of this rank.
            tier: of the statistics.
            failure: what kept this rank from attaching.

        Returns:
            What is not as it should be.

        Raises:
            HeadwaterError: another rank could not attach.
        """
        failures = self.ranks.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if any(failures):
            self.ranks.leave()
            if failure is not None:
                raise failure
            rank = next(i for i, text in enumerate(failures) if text)
            raise HeadwaterError(f"rank {rank} could not attach its watch, so no rank does: {failures[rank]}")
        held = {pair.group: pair.inventory.held(compared=True) for pair in pairs}
        return self.ranks.agree(held, tier) + self._equal(pairs)

    def _equal(self, pairs: Sequence[Pair]) -> list[Notice]:
        """Equal weights, where they are equal on every rank that holds some of them."""
        own = {
            pair.group: (
                {(names[0], other) for names in pair.inventory.equal_weights() for other in names[1:]},
                {h.tensor.name for h in pair.inventory.held() if h.holding.elements},
            )
            for pair in pairs
        }
        everybody = self.ranks.gather(own)
        notices: list[Notice] = []
        for group in own:
            claims = [each[group] for each in everybody if group in each]
            candidates = sorted(set().union(*(pairs_ for pairs_, _ in claims)))
            equal = [c for c in candidates if all(c in found or not held.issuperset(c) for found, held in claims)]
            if equal:
                notices.append(equal_notice([*dict.fromkeys(name for pair_ in equal for name in pair_)], group))
        return notices

    def merge(self, raw: RawStep, tell: Callable[[RunEvent], None]) -> bool:
        """Make a row of this rank one of all ranks.

        Args:
            raw: arrived.
            tell: takes events.

        Returns:
            Whether it is to be recorded.
        """
        merged = self.ranks.merge(raw)
        self.tell(tell, raw.step)
        return merged and not (raw.last and not _has_gradient(raw))

    def tell(self, tell: Callable[[RunEvent], None], step: int | None = None) -> None:
        """Pass on what the ranks found out.

        Args:
            tell: takes events.
            step: it belongs to.
        """
        notices, self.ranks.notices = self.ranks.notices, []
        for notice in notices:
            tell(event_of(notice, step))

    def say(self, finding: Finding, action: object) -> None:
        """On rank 0, a new finding.

        Args:
            finding: it.
            action: of the alert.
        """
        known: Mapping[object, Literal["raise", "stop"]] = {"raise": "raise", "stop": "stop"}
        self._said.append((finding, known.get(action, "warn") if isinstance(action, str) else "warn"))

    def hear(self) -> list[Heard]:
        """After a row was judged: what rank 0 found in it.

        Returns:
            On rank 0 nothing, since it knows.
        """
        said, self._said = self._said, []
        content = (said, self._wish) if said or (self._wish != (self._agreed or 1)) else None
        heard = self.ranks.verdict(content)
        if heard is None:
            return []
        findings, self._agreed = heard
        return list(findings) if self.listens else []

    def throttle(self, schedule: Schedule, spent_seconds: float, elapsed_seconds: float) -> bool:
        """Take over the interval that rank 0 wished for at an earlier row; on rank 0, wish.

        Args:
            schedule: to be changed.
            spent_seconds: by recording, on this rank.
            elapsed_seconds: since watching began.

        Returns:
            Whether it changed.
        """
        changed = self._agreed is not None and self._agreed != schedule.stretch
        if changed and self._agreed is not None:
            schedule.stretch = self._agreed
        if not self.listens:
            trial = replace(schedule)
            trial.adapt(spent_seconds, elapsed_seconds)
            self._wish = trial.stretch
        return changed


def connected(models: Sequence[nn.Module], wanted: bool | None) -> Joint | None:
    """Meet the other ranks, where there are some.

    Args:
        models: to be watched.
        wanted: False for this process alone.

    Returns:
        None for this process alone.

    Raises:
        InputError: the others do not come, or a sharded model was to be watched by one rank.
    """
    if not is_distributed():
        if wanted:
            raise InputError("distributed=True needs torch.distributed to be initialized, with more than one process")
        return None
    if wanted is not False:
        return Joint(Ranks())
    if any(has_shards(model) for model in models):
        raise InputError(
            "the model is sharded, and one rank sees only its shards: watch it on every rank, without distributed=False"
        )
    return None


def equal_notice(names: Sequence[str], group: str = "") -> Notice:
    """What is said about weights that start with the same numbers.

    Args:
        names: of the weights.
        group: of the model.

    Returns:
        The notice.
    """
    message = (
        f"{len(names)} weights start with the same numbers as another one of their shape: copies of one layer "
        "(copy.deepcopy), or filled under the same seed"
    )
    return Notice("equal_weights", message, tuple(names), group)


def event_of(notice: Notice, step: int | None) -> RunEvent:
    """The event of a notice.

    Args:
        notice: it.
        step: it belongs to.

    Returns:
        The event, of now.
    """
    return RunEvent(
        kind=notice.kind, step=step, group=notice.group, time=time.time(), message=notice.message, names=notice.names
    )


def _has_gradient(raw: RawStep) -> bool:
    """False when every gradient is zero: something has cleared them since."""
    for piece in raw.pieces:
        if piece.quantity == "gradient":
            column = piece.columns.index("scaled_max_abs" if "scaled_max_abs" in piece.columns else "l2_norm")
            if bool((piece.table[:, column] != 0).any()):
                return True
    return False
