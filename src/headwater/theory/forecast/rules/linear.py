"""Matrix products: with a weight, of a gradient with what it meets (∂L/∂W), and sums."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.length import LengthLaw, pooled_variance
from headwater.theory.forecast.pointwise import function_fourth_ratio
from headwater.theory.forecast.rules.elementwise import add, constant_of, scaled
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, uneven_lengths, unify
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
    has_samples = any(a.kind == "sample" for d in thing.axes for a in d)
    first = unknown[0] if unknown and not has_samples and not isinstance(thing, Signal) else None
    sample = first if first is not None and len(unknown) == len({*unknown}) and first.size == call.samples > 1 else None
    others = [
        a for i, d in enumerate(thing.axes) for a in d if i not in features and a.kind != "sample" and a != sample
    ]
    dense = call.engine.dense(math.prod(a.size for a in others), pixels)
    if isinstance(thing, Signal):
        # A copy along a dimension says nothing new: it stays one.
        names = {a: a.of_kind("feature") for i, d in enumerate(thing.axes) for a in d
                 if i in features and a.kind == "unknown"}  # fmt: skip
        thing = thing.renamed(names)
        laid = [a for i, d in enumerate(thing.axes) for a in d if i not in features and a.kind == "feature"]
        return _laid_out(call, thing, laid, dense) if pixels and laid else thing
    names = {a: a.of_kind("position", dense) for a in unknown}
    if sample is not None:
        names[sample] = sample.of_kind("sample")
    names |= {a: a.of_kind("feature") for i in features for a in thing.axes[i]}
    return thing.renamed(names)


def _laid_out(call: Call, signal: Signal, features: list[Atom], dense: bool) -> Signal:
    """Features of a linear layer laid out as pixels: positions whose numbers are independent."""
    names = {a: a.of_kind("position", dense) for a in features}
    kept = any(not a.dense for a in signal.atoms)
    if kept and dense:
        names = {a: a.of_kind("position", False) for a in features}
    stats = signal.stats.independent(tuple(names.values()))
    axes: Axes = tuple(tuple(names.get(a, a) for a in d) for d in signal.axes)
    return Signal.of(axes, stats, call.samples, signal.spread)


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
    own = 2.0 * out.mean_squared_correlation(call.samples) / max(1, features)
    law = _length_law(call, thing, signal, fan, weight, features)
    if law is not None and out.square[0] > 0.0:
        if law.parent is not None:
            out = out.scaled(math.sqrt(law.mean_square() / float(out.square[0])))
        result = Signal.of(axes, out, call.samples, pooled_variance(law.variance, law.common, call.samples) + own)
        assert result.carrier is not None
        result.carrier.root.law = law
        return result
    profile = signal.profile if weight.mean == 0.0 and stats.positions == 1 else None
    result = Signal.of(axes, out, call.samples, (signal.spread if profile is None else signal.noise) + own)
    assert result.carrier is not None
    result.carrier.root.profile = profile
    return result


def _length_law(call: Call, thing: Thing, signal: Signal, fan: int, weight: Law, features: int) -> LengthLaw | None:
    """The law of a sample's length behind a dense layer of the forward pass; None where it is not followed."""
    if weight.mean != 0.0 or weight.square == 0.0 or signal.stats.positions != 1 or not torch.is_grad_enabled():
        return None
    if not isinstance(thing, Signal):
        if signal.stats.average() == 0.0:
            return None
        uneven = uneven_lengths(thing)
        # E q is known; that of a log-normal law is e^(mean + variance/2).
        return LengthLaw(math.log(fan * weight.square * signal.stats.average()) - 0.5 * uneven, uneven, 0.0, features)
    if thing.base is not None and thing.carrier is not None:
        return None
    term = thing.base or thing.carrier
    assert term is not None
    law, factor = term.root.law, thing.factor
    if law is None:
        return None
    function = thing.function or (lambda t: factor * t)
    pair = 0.0
    if call.samples > 1:  # the average over pairs holds each sample with itself once in B
        every = function_fourth_ratio(function, term.stats, call.samples)
        alone = function_fourth_ratio(function, term.stats, 1)
        pair = (call.samples * every - alone) / (call.samples - 1) / signal.features
    return law.next(function, fan * weight.square, signal.features, features, pair)


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
        columns = _count(second.axes[-1])
        if isinstance(first, Signal) and any(a.kind == "position" for a in first.axes[-1]):
            return _over_positions(call, first, law, columns)
        thing = as_positions(first, (-1,), call)
        axes = (*thing.axes[:-1], (Atom("feature", columns),) if columns != 1 else ())
        out = mixed(call, thing, axes, _count(first.axes[-1]), law, columns)
        laid = _laid(call, columns)
        if laid is None:
            return out
        # The gradient of what was flattened: independent entries at every position.
        positions = [a for a in laid if a.kind == "position"]
        stats = out.stats.independent(positions)
        return Signal.of((*axes[:-1], laid), stats, call.samples, out.spread)
    if isinstance(first, Law):
        flipped = product(call, _turned(second), _turned(first))
        return _turned(flipped)
    if not isinstance(first, Signal) and not isinstance(second, Signal):
        raise NoRuleError("a product of two constants too large to compute")
    batch = [(i, i) for i in range(len(first.axes) - 2)]
    first, second = unify(first, second, [*batch, (len(first.axes) - 1, width - 2)])
    return contracted(call, first, second)


