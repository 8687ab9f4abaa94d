"""LayerNorm, RMSNorm, GroupNorm and BatchNorm in training: what they divide by, and what they project out.

x̂ = (x - mean)/std over n numbers; ∂L/∂x = (δ - mean δ - x̂ mean(δ x̂))/std for δ = γ ∂L/∂y: two of n directions are
projected out, so that E over independent δ is (1 - 2/n) q_δ. Where normalisations follow one another along a skip
(post-LN), the gradient has no component along the mean any more, and one of sin² along x̂: x̂ and what the normalisation
before put out, y, differ by the branch only, cos² = |y|²/(|y|² + |branch|²). Derived by us.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.pointwise import function_stats
from headwater.theory.forecast.rules.elementwise import add, multiply, product
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats


def _feature_law(thing: Thing | None, atoms: tuple[Atom, ...], width: int, dimension: int) -> Thing | None:
    """A parameter per feature, laid along that dimension."""
    if thing is None:
        return None
    if isinstance(thing, Law):
        axes = tuple(atoms if i == dimension else () for i in range(width))
        return Law(axes, thing.mean, thing.variance)
    if isinstance(thing, Known):
        value = thing.value.double()
        law = Law(thing.axes, float(value.mean()), float(value.var(correction=0)) if value.numel() > 1 else 0.0)
        return _feature_law(law, atoms, width, dimension)
    raise NoRuleError("a normalisation with a computed weight")


def _optional(call: Call, position: int) -> Thing | None:
    return call.thing(position) if len(call.args) > position and isinstance(call.args[position], Tensor) else None


def _beside(signal: Signal, gradient: Thing) -> Thing:
    """The gradient under the signal's names."""
    same, gradient = unify(signal, gradient, [(i, i) for i in range(len(signal.axes))])
    if same.axes != signal.axes:
        raise NoRuleError("a gradient whose dimensions are made of other factors")
    return gradient


def _with_parameters(call: Call, out: Signal, weight: Thing | None, bias: Thing | None) -> Thing:
    result: Thing = out
    if weight is not None:
        result = multiply(call, result, weight)
    if bias is not None:
        result = add(call, result, bias)
    return result


def _inverse(variance: Tensor, eps: float) -> Tensor:
    return (variance.clamp_min(0.0) + eps).rsqrt()


def _layer_input(call: Call, position: int, dims: int) -> tuple[Signal, int]:
    thing = as_positions(call.thing(position), tuple(range(-dims, 0)), call)
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("a normalisation of attention scores")
    count = math.prod(a.size for d in signal.axes[-dims:] for a in d)
    if any(a.kind in ("position", "sample") for d in signal.axes[-dims:] for a in d):
        raise NoRuleError("a normalisation over features and positions together")
    return signal, count


@rule("native_layer_norm")
def _layer_norm(call: Call) -> list[Thing | None]:
    dims = len(call.args[1])
    signal, n = _layer_input(call, 0, dims)
    call.engine.notes["eps", call.engine.key(call.args[0])] = float(call.args[4])
    stats = signal.stats.centred()
    variance = stats.square * (1.0 - 1.0 / n)
    normal = stats.scaled(math.sqrt(1.0 - 1.0 / n)).times(_inverse(variance, float(call.args[4])))
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    last = len(signal.axes) - 1
    weight = _feature_law(_optional(call, 2), signal.axes[-1], len(signal.axes), last)
    bias = _feature_law(_optional(call, 3), signal.axes[-1], len(signal.axes), last)
    return [_with_parameters(call, out, weight, bias), None, None]


def _weighted(call: Call, gradient: Thing, weight: Thing | None) -> Thing:
    return gradient if weight is None else multiply(call, gradient, weight)


