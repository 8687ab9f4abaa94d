"""Convolutions: each tap of the kernel is a matrix with independent entries, so covariances add over taps.

K_y[o, o'] = C_in Var(W) Σ_k K_x[p_k(o), p_k(o')], where p_k(o) is the input position that tap k sees from o; a tap that
sees the padding adds nothing. The gradient goes back along the same pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.elementwise import add
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats


def taps(
    source: Sequence[int], target: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Tensor]:  # fmt: skip
    """For each tap, the source position that each target position sees; the number of sources for padding.

    Args:
        source: spatial sizes of the input.
        target: of the output.
        kernel: of the kernel.
        stride: in positions.
        padding: in positions.
        dilation: in positions.

    Returns:
        One flat index tensor per tap.
    """
    total = math.prod(source)
    per_dimension = [
        [torch.arange(t) * s + k * d - p for k in range(n)]
        for t, n, s, p, d in zip(target, kernel, stride, padding, dilation, strict=True)
    ]
    found = []
    for offsets in itertools.product(*per_dimension):
        index = torch.zeros([1] * len(source), dtype=torch.long)
        valid = torch.ones([1] * len(source), dtype=torch.bool)
        for axis, (offset, size) in enumerate(zip(offsets, source, strict=True)):
            shape = [1] * len(source)
            shape[axis] = len(offset)
            index = index * size + offset.reshape(shape).clamp(0, size - 1)
            valid = valid & ((offset >= 0) & (offset < size)).reshape(shape)
        index, valid = torch.broadcast_tensors(index, valid)
        found.append(torch.where(valid, index, total).reshape(-1))
    return found


def inverted(maps: Sequence[Tensor], sources: int) -> list[Tensor]:
    """For each tap, the target position that sees each source; the number of targets where none does.

    Args:
        maps: from :func:`taps`.
        sources: number of source positions.

    Returns:
        One flat index tensor per tap.
    """
    found = []
    for index in maps:
        back = torch.full((sources + 1,), len(index), dtype=torch.long)
        back[index] = torch.arange(len(index))
        found.append(back[:sources])
    return found


def gathered(stats: Stats, maps: Sequence[Tensor], atoms: Sequence[Atom], scale: float) -> Stats:
    """Σ over taps of the statistics at the positions they see, times ``scale``; zero mean."""
    zero_row = torch.nn.functional.pad
    dense = stats.fixed_diagonals()
    within, between = zero_row(dense.within, (0, 1, 0, 1)), zero_row(dense.between, (0, 1, 0, 1))
    n = len(maps[0])
    one, two = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for index in maps:
        one += within[index][:, index]
        two += between[index][:, index]
    one, two = one * scale, two * scale
    return Stats(
        tuple(atoms), torch.zeros(n, dtype=torch.float64), one.diagonal().clone(), one, two.diagonal().clone(), two
    )


def _pooled(stats: Stats, atoms: Sequence[Atom], scale: float) -> Stats:
    zero = torch.zeros_like(stats.mean)
    return Stats(
        tuple(atoms), zero, stats.square * scale, stats.within * scale, stats.aligned * scale, stats.between * scale
    )


def _weight_law(call: Call, position: int) -> Law:
    weight = call.thing(position)
    if isinstance(weight, Known):
        value = weight.value.double()
        weight = Law(weight.axes, float(value.mean()), float(value.var(correction=0)))
    if not isinstance(weight, Law):
        raise NoRuleError("a convolution with a computed kernel")
    if weight.mean**2 > 1e-3 * weight.variance:
        raise NoRuleError("a kernel whose entries do not average to zero")
    return weight


def _spatial(call: Call, position: int) -> tuple[Thing, Signal]:
    thing = as_positions(call.thing(position), (1,), call, pixels=True)
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("a convolution of attention scores")
    if any(a.kind == "position" for a in signal.axes[1]):
        raise NoRuleError("a convolution whose channels count positions")
    return thing, signal


def _per_position(signal: Signal, dims: Sequence[int]) -> tuple[Stats, tuple[Atom, ...]]:
    atoms = tuple(a for d in dims for a in signal.axes[d])
    return signal.stats.broadcast([a for a in atoms if a.kind == "position"]), atoms


@rule("convolution", "_convolution")
def _convolution(call: Call) -> Thing:
    # convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    _, signal = _spatial(call, 0)
    weight = _weight_law(call, 1)
    sizes = list(call.args[1].shape)
    kernel, groups, transposed = sizes[2:], int(call.args[8]), bool(call.args[6])
    out = call.shape
    # A transposed kernel is (in, out/groups, …): each output sums over in/groups channels.
    fan = sizes[0] // groups if transposed else sizes[1]
    stats, _ = _per_position(signal, range(2, len(signal.axes)))
    source = list(call.args[0].shape[2:])
    stride, padding, dilation = (_each(call.args[k], len(kernel)) for k in (3, 4, 5))
    dense = stats.dense and call.engine.dense(math.prod(out[2:]), pixels=True)
    if stats.dense and stats.positions == 1 and math.prod(source) > 1:
        raise NoRuleError("a convolution over copies")
    # Strides may bring positions down to so few that each is kept again.
    regained = not stats.dense and call.engine.dense(math.prod(out[2:]), pixels=True)
    atoms = [Atom("position", n, dense or regained) for n in out[2:] if n != 1]
    maps = taps(list(out[2:]), source, kernel, stride, padding, dilation) if transposed else taps(
        source, list(out[2:]), kernel, stride, padding, dilation
    )  # fmt: skip
    if transposed:
        maps = inverted(maps, math.prod(out[2:]))
    scale = fan * weight.square
    if dense:
        result = gathered(stats, maps, atoms, scale)
    else:
        stats = stats.pooled(stats.atoms) if stats.dense and math.prod(source) > 1 else stats
        seen = sum(int((m < math.prod(source)).sum()) for m in maps) / math.prod(out[2:])
        result = _pooled(stats, atoms, scale * seen)
        if regained:
            result = result.unpooled(atoms)
    channels = out[1]
    spread = signal.spread + 2.0 * result.mean_squared_correlation(call.samples) / channels
    positions = iter(atoms)
    axes: Axes = (
        signal.axes[0],
        (Atom("feature", channels),) if channels != 1 else (),
        *((next(positions),) if n != 1 else () for n in out[2:]),
    )
    produced: Thing = Signal.of(axes, result, call.samples, spread)
    if len(call.args) > 2 and call.args[2] is not None:
        bias = call.thing(2)
        laid = tuple(axes[1] if i == 1 else () for i in range(len(axes)))
        if isinstance(bias, Law):
            produced = add(call, produced, Law(laid, bias.mean, bias.variance))
        elif isinstance(bias, Known):
            produced = add(call, produced, Known(laid, bias.value))
        else:
            raise NoRuleError("a convolution with a computed bias")
    return produced


def _each(value: Sequence[int], count: int) -> list[int]:
    return list(value) if len(value) == count else [value[0]] * count


@rule("convolution_backward")
def _convolution_backward(call: Call) -> list[Thing | None]:
    # (grad, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask)
    _, signal = _spatial(call, 1)
    weight = _weight_law(call, 2)
    kernel_shape = list(call.args[2].shape)
    kernel, groups, transposed = kernel_shape[2:], int(call.args[9]), bool(call.args[7])
    mask = list(call.args[10])
    delta_thing = call.thing(0)
    # The gradient lies over the output's dimensions: samples and channels are those of the input.
    _, delta_thing = unify(signal, delta_thing, [(0, 0)])
    delta_thing = as_positions(delta_thing, (1,), call, pixels=True)
    delta = to_signal(delta_thing, delta_thing.axes, call.samples)
    target, source = list(call.args[0].shape[2:]), list(call.args[1].shape[2:])
    stride, padding, dilation = (_each(call.args[k], len(kernel)) for k in (4, 5, 6))
    forward = taps(target, source, kernel, stride, padding, dilation) if transposed else taps(
        source, target, kernel, stride, padding, dilation
    )  # fmt: skip
    if transposed:
        forward = inverted(forward, math.prod(target))
    x, _ = _per_position(signal, range(2, len(signal.axes)))
    few = call.engine.dense(math.prod(target), pixels=True) and all(a.dense for a in delta.atoms)
    d = _over_all(delta, range(2, len(delta.axes)), target, x.dense or few)
    if not x.dense and d.dense and d.positions > 1:
        d = d.pooled(d.atoms)
    elif x.dense and not d.dense:
        x = x.pooled(x.atoms)
    fan = kernel_shape[1] if transposed else kernel_shape[0] // groups
    own = [a for i in range(2, len(signal.axes)) for a in signal.axes[i]]
    out: list[Thing | None] = []
    channels = call.args[1].shape[1]
    spread = delta.spread
    if mask[0]:
        if x.dense and d.dense:
            result = gathered(d, inverted(forward, math.prod(source)), own, fan * weight.square)
        else:
            pairs = sum(int((m < math.prod(source)).sum()) for m in forward) / math.prod(source)
            result = _pooled(d, own, fan * weight.square * pairs)
            if own and all(a.dense for a in own):
                result = result.unpooled(own)
        more = 2.0 * result.mean_squared_correlation(call.samples) / channels
        out.append(Signal.of(signal.axes, result, call.samples, spread + more))
    if mask[1]:
        square = _kernel_gradient(x, d, forward, call.samples)
        out.append(
            Signal.of(axes_of_shape(kernel_shape, ["feature"] * len(kernel_shape)), Stats.constant(0.0, square),
                      call.samples, spread)
        )  # fmt: skip
    if mask[2]:
        square = d.total_square(call.samples)
        out.append(Signal.of((delta.axes[1],), Stats.constant(0.0, square), call.samples, spread))
    return out


def _over_all(signal: Signal, dims: Sequence[int], sizes: Sequence[int], dense: bool) -> Stats:
    """Statistics over every position of the gradient: copies (from a mean over positions) are written out."""
    atoms: list[Atom] = []
    for d in dims:
        atoms.extend(a if a.kind == "position" else Atom("position", a.size, dense) for a in signal.axes[d])
    names = {old: new for old, new in zip((a for d in dims for a in signal.axes[d]), atoms, strict=True) if old != new}
    return signal.renamed(names).stats.broadcast(atoms)


def _kernel_gradient(x: Stats, d: Stats, maps: Sequence[Tensor], samples: int) -> float:
    """E (Σ δ_o x_p(o))² averaged over taps."""
    if not (x.dense and d.dense):
        # Positions that share a node: the border is left out.
        n = d.positions
        one = n * float(x.square[0] * d.square[0]) + n * (n - 1.0) * float(
            x.within.reshape(-1)[0] * d.within.reshape(-1)[0]
        )
        two = n * float(x.aligned[0] * d.aligned[0]) + n * (n - 1.0) * float(
            x.between.reshape(-1)[0] * d.between.reshape(-1)[0]
        )
        return samples * one + samples * (samples - 1) * two
    pad = torch.nn.functional.pad
    dense, delta = x.fixed_diagonals(), d.fixed_diagonals()
    within, between = pad(dense.within, (0, 1, 0, 1)), pad(dense.between, (0, 1, 0, 1))
    total = 0.0
    for index in maps:
        total += samples * float((within[index][:, index] * delta.within).sum())
        total += samples * (samples - 1) * float((between[index][:, index] * delta.between).sum())
    return total / len(maps)