def _over_positions(call: Call, signal: Signal, weight: Law, columns: int) -> Signal:
    """A matrix with independent entries that sums over positions: q' = fan · E[W²] · mean over positions of q.

    Where it sums over features too (flattened pixels), its outputs are features. Where it sums over positions alone, each
    feature by itself (token mixing), its outputs are new positions, independent of one another.
    """
    if signal.structure is not None:
        raise NoRuleError("attention scores times a weight")
    if weight.mean**2 > 1e-3 * weight.variance:
        raise NoRuleError("a matrix over positions whose entries do not average to zero")
    atoms = signal.axes[-1]
    summed_over = [a for a in atoms if a.kind == "position"]
    stats = signal.stats.broadcast(tuple(dict.fromkeys((*signal.stats.atoms, *summed_over))))
    rest = [a for a in stats.atoms if a not in summed_over]
    if len(rest) + len(summed_over) > 1 and not stats.dense and rest:
        raise NoRuleError("a matrix over some of the pooled positions")
    out = stats.averaged(rest).without_mean().scaled(math.sqrt(_count(atoms) * weight.square))
    mixes_features = any(a.kind in ("feature", "unknown") for a in atoms)
    others = any(a.kind == "feature" for d in signal.axes[:-1] for a in d)
    if mixes_features or not others:
        _lay(call, atoms)
        new: tuple[Atom, ...] = (Atom("feature", columns),) if columns != 1 else ()
    else:
        new = (Atom("position", columns, all(a.dense for a in atoms)),) if columns != 1 else ()
        out = out.independent(new)
    spread = signal.spread + 2.0 * out.mean_squared_correlation(call.samples) / max(1, columns)
    return Signal.of((*signal.axes[:-1], new), out, call.samples, spread)


def _memories(call: Call) -> list[Hashable]:
    return [call.engine.key(t)[0] for t in call.args if isinstance(t, Tensor) and t.is_meta]


def _lay(call: Call, atoms: tuple[Atom, ...]) -> None:
    """Remember what the columns of a weight count, for the gradient that comes back through it."""
    for memory in _memories(call):
        call.engine.notes["laid", memory] = atoms


def _laid(call: Call, columns: int) -> tuple[Atom, ...] | None:
    for memory in _memories(call):
        atoms = call.engine.notes.get(("laid", memory))
        if atoms is not None and _count(atoms) == columns:
            found: tuple[Atom, ...] = atoms
            return found
    return None


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
    if features > 1 and features == thing.features and thing.removed[0] >= 1.0:
        stats = stats.scaled(0.0)  # a normalisation over these features took out their mean: they sum to zero
    elif features > 1:
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
