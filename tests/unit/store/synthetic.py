"""Small records of a run that never took place: every number can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.records import (
    NORM_COLUMNS,
    STATISTICS_COLUMNS,
    Block,
    GradientPhase,
    Quantity,
    Statistics,
    StepRecord,
    WatchedTensor,
)

WEIGHT = WatchedTensor(
    kind="parameter", name="fc1.weight", shape=(1, 2), dtype="float32", type="Linear", role="weight", layer="fc1", order=0,
    fan_in=2, fan_out=1,
)  # fmt: skip
BIAS = WatchedTensor(
    kind="parameter", name="fc1.bias", shape=(1,), dtype="float32", type="Linear", role="bias", layer="fc1", order=1
)
LAYER = WatchedTensor(
    kind="layer", name="fc1", shape=(4, 1), dtype="float32", type="Linear", layer_kind="linear", order=0, on_trunk=True
)
PARAMETERS = (WEIGHT, BIAS)
LAYERS = (LAYER,)


def statistics_row(values: Sequence[float]) -> list[float]:
    """The row of a block for these elements."""
    found = Statistics.of(values)
    return [float(getattr(found, name)) for name in STATISTICS_COLUMNS]


def statistics_block(
    values: Sequence[Sequence[float]],
    quantity: Quantity = "gradient",
    phase: GradientPhase | None = "pre_clip",
    tensors: tuple[WatchedTensor, ...] = PARAMETERS,
) -> Block:
    """One list of elements per tensor."""
    return Block(
        quantity=quantity,
        phase=phase,
        tensors=tensors,
        columns=STATISTICS_COLUMNS,
        rows=[statistics_row(each) for each in values],
    )


def norm_block(rows: Sequence[Sequence[float]], tensors: tuple[WatchedTensor, ...] = PARAMETERS) -> Block:
    """A block of the cheapest tier."""
    return Block(quantity="gradient", phase="pre_clip", tensors=tensors, columns=NORM_COLUMNS, rows=rows)


def step(number: int, *blocks: Block, **fields: object) -> StepRecord:
    """A record of step ``number``; by default a gradient (3, 4) of the weight and (0,) of the bias."""
    defaults: dict[str, object] = {"time": 1000.0 + number, "elapsed_seconds": float(number), "loss": 2.0}
    return StepRecord(
        step=number,
        blocks=blocks or (statistics_block([[3.0, 4.0], [0.0]]),),
        **{**defaults, **fields},  # type: ignore[arg-type]
    )
