"""Average and maximum over windows of positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.convolution import _each, _over_all, _spatial, taps
from headwater.theory.forecast.signals import Signal, Thing, to_signal
from headwater.theory.forecast.stats import Stats


def _windows(call: Call, source: Sequence[int], target: Sequence[int], first: int) -> list[Tensor]:
    n = len(source)
    kernel = _each(call.args[first], n)
    stride = _each(call.args[first + 1], n) if len(call.args) > first + 1 and call.args[first + 1] else kernel
    padding = _each(call.args[first + 2], n) if len(call.args) > first + 2 else [0] * n
    return taps(source, target, kernel, stride, padding, [1] * n)


def _axes(signal: Signal, atoms: Sequence[Atom], sizes: Sequence[int]) -> Axes:
    positions = iter(atoms)
    return (*signal.axes[: -len(sizes)], *((next(positions),) if n != 1 else () for n in sizes))


def _window_means(stats: Stats, maps: Sequence[Tensor], atoms: Sequence[Atom]) -> Stats:
    """Of the mean over the windows: all pairs of taps count, not only equal ones."""
    count = len(maps)
    n, sources = len(maps[0]), stats.nodes
    matrix = torch.zeros(n, sources + 1, dtype=torch.float64)
    for index in maps:
        matrix[torch.arange(n), index] += 1.0 / count
    matrix = matrix[:, :sources]
    dense = stats.fixed_diagonals()
    within, between = matrix @ dense.within @ matrix.T, matrix @ dense.between @ matrix.T
    return Stats(
        tuple(atoms), matrix @ dense.mean, within.diagonal().clone(), within, between.diagonal().clone(), between
    )


def _backward_means(stats: Stats, maps: Sequence[Tensor], sources: int, atoms: Sequence[Atom]) -> Stats:
    count = len(maps)
    matrix = torch.zeros(len(maps[0]), sources + 1, dtype=torch.float64)
    for index in maps:
        matrix[torch.arange(len(index)), index] += 1.0 / count
    matrix = matrix[:, :sources]
    dense = stats.fixed_diagonals()
    within, between = matrix.T @ dense.within @ matrix, matrix.T @ dense.between @ matrix
    return Stats(
        tuple(atoms), matrix.T @ dense.mean, within.diagonal().clone(), within, between.diagonal().clone(), between
    )


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average(call: Call) -> Thing:
    _, signal = _spatial(call, 0)
    source, target = list(call.args[0].shape[2:]), list(call.shape[2:])
    if not signal.stats.dense:
        return _pooled_average(call, signal, source, target)
    maps = _windows(call, source, target, 1)
    atoms = [Atom("position", n) for n in target if n != 1]
    return Signal.of(
        _axes(signal, atoms, target), _window_means(signal.stats, maps, atoms), call.samples, signal.spread
    )


def _pooled_average(call: Call, signal: Signal, source: list[int], target: list[int]) -> Thing:
    k = math.prod(source) / math.prod(target)
    s = signal.stats
    square = s.square / k + (1.0 - 1.0 / k) * s.within[0]
    aligned = s.aligned / k + (1.0 - 1.0 / k) * s.between[0]
    atoms = [Atom("position", n, False) for n in target if n != 1]
    stats = Stats(tuple(atoms), s.mean, square, s.within, aligned, s.between)
    return Signal.of(_axes(signal, atoms, target), stats, call.samples, signal.spread)


@rule("avg_pool2d_backward", "avg_pool3d_backward")
def _average_backward(call: Call) -> Thing:
    _, signal = _spatial(call, 1)
    delta = to_signal(call.thing(0), call.thing(0).axes, call.samples)
    source, target = list(call.args[1].shape[2:]), list(call.args[0].shape[2:])
    d = _over_all(delta, range(2, len(delta.axes)), target, signal.stats.dense)
    atoms = [a for i in range(2, len(signal.axes)) for a in signal.axes[i]]
    if signal.stats.dense:
        stats = _backward_means(d, _windows(call, source, target, 2), math.prod(source), atoms)
    else:
        k = math.prod(source) / math.prod(target)
        stats = Stats(tuple(atoms), d.mean / k, d.square / k**2, d.within / k**2, d.aligned / k**2, d.between / k**2)
    return Signal.of(signal.axes, stats, call.samples, delta.spread)


def _adaptive_windows(source: Sequence[int], target: Sequence[int]) -> list[Tensor]:
    if any(s % t for s, t in zip(source, target, strict=True)):
        raise NoRuleError("adaptive pooling with windows of different sizes")
    kernel = [s // t for s, t in zip(source, target, strict=True)]
    return taps(source, target, kernel, kernel, [0] * len(source), [1] * len(source))


@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive(call: Call) -> Thing:
    _, signal = _spatial(call, 0)
    source, target = list(call.args[0].shape[2:]), list(call.shape[2:])
    maps = _adaptive_windows(source, target)
    if not signal.stats.dense:
        return _pooled_average(call, signal, source, target)
    atoms = [Atom("position", n) for n in target if n != 1]
    return Signal.of(
        _axes(signal, atoms, target), _window_means(signal.stats, maps, atoms), call.samples, signal.spread
    )


@rule("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def _adaptive_backward(call: Call) -> Thing:
    _, signal = _spatial(call, 1)
    delta = to_signal(call.thing(0), call.thing(0).axes, call.samples)
    source, target = list(call.args[1].shape[2:]), list(call.args[0].shape[2:])
    d = _over_all(delta, range(2, len(delta.axes)), target, signal.stats.dense)
    atoms = [a for i in range(2, len(signal.axes)) for a in signal.axes[i]]
    if not signal.stats.dense:
        raise NoRuleError("adaptive pooling of more positions than are kept apart")
    stats = _backward_means(d, _adaptive_windows(source, target), math.prod(source), atoms)
    return Signal.of(signal.axes, stats, call.samples, delta.spread)
