"""At most ten numbers that tell how a step went, under the names a logger's users know, and more on request."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

from headwater.errors import InputError
from headwater.records.statistics import LOG10_2, Statistics
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS, Block, GradientPhase, StepRecord, WatchedTensor

__all__ = ["SCALAR_NAMES", "Naming", "summary_scalars"]

Naming = Literal["headwater", "wandb", "lightning", "composer", "hf"]
"""Whose tag names: headwater's own, or those that users of the named tool already have in their charts."""

_KEYS = (
    "loss", "learning_rate", "gradient_norm", "gradient_norm_log10", "clip_coefficient", "loss_scale",
    "worst_update_ratio", "nonfinite_tensors", "dead_unit_fraction", "first_last_ratio",
)  # fmt: skip

# The total norm of each preset is the tag that tool uses (Composer's OptimizerMonitor, Lightning's `grad_norm`, the
# transformers Trainer's log); wandb.watch has none, its tags begin with `gradients/`. The others follow its style.
_TAGS: Mapping[Naming, tuple[str, ...]] = {
    "headwater": (
        "train/loss", "train/learning_rate", "grad/norm/total", "grad/norm_log10/total", "grad/clip_coefficient",
        "grad/loss_scale", "update/ratio/max", "grad/nonfinite_tensors", "act/dead_unit_fraction",
        "grad/first_last_ratio",
    ),
    "wandb": (
        "loss", "learning_rate", "gradients/total_norm", "gradients/total_norm_log10", "gradients/clip_coefficient",
        "gradients/loss_scale", "parameters/max_update_ratio", "gradients/nonfinite_tensors",
        "activations/dead_unit_fraction", "gradients/first_last_ratio",
    ),
    "lightning": (
        "loss", "lr", "grad_2.0_norm_total", "grad_2.0_norm_total_log10", "grad_clip_coefficient", "loss_scale",
        "update_ratio_max", "grad_nonfinite_tensors", "dead_unit_fraction", "grad_first_last_ratio",
    ),
    "composer": (
        "loss/train/total", "lr/group0", "l2_norm/grad/global", "l2_norm_log10/grad/global",
        "clip_coefficient/grad/global", "loss_scale", "update_ratio/max/global", "nonfinite_tensors/grad/global",
        "activations/dead_unit_fraction/global", "first_last_ratio/grad/global",
    ),
    "hf": (
        "loss", "learning_rate", "grad_norm", "grad_norm_log10", "grad_clip_coefficient", "loss_scale",
        "update_ratio_max", "grad_nonfinite_tensors", "dead_unit_fraction", "grad_first_last_ratio",
    ),
}  # fmt: skip

SCALAR_NAMES: Mapping[Naming, Mapping[str, str]] = {
    naming: dict(zip(_KEYS, tags, strict=True)) for naming, tags in _TAGS.items()
}
"""For each preset: what a scalar is (``gradient_norm``, …) to the tag it is written under."""

_WEIGHTS = ("weight", "embedding", "recurrent", "attention")