def _per_feature_gradients(
    call: Call, gradient: Signal, normal: Stats, signal: Signal, dimension: int
) -> tuple[Signal, Signal]:
    """∂L/∂γ = Σ δ x̂ and ∂L/∂β = Σ δ over samples and positions.

    Where an activation follows, δ = d φ'(x̂): δ x̂ = d φ'(x̂) x̂ has a mean that d may share over all positions.
    """
    atoms = signal.axes[dimension]
    kept = call.engine.notes.get(("normal", call.engine.key(call.args[1])))
    if isinstance(kept, Signal) and len(kept.axes) == len(gradient.axes):
        one, two = unify(gradient, kept, [(i, i) for i in range(len(kept.axes))])
        assert isinstance(one, Signal)
        assert isinstance(two, Signal)
        along = _with_part(one, two)
        if along is None:
            along = product(one, two, one.axes, call.samples).stats
    else:
        positions = tuple(dict.fromkeys((*gradient.atoms, *normal.atoms)))
        along = gradient.stats.broadcast(positions).product(normal.broadcast(positions))
    delta = gradient.stats.broadcast(tuple(dict.fromkeys((*gradient.atoms, *signal.atoms))))
    copies = math.prod(a.size for d in gradient.axes for a in d if a.kind == "unknown" and a not in atoms)
    found = []
    for summand in (along, delta):
        square = summand.total_square(call.samples) * copies * copies
        found.append(Signal.of((atoms,), Stats.constant(0.0, square), call.samples, gradient.spread))
    return found[0], found[1]


def _with_part(gradient: Signal, normal: Signal) -> Stats | None:
    """Moments of δ x̂ where δ = d f(u) and x̂ is one of the parts that u is the sum of: a residual block's last normalisation.

    x̂ = b (u - E u) + r with b = Cov(x̂, u)/Var u and r independent of u: δ x̂ = d f(u) b (u - E u) + δ r, and the first part
    has a mean that d may share over positions and samples. Derived by us; exact where x̂ and u are jointly Gaussian.

    Args:
        gradient: δ.
        normal: x̂, under the same names.

    Returns:
        The moments; None for any other δ.
    """
    base, function = gradient.base, gradient.function
    if base is None or function is None or gradient.carrier is None or normal.carrier is None or not normal.plain:
        return None
    factor = sum(factor for term, factor in base.root.parts if term.root is normal.carrier.root)
    if not factor:
        return None
    shortcut = base.root.shortcut
    law = None if shortcut is None else shortcut.law
    total, x = function_stats(law.forward if law is not None else (lambda w: w), base.stats), normal.stats
    middle, variance = float(total.mean.mean()), float((total.square - total.mean**2).mean())
    if not variance > 0.0:
        return None
    share = factor * float(x.centred().square.mean()) / variance

    def moved(w: Tensor) -> Tensor:
        u = w if law is None else law.forward(w)
        return function(w) * share * (u - middle)

    atoms = tuple(dict.fromkeys((*gradient.atoms, *normal.atoms)))
    along = replace(gradient, function=moved, _stats=None, _spread=None).stats.broadcast(atoms)
    # What of x̂ is left: its moments without the part along u. Means of the two are 0 and E d f(u) b (u - E u).
    around = total.centred().scaled(share).broadcast(atoms)
    own = x.broadcast(atoms)
    rest = Stats(
        atoms,
        torch.zeros_like(own.mean),
        (own.square - around.square).clamp_min(0.0),
        own.within - around.within,
        own.aligned - around.aligned,
        own.between - around.between,
    )
    return along.plus(gradient.stats.broadcast(atoms).product(rest))


