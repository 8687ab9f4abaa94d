"""Step records made by hand: every tensor has sixteen elements of one size, so its rms is the number that was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from headwater.detectors.over_time import Alert, AlertDesk
from headwater.records import NORM_COLUMNS, STATISTICS_COLUMNS, Block, Finding, Statistics, StepRecord, WatchedTensor

ELEMENTS = 16


def weight(name: str, order: int, role: str = "weight") -> WatchedTensor:
    return WatchedTensor(
        kind="parameter", name=name, shape=(4, 4), dtype="float32", type="Linear", role=role,
        layer=name.rpartition(".")[0], order=order,
    )  # fmt: skip


def layer(name: str, order: int, kind: str = "linear") -> WatchedTensor:
    return WatchedTensor(
        kind="layer",
        name=name,
        shape=(4, 4),
        dtype="float32",
        type="Linear",
        layer_kind=kind,
        order=order,
        on_trunk=True,
    )


def statistics_row(rms: float) -> tuple[float, ...]:
    """Elements +rms and -rms in turn; a NaN or an infinity stands in the first element, among ones."""
    elements = [rms, -rms] * (ELEMENTS // 2) if math.isfinite(rms) else [rms] + [1.0] * (ELEMENTS - 1)
    stats = Statistics.of(elements)
    return tuple(float(x) for x in stats.to_dict().values())


def norm_row(rms: float) -> tuple[float, ...]:
    if math.isfinite(rms):
        return (rms * math.sqrt(ELEMENTS), 0.0, 0.0)
    return (math.sqrt(ELEMENTS - 1), float(math.isnan(rms)), float(math.isinf(rms)))


def _block(
    quantity: str, phase: str | None, tensors: Sequence[WatchedTensor], sizes: Iterable[float], norms: bool
) -> Block:
    return Block(
        quantity=quantity, phase=phase, tensors=tuple(tensors), columns=NORM_COLUMNS if norms else STATISTICS_COLUMNS,
        rows=[(norm_row if norms else statistics_row)(size) for size in sizes],
    )  # fmt: skip


def record(
    step: int,
    gradient: Mapping[str, float] | None = None,
    *,
    phase: str = "pre_clip",
    post_clip: Mapping[str, float] | None = None,
    value: Mapping[str, float] | None = None,
    update: Mapping[str, float] | None = None,
    epsilon: float | None = None,
    root_rms: Mapping[str, float] | None = None,
    activation: Mapping[str, float] | None = None,
    output_gradient: Mapping[str, float] | None = None,
    dead: Mapping[str, tuple[int, int, int]] | None = None,
    saturated: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    norms: bool = False,
    **fields: object,
) -> StepRecord:
    """A record; names in a mapping are in execution order. ``dead``: name to (units, dead, window)."""
    roles = roles or {}
    names = list(dict.fromkeys(n for m in (gradient, value, update) if m for n in m))
    watched = {name: weight(name, order, roles.get(name, "weight")) for order, name in enumerate(names)}
    blocks: list[Block] = []
    for quantity, its_phase, sizes in (
        ("gradient", phase, gradient), ("gradient", "post_clip", post_clip), ("value", None, value),
    ):  # fmt: skip
        if sizes is not None:
            blocks.append(_block(quantity, its_phase, [watched[n] for n in sizes], sizes.values(), norms))
    if update is not None:
        blocks.append(
            Block(quantity="update", tensors=tuple(watched[n] for n in update), columns=("update_ratio", "read_fraction"),
                  rows=[(ratio, 1.0) for ratio in update.values()])
        )  # fmt: skip
    if epsilon is not None and gradient is not None:
        roots = root_rms or gradient
        blocks.append(
            Block(quantity="second_moment", tensors=tuple(watched[n] for n in gradient),
                  columns=("root_rms", "epsilon", "below_epsilon_fraction"),
                  rows=[(roots[n], epsilon, float(roots[n] < epsilon)) for n in gradient])
        )  # fmt: skip
    for quantity, sizes in (("activation", activation), ("output_gradient", output_gradient)):
        if sizes is not None:
            order = {n: i for i, n in enumerate(dict.fromkeys([*(activation or ()), *sizes]))}
            blocks.append(_block(quantity, None, [layer(n, order[n]) for n in sizes], sizes.values(), norms=False))
    if dead is not None or saturated is not None:
        units = {n: (*row[:2], math.nan, row[2]) for n, row in (dead or {}).items()}
        units |= {n: (math.nan, math.nan, share, 1.0) for n, share in (saturated or {}).items()}
        blocks.append(
            Block(quantity="units", tensors=tuple(layer(n, i, "activation") for i, n in enumerate(units)),
                  columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"), rows=list(units.values()))
        )  # fmt: skip
    known: dict[str, object] = {"time": 0.0, "elapsed_seconds": 0.0, "activations": activation is not None}
    return StepRecord(step=step, blocks=tuple(blocks), **{**known, **fields})


def alarms(records: Iterable[StepRecord], *alerts: Alert, desk: AlertDesk | None = None) -> list[Finding]:
    """The new alarms over a sequence of records."""
    desk = desk or AlertDesk(alerts)
    return [d.finding for r in records for d in desk.consider(r) if d.is_new]