def summary_scalars(
    record: StepRecord, naming: Naming = "headwater", *, per_layer: Sequence[str] = ()
) -> dict[str, float]:
    """The few numbers of a step that are worth a chart each; only what was observed.

    ============================= ==================================================================================
    ``train/loss``                as given
    ``train/learning_rate``       of the optimizer's first group
    ``grad/norm/total``           √Σg² over all parameters, before clipping, without the loss scale (what
                                  ``clip_grad_norm_`` returns); NaN or inf when an element is
    ``grad/norm_log10/total``     its log10, known also where the norm itself leaves the range of a double
    ``grad/clip_coefficient``     norm after clipping / norm before, 0 to 1
    ``grad/loss_scale``           what the loss was multiplied by; only while it is not 1
    ``update/ratio/max``          largest ‖Δw‖/‖w‖ over weights (over all parameters when there is no weight)
    ``grad/nonfinite_tensors``    parameters whose gradient has a NaN or an infinity
    ``act/dead_unit_fraction``    dead units / units, over all layers that have units that can die
    ``grad/first_last_ratio``     rms of the gradient of the first weight / of the last one, in execution order
    ============================= ==================================================================================

    Args:
        record: one recorded step; a micro-batch of one gives nothing.
        naming: whose tag names; see :data:`SCALAR_NAMES`. With several models the group's name and a slash come
            first.
        per_layer: shell patterns of parameter and layer names. A parameter that matches adds the rms of its gradient
            (its l2 norm in the ``lightning`` and ``composer`` presets, whose tags say so), a layer that matches the
            rms of its output and of the gradient there. One pattern can match very many.

    Returns:
        Tag to value: at most ten without ``per_layer``.

    Raises:
        InputError: no such naming.
    """
    if naming not in SCALAR_NAMES:
        raise InputError(f"no naming {naming!r}; there are {', '.join(get_args(Naming))}")
    if record.micro is not None:
        return {}
    found = dict(_totals(record))
    tags = SCALAR_NAMES[naming]
    prefix = f"{record.group}/" if record.group else ""
    scalars = {prefix + tags[key]: found[key] for key in _KEYS if key in found}
    if per_layer:
        scalars.update({prefix + tag: value for tag, value in _single(record, naming, per_layer)})
    return scalars


def _totals(record: StepRecord) -> Iterator[tuple[str, float]]:
    if record.loss is not None:
        yield "loss", record.loss
    if record.learning_rate is not None:
        yield "learning_rate", record.learning_rate
    block, divisor = _gradient(record)
    rows = list(_rows(block))
    if rows and divisor is not None:
        yield from _norm(rows, divisor)
    if record.clip_coefficient is not None and rows:
        yield "clip_coefficient", record.clip_coefficient
    if record.loss_scale is not None and record.loss_scale != 1.0:
        yield "loss_scale", record.loss_scale
    worst = _worst_update_ratio(record.block("update"))
    if worst is not None:
        yield "worst_update_ratio", worst
    if rows:
        yield "nonfinite_tensors", float(sum(1 for row in rows if row.nan_count or row.inf_count))
    dead = _dead_fraction(record.block("units"))
    if dead is not None:
        yield "dead_unit_fraction", dead
    ratio = _first_last_ratio(rows)
    if ratio is not None:
        yield "first_last_ratio", ratio


class _Row:
    """The size of one tensor's gradient, from either tier of statistics."""

    __slots__ = ("count", "inf_count", "nan_count", "norm_log10", "tensor")

    def __init__(self, tensor: WatchedTensor, norm_log10: float, count: float, nan: float, inf: float) -> None:
        self.tensor, self.norm_log10, self.count, self.nan_count, self.inf_count = tensor, norm_log10, count, nan, inf

    @property
    def rms_log10(self) -> float:
        return self.norm_log10 - 0.5 * math.log10(self.count) if self.count else math.nan


def _log10(x: float) -> float:
    return math.log10(x) if x > 0.0 else -math.inf


def _rows(block: Block | None) -> Iterator[_Row]:
    """One per observed tensor, in the block's order."""
    if block is None:
        return
    columns = tuple(block.columns)
    for tensor, row in zip(block.tensors, block.rows, strict=True):
        if math.isnan(row[0]):
            continue
        if columns == STATISTICS_COLUMNS:
            stats = Statistics(*(int(x) for x in row[:5]), *row[5:])
            norm = 0.5 * _log10(stats.scaled_sum_squares) + stats.scale_log2 * LOG10_2
            yield _Row(tensor, norm, stats.finite_count, stats.nan_count, stats.inf_count)
        elif columns == NORM_COLUMNS:
            yield _Row(tensor, _log10(row[0]), math.prod(tensor.shape) - row[1] - row[2], row[1], row[2])


def _gradient(record: StepRecord) -> tuple[Block | None, float | None]:
    """The gradient before clipping, and what it still has to be divided by; None when that is not known."""
    divisors: Mapping[GradientPhase, float | None] = {
        "pre_clip": 1.0,
        "backward": record.loss_scale,
        "post_clip": None,  # clipped: its ratios hold, its norm is another quantity
    }
    for phase, divisor in divisors.items():
        block = record.block("gradient", phase)
        if block is not None:
            return block, divisor
    return None, None