@rule("native_layer_norm_backward")
def _layer_norm_backward(call: Call) -> list[Thing | None]:
    dims = len(call.args[2])
    signal, n = _layer_input(call, 1, dims)
    gradient = _beside(signal, call.thing(0))
    last = len(signal.axes) - 1
    weight = _feature_law(_optional(call, 5), signal.axes[-1], len(signal.axes), last)
    delta = to_signal(gradient, signal.axes, call.samples)
    positions = signal.atoms
    centred = signal.stats.centred()
    inverse = _inverse(centred.square * (1.0 - 1.0 / n), _eps(call, signal))
    normal = centred.times(inverse)
    through = to_signal(_weighted(call, delta, weight), signal.axes, call.samples)
    atoms = tuple(dict.fromkeys((*positions, *through.atoms)))
    g, x = through.stats.broadcast(atoms).centred(), normal.broadcast(atoms)
    inverse = _spread_over(inverse, signal.stats, atoms)
    # A gradient that came down a skip lost these two directions at the normalisation above: no second time.
    mean, along = ((1.0 - r) / n for r in through.removed)
    kept = Stats(
        g.atoms,
        g.mean,
        g.square * (1.0 - mean - along * (2.0 - x.square**2)),
        g.within * (1.0 - mean - along * (2.0 - x.within**2)),
        g.aligned * (1.0 - mean - along * (2.0 - x.aligned**2)),
        g.between * (1.0 - mean - along * (2.0 - x.between**2)),
    )
    out = Signal.of(signal.axes, kept.times(inverse), call.samples, through.spread)
    assert out.carrier is not None
    share = signal.carrier.root.main_share if signal.plain and signal.carrier is not None else 0.0
    out.carrier.root.removed = (1.0, share)
    gamma, beta = _per_feature_gradients(call, delta, normal, signal, -1)
    return _masked(call, [out, gamma, beta])


def _spread_over(values: Tensor, stats: Stats, atoms: tuple[Atom, ...]) -> Tensor:
    carrier = Stats(stats.atoms, values, values, stats.within, values, stats.between)
    return carrier.broadcast(atoms).mean


def _eps(call: Call, signal: Signal) -> float:
    return float(call.engine.notes.get(("eps", call.engine.key(call.args[1])), 1e-5))


def _masked(call: Call, results: list[Thing | None]) -> list[Thing | None]:
    """Only the gradients that were asked for are among the outputs."""
    mask = next((a for a in reversed(call.args) if isinstance(a, list | tuple) and a and isinstance(a[0], bool)), None)
    return results if mask is None else [r for r, wanted in zip(results, mask, strict=True) if wanted]


# -------------------------------------------------------------------- BatchNorm


def _totals(stats: Stats, b: int) -> tuple[Tensor, Tensor]:
    """Mean of the covariances over all samples and positions: per position, and overall."""
    p = stats.positions
    if stats.dense:
        rows = (stats.within.sum(1) + (b - 1) * stats.between.sum(1)) / (b * p)
        return rows, rows.mean()
    one = stats.square[0] + (p - 1) * stats.within[0, 0] + (b - 1) * (stats.aligned[0] + (p - 1) * stats.between[0, 0])
    value = one / (b * p)
    return value.reshape(1), value


def _batch_centred(stats: Stats, b: int) -> Stats:
    """Of the tensor minus its mean over samples and positions, per feature."""
    rows, whole = _totals(stats, b)
    outer = rows[:, None] + rows[None, :] - whole
    own = 2.0 * rows - whole
    return Stats(
        stats.atoms,
        torch.zeros_like(stats.mean),
        (stats.square - own).clamp_min(0.0),
        stats.within - outer,
        stats.aligned - own,
        stats.between - outer,
    )


def _channels(call: Call, position: int) -> Signal:
    thing = as_positions(call.thing(position), (1,), call, pixels=True)
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None or any(a.kind == "position" for a in signal.axes[1]):
        raise NoRuleError("a batch normalisation over positions")
    return signal


