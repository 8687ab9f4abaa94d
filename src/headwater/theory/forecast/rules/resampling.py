"""Linear maps of positions: interpolation, padding, rolling, and pixels out of channels and back.

y = M x for every feature alike: mean M m, covariance M K Mᵀ, and the gradient goes back by Mᵀ. M is read off the operation
itself, applied to one image per position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.convolution import _over_all
from headwater.theory.forecast.rules.elementwise import constant_of
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.signals import Law, Signal, Thing, to_signal
from headwater.theory.forecast.stats import Stats

_LARGEST = 1 << 12  # positions up to which a map is written out; chosen by us


def mapped(stats: Stats, matrix: Tensor, atoms: Sequence[Atom]) -> Stats:
    """Of M x.

    Args:
        stats: of x, per position.
        matrix: M, (outputs, inputs).
        atoms: position atoms of the result.

    Returns:
        Its statistics.
    """
    dense = stats.fixed_diagonals()
    within, between = matrix @ dense.within @ matrix.T, matrix @ dense.between @ matrix.T
    return Stats(
        tuple(atoms), matrix @ dense.mean, within.diagonal().clone(), within, between.diagonal().clone(), between
    )


def _matrix(function: Callable[[Tensor], Tensor], source: Sequence[int]) -> Tensor:
    """M of a linear map of one channel of ``source`` positions."""
    n = math.prod(source)
    if n > _LARGEST:
        raise NoRuleError("a map of more positions than are kept apart")
    images = torch.eye(n, dtype=torch.float64).reshape(n, 1, *source)
    return function(images).reshape(n, -1).T


def _call_again(call: Call, *, skip: int = 1) -> Callable[[Tensor], Tensor]:
    function = getattr(torch.ops.aten, call.name)

    def again(x: Tensor) -> Tensor:
        found: Tensor = function(x, *call.args[skip:], **call.kwargs)
        return found

    return again


def _resampled(call: Call, spatial: int, function: Callable[[Tensor], Tensor]) -> Signal:
    count = len(call.args[0].shape)
    features = tuple(range(1, count - spatial)) if count - spatial > 1 else ()
    thing = as_positions(call.thing(0), features, call, pixels=True)
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("a map of attention scores")
    places = [a for d in signal.axes[-spatial:] for a in d]
    if any(a.kind != "position" for a in places) or any(a not in places for a in signal.atoms):
        raise NoRuleError("a map of dimensions that are not positions")
    source, target = list(call.args[0].shape[-spatial:]), list(call.shape[-spatial:])
    stats = signal.stats.broadcast(places)
    if not stats.dense:
        raise NoRuleError("a map of more positions than are kept apart")
    atoms = [Atom("position", n, call.engine.dense(math.prod(target), pixels=True)) for n in target if n != 1]
    out = mapped(stats, _matrix(function, source), [a.of_kind("position") for a in atoms])
    if any(not a.dense for a in atoms):
        out = out.pooled(atoms)
    positions = iter(atoms)
    axes: Axes = (*signal.axes[:-spatial], *((next(positions),) if n != 1 else () for n in target))
    return Signal.of(axes, out.with_atoms(atoms), call.samples, signal.spread)


_UPSAMPLED = {
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 2, "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_bicubic2d": 2,
    "upsample_trilinear3d": 3, "_upsample_bilinear2d_aa": 2,
}  # fmt: skip
_PADDED = {
    "reflection_pad1d": 1, "reflection_pad2d": 2, "reflection_pad3d": 3, "replication_pad1d": 1, "replication_pad2d": 2,
    "replication_pad3d": 3,
}  # fmt: skip


@rule(*_UPSAMPLED, *_PADDED)
def _fixed_map(call: Call) -> Thing:
    return _resampled(call, {**_UPSAMPLED, **_PADDED}[call.name], _call_again(call))


@rule("constant_pad_nd")
def _constant_pad(call: Call) -> Thing:
    thing, pad = call.thing(0), list(call.args[1])
    value = float(call.argument(2, "value", 0.0))
    if value != 0.0:
        raise NoRuleError("padding by another number than 0")
    if isinstance(thing, Law):
        if constant_of(thing) == 0.0:
            return Law(thing.axes, 0.0, 0.0)
        raise NoRuleError("the padding of a parameter")
    touched = [i for i in range(len(pad) // 2) if pad[2 * i] or pad[2 * i + 1]]
    return _resampled(call, max(touched) + 1 if touched else 1, _call_again(call))


@rule("roll", "flip")
def _moved(call: Call) -> Thing:
    dims = call.argument(2, "dims", []) if call.name == "roll" else call.args[1]
    count = len(call.args[0].shape)
    dims = [d % count for d in ([dims] if isinstance(dims, int) else dims)]
    if not dims:
        raise NoRuleError("a roll of all elements in a row")
    thing = call.thing(0)
    signal = to_signal(as_positions(thing, (), call), thing.axes, call.samples)
    if all(a.kind == "feature" for d in dims for a in signal.axes[d]):
        return signal.forgotten()  # other features: the same law
    counted = [i for i, d in enumerate(signal.axes) if any(a in signal.atoms for a in d)]
    first, last = min([*dims, *counted]), max([*dims, *counted])
    # The dimensions from the first to the last that counts positions, as if they were the image.
    places = [a for d in signal.axes[first : last + 1] for a in d]
    if any(a.kind != "position" for a in places) or {*signal.atoms} != {*places} or not signal.stats.dense:
        raise NoRuleError("a roll of something that is not positions")
    shape = list(call.args[0].shape[first : last + 1])
    moved = [d - first for d in dims]
    index = torch.arange(math.prod(shape)).reshape(shape)
    index = torch.roll(index, call.args[1], moved) if call.name == "roll" else torch.flip(index, moved)
    stats = signal.stats.reordered(places).indexed(index.reshape(-1), places)
    return Signal.of(signal.axes, stats, call.samples, signal.spread)


# -------------------------------------------------------------------- gradients


@rule(*(f"{name}_backward" for name in (*_UPSAMPLED, *_PADDED)))
def _fixed_map_backward(call: Call) -> Thing:
    name = call.name.removesuffix("_backward")
    spatial = {**_UPSAMPLED, **_PADDED}[name]
    forward: Any = getattr(torch.ops.aten, name)
    if name in _PADDED:  # (grad, self, padding)
        source, rest = list(call.args[1].shape[-spatial:]), call.args[2:]
    else:  # (grad, output_size, input_size, …)
        source, rest = list(call.args[2][-spatial:]), [call.args[1], *call.args[3:]]
    matrix = _matrix(lambda x: forward(x, *rest), source).T
    thing = as_positions(call.thing(0), (1,), call, pixels=True)
    delta = to_signal(thing, thing.axes, call.samples)
    stats = _over_all(delta, range(len(delta.axes) - spatial, len(delta.axes)), call.args[0].shape[-spatial:], True)
    if not stats.dense:
        raise NoRuleError("a map of more positions than are kept apart")
    atoms = [Atom("position", n) for n in source if n != 1]
    positions = iter(atoms)
    axes: Axes = (*delta.axes[:-spatial], *((next(positions),) if n != 1 else () for n in source))
    return Signal.of(axes, mapped(stats, matrix, atoms), call.samples, delta.spread)


# -------------------------------------------------------------------- pixels out of channels


def _pixels(call: Call) -> tuple[Signal, list[int], int]:
    thing = as_positions(call.thing(0), (1,), call, pixels=True)
    signal = to_signal(thing, thing.axes, call.samples)
    places = [a for d in signal.axes[2:] for a in d]
    if signal.structure is not None or len(signal.axes) != 4 or any(a not in places for a in signal.atoms):
        raise NoRuleError("a shuffle of something that is no image")
    full = Signal.of(signal.axes, signal.stats.broadcast(places), call.samples, signal.spread)
    return full, list(call.shape[2:]), int(call.args[1])


def _image(call: Call, signal: Signal, target: list[int], stats: Stats, atoms: list[Atom]) -> Signal:
    positions = iter(atoms)
    channels = call.shape[1]
    axes: Axes = (
        signal.axes[0],
        (Atom("feature", channels),) if channels != 1 else (),
        *((next(positions),) if n != 1 else () for n in target),
    )
    return Signal.of(axes, stats.with_atoms(atoms), call.samples, signal.spread)


def _inside(target: Sequence[int], r: int) -> tuple[Tensor, Tensor]:
    """For each fine pixel, the coarse pixel it lies in, and which of its r² parts it is."""
    h, w = torch.arange(target[0]), torch.arange(target[1])
    coarse = (h // r)[:, None] * (target[1] // r) + (w // r)[None, :]
    part = (h % r)[:, None] * r + (w % r)[None, :]
    return coarse.reshape(-1), part.reshape(-1)


@rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Thing:
    """Channels become pixels: parts of one pixel are different features, which share nothing but their mean."""
    signal, target, r = _pixels(call)
    stats = signal.stats
    dense = stats.dense and call.engine.dense(math.prod(target), pixels=True)
    atoms = [Atom("position", n, dense) for n in target if n != 1]
    if not dense:
        one = stats.pooled(stats.atoms)
        n = stats.positions
        same = (n - 1.0) / max(1.0, n * r * r - 1.0)  # of the pairs of different pixels that are one feature
        outer = one.mean[:, None] * one.mean[None, :]
        out = Stats(
            tuple(atoms),
            one.mean,
            one.square,
            outer + same * (one.within - outer),
            one.aligned,
            outer + same * (one.between - outer),
        )
        return _image(call, signal, target, out, atoms)
    coarse, part = _inside(target, r)
    out = stats.fixed_diagonals().indexed(coarse, atoms)
    same_part = part[:, None] == part[None, :]
    outer = out.mean[:, None] * out.mean[None, :]
    out = Stats(
        out.atoms,
        out.mean,
        out.square,
        torch.where(same_part, out.within, outer),
        out.aligned,
        torch.where(same_part, out.between, outer),
    )
    return _image(call, signal, target, out, atoms)


@rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Thing:
    """Pixels become channels: the average over the r² parts."""
    signal, target, r = _pixels(call)
    stats = signal.stats
    dense = stats.dense or call.engine.dense(math.prod(target), pixels=True)
    atoms = [Atom("position", n, dense) for n in target if n != 1]
    if not stats.dense:
        return _image(call, signal, target, stats.unpooled(atoms) if dense else stats, atoms)
    coarse, part = _inside([n * r for n in target], r)
    order = torch.argsort(part * len(coarse) + coarse)
    m, n = r * r, math.prod(target)

    def same(values: Tensor) -> Tensor:
        return torch.einsum("papb->ab", values[order][:, order].reshape(m, n, m, n)) / m

    full = stats.fixed_diagonals()
    within, between = same(full.within), same(full.between)
    mean = full.mean[order].reshape(m, n).mean(0)
    out = Stats(tuple(atoms), mean, within.diagonal().clone(), within, between.diagonal().clone(), between)
    return _image(call, signal, target, out, atoms)
