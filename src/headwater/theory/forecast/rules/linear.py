"""Matrix products: with a weight, of a gradient with what it meets (∂L/∂W), and sums."""

from __future__ import annotations

import math

import torch

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.elementwise import add, constant_of, scaled
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats


def _count(atoms: tuple[Atom, ...]) -> int:
    return math.prod(a.size for a in atoms)


def as_positions(thing: Thing, features: tuple[int, ...], call: Call, pixels: bool = False) -> Thing:
    """Name the unknown dimensions of a tensor that a layer is applied to: those it sums over are features.

    Args:
        thing: the layer's input.
        features: its feature dimensions.
        call: the operation.
        pixels: whether the positions are those of a convolution.

    Returns:
        The tensor with the first other dimension as samples where it has none, the rest as positions.
    """
    features = tuple(f % len(thing.axes) for f in features)
    unknown = [a for i, d in enumerate(thing.axes) for a in d if a.kind == "unknown" and i not in features]
    count = math.prod(a.size for i, d in enumerate(thing.axes) for a in d if i not in features and a.kind != "sample")
    dense = call.engine.dense(count, pixels)
    if isinstance(thing, Signal):
        # A copy along a dimension says nothing new: it stays one.
        names = {a: a.of_kind("feature") for i, d in enumerate(thing.axes) for a in d
                 if i in features and a.kind == "unknown"}  # fmt: skip
        return thing.renamed(names)
    names = {a: a.of_kind("position", dense) for a in unknown}
    has_samples = any(a.kind == "sample" for d in thing.axes for a in d)
    if unknown and not has_samples and len(unknown) == len({*unknown}) and unknown[0].size == call.samples > 1:
        names[unknown[0]] = unknown[0].of_kind("sample")
    names |= {a: a.of_kind("feature") for i in features for a in thing.axes[i]}
    return thing.renamed(names)


def mixed(call: Call, thing: Thing, axes: Axes, fan: int, weight: Law, features: int) -> Signal:
    """What a matrix with independent entries makes of a tensor.

    q' = fan · E[W²] · q, and every covariance likewise: E over the entries of W of (Wx)_f (Wy)_f. A mean of the entries
    μ adds fan·(fan - 1)·μ²·m_x m_y.

    Args:
        call: the operation.
        thing: what is multiplied, its atoms named.
        axes: of the result.
        fan: entries that one output sums over.
        weight: the law of the entries.
        features: outputs, for the fluctuation 2ρ²/n of the mean square.

    Returns:
        The result.

    References:
        Poole et al., NeurIPS 2016 (forward); Schoenholz et al., ICLR 2017 (backward). The fluctuation: a Gaussian matrix
        with n rows, Hanin & Rolnick, NeurIPS 2018 have the same for ReLU networks.
    """
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("attention scores times a weight")
    stats = signal.stats
    out = stats.without_mean().scaled(math.sqrt(fan * weight.square))
    if weight.mean != 0.0:
        mean = stats.mean * (weight.mean * math.sqrt(max(0, fan * (fan - 1))))
        extra = stats.times(torch.zeros_like(mean))
        outer = mean[:, None] * mean[None, :]
        extra = Stats(stats.atoms, mean * 0.0, mean * mean, outer, mean * mean, outer)
        out = Stats(
            out.atoms,
            stats.mean * fan * weight.mean,
            out.square + extra.square,
            out.within + extra.within,
            out.aligned + extra.aligned,
            out.between + extra.between,
        )
    spread = signal.spread + 2.0 * out.mean_squared_correlation(call.samples) / max(1, features)
    return Signal.of(axes, out, call.samples, spread)


def _law_of(known: Known) -> Law:
    value = known.value.double()
    return Law(known.axes, float(value.mean()), float(value.var(correction=0)) if value.numel() > 1 else 0.0)


def product(call: Call, first: Thing, second: Thing) -> Thing:
    """Matrix product over the last dimension of the first and the last but one of the second.

    Args:
        call: the operation.
        first: (…, n, k).
        second: (…, k, m).

    Returns:
        The result, (…, n, m).

    Raises:
        NoRuleError: a combination without a rule.
    """
    from headwater.theory.forecast.rules.attention import contracted

    width = len(second.axes)
    summed_over = {a.kind for a in (*first.axes[-1], *second.axes[-2])}
    if "sample" in summed_over:  # no parameter has samples: this is ∂L/∂W
        first, second = unify(first, second, [(len(first.axes) - 1, width - 2)])
        return contracted(call, first, second)
    if isinstance(second, Law) or (isinstance(second, Known) and isinstance(first, Signal) and width == 2):
        law = second if isinstance(second, Law) else _law_of(second)
        kinds = {a.kind for a in first.axes[-1]}
        if isinstance(first, Signal) and kinds & {"position", "sample"}:
            raise NoRuleError("a parameter summed over positions")
        thing = as_positions(first, (-1,), call)
        columns = _count(second.axes[-1])
        axes = (*thing.axes[:-1], (Atom("feature", columns),) if columns != 1 else ())
        return mixed(call, thing, axes, _count(first.axes[-1]), law, columns)
    if isinstance(first, Law):
        flipped = product(call, _turned(second), _turned(first))
        return _turned(flipped)
    if not isinstance(first, Signal) and not isinstance(second, Signal):
        raise NoRuleError("a product of two constants too large to compute")
    batch = [(i, i) for i in range(len(first.axes) - 2)]
    first, second = unify(first, second, [*batch, (len(first.axes) - 1, width - 2)])
    return contracted(call, first, second)


