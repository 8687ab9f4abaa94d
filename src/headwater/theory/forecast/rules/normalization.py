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


def feature_law(thing: Thing | None, atoms: tuple[Atom, ...], width: int, dimension: int) -> Thing | None:
    """A parameter per feature, laid along that dimension."""
    if thing is None:
        return None
    if isinstance(thing, Law):
        axes = tuple(atoms if i == dimension else () for i in range(width))
        return Law(axes, thing.mean, thing.variance)
    if isinstance(thing, Known):
        value = thing.value.double()
        law = Law(thing.axes, float(value.mean()), float(value.var(correction=0)) if value.numel() > 1 else 0.0)
        return feature_law(law, atoms, width, dimension)
    raise NoRuleError("a normalisation with a computed weight")


def optional_argument(call: Call, position: int) -> Thing | None:
    """What is known of a tensor argument; None where the operation has none there."""
    return call.thing(position) if len(call.args) > position and isinstance(call.args[position], Tensor) else None


def beside(signal: Signal, gradient: Thing) -> Thing:
    """The gradient under the signal's names."""
    same, gradient = unify(signal, gradient, [(i, i) for i in range(len(signal.axes))])
    if same.axes != signal.axes:
        raise NoRuleError("a gradient whose dimensions are made of other factors")
    return gradient


def with_parameters(call: Call, out: Signal, weight: Thing | None, bias: Thing | None) -> Thing:
    """γ x̂ + β, each where it is given."""
    result: Thing = out
    if weight is not None:
        result = multiply(call, result, weight)
    if bias is not None:
        result = add(call, result, bias)
    return result


def inverse_deviation(variance: Tensor, eps: float) -> Tensor:
    """1/√(variance + eps), of the same shape."""
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
    normal = stats.scaled(math.sqrt(1.0 - 1.0 / n)).times(inverse_deviation(variance, float(call.args[4])))
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    last = len(signal.axes) - 1
    weight = feature_law(optional_argument(call, 2), signal.axes[-1], len(signal.axes), last)
    bias = feature_law(optional_argument(call, 3), signal.axes[-1], len(signal.axes), last)
    return [with_parameters(call, out, weight, bias), None, None]


def weighted(call: Call, gradient: Thing, weight: Thing | None) -> Thing:
    """γ δ, or δ without a scale."""
    return gradient if weight is None else multiply(call, gradient, weight)


def per_feature_gradients(
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
    gradient = beside(signal, call.thing(0))
    last = len(signal.axes) - 1
    weight = feature_law(optional_argument(call, 5), signal.axes[-1], len(signal.axes), last)
    delta = to_signal(gradient, signal.axes, call.samples)
    positions = signal.atoms
    centred = signal.stats.centred()
    inverse = inverse_deviation(centred.square * (1.0 - 1.0 / n), epsilon_of(call, signal))
    normal = centred.times(inverse)
    through = to_signal(weighted(call, delta, weight), signal.axes, call.samples)
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
    gamma, beta = per_feature_gradients(call, delta, normal, signal, -1)
    return those_wanted(call, [out, gamma, beta])


def _spread_over(values: Tensor, stats: Stats, atoms: tuple[Atom, ...]) -> Tensor:
    carrier = Stats(stats.atoms, values, values, stats.within, values, stats.between)
    return carrier.broadcast(atoms).mean


def epsilon_of(call: Call, signal: Signal) -> float:
    """The eps that the forward of this backward had; 1e-5, torch's own, where it was not seen."""
    return float(call.engine.notes.get(("eps", call.engine.key(call.args[1])), 1e-5))


def those_wanted(call: Call, results: list[Thing | None]) -> list[Thing | None]:
    """Only the gradients that were asked for are among the outputs."""
    mask = next((a for a in reversed(call.args) if isinstance(a, list | tuple) and a and isinstance(a[0], bool)), None)
    return results if mask is None else [r for r, wanted in zip(results, mask, strict=True) if wanted]


# -------------------------------------------------------------------- RMSNorm, fused


@rule("_fused_rms_norm")
def _rms_norm(call: Call) -> list[Thing | None]:
    dims = len(call.args[1])
    signal, _ = _layer_input(call, 0, dims)
    eps = call.argument(3, "eps")
    value = float(torch.finfo(torch.float32).eps if eps is None else eps)
    call.engine.notes["eps", call.engine.key(call.args[0])] = value
    normal = signal.stats.times(inverse_deviation(signal.stats.square, value))
    out = Signal.of(signal.axes, normal, call.samples)
    call.engine.notes["normal", call.engine.key(call.args[0])] = out
    weight = feature_law(optional_argument(call, 2), signal.axes[-1], len(signal.axes), len(signal.axes) - 1)
    return [with_parameters(call, out, weight, None), None]


@rule("_fused_rms_norm_backward")
def _rms_norm_backward(call: Call) -> list[Thing | None]:
    # _fused_rms_norm_backward(grad, input, normalized_shape, rstd, weight, mask)
    dims = len(call.args[2])
    signal, n = _layer_input(call, 1, dims)
    gradient = beside(signal, call.thing(0))
    delta = to_signal(gradient, signal.axes, call.samples)
    weight = feature_law(optional_argument(call, 4), signal.axes[-1], len(signal.axes), len(signal.axes) - 1)
    through = to_signal(weighted(call, delta, weight), signal.axes, call.samples)
    inverse = inverse_deviation(signal.stats.square, epsilon_of(call, signal))
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
    gamma, _ = per_feature_gradients(call, delta, normal, signal, -1)
    return those_wanted(call, [out, gamma])