def _norm(rows: Sequence[_Row], divisor: float) -> Iterator[tuple[str, float]]:
    """√Σ‖g‖², summed relative to the largest so that no square leaves the range of a double."""
    if any(row.nan_count for row in rows):
        yield "gradient_norm", math.nan
        return
    if any(row.inf_count for row in rows):
        yield "gradient_norm", math.inf
        return
    top = max(row.norm_log10 for row in rows)
    if top == -math.inf:
        yield "gradient_norm", 0.0
        return
    total = top + 0.5 * math.log10(math.fsum(10.0 ** (2.0 * (row.norm_log10 - top)) for row in rows)) - _log10(divisor)
    yield "gradient_norm", _power_of_ten(total)
    yield "gradient_norm_log10", total


def _power_of_ten(exponent: float) -> float:
    try:
        return math.pow(10.0, exponent)
    except OverflowError:
        return math.inf


def _worst_update_ratio(block: Block | None) -> float | None:
    if block is None:
        return None
    ratios = [
        (tensor, ratio)
        for tensor, ratio in zip(block.tensors, block.column("update_ratio"), strict=True)
        if math.isfinite(ratio)  # a parameter that was zero has no ratio
    ]
    of_weights = [ratio for tensor, ratio in ratios if tensor.role in _WEIGHTS]
    return max(of_weights or [ratio for _, ratio in ratios], default=None)


def _dead_fraction(block: Block | None) -> float | None:
    if block is None:
        return None
    pairs = [
        (dead, units)
        for dead, units in zip(block.column("dead_count"), block.column("unit_count"), strict=True)
        if units > 0 and not math.isnan(dead)
    ]
    return sum(dead for dead, _ in pairs) / sum(units for _, units in pairs) if pairs else None


def _first_last_ratio(rows: Sequence[_Row]) -> float | None:
    weights = sorted((row for row in rows if row.tensor.role == "weight"), key=lambda row: row.tensor.order)
    if len(weights) < 2:
        return None
    first, last = weights[0].rms_log10, weights[-1].rms_log10
    if math.isnan(first) or not math.isfinite(last):
        return None
    return _power_of_ten(first - last)


# ---------------------------------------------------------------- single tensors

_SINGLE: Mapping[Naming, tuple[str, str, str]] = {
    "headwater": ("grad/rms/{}", "act/rms/{}", "agrad/rms/{}"),
    "wandb": ("gradients/{}/rms", "activations/{}/rms", "activation_gradients/{}/rms"),
    "lightning": ("grad_2.0_norm/{}", "activation_rms/{}", "activation_grad_rms/{}"),
    "composer": ("l2_norm/grad/{}", "activations/rms/{}", "activations/grad_rms/{}"),
    "hf": ("grad_rms/{}", "activation_rms/{}", "activation_grad_rms/{}"),
}


def _single(record: StepRecord, naming: Naming, patterns: Sequence[str]) -> Iterator[tuple[str, float]]:
    def matching(block: Block | None) -> Iterator[_Row]:
        return (row for row in _rows(block) if any(fnmatch.fnmatchcase(row.tensor.name, p) for p in patterns))

    gradient_tag, activation_tag, output_tag = _SINGLE[naming]
    block, divisor = _gradient(record)
    as_norm = naming in ("lightning", "composer")
    for row in matching(block if divisor is not None else None):
        size = row.norm_log10 if as_norm else row.rms_log10
        yield gradient_tag.format(row.tensor.name), _value(row, size - _log10(divisor or 1.0))
    for row in matching(record.block("activation")):
        yield activation_tag.format(row.tensor.name), _value(row, row.rms_log10)
    for row in matching(record.block("output_gradient")):
        yield output_tag.format(row.tensor.name), _value(row, row.rms_log10)


def _value(row: _Row, size_log10: float) -> float:
    if row.nan_count:
        return math.nan
    return math.inf if row.inf_count else _power_of_ten(size_log10)
