"""Two recorded runs held against each other: the first step and tensor at which they part, and how they drift apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from headwater.errors import InputError, NothingObservedError
from headwater.records.run import RecordedStep, RunSource
from headwater.records.saved import Saved
from headwater.records.step import Quantity, WatchedTensor

__all__ = ["COMPARED", "DEFAULT_RTOL", "Drift", "Parting", "RunComparison", "compare_runs", "renamed"]

DEFAULT_RTOL = 1e-5
"""Relative difference that is no difference: a hundred times float32's rounding. Chosen by us."""

COMPARED: tuple[tuple[Quantity, str, str], ...] = (
    ("value", "rms_log10", "rms of the values"),
    ("activation", "rms_log10", "rms of the output"),
    ("output_gradient", "rms_log10", "rms of the output's gradient"),
    ("gradient", "rms_log10", "rms of the gradient"),
    ("second_moment", "root_rms", "root mean square of the second moment"),
    ("update", "update_ratio", "update ratio"),
)
"""What is compared of every tensor, in the order in which a training step makes it: quantity, statistic, words."""

_SETTINGS: tuple[tuple[str, str], ...] = (
    ("learning_rate", "learning rate"),
    ("loss_scale", "loss scale"),
    ("clip_coefficient", "clip coefficient"),
)
_RESULTS: tuple[tuple[str, str], ...] = (("loss", "loss"), ("gradient_norm_log10", "gradient norm"))
_LOGS = ("rms_log10", "gradient_norm_log10")
# Chosen by us: partings that are kept, moments of the drift, and numbers held in memory at once.
_KEPT = 50
_DRIFT_POINTS = 300
_CELLS = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where one number of the two runs first differs beyond the tolerance.

    Attributes:
        step: the optimizer step.
        name: of the tensor (as in the second run), or empty for a number of the step as a whole.
        quantity: such as ``gradient`` or ``update``; for the step as a whole ``loss``, ``learning_rate`` and so on.
        statistic: what was compared, such as ``rms`` or ``update_ratio``; empty for the step as a whole.
        value_a: in the first run.
        value_b: in the second run.
        relative_difference: |a - b| / max(|a|, |b|), 0 to 2; infinite where one of them is not finite.
    """

    step: int
    name: str = ""
    quantity: str
    statistic: str = ""
    value_a: float
    value_b: float
    relative_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far apart the two runs are over the steps.

    Attributes:
        quantity: what is compared.
        steps: common recorded steps, at most about 300.
        largest: the largest relative difference over all tensors, at each step.
        median: the median one.
    """

    quantity: str
    steps: tuple[int, ...]
    largest: tuple[float, ...]
    median: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison(Saved):
    """Two recorded runs held against each other.

    Attributes:
        name_a: of the first run.
        name_b: of the second run.
        rtol: relative difference up to which two numbers are the same.
        renames: old start of a name to the new one, applied to the first run's names.
        common_steps: steps that both recorded.
        first_common: the first of them.
        last_common: the last of them.
        only_a: steps that only the first run recorded.
        only_b: steps that only the second run recorded.
        tensors: layers and parameters that both have.
        missing_in_a: names that only the second run has.
        missing_in_b: names that only the first run has (as renamed).
        partings: the first difference of every tensor and quantity that differs, the earliest first: the first 50, and of
            every quantity the first; within a step in the order in which training makes the numbers.
        parting_count: how many there are.
        settings: first differences of learning rate, loss scale and clip coefficient: what somebody chose.
        results: first differences of the loss and the gradient norm.
        drift: how far apart they are over the steps, one entry per quantity.
    """

    SCHEMA: ClassVar[str] = "headwater.run_comparison"

    name_a: str
    name_b: str
    rtol: float
    renames: Mapping[str, str] = field(default_factory=dict)
    common_steps: int
    first_common: int
    last_common: int
    only_a: int = 0
    only_b: int = 0
    tensors: int = 0
    missing_in_a: tuple[str, ...] = ()
    missing_in_b: tuple[str, ...] = ()
    partings: tuple[Parting, ...] = ()
    parting_count: int = 0
    settings: tuple[Parting, ...] = ()
    results: tuple[Parting, ...] = ()
    drift: tuple[Drift, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing that both recorded differs beyond the tolerance."""
        return not (self.partings or self.settings or self.results)

    def first(self, quantity: str) -> Parting | None:
        """The earliest difference of a quantity.

        Args:
            quantity: such as ``gradient``, ``update``, ``loss`` or ``learning_rate``.

        Returns:
            The difference, or None when there is none.
        """
        everything = (*self.partings, *self.settings, *self.results)
        return next((parting for parting in everything if parting.quantity == quantity), None)


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """A name after the first rule that fits.

    Args:
        name: dotted.
        renames: old start to new start; whole parts of the name. An empty old start fits every name, and an empty new
            one drops the old.

    Returns:
        The new name.

    Example:
        >>> renamed("encoder.fc1.weight", {"encoder": "body"}), renamed("encoders.fc", {"encoder": "body"})
        ('body.fc1.weight', 'encoders.fc')
        >>> renamed("module.fc", {"module": ""}), renamed("fc", {"": "net"})
        ('fc', 'net.fc')
    """
    for old, new in renames.items():
        if not old:
            return f"{new}.{name}"
        if name == old and new:
            return new
        if name.startswith(f"{old}."):
            rest = name[len(old) + 1 :]
            return f"{new}.{rest}" if new else rest
    return name


def compare_runs(
    a: RunSource, b: RunSource, *, rtol: float = DEFAULT_RTOL, renames: Mapping[str, str] | None = None
) -> RunComparison:
    """Hold two runs against each other at the steps and the tensors that both recorded.

    Args:
        a: the first run.
        b: the second run.
        rtol: relative difference up to which two numbers are the same.
        renames: old start to new start of names of the first run, as in :func:`renamed`.

    Returns:
        The comparison.

    Raises:
        InputError: ``rtol`` is negative, or two tensors of the first run get the same name.
        NothingObservedError: the runs have no recorded step, or no tensor, in common.
    """
    if not rtol >= 0.0:
        raise InputError(f"rtol is {rtol}; it is a relative difference, zero or larger")
    rules = dict(renames or {})
    common = sorted(set(a.steps) & set(b.steps))
    if not common:
        raise NothingObservedError(
            f"runs {a.name} and {b.name} have no recorded step in common: {_span(a.steps)} and {_span(b.steps)}"
        )
    pairs, only_a, only_b = _align(a.tensors, b.tensors, rules)
    if not pairs:
        raise NothingObservedError(
            f"runs {a.name} and {b.name} have no layer or parameter name in common: {_examples(only_a)} and "
            f"{_examples(only_b)}; give a rule such as --rename OLD=NEW"
        )
    settings, results = _compare_steps(a.recorded_steps(), b.recorded_steps(), rtol)
    partings, drift = _compare_tensors(a, b, pairs, common, rtol)
    return RunComparison(
        name_a=a.name,
        name_b=b.name,
        rtol=rtol,
        renames=rules,
        common_steps=len(common),
        first_common=common[0],
        last_common=common[-1],
        only_a=len(a.steps) - len(common),
        only_b=len(b.steps) - len(common),
        tensors=len(pairs),
        missing_in_a=tuple(only_b),
        missing_in_b=tuple(only_a),
        partings=_kept(partings),
        parting_count=len(partings),
        settings=settings,
        results=results,
        drift=drift,
    )


def _span(steps: Sequence[int]) -> str:
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}" if steps else "no step"


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "") if names else "none"


_Pair = tuple[WatchedTensor, WatchedTensor]


def _align(
    a: Sequence[WatchedTensor], b: Sequence[WatchedTensor], rules: Mapping[str, str]
) -> tuple[list[_Pair], list[str], list[str]]:
    """Tensors by kind and name, in the second run's order; then the names that only one has."""
    ours: dict[tuple[str, str], WatchedTensor] = {}
    for tensor in a:
        key = (tensor.kind, renamed(tensor.name, rules))
        if key in ours:
            raise InputError(f"the rules rename both {ours[key].name!r} and {tensor.name!r} to {key[1]!r}")
        ours[key] = tensor
    theirs = {(tensor.kind, tensor.name): tensor for tensor in b}
    pairs = [(ours[key], tensor) for key, tensor in theirs.items() if key in ours]
    only_a = list(dict.fromkeys(name for kind, name in ours if (kind, name) not in theirs))
    only_b = list(dict.fromkeys(name for kind, name in theirs if (kind, name) not in ours))
    return pairs, only_a, only_b


def _difference(x: float, y: float, *, log: bool) -> float:
    """|x - y| / max(|x|, |y|); of two logarithms, of the numbers themselves."""
    if x == y or (math.isnan(x) and math.isnan(y)):
        return 0.0
    if log:
        if math.isnan(x) or math.isnan(y) or math.inf in (x, y):
            return math.inf
        return -math.expm1(-abs(x - y) * math.log(10.0))  # 1 - min/max, exact for small differences too
    if not (math.isfinite(x) and math.isfinite(y)):
        return math.inf
    return abs(x - y) / max(abs(x), abs(y))


def _number(value: float, *, log: bool) -> float:
    if not log or not math.isfinite(value):
        return 0.0 if log and value == -math.inf else value
    return 10.0**value if abs(value) < 300 else (0.0 if value < 0 else math.inf)


def _compare_steps(
    a: Sequence[RecordedStep], b: Sequence[RecordedStep], rtol: float
) -> tuple[tuple[Parting, ...], tuple[Parting, ...]]:
    """First differences of what is told once per step."""
    theirs = {(row.group, row.step): row for row in b}
    both = [(row, other) for row in a if (other := theirs.get((row.group, row.step))) is not None]
    found: list[list[Parting]] = []
    for names in (_SETTINGS, _RESULTS):
        firsts = []
        for attribute, words in names:
            log = attribute in _LOGS
            for row, other in both:
                x, y = getattr(row, attribute), getattr(other, attribute)
                if x is None or y is None:
                    continue
                difference = _difference(x, y, log=log)
                if difference > rtol:
                    quantity = attribute.removesuffix("_log10")
                    firsts.append(
                        Parting(
                            step=row.step,
                            quantity=quantity,
                            statistic="" if quantity.replace("_", " ") == words else words,
                            value_a=_number(x, log=log),
                            value_b=_number(y, log=log),
                            relative_difference=difference,
                        )
                    )
                    break
        found.append(sorted(firsts, key=lambda parting: parting.step))
    return tuple(found[0]), tuple(found[1])


def _compare_tensors(
    a: RunSource, b: RunSource, pairs: Sequence[_Pair], common: Sequence[int], rtol: float
) -> tuple[list[Parting], tuple[Drift, ...]]:
    partings: list[tuple[int, int, int, Parting]] = []
    drifts = []
    kept = {common[round(i * (len(common) - 1) / max(1, _DRIFT_POINTS - 1))] for i in range(_DRIFT_POINTS)}
    for order, (quantity, statistic, _) in enumerate(COMPARED):
        log = statistic in _LOGS
        columns: dict[int, list[float]] = {}
        for place, (pair, row) in enumerate(_rows(a, b, pairs, quantity, statistic)):
            first = True
            for step, x, y in row:
                difference = _difference(x, y, log=log)
                if step in kept:
                    columns.setdefault(step, []).append(difference)
                if first and difference > rtol:
                    first = False
                    found = Parting(
                        step=step,
                        name=pair[1].name,
                        quantity=quantity,
                        statistic=statistic.removesuffix("_log10"),
                        value_a=_number(x, log=log),
                        value_b=_number(y, log=log),
                        relative_difference=difference,
                    )
                    partings.append((step, order, place, found))
        if columns:
            steps = sorted(columns)
            drifts.append(
                Drift(
                    quantity=quantity,
                    steps=tuple(steps),
                    largest=tuple(max(columns[step]) for step in steps),
                    median=tuple(statistics.median(columns[step]) for step in steps),
                )
            )
    return [found for *_, found in sorted(partings, key=lambda entry: entry[:3])], tuple(drifts)


def _kept(partings: Sequence[Parting]) -> tuple[Parting, ...]:
    """The earliest ones, and in any case the earliest of every quantity."""
    seen: set[str] = set()
    kept = []
    for position, parting in enumerate(partings):
        if position < _KEPT or parting.quantity not in seen:
            kept.append(parting)
        seen.add(parting.quantity)
    return tuple(kept)


def _rows(
    a: RunSource, b: RunSource, pairs: Sequence[_Pair], quantity: Quantity, statistic: str
) -> Iterator[tuple[_Pair, list[tuple[int, float, float]]]]:
    """Of every pair of tensors the steps at which both were observed, a bounded part of the runs in memory at a time."""
    wanted = "layer" if quantity in ("activation", "output_gradient") else "parameter"
    own = [pair for pair in pairs if pair[0].kind == wanted]
    columns = max(1, len(a.steps), len(b.steps))
    size = max(1, _CELLS // columns)
    for start in range(0, len(own), size):
        part = own[start : start + size]
        values_a = _values(a, quantity, statistic, [x.name for x, _ in part], columns)
        values_b = _values(b, quantity, statistic, [y.name for _, y in part], columns)
        for pair in part:
            x, y = values_a.get(pair[0].name, {}), values_b.get(pair[1].name, {})
            row = [(step, value, y[step]) for step, value in x.items() if step in y]
            if row:
                yield pair, row


def _values(
    run: RunSource, quantity: Quantity, statistic: str, names: Sequence[str], columns: int
) -> dict[str, dict[int, float]]:
    found = run.matrix(quantity, statistic, tensors=names, max_columns=columns)
    return {
        tensor.name: {step: v for step, v in zip(found.steps, row, strict=True) if v is not None}
        for tensor, row in zip(found.tensors, found.values, strict=True)
    }