def _turned(thing: Thing) -> Thing:
    axes = (*thing.axes[:-2], thing.axes[-1], thing.axes[-2])
    if isinstance(thing, Signal):
        return thing.with_axes(axes)
    if isinstance(thing, Law):
        return Law(axes, thing.mean, thing.variance)
    return Known(axes, thing.value.transpose(-1, -2))


@rule("mm", "bmm", "matmul")
def _mm(call: Call) -> Thing:
    return product(call, call.thing(0), call.thing(1))


@rule("addmm", "baddbmm")
def _addmm(call: Call) -> Thing:
    out = product(call, call.thing(1), call.thing(2))
    beta, alpha = float(call.argument(3, "beta", 1.0)), float(call.argument(4, "alpha", 1.0))
    out = scaled(out, alpha) if alpha != 1.0 else out
    return out if beta == 0.0 else add(call, out, scaled(call.thing(0), beta))


@rule("linear")
def _linear(call: Call) -> Thing:
    out = product(call, call.thing(0), _turned(call.thing(1)))
    return add(call, out, call.thing(2)) if len(call.args) > 2 and call.args[2] is not None else out


# -------------------------------------------------------------------- sums


def _dimensions(call: Call, count: int) -> tuple[int, ...]:
    given = call.argument(1, "dim")
    if given is None or (isinstance(given, list | tuple) and not given):
        return tuple(range(count))
    if isinstance(given, int):
        return (given % count,)
    return tuple(d % count for d in given)


def summed(call: Call, thing: Signal, dims: tuple[int, ...], keep: bool) -> Signal:
    """Sum over dimensions: features add as independent numbers, positions and samples with their covariances.

    Args:
        call: the operation.
        thing: the signal.
        dims: which dimensions.
        keep: whether they stay, of size 1.

    Returns:
        The sum.
    """
    axes: Axes = tuple(() if i in dims else d for i, d in enumerate(thing.axes) if keep or i not in dims)
    atoms = [a for i in dims for a in thing.axes[i]]
    stats, spread = thing.stats, thing.spread
    features = math.prod(a.size for a in atoms if a.kind == "feature")
    copies = math.prod(a.size for a in atoms if a.kind == "unknown")
    positions = [a for a in atoms if a.kind == "position" and a in stats.atoms]
    copies *= math.prod(a.size for a in atoms if a.kind == "position" and a not in stats.atoms)
    samples = math.prod(a.size for a in atoms if a.kind == "sample")
    if samples > 1 and set(positions) == set(stats.atoms):  # over everything: a bias
        square = torch.tensor([stats.total_square(samples)], dtype=torch.float64)
        mean = (stats.mean.mean() * stats.positions * samples).reshape(1)
        stats = Stats((), mean, square, square[None], square, square[None])
        atoms = [a for a in atoms if a.kind != "sample"]
    elif positions:
        if set(positions) != set(stats.atoms):
            stats = _summed_some(stats, positions)
        else:
            one = stats.pair_sums(stats.ones())
            q, d = one[0].reshape(1), one[1].reshape(1)
            mean = (stats.mean.mean() * stats.positions).reshape(1)
            stats = Stats((), mean, q, q[None], d, d[None])
    if any(a.kind == "sample" for a in atoms):
        b = math.prod(a.size for a in atoms if a.kind == "sample")
        within = b * stats.within + b * (b - 1) * stats.between
        square = b * stats.square + b * (b - 1) * stats.aligned
        stats = Stats(stats.atoms, stats.mean * b, square, within, square, within)
    if features > 1:
        # m' = n m; what is left after the mean adds like independent numbers.
        mean = stats.mean * features
        centred = stats.centred().scaled(math.sqrt(features))
        if (
            float(stats.mean.abs().max()) > 0.0
            and float((centred.square / (mean * mean).clamp_min(1e-300)).max()) < 0.25
        ):
            centred = centred.scaled(0.0)  # concentrates: a number per position
        outer = mean[:, None] * mean[None, :]
        stats = Stats(
            stats.atoms,
            mean,
            centred.square + mean * mean,
            centred.within + outer,
            centred.aligned + mean * mean,
            centred.between + outer,
        )
    if copies > 1:
        stats = stats.scaled(float(copies))
    return Signal.of(axes, stats, call.samples, spread)


def _summed_some(stats: Stats, positions: list[Atom]) -> Stats:
    if not all(a.dense for a in stats.atoms):
        raise NoRuleError("a sum over some of the pooled positions")
    rest = [a for a in stats.atoms if a not in positions]
    ordered = stats.fixed_diagonals().reordered([*rest, *positions])
    outer, inner = math.prod(a.size for a in rest), math.prod(a.size for a in positions)
    within = ordered.within.reshape(outer, inner, outer, inner).sum((1, 3))
    between = ordered.between.reshape(outer, inner, outer, inner).sum((1, 3))
    return Stats(
        tuple(rest),
        ordered.mean.reshape(outer, inner).sum(1),
        within.diagonal().clone(),
        within,
        between.diagonal().clone(),
        between,
    )


@rule("sum", "mean")
def _sum(call: Call) -> Thing | None:
    thing = call.thing(0)
    dims = _dimensions(call, len(thing.axes))
    keep = bool(call.argument(2, "keepdim", False))
    count = math.prod(_count(thing.axes[d]) for d in dims)
    if isinstance(thing, Law) or (isinstance(thing, Known) and constant_of(thing) is not None):
        number = constant_of(thing)
        if number is None:
            raise NoRuleError("a sum of a parameter")
        factor = 1.0 if call.name == "mean" else float(count)
        return Law(axes_of_shape(call.shape), number * factor, 0.0)
    signal = to_signal(as_positions(thing, (), call), thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("a sum of attention scores")
    out = summed(call, signal, dims, keep)
    return scaled(out, 1.0 / count) if call.name == "mean" else out
