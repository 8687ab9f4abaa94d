"""Pointwise functions, their backwards, and the arithmetic between two tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Axes, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.pointwise import Function
from headwater.theory.forecast.rules.shortcut import remembering, sum_around
from headwater.theory.forecast.signals import Known, Law, Root, Signal, Term, Thing, to_signal, unify

# -------------------------------------------------------------------- forms


def _same_term(first: Term | None, second: Term | None) -> bool:
    return first is not None and second is not None and first.root is second.root and first.atoms == second.atoms


def _as_function(signal: Signal) -> tuple[Term, Function] | None:
    """The signal as f(Gaussian), when it is one."""
    if signal.base is None:
        assert signal.carrier is not None
        factor = signal.factor
        return signal.carrier, (lambda t: t) if factor == 1.0 else (lambda t: factor * t)
    if signal.carrier is not None:
        return None
    assert signal.function is not None
    return signal.base, signal.function


def apply_function(signal: Signal, fn: Function) -> Signal:
    """fn(signal), remembered as a function of the Gaussian below.

    Args:
        signal: the argument.
        fn: elementwise, on float64.

    Returns:
        The result.
    """
    form = _as_function(signal)
    if form is None:  # a product: as good as Gaussian only after it is mixed; taken as one here
        signal = signal.forgotten()
        form = _as_function(signal)
    assert form is not None
    base, inner = form
    return Signal(signal.axes, None, base, lambda t: fn(inner(t)), samples=signal.samples)


def scaled(thing: Thing, factor: float) -> Thing:
    """The tensor times a number."""
    if factor == 1.0:
        return thing
    if isinstance(thing, Known):
        return Known(thing.axes, thing.value * factor)
    if isinstance(thing, Law):
        return Law(thing.axes, thing.mean * factor, thing.variance * factor**2)
    if thing.base is None:
        return replace(thing, factor=thing.factor * factor, _stats=None)
    inner = thing.function
    assert inner is not None
    return replace(thing, function=lambda t: factor * inner(t), _stats=None)


def shifted(signal: Signal, number: float) -> Signal:
    """The signal plus a number."""
    return apply_function(signal, lambda t: t + number)


def constant_of(thing: Thing) -> float | None:
    """The number that every element is, if there is one."""
    if isinstance(thing, Law):
        return thing.mean if thing.variance == 0.0 else None
    if isinstance(thing, Known):
        if thing.value.numel() == 0 or thing.value.is_complex():
            return None
        flat = thing.value.detach().reshape(-1)
        first = float(flat[0])
        some = flat[:: max(1, flat.numel() // 64)]  # most tensors that are not constant show it here
        return first if bool((some == flat[0]).all()) and bool((flat == flat[0]).all()) else None
    return None


def broadcast_pairs(first: Axes, second: Axes) -> list[tuple[int, int]]:
    """Dimensions that run together when two tensors are broadcast."""
    n, m = len(first), len(second)
    return [(n - k, m - k) for k in range(1, min(n, m) + 1)]


def merged(first: Axes, second: Axes) -> Axes:
    """The axes of the broadcast result, after ``unify``."""
    n = max(len(first), len(second))
    one, two = ((),) * (n - len(first)) + tuple(first), ((),) * (n - len(second)) + tuple(second)
    return tuple(a or b for a, b in zip(one, two, strict=True))


def together(call: Call, first: Thing, second: Thing) -> tuple[Signal, Signal, Axes]:
    """Two tensors as signals under common names, and the axes of what is made of them.

    Args:
        call: the operation.
        first: the one.
        second: the other.

    Returns:
        Both and the axes.
    """
    first, second = unify(first, second, broadcast_pairs(first.axes, second.axes))
    axes = merged(first.axes, second.axes)
    return to_signal(first, axes, call.samples), to_signal(second, axes, call.samples), axes


# -------------------------------------------------------------------- sums and products


def _covers(signal: Signal, axes: Axes) -> Signal:
    return signal.with_axes(axes)


def add(call: Call, first: Thing, second: Thing) -> Thing:
    """First + second.

    Args:
        call: the operation.
        first: the one.
        second: the other.

    Returns:
        The sum; exact for two functions of one Gaussian or two multiples of one carrier, else of independent signals.
    """
    for one, other in ((first, second), (second, first)):
        number = constant_of(other)
        if number is not None and isinstance(one, Signal) and len(other.axes) <= len(one.axes):
            return one if number == 0.0 else shifted(one, number)
    if all(isinstance(x, Signal) and getattr(x, "structure", None) is not None for x in (first, second)):
        raise NoRuleError("a sum of attention scores")
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Signal) and one.structure is not None:
            masked = getattr(one.structure, "masked", None)
            if masked is None or not isinstance(other, Known):
                raise NoRuleError("a sum with attention scores")
            result: Thing = masked(one, other)
            return result
    if isinstance(first, Law) and isinstance(second, Law):
        if first.axes and second.axes and len(first.axes) == len(second.axes):
            return Law(first.axes, first.mean + second.mean, first.variance + second.variance)
        raise NoRuleError("a sum of two parameters of different shapes")
    a, b, axes = together(call, first, second)
    coherent = _coherent_sum(a, b, axes)
    if coherent is not None:
        return coherent
    positions = tuple(dict.fromkeys((*a.atoms, *b.atoms)))
    left, right = a.stats.broadcast(positions), b.stats.broadcast(positions)
    stats = left.plus(right)
    # Both parts of a gradient that meets again carry the history they share: covariance of their spreads ≈ the smaller.
    p, r = left.average(), right.average()
    shared = min(a.spread, b.spread)
    spread = (p * p * a.spread + r * r * b.spread + 2.0 * p * r * shared) / max((p + r) ** 2, 1e-300)
    total = Signal.of(axes, stats, call.samples, spread)
    assert total.carrier is not None
    root = total.carrier.root
    root.main_share = max(p, r) / max(p + r, 1e-300)
    root.removed = tuple((p * x + r * y) / max(p + r, 1e-300) for x, y in zip(a.removed, b.removed, strict=True))  # type: ignore[assignment]
    root.parts = tuple((x.carrier, x.factor) for x in (a, b) if x.plain and x.carrier is not None)
    for one, other in ((a, b), (b, a)):
        if one.base is None:
            continue
        if one.carrier is not None:
            remembering(one, total, other.stats.broadcast(positions))
            return total
        if other.plain and other.structure is None:
            return sum_around(one, other, total)
    return total


def _coherent_sum(a: Signal, b: Signal, axes: Axes) -> Signal | None:
    if a.plain and b.plain:
        if _same_term(a.carrier, b.carrier):
            return replace(a, axes=axes, factor=a.factor + b.factor, _stats=None, _spread=None)
        return None
    if a.plain:
        a, b = b, a
    f = a.function
    assert f is not None
    if b.plain:
        factor = b.factor
        if a.carrier is None and _same_term(a.base, b.carrier):
            return replace(a, axes=axes, function=lambda t: f(t) + factor * t, _stats=None, _spread=None)
        if _same_term(a.carrier, b.carrier):
            return replace(a, axes=axes, function=lambda t: f(t) + factor, _stats=None, _spread=None)
        return None
    g = b.function
    assert g is not None
    same_carrier = (a.carrier is None and b.carrier is None) or _same_term(a.carrier, b.carrier)
    if same_carrier and _same_term(a.base, b.base):
        return replace(a, axes=axes, function=lambda t: f(t) + g(t), _stats=None, _spread=None)
    return None


def multiply(call: Call, first: Thing, second: Thing) -> Thing:
    """First · second, elementwise.

    Args:
        call: the operation.
        first: the one.
        second: the other.

    Returns:
        The product; functions of one Gaussian are multiplied as functions, other signals are taken as independent.
    """
    for one, other in ((first, second), (second, first)):
        number = constant_of(other)
        if number is not None and len(other.axes) <= len(one.axes):
            return scaled(one, number)
    if isinstance(first, Law) and isinstance(second, Law):
        wide = first if len(first.axes) >= len(second.axes) else second
        mean = first.mean * second.mean
        return Law(wide.axes, mean, first.square * second.square - mean**2)
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Signal) and one.structure is not None:
            masked = getattr(one.structure, "multiplied", None)
            if masked is None:
                raise NoRuleError("a product with attention scores")
            result: Thing = masked(one, other)
            return result
    a, b, axes = together(call, first, second)
    return product(a, b, axes, call.samples)


def product(a: Signal, b: Signal, axes: Axes, samples: int) -> Signal:
    """The product of two signals under common names."""
    if a.plain and b.plain:
        if _same_term(a.carrier, b.carrier):
            factor = a.factor * b.factor
            return Signal(axes, None, a.carrier, lambda t: factor * t * t, samples=samples)
        return _independent(a, b, axes, samples)
    if a.plain:
        a, b = b, a
    f = a.function
    assert f is not None
    if b.plain:
        factor = b.factor
        if _same_term(a.base, b.carrier):
            return replace(a, axes=axes, function=lambda t: factor * t * f(t), _stats=None, _spread=None)
        if a.carrier is None:
            return Signal(axes, b.carrier, a.base, lambda t: factor * f(t), samples=samples)
        return _independent(a, b, axes, samples)
    g = b.function
    assert g is not None
    if _same_term(a.base, b.base) and (a.carrier is None or b.carrier is None):
        carrier = a.carrier or b.carrier
        return Signal(axes, carrier, a.base, lambda t: f(t) * g(t), samples=samples)
    if a.carrier is None and b.carrier is not None:
        a, b = b, a
    if b.carrier is None and a.carrier is not None:  # (d f(u)) g(w): the first becomes a carrier of its own
        carrier = Term(Root(a.stats, a.spread), a.stats.atoms)
        return Signal(axes, carrier, b.base, b.function, samples=samples)
    return _independent(a, b, axes, samples)


def _independent(a: Signal, b: Signal, axes: Axes, samples: int) -> Signal:
    positions = tuple(dict.fromkeys((*a.atoms, *b.atoms)))
    stats = a.stats.broadcast(positions).product(b.stats.broadcast(positions))
    return Signal.of(axes, stats, samples, a.spread + b.spread)


def _number_or_thing(call: Call, position: int) -> Thing | float:
    value = call.args[position]
    return call.thing(position) if isinstance(value, Tensor) else float(value)


@rule("add", "sub", "rsub")
def _add(call: Call) -> Thing:
    first, second = _number_or_thing(call, 0), _number_or_thing(call, 1)
    alpha = float(call.argument(2, "alpha", 1.0))
    if call.name == "rsub":
        first, second = second, first
    sign = -alpha if call.name in ("sub", "rsub") else alpha
    if isinstance(first, float) or isinstance(second, float):
        thing = second if isinstance(first, float) else first
        number = first if isinstance(first, float) else sign * second  # type: ignore[operator]
        factor = sign if isinstance(first, float) else 1.0
        assert not isinstance(thing, float)
        if isinstance(thing, Law):
            return Law(thing.axes, factor * thing.mean + number, thing.variance)
        if isinstance(thing, Known):
            return Known(thing.axes, thing.value * factor + number)
        return apply_function(thing, lambda t: factor * t + number)
    return add(call, first, scaled(second, sign) if sign != 1.0 else second)


@rule("mul")
def _mul(call: Call) -> Thing:
    first, second = _number_or_thing(call, 0), _number_or_thing(call, 1)
    if isinstance(second, float):
        assert not isinstance(first, float)
        return scaled(first, second)
    if isinstance(first, float):
        return scaled(second, first)
    return multiply(call, first, second)


@rule("div")
def _div(call: Call) -> Thing:
    first, second = _number_or_thing(call, 0), _number_or_thing(call, 1)
    if call.argument(2, "rounding_mode") is not None:
        raise NoRuleError("a division that rounds")
    if isinstance(second, float):
        assert not isinstance(first, float)
        return scaled(first, 1.0 / second)
    number = constant_of(second)
    if number is not None and not isinstance(first, float):
        return scaled(first, 1.0 / number)
    if not isinstance(second, Signal):
        raise NoRuleError("a division by a tensor that is no signal")
    inverse = apply_function(second, lambda t: 1.0 / t)
    return scaled(inverse, first) if isinstance(first, float) else multiply(call, first, inverse)


@rule("addcmul")
def _addcmul(call: Call) -> Thing:
    value = float(call.argument(3, "value", 1.0))
    return add(call, call.thing(0), scaled(multiply(call, call.thing(1), call.thing(2)), value))


# -------------------------------------------------------------------- functions of one argument

_UNARY = (
    "relu", "relu6", "gelu", "silu", "mish", "tanh", "sigmoid", "leaky_relu", "elu", "celu", "selu", "softplus", "hardtanh",
    "hardswish", "hardsigmoid", "softshrink", "hardshrink", "sin", "cos", "erf", "exp", "log", "log1p", "abs", "neg",
    "sqrt", "rsqrt", "reciprocal", "square", "pow", "clamp", "clamp_min", "clamp_max", "threshold", "sign", "sgn", "sinh",
    "cosh", "atan", "expm1", "log_sigmoid_forward", "gt", "ge", "lt", "le", "eq", "ne",
)  # fmt: skip


def _aten(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(torch.ops.aten, name)
    return found


@rule(*_UNARY)
def _unary(call: Call) -> Thing | list[Thing | None]:
    """A function of one tensor, evaluated for what it is: aten's own, on float64 numbers."""
    if any(isinstance(a, Tensor) for a in call.args[1:]):
        raise NoRuleError("a function of two tensors")
    if not isinstance(call.args[0], Tensor):
        raise NoRuleError("a number raised to a tensor")
    thing = call.thing(0)
    function, rest = _aten(call.name), call.args[1:]
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("out", "dtype")}

    def evaluated(t: Tensor) -> Tensor:
        value = function(t, *rest, **kwargs)
        result: Tensor = value[0] if isinstance(value, tuple) else value
        return result.to(torch.float64)

    if isinstance(thing, Law):
        if call.name in ("clamp", "clamp_min", "clamp_max") and thing.variance > 0.0:
            return thing  # trunc_normal_ clamps away what rounding left outside
        if call.name in ("sign", "sgn") and thing.mean == 0.0:
            return Law(thing.axes, 0.0, 1.0)
        if thing.variance == 0.0:
            return Law(thing.axes, float(evaluated(torch.tensor(thing.mean, dtype=torch.float64))), 0.0)
        raise NoRuleError("a function of a parameter")
    if isinstance(thing, Known):
        return Known(thing.axes, evaluated(thing.value.double()))
    if call.name == "neg":
        return scaled(thing, -1.0)
    signal = apply_function(thing, evaluated)
    return [signal, None] if call.name == "log_sigmoid_forward" else signal


