"""What watching a training run yields: watched tensors, one record per recorded optimizer step, events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from headwater.records.histogram import Histogram
from headwater.records.profile import LayerKind, ParameterRole
from headwater.records.statistics import Statistics

__all__ = [
    "NORM_COLUMNS",
    "STATISTICS_COLUMNS",
    "Block",
    "GradientPhase",
    "Quantity",
    "RunEvent",
    "StepRecord",
    "WatchedTensor",
    "histogram_columns",
    "histogram_of_row",
]

Quantity = Literal[
    "value", "gradient", "activation", "output_gradient", "update", "second_moment", "units", "histogram"
]
"""What a block of numbers is about.

``value``, ``gradient`` (of parameters), ``activation``, ``output_gradient`` (of layers): statistics. ``update``:
``update_ratio`` (‖Δw‖/‖w‖ of the step) and ``read_fraction`` (share of the elements it was read from).
``second_moment``: ``root_rms`` (root of the mean of the bias-corrected second moment v), ``epsilon`` (the optimizer's), and
``below_epsilon_fraction`` (share of the elements with √v < eps). ``units``: ``unit_count``, ``dead_count`` (units whose
slope was flat for every sample of every sampled step of the window), ``saturated_fraction``, ``window_steps``.
``histogram``: of a gradient as it lies in ``.grad`` when the optimizer steps: ``zero_count``, ``nan_count``, ``inf_count``, and for
every power of two that occurs ``negative[e]`` and ``positive[e]``, the number of elements with 2^e ≤ |x| < 2^(e+1).
"""

GradientPhase = Literal["backward", "pre_clip", "post_clip"]
"""Which gradient: ``backward`` as the backward left it (times the loss scale), ``pre_clip`` the same divided by the loss
scale, ``post_clip`` as the optimizer used it. Where nothing changed the gradient between the two, only ``pre_clip`` is
kept and ``clip_coefficient`` is 1."""

STATISTICS_COLUMNS: tuple[str, ...] = (
    "count", "zero_count", "nan_count", "inf_count", "scale_log2", "scaled_sum", "scaled_sum_abs",
    "scaled_sum_squared_deviations", "scaled_sum_fourth_powers", "scaled_max_abs", "unscaled_min_abs_nonzero",
)  # fmt: skip
"""Columns of a block that holds whole :class:`~headwater.records.statistics.Statistics`, in its order."""

NORM_COLUMNS: tuple[str, ...] = ("l2_norm", "nan_count", "inf_count")
"""Columns of a block of the cheapest tier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedTensor:
    """A parameter, or the output of a layer, that a run records.

    Attributes:
        kind: ``parameter`` or ``layer``.
        name: wrapper prefixes stripped; with several models, prefixed by the group's name and a dot. Unique within
            its kind.
        group: name of the model/optimizer pair it belongs to; empty when there is only one.
        aliases: other names of the same storage (tied parameters) or module.
        shape: of the parameter, or of the layer's output when it was first seen.
        dtype: such as ``float32``.
        type: the module's class name: of the layer, or of the parameter's owner.
        role: of a parameter; None for a layer.
        layer_kind: of a layer; None for a parameter.
        layer: name of the layer that owns a parameter; None for a layer, or when no module call owns it.
        order: position in execution order where it is known (layers, and parameters after a sampled step), else in
            registration order.
        on_trunk: for a layer, whether every path from the output to the first parameters passes through it; None
            when that is not known.
        fan_in: inputs per output unit of a weight, else None.
        fan_out: outputs per input unit of a weight, else None.
        trainable: whether a parameter requires a gradient, when it was last looked at.
    """

    kind: Literal["parameter", "layer"]
    name: str
    group: str = ""
    aliases: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    type: str = ""
    role: ParameterRole | None = None
    layer_kind: LayerKind | None = None
    layer: str | None = None
    order: int = 0
    on_trunk: bool | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    trainable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Numbers of one quantity for several tensors at one step.

    Attributes:
        quantity: see :data:`Quantity`.
        phase: of a gradient, see :data:`GradientPhase`; None for anything else.
        tensors: which, in the order of the rows.
        columns: what each entry of a row is.
        rows: one row of plain numbers per tensor; NaN where a number was not observed.
    """

    quantity: Quantity
    phase: GradientPhase | None = None
    tensors: tuple[WatchedTensor, ...]
    columns: tuple[str, ...]
    rows: Sequence[Sequence[float]]

    def statistics(self) -> Iterator[tuple[WatchedTensor, Statistics]]:
        """The rows as records; only for blocks with :data:`STATISTICS_COLUMNS`."""
        for tensor, row in zip(self.tensors, self.rows, strict=True):
            yield tensor, Statistics(*(int(x) for x in row[:5]), *row[5:])

    def column(self, name: str) -> list[float]:
        """One column, in the order of ``tensors``; ValueError when the block has none of this name."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one recorded optimizer step (or one micro-batch of it) showed.

    Attributes:
        group: name of the model/optimizer pair; empty when there is only one.
        step: the optimizer step, counted from 0; a skipped step counts.
        micro: which micro-batch or closure call of the step; None for the step as a whole.
        time: wall clock, seconds since the epoch.
        elapsed_seconds: since watching began, by a clock that never goes back.
        skipped: why the step did not take place (``amp``: the loss scaler found an infinity; ``not stepped``: the
            gradients were dropped without a step); None for a step that did.
        loss: when given.
        learning_rate: of the optimizer's first group.
        loss_scale: that the gradients were multiplied by; 1.0 without a scaler, None when it is not known.
        clip_coefficient: ‖post-clip gradient‖ / ‖pre-clip gradient‖ over all parameters; 1.0 when nothing changed them,
            None when the gradient before clipping was not seen.
        activations: whether layers were looked at.
        blocks: the numbers.
        missing: name to reason, for every trainable parameter without a gradient in this record.
    """

    group: str = ""
    step: int
    micro: int | None = None
    time: float
    elapsed_seconds: float
    skipped: str | None = None
    loss: float | None = None
    learning_rate: float | None = None
    loss_scale: float | None = 1.0
    clip_coefficient: float | None = 1.0
    activations: bool = False
    blocks: tuple[Block, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def block(self, quantity: Quantity, phase: GradientPhase | None = None) -> Block | None:
        """The block of a quantity.

        Args:
            quantity: which.
            phase: of a gradient; None means the one the optimizer used: ``post_clip`` where it differs from
                ``pre_clip``, else ``pre_clip``, else ``backward``.

        Returns:
            The block, or None when the record has none.
        """
        found = {b.phase: b for b in self.blocks if b.quantity == quantity}
        if phase is not None or quantity != "gradient":
            return found.get(phase)
        return found.get("post_clip") or found.get("pre_clip") or found.get("backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened during a run and is no number.

    Attributes:
        kind: ``attached``, ``detached``, ``resumed``, ``skipped``, ``frozen``, ``unfrozen``, ``loss_scale``, ``gap`` (rows
            that could not be written), ``throttled`` (recording slowed down to keep to ``max_overhead``),
            ``not_observed``, ``flight_record``, ``ranks_differ`` (copies of parameters that are not equal), ``equal_weights``
            (weights that start with the same numbers), ``notice``.
        step: the optimizer step at which it happened; None when it belongs to no step.
        group: name of the model/optimizer pair; empty when there is only one.
        time: wall clock, seconds since the epoch.
        message: one sentence.
        names: tensors it is about.
    """

    kind: str
    step: int | None = None
    group: str = ""
    time: float
    message: str
    names: tuple[str, ...] = ()


_COUNTS = ("zero_count", "nan_count", "inf_count")


def histogram_columns(histograms: Sequence[Histogram]) -> tuple[tuple[str, ...], list[list[float]]]:
    """Columns and rows of a block of histograms.

    Args:
        histograms: one per tensor.

    Returns:
        The bins that occur in any of them, and one row of counts per histogram.
    """
    signs = ("negative", "positive")
    bins = {sign: sorted({e for h in histograms for e, _ in getattr(h, sign)}) for sign in signs}
    columns = (*_COUNTS, *(f"{sign}[{e}]" for sign in signs for e in bins[sign]))
    rows = []
    for histogram in histograms:
        counts = {sign: dict(getattr(histogram, sign)) for sign in signs}
        known = [float(getattr(histogram, name)) for name in _COUNTS]
        rows.append(known + [float(counts[sign].get(e, 0)) for sign in signs for e in bins[sign]])
    return columns, rows


def histogram_of_row(columns: Sequence[str], row: Sequence[float]) -> Histogram:
    """The histogram that a row of :func:`histogram_columns` was made of."""
    counts: dict[str, dict[int, int]] = {"negative": {}, "positive": {}}
    known = dict.fromkeys(_COUNTS, 0)
    for name, value in zip(columns, row, strict=True):
        if name in known:
            known[name] = int(value)
        elif value:
            sign, _, exponent = name.removesuffix("]").partition("[")
            counts[sign][int(exponent)] = int(value)
    return Histogram.from_counts(counts["negative"], counts["positive"], **known)
