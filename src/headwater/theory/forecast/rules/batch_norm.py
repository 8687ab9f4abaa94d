"""BatchNorm in training and evaluation, InstanceNorm and GroupNorm: normalisations over positions and samples."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.theory.forecast.axes import NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.rules.normalization import (
    beside,
    epsilon_of,
    feature_law,
    inverse_deviation,
    optional_argument,
    per_feature_gradients,
    those_wanted,
    weighted,
    with_parameters,
)
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal
from headwater.theory.forecast.stats import Stats


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
    weight = feature_law(optional_argument(call, 1), signal.axes[1], len(signal.axes), 1)
    bias = feature_law(optional_argument(call, 2), signal.axes[1], len(signal.axes), 1)
    if train:
        centred = _batch_centred(signal.stats, call.samples)
        normal = centred.scaled(float(inverse_deviation(centred.square.mean(), eps)))
        out = Signal.of(signal.axes, normal.fixed_diagonals(), call.samples)
        call.engine.notes["normal", call.engine.key(call.args[0])] = out
    else:
        mean, variance = (_average(optional_argument(call, k), default) for k, default in ((3, 0.0), (4, 1.0)))
        if mean != 0.0:
            raise NoRuleError("batch normalisation with a running mean")
        out = Signal.of(signal.axes, signal.stats.scaled((variance + eps) ** -0.5), call.samples, signal.spread)
    return [with_parameters(call, out, weight, bias), None, None]


def _per_sample(call: Call, position: int) -> bool:
    """Whether the channels are samples and features together: torch's instance normalisation is a batch normalisation."""
    thing = call.thing(position)
    return isinstance(thing, Signal) and len(thing.axes) > 1 and any(a.kind == "sample" for a in thing.axes[1])


def _image_parameters(call: Call, signal: Signal, positions: tuple[int, int]) -> list[Thing | None]:
    """A weight repeated for every sample is one per feature."""
    atoms = tuple(a for a in signal.axes[1] if a.kind != "sample")
    found = []
    for k in positions:
        law = feature_law(optional_argument(call, k), atoms, len(signal.axes), 1) if k >= 0 else None
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
    return [with_parameters(call, out, weight, bias), None, None]


def _instance_norm_backward(call: Call) -> list[Thing | None]:
    signal = call.thing(1)
    assert isinstance(signal, Signal)
    gradient = beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    (weight,) = _image_parameters(call, signal, (2, -1))[:1]
    through = to_signal(weighted(call, delta, weight), signal.axes, call.samples)
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
    return those_wanted(call, [out, *sums])


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
    gradient = beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = feature_law(optional_argument(call, 2), signal.axes[1], len(signal.axes), 1)
    through = to_signal(weighted(call, delta, weight), signal.axes, call.samples)
    atoms = tuple(dict.fromkeys((*signal.atoms, *through.atoms)))
    b = call.samples
    if not train:
        scale = (_average(optional_argument(call, 4), 1.0) + eps) ** -0.5
        out = Signal.of(signal.axes, through.stats.scaled(scale), b, through.spread)
        normal = signal.stats.scaled(scale)
    else:
        x = _batch_centred(signal.stats.broadcast(atoms), b)
        inverse = float(inverse_deviation(x.square.mean(), eps))
        normal = x.scaled(inverse)
        g = _batch_centred(through.stats.broadcast(atoms), b)
        out = Signal.of(signal.axes, _without_component(g, normal, b).scaled(inverse), b, through.spread)
    gamma, beta = per_feature_gradients(call, delta, normal, signal, 1)
    return those_wanted(call, [out, gamma, beta])


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
    weight = feature_law(optional_argument(call, 1), signal.axes[1], len(signal.axes), 1)
    bias = feature_law(optional_argument(call, 2), signal.axes[1], len(signal.axes), 1)
    return [with_parameters(call, out, weight, bias), None, None]


def _group_normal(call: Call, signal: Signal, channels: int, eps: float) -> tuple[Stats, float]:
    """x̂ of a group of channels and all positions of one sample, and the inverse of its std."""
    stats = signal.stats
    overall = float(stats.mean.mean())
    centred = stats.plus(Stats.constant(-overall, overall**2).broadcast(stats.atoms)) if overall else stats
    one, _ = centred.pair_sums(centred.ones())
    # The mean over c channels of independent signals keeps 1/c of their average covariance.
    lost = float(one) / stats.positions**2 / channels
    inverse = float(inverse_deviation(centred.square.mean() - lost, eps))
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
    gradient = beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = feature_law(optional_argument(call, 4), signal.axes[1], len(signal.axes), 1)
    through = to_signal(weighted(call, delta, weight), signal.axes, call.samples)
    channels = int(call.args[6]) // int(call.args[8])
    normal, inverse = _group_normal(call, signal, channels, epsilon_of(call, signal))
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
    gamma, beta = per_feature_gradients(call, delta, normal, signal, 1)
    return those_wanted(call, [out, gamma, beta])