# Backward operations op(grad, x or output, …): the factor on the gradient is op(1, x, …), a function of what was saved.
_BACKWARD = (
    "threshold_backward", "gelu_backward", "silu_backward", "mish_backward", "tanh_backward", "sigmoid_backward",
    "hardtanh_backward", "hardswish_backward", "hardsigmoid_backward", "softplus_backward", "softshrink_backward",
    "hardshrink_backward", "leaky_relu_backward", "log_sigmoid_backward",
)  # fmt: skip


@rule(*_BACKWARD)
def _backward(call: Call) -> Thing:
    function = _aten(call.name)
    rest = [a for a in call.args[2:] if not isinstance(a, Tensor)]
    kwargs = {k: v for k, v in call.kwargs.items() if not isinstance(v, Tensor) and k != "grad_input"}
    if call.name == "log_sigmoid_backward":
        return slope_product(call, call.thing(0), call.thing(1), lambda t: torch.sigmoid(-t))
    return slope_product(call, call.thing(0), call.thing(1), lambda t: function(torch.ones_like(t), t, *rest, **kwargs))


@rule("elu_backward")
def _elu_backward(call: Call) -> Thing:
    alpha, scale, input_scale, is_result = (call.args[k] for k in range(1, 5))
    function = _aten("elu_backward")
    return slope_product(
        call,
        call.thing(0),
        call.thing(5),
        lambda t: function(torch.ones_like(t), alpha, scale, input_scale, is_result, t),
    )


def slope_product(call: Call, gradient: Thing, saved: Thing, fn: Function) -> Thing:
    """Gradient · fn(saved).

    Args:
        call: the operation.
        gradient: δ.
        saved: what the forward left: the argument or the value of the activation.
        fn: the slope as a function of it.

    Returns:
        The gradient before the activation.
    """
    if isinstance(saved, Known):
        slope: Thing = Known(saved.axes, fn(saved.value.double()))
    elif isinstance(saved, Signal):
        slope = apply_function(saved, fn)
    else:
        raise NoRuleError("the slope of a function of a parameter")
    return multiply(call, gradient, slope)