@rule("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "batch_norm")
def _batch_norm(call: Call) -> list[Thing | None]:
    if _per_sample(call, 0):
        return _instance_norm(call)
    signal = _channels(call, 0)
    train = call.args[5] if call.name in ("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit") else True
    eps = float(call.args[7])
    call.engine.notes["eps", call.engine.key(call.args[0])] = eps
    weight = _feature_law(_optional(call, 1), signal.axes[1], len(signal.axes), 1)
    bias = _feature_law(_optional(call, 2), signal.axes[1], len(signal.axes), 1)
    if train:
        centred = _batch_centred(signal.stats, call.samples)
        normal = centred.scaled(float(_inverse(centred.square.mean(), eps)))
        out = Signal.of(signal.axes, normal.fixed_diagonals(), call.samples)
        call.engine.notes["normal", call.engine.key(call.args[0])] = out
    else:
        mean, variance = (_average(_optional(call, k), default) for k, default in ((3, 0.0), (4, 1.0)))
        if mean != 0.0:
            raise NoRuleError("batch normalisation with a running mean")
        out = Signal.of(signal.axes, signal.stats.scaled((variance + eps) ** -0.5), call.samples, signal.spread)
    return [_with_parameters(call, out, weight, bias), None, None]


def _per_sample(call: Call, position: int) -> bool:
    """Whether the channels are samples and features together: torch's instance normalisation is a batch normalisation."""
    thing = call.thing(position)
    return isinstance(thing, Signal) and len(thing.axes) > 1 and any(a.kind == "sample" for a in thing.axes[1])


def _image_parameters(call: Call, signal: Signal, positions: tuple[int, int]) -> list[Thing | None]:
    """A weight repeated for every sample is one per feature."""
    atoms = tuple(a for a in signal.axes[1] if a.kind != "sample")
    found = []
    for k in positions:
        law = _feature_law(_optional(call, k), atoms, len(signal.axes), 1) if k >= 0 else None
        found.append(law)
    return found


def _instance_norm(call: Call) -> list[Thing | None]:
    signal = call.thing(0)
    assert isinstance(signal, Signal)
    if not call.args[5]:
        raise NoRuleError("instance normalisation with running statistics")
    normal = _group_normal(call, signal, 1, float(call.args[7]))[0]
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    weight, bias = _image_parameters(call, signal, (1, 2))
    return [_with_parameters(call, out, weight, bias), None, None]


def _instance_norm_backward(call: Call) -> list[Thing | None]:
    signal = call.thing(1)
    assert isinstance(signal, Signal)
    gradient = _beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    (weight,) = _image_parameters(call, signal, (2, -1))[:1]
    through = to_signal(_weighted(call, delta, weight), signal.axes, call.samples)
    normal, inverse = _group_normal(call, signal, 1, float(call.args[8]))
    atoms = tuple(dict.fromkeys((*signal.atoms, *through.atoms)))
    g = _batch_centred(through.stats.broadcast(atoms), 1)
    kept = _without_component(g, normal.broadcast(atoms), 1)
    out = Signal.of(signal.axes, kept.scaled(inverse), call.samples, through.spread)
    # One number per sample and feature; the repetition's gradient adds the samples.
    sums: list[Thing | None] = []
    for summand in (delta.stats.broadcast(atoms).product(normal.broadcast(atoms)), delta.stats.broadcast(atoms)):
        one, two = (v.reshape(1) for v in summand.pair_sums(summand.ones()))
        square = Stats((), torch.zeros(1, dtype=torch.float64), one, one[None], two, two[None])
        sums.append(Signal.of((signal.axes[1],), square, call.samples, delta.spread))
    return _masked(call, [out, *sums])


def _average(thing: Thing | None, default: float) -> float:
    if thing is None:
        return default
    if isinstance(thing, Law):
        return thing.mean
    if isinstance(thing, Known):
        return float(thing.value.double().mean())
    raise NoRuleError("running statistics that were computed")


@rule("native_batch_norm_backward", "cudnn_batch_norm_backward")
def _batch_norm_backward(call: Call) -> list[Thing | None]:
    # native_batch_norm_backward(grad, input, weight, running_mean, running_var, save_mean, save_invstd, train, eps, mask)
    if _per_sample(call, 1):
        return _instance_norm_backward(call)
    signal = _channels(call, 1)
    train, eps = bool(call.args[7]), float(call.args[8])
    gradient = _beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = _feature_law(_optional(call, 2), signal.axes[1], len(signal.axes), 1)
    through = to_signal(_weighted(call, delta, weight), signal.axes, call.samples)
    atoms = tuple(dict.fromkeys((*signal.atoms, *through.atoms)))
    b = call.samples
    if not train:
        scale = (_average(_optional(call, 4), 1.0) + eps) ** -0.5
        out = Signal.of(signal.axes, through.stats.scaled(scale), b, through.spread)
        normal = signal.stats.scaled(scale)
    else:
        x = _batch_centred(signal.stats.broadcast(atoms), b)
        inverse = float(_inverse(x.square.mean(), eps))
        normal = x.scaled(inverse)
        g = _batch_centred(through.stats.broadcast(atoms), b)
        out = Signal.of(signal.axes, _without_component(g, normal, b).scaled(inverse), b, through.spread)
    gamma, beta = _per_feature_gradients(call, delta, normal, signal, 1)
    return _masked(call, [out, gamma, beta])


def _without_component(g: Stats, x: Stats, b: int) -> Stats:
    """Of g - x̂ mean(g x̂), the mean over samples and positions; g and x̂ independent, x̂ of variance 1.

    E[g_i x̂_j mean(g x̂)] = (K_g K_x)_ij / N, E[mean(g x̂)²] = Σ K_g K_x / N².
    """
    p = g.positions
    n = b * p
    one, two = g.pair_sums(x)
    kappa = float(b * one + b * (b - 1) * two) / (n * n)
    if g.dense:
        gs, gd, xs, xd = g.within, g.between, x.within, x.between
        same = (gs @ xs + (b - 1) * gd @ xd) / n
        other = (gs @ xd + gd @ xs + (b - 2) * gd @ xd) / n
        within = gs - same - same.T + kappa * xs
        between = gd - other - other.T + kappa * xd
        return Stats(
            g.atoms,
            g.mean,
            within.diagonal().clamp_min(0.0),
            within,
            between.diagonal().clone(),
            between,
        )
    # One node: covariances are small against the moments; Σ_n K_g[i, n] K_x[n, i] / N is the leading term.
    row = (g.square * x.square + (p - 1) * (g.within * x.within)[0] + (b - 1) * g.aligned * x.aligned) / n
    row = row + (b - 1) * (p - 1) * (g.between * x.between)[0] / n
    return Stats(
        g.atoms,
        g.mean,
        (g.square - 2.0 * row + kappa * x.square).clamp_min(0.0),
        g.within - 2.0 * row + kappa * x.within if p > 1 else g.within,
        g.aligned - 2.0 * row + kappa * x.aligned,
        g.between - 2.0 * row + kappa * x.between,
    )


# -------------------------------------------------------------------- GroupNorm


@rule("native_group_norm")
def _group_norm(call: Call) -> list[Thing | None]:
    # native_group_norm(input, weight, bias, N, C, HxW, group, eps)
    signal = _channels(call, 0)
    normal = _group_normal(call, signal, int(call.args[4]) // int(call.args[6]), float(call.args[7]))[0]
    call.engine.notes["eps", call.engine.key(call.args[0])] = float(call.args[7])
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    weight = _feature_law(_optional(call, 1), signal.axes[1], len(signal.axes), 1)
    bias = _feature_law(_optional(call, 2), signal.axes[1], len(signal.axes), 1)
    return [_with_parameters(call, out, weight, bias), None, None]


def _group_normal(call: Call, signal: Signal, channels: int, eps: float) -> tuple[Stats, float]:
    """x̂ of a group of channels and all positions of one sample, and the inverse of its std."""
    stats = signal.stats
    overall = float(stats.mean.mean())
    centred = stats.plus(Stats.constant(-overall, overall**2).broadcast(stats.atoms)) if overall else stats
    one, _ = centred.pair_sums(centred.ones())
    # The mean over c channels of independent signals keeps 1/c of their average covariance.
    lost = float(one) / stats.positions**2 / channels
    inverse = float(_inverse(centred.square.mean() - lost, eps))
    reduced = Stats(
        centred.atoms,
        centred.mean,
        (centred.square - lost).clamp_min(0.0),
        centred.within - lost,
        centred.aligned,
        centred.between,
    )
    return reduced.scaled(inverse), inverse


@rule("native_group_norm_backward")
def _group_norm_backward(call: Call) -> list[Thing | None]:
    # native_group_norm_backward(grad, input, mean, rstd, weight, N, C, HxW, group, mask)
    signal = _channels(call, 1)
    gradient = _beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = _feature_law(_optional(call, 4), signal.axes[1], len(signal.axes), 1)
    through = to_signal(_weighted(call, delta, weight), signal.axes, call.samples)
    channels = int(call.args[6]) // int(call.args[8])
    normal, inverse = _group_normal(call, signal, channels, _eps(call, signal))
    stats = through.stats.broadcast(tuple(dict.fromkeys((*signal.atoms, *through.atoms))))
    ones, _ = stats.pair_sums(stats.ones())
    along, _ = stats.pair_sums(normal.broadcast(stats.atoms))
    p = stats.positions
    lost = (float(ones) + float(along)) / (p * p * channels)  # mean δ and mean δ x̂ over c · P numbers
    kept = Stats(
        stats.atoms,
        stats.mean,
        (stats.square - lost).clamp_min(0.0),
        stats.within - lost,
        stats.aligned,
        stats.between,
    )
    out = Signal.of(signal.axes, kept.scaled(inverse), call.samples, through.spread)
    gamma, beta = _per_feature_gradients(call, delta, normal, signal, 1)
    return _masked(call, [out, gamma, beta])


# -------------------------------------------------------------------- RMSNorm, fused


@rule("_fused_rms_norm")
def _rms_norm(call: Call) -> list[Thing | None]:
    dims = len(call.args[1])
    signal, _ = _layer_input(call, 0, dims)
    eps = call.argument(3, "eps")
    value = float(torch.finfo(torch.float32).eps if eps is None else eps)
    call.engine.notes["eps", call.engine.key(call.args[0])] = value
    normal = signal.stats.times(_inverse(signal.stats.square, value))
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    weight = _feature_law(_optional(call, 2), signal.axes[-1], len(signal.axes), len(signal.axes) - 1)
    return [_with_parameters(call, out, weight, None), None]


@rule("_fused_rms_norm_backward")
def _rms_norm_backward(call: Call) -> list[Thing | None]:
    # _fused_rms_norm_backward(grad, input, normalized_shape, rstd, weight, mask)
    dims = len(call.args[2])
    signal, n = _layer_input(call, 1, dims)
    gradient = _beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = _feature_law(_optional(call, 4), signal.axes[-1], len(signal.axes), len(signal.axes) - 1)
    through = to_signal(_weighted(call, delta, weight), signal.axes, call.samples)
    inverse = _inverse(signal.stats.square, _eps(call, signal))
    normal = signal.stats.times(inverse)
    atoms = tuple(dict.fromkeys((*signal.atoms, *through.atoms)))
    g, x = through.stats.broadcast(atoms), normal.broadcast(atoms)
    kept = Stats(
        g.atoms,
        g.mean,
        g.square * (1.0 - 2.0 / n + x.square**2 / n),
        g.within * (1.0 - 2.0 / n + x.within**2 / n),
        g.aligned * (1.0 - 2.0 / n + x.aligned**2 / n),
        g.between * (1.0 - 2.0 / n + x.between**2 / n),
    )
    out = Signal.of(signal.axes, kept.times(_spread_over(inverse, signal.stats, atoms)), call.samples, through.spread)
    gamma, _ = _per_feature_gradients(call, delta, normal, signal, -1)
    return _masked(call, [out, gamma])
