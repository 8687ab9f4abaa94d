"""Maximum over windows of positions, by drawing the window's Gaussian argument.

No closed form holds for the maximum of correlated Gaussians of which two samples share a part. The argument u of the layer
before (max φ(u) = φ(max u) for an increasing φ) is drawn for two samples together, with the covariances that are known,
from a fixed seed; the moments of max φ(u), and how often two positions are both the largest of their window, are averages
over the draws. Their relative error is about √(2/draws) for one window and less for the mean over many. Derived by us.

The gradient reaches the largest position alone: K_x[p, p'] = Σ K_δ[o, o'] P(p is largest in o and p' in o'). Where an
activation came before, its slope at the largest position is not that of any position: P(slope) grows from 1/2 to
1 - 2^-k for a ReLU and k independent positions. So the routed gradient carries a function of u, √(k P(largest | u)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.pointwise import Function, function_stats
from headwater.theory.forecast.rules.convolution import _each, _over_all, _spatial, taps
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.signals import Root, Signal, Term, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats

_DRAWS = 4096  # relative error √(2/4096) = 2 % of one window's moment, 0.005 decades; chosen by us
_DRAWS_OF_MANY = 1024  # from 256 positions on, where 16 windows and more are averaged; chosen by us


@dataclass
class _Pooled:
    """What a forward leaves for its backward.

    Attributes:
        signal: the argument.
        maps: for each tap, the position that each window sees.
        windows: how many windows there are.
        chosen: over (tap, window) pairs, within a sample and between two: how often both are the largest of their windows.
        sloped: the same times the product of the slopes of φ.
        slopes: E φ'(u) φ'(u') times the routed function's, what multiplying by both functions would make of it.
        route: √(k P(largest | u)).
    """

    signal: Signal
    maps: list[Tensor]
    windows: int
    chosen: Tensor
    sloped: Tensor
    slopes: Tensor
    route: Function


def _argument(signal: Signal) -> tuple[Term, Function]:
    """The Gaussian that the signal is an increasing function of."""
    if signal.base is not None and signal.carrier is None and signal.function is not None:
        return signal.base, signal.function
    plain = signal if signal.plain and signal.factor == 1.0 else signal.forgotten()
    assert plain.carrier is not None
    return plain.carrier, lambda t: t


def two_samples(stats: Stats, count: int) -> tuple[Tensor, Tensor]:
    """Draw a Gaussian signal at every position, for two samples together, from a fixed seed.

    Args:
        stats: of the signal, per position.
        count: draws.

    Returns:
        The two samples, (draws, positions) each.
    """
    dense = stats.fixed_diagonals()
    mean = stats.mean
    outer = mean[:, None] * mean[None, :]
    within, between = dense.within - outer, dense.between - outer
    generator = torch.Generator().manual_seed(0)
    halves = []
    for matrix in (within + between, within - between):
        root = _root(0.5 * (matrix + matrix.T))
        noise = torch.randn(count, stats.nodes, generator=generator, dtype=torch.float64)
        halves.append(noise @ root.T)
    scale = math.sqrt(0.5)
    return mean + scale * (halves[0] + halves[1]), mean + scale * (halves[0] - halves[1])


def _root(matrix: Tensor) -> Tensor:
    """R with R Rᵀ = matrix, nearest to it where rounding or averaging left a negative eigenvalue."""
    small = 1e-9 * matrix.diagonal().abs().mean()
    factor, failed = torch.linalg.cholesky_ex(matrix + small * torch.eye(len(matrix), dtype=matrix.dtype))
    if bool(failed):
        values, vectors = torch.linalg.eigh(matrix)
        factor = vectors * values.clamp_min(0.0).sqrt()
    found: Tensor = factor
    return found


_STEP = 1e-4  # of the central difference, in standard deviations: a kink is off for 1e-4 of the draws; chosen by us


def _slope(fn: Function, width: float) -> Function:
    step = _STEP * max(width, 1e-30)
    return lambda t: (fn(t + step) - fn(t - step)) / (2.0 * step)


def _largest(u: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The maximum of each window, and for each tap whether it is the largest, (taps, draws, windows)."""
    padded = torch.nn.functional.pad(u, (0, 1), value=-math.inf)
    stacked = torch.stack([padded[:, index] for index in maps])
    best, place = stacked.max(0)
    return best, torch.stack([place == k for k in range(len(maps))])


def _moments(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Raw covariances within a sample and between two, from draws of both."""
    n = len(first)
    within = (first.T @ first + second.T @ second) / (2 * n)
    between = first.T @ second / n
    return within, 0.5 * (between + between.T)


def _pool(call: Call, signal: Signal, maps: list[Tensor], atoms: Sequence[Atom], token: object) -> Stats:
    base, function = _argument(signal)
    stats = base.stats.broadcast([a for a in signal.atoms if a in base.stats.atoms] or base.stats.atoms)
    positions, windows = stats.nodes, len(maps[0])
    count = _DRAWS if positions < 256 else _DRAWS_OF_MANY
    first, second = two_samples(stats, count)
    slope = _slope(function, float((stats.square - stats.mean**2).clamp_min(0.0).mean().sqrt()))
    results, routed, sloped, at = [], [], [], []
    for u in (first, second):
        best, chosen = _largest(u, maps)
        results.append(function(best))
        # (draws, taps · windows): each position once for every window it lies in
        flat = chosen.to(torch.float64).transpose(0, 1).reshape(count, -1)
        routed.append(flat)
        index = torch.stack(maps).reshape(-1)
        slopes = torch.nn.functional.pad(slope(u), (0, 1))[:, index]
        sloped.append(flat * slopes)
        at.append(slopes)
    within, between = _moments(*results)
    mean = 0.5 * (results[0].mean(0) + results[1].mean(0))
    route = _route(first, second, maps, stats)
    of_both = function_stats(lambda t: route(t) * slope(t), stats)
    index = torch.stack(maps).reshape(-1)
    pad = torch.nn.functional.pad
    expected = [pad(k, (0, 1, 0, 1), value=1.0)[index][:, index] for k in (of_both.within, of_both.between)]
    call.engine.notes["largest", token] = _Pooled(
        signal,
        maps,
        windows,
        torch.stack(_moments(*routed)),
        torch.stack(_moments(*sloped)),
        torch.stack(expected),
        route,
    )
    return Stats(tuple(atoms), mean, within.diagonal().clone(), within, between.diagonal().clone(), between)


def _route(first: Tensor, second: Tensor, maps: Sequence[Tensor], stats: Stats) -> Function:
    """√(k P(largest | u)), read off the draws in bins of the standardised argument."""
    deviation = (stats.square - stats.mean**2).clamp_min(1e-300).sqrt()
    centre, width = float(stats.mean.mean()), float(deviation.mean())
    inside = torch.cat([m[m < stats.nodes] for m in maps])
    edges = torch.linspace(-3.0, 3.0, 25, dtype=torch.float64)
    hits, seen = torch.zeros(26, dtype=torch.float64), torch.zeros(26, dtype=torch.float64)
    for u in (first, second):
        _, chosen = _largest(u, maps)
        for k, index in enumerate(maps):
            valid = index < stats.nodes
            z = (u[:, index[valid]] - centre) / width
            place = torch.bucketize(z, edges).reshape(-1)
            hits.index_add_(0, place, chosen[k][:, valid].to(torch.float64).reshape(-1))
            seen.index_add_(0, place, torch.ones_like(place, dtype=torch.float64))
    rate = (hits / seen.clamp_min(1.0)).sqrt()
    share = float(hits.sum() / max(1, len(inside)) / (2 * len(first)))
    rate = rate / math.sqrt(max(share, 1e-300))
    middles = torch.cat([edges[:1] - 0.5, 0.5 * (edges[:-1] + edges[1:]), edges[-1:] + 0.5])

    def route(t: Tensor) -> Tensor:
        z = ((t - centre) / width).clamp(float(middles[0]), float(middles[-1]))
        right = torch.bucketize(z, middles).clamp(1, len(middles) - 1)
        left = right - 1
        part = (z - middles[left]) / (middles[right] - middles[left])
        return rate[left] * (1.0 - part) + rate[right] * part

    norm = math.sqrt(float(function_stats(route, stats).square.mean()))
    return lambda t: route(t) / norm


def _added(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Rows and columns of one position added up: it may be the largest of several windows."""
    rows = torch.zeros(size, len(index), dtype=torch.float64).index_add_(0, index, values)
    return torch.zeros(size, size, dtype=torch.float64).index_add_(1, index, rows)


def _routed(call: Call, pooled: _Pooled, delta: Stats, spread: float) -> Signal:
    """The gradient at every position, from that of the windows."""
    signal, windows = pooled.signal, pooled.windows
    base, _ = _argument(signal)
    atoms = base.atoms
    index = torch.stack(pooled.maps).reshape(-1)
    window = torch.arange(windows).repeat(len(pooled.maps))
    positions = base.stats.nodes
    dense = delta.fixed_diagonals()
    found = []
    for k, kernel in enumerate((dense.within, dense.between)):
        arriving = kernel[window][:, window]
        # Multiplied by the slope later on, it is to have the covariance of the two together.
        ratio = torch.where(pooled.slopes[k] > 1e-12, pooled.sloped[k] / pooled.slopes[k].clamp_min(1e-12), 0.0)
        total, own = (_added(v, index, positions + 1) for v in (arriving * ratio, arriving * pooled.chosen[k]))
        found.append((total[:positions, :positions], own.diagonal()[:positions].clone()))
    (within, square), (between, aligned) = found
    within.diagonal().copy_(square)
    between.diagonal().copy_(aligned)
    root = Root(Stats(atoms, torch.zeros_like(square), square, within, aligned, between), spread)
    return Signal(signal.axes, Term(root, atoms), base, pooled.route, samples=call.samples)


# -------------------------------------------------------------------- windows


def _windows(call: Call, source: Sequence[int], target: Sequence[int], first: int) -> list[Tensor]:
    n = len(source)
    kernel = _each(call.args[first], n)
    given = call.args[first + 1] if len(call.args) > first + 1 else None
    stride = _each(given, n) if given else kernel
    padding = _each(call.args[first + 2], n) if len(call.args) > first + 2 else [0] * n
    dilation = _each(call.args[first + 3], n) if len(call.args) > first + 3 else [1] * n
    return taps(source, target, kernel, stride, padding, dilation)


def _maximum(call: Call, maps: list[Tensor] | None, spatial: int) -> list[Thing | None]:
    _, signal = _spatial(call, 0)
    if maps is None:
        raise NoRuleError("a maximum over windows of different sizes")
    if any(not a.dense for a in signal.atoms):
        raise NoRuleError("a maximum over more positions than are kept apart")
    places = [a for d in signal.axes[2:] for a in d]
    if math.prod(a.size for a in places) != signal.stats.positions or [*signal.stats.atoms] != places:
        signal = _over_places(signal, places, call)
    target = list(call.shape[2:])
    atoms = [Atom("position", n) for n in target if n != 1]
    stats = _pool(call, signal, maps, atoms, call.engine.key(call.outputs[1]))
    positions = iter(atoms)
    axes: Axes = (*signal.axes[: -len(target)], *((next(positions),) if n != 1 else () for n in target))
    return [Signal.of(axes, stats, call.samples, signal.spread), None]


def _over_places(signal: Signal, places: list[Atom], call: Call) -> Signal:
    """Statistics over every position, in the order of the dimensions."""
    if signal.base is not None and signal.carrier is None and set(signal.base.atoms) == set(places):
        root = Root(signal.base.stats.reordered(places), signal.base.root.spread)
        return Signal(signal.axes, None, Term(root, tuple(places)), signal.function, samples=call.samples)
    return Signal.of(signal.axes, signal.stats.broadcast(places), call.samples, signal.spread)


@rule("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(call: Call) -> list[Thing | None]:
    source, target = list(call.args[0].shape[2:]), list(call.shape[2:])
    return _maximum(call, _windows(call, source, target, 1), len(source))


@rule("adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(call: Call) -> list[Thing | None]:
    source, target = list(call.args[0].shape[2:]), list(call.shape[2:])
    if any(s % t for s, t in zip(source, target, strict=True)):
        return _maximum(call, None, len(source))
    kernel = [s // t for s, t in zip(source, target, strict=True)]
    return _maximum(call, taps(source, target, kernel, kernel, [0] * len(kernel), [1] * len(kernel)), len(source))


@rule(
    "max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward",
)  # fmt: skip
def _max_pool_backward(call: Call) -> Thing:
    pooled = call.engine.notes.get(("largest", call.engine.key(call.args[-1])))
    if not isinstance(pooled, _Pooled):
        raise NoRuleError("the gradient of a maximum that was not seen")
    target = list(call.args[0].shape[2:])
    _, thing = unify(pooled.signal, call.thing(0), [(0, 0), (1, 1)])
    delta = to_signal(thing, thing.axes, call.samples)
    stats = _over_all(delta, range(2, len(delta.axes)), target, True)
    return _routed(call, pooled, stats, delta.spread)


# -------------------------------------------------------------------- over a whole dimension


@rule("max", "min")
def _over_dimension(call: Call) -> list[Thing | None]:
    """The largest of all positions along one dimension (max pooling over time)."""
    if len(call.args) < 2 or not isinstance(call.args[1], int):
        raise NoRuleError("a maximum over everything")
    thing = as_positions(call.thing(0), (), call)
    signal = to_signal(thing, thing.axes, call.samples)
    dim = int(call.args[1]) % len(signal.axes)
    places = list(signal.axes[dim])
    if call.name == "min" or not places or any(a.kind != "position" or not a.dense for a in places):
        raise NoRuleError("a maximum over something that is no dimension of positions")
    if set(signal.stats.atoms) != set(places):
        raise NoRuleError("a maximum over some of the positions")
    signal = _over_places(signal, places, call)
    maps = [torch.tensor([k]) for k in range(signal.stats.positions)]
    stats = _pool(call, signal, maps, (), call.engine.key(call.outputs[1]))
    keep = bool(call.argument(2, "keepdim", False))
    axes: Axes = tuple(() if i == dim else d for i, d in enumerate(signal.axes) if keep or i != dim)
    return [Signal.of(axes, stats, call.samples, signal.spread), None]


@rule("scatter")
def _scatter(call: Call) -> Thing:
    """zeros.scatter(dim, indices, gradient), where the indices are those of a maximum."""
    pooled = call.engine.notes.get(("largest", call.engine.key(call.args[2])))
    if not isinstance(pooled, _Pooled):
        pooled = next((n for k, n in call.engine.notes.items() if isinstance(k, tuple) and k[0] == "largest"
                       and k[1][0] == call.engine.key(call.args[2])[0]), None)  # fmt: skip
    if not isinstance(pooled, _Pooled):
        raise NoRuleError("a scatter that is no gradient of a maximum")
    thing = call.thing(3)
    delta = to_signal(thing, thing.axes, call.samples)
    return _routed(call, pooled, delta.stats.averaged(()), delta.spread)
