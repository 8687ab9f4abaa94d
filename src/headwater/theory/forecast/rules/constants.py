"""Tensors that an operation makes out of nothing (initialisers, constants, random masks), and selection by a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.theory.forecast.axes import NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.elementwise import add, apply_function, constant_of, multiply, scaled
from headwater.theory.forecast.signals import Known, Law, Signal, Thing


def _law_like(call: Call, mean: float, variance: float) -> Law:
    thing = call.engine.look_up(call.args[0]) if call.args and isinstance(call.args[0], Tensor) else None
    axes = thing.axes if isinstance(thing, Signal | Law | Known) else axes_of_shape(call.shape)
    if len(axes) != len(call.shape) or any(
        not atoms and size != 1 for atoms, size in zip(axes, call.shape, strict=True)
    ):
        axes = axes_of_shape(call.shape)
    return Law(axes, mean, variance)


@rule("erfinv")
def _erfinv(call: Call) -> Thing:
    """Of a uniform law U(m ± a): what torch's trunc_normal_ makes its truncated normal of."""
    thing = call.thing(0)
    if not isinstance(thing, Law):
        raise NoRuleError("erfinv of something that is no uniform law")
    half = (3.0 * thing.variance) ** 0.5
    cells = 20000
    points = thing.mean - half + 2.0 * half * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    values = torch.erfinv(points)
    return Law(thing.axes, float(values.mean()), float(values.var(correction=0)))


@rule("linalg_qr")
def _qr(call: Call) -> list[Thing | None]:
    """Orthonormal columns of a Gaussian matrix: entries of mean square 1/rows."""
    rows = call.outputs[0].shape[-2]
    q, r = call.outputs[0], call.outputs[1]
    return [Law(axes_of_shape(q.shape), 0.0, 1.0 / rows), Law(axes_of_shape(r.shape), 0.0, 1.0)]


@rule("diagonal", "diag")
def _diagonal(call: Call) -> Thing:
    thing = call.thing(0)
    if not isinstance(thing, Law):
        raise NoRuleError("the diagonal of a signal")
    return Law(axes_of_shape(call.shape), thing.mean, thing.variance)


@rule("bernoulli")
def _bernoulli(call: Call) -> Thing:
    p = call.argument(1, "p", 0.5)
    if isinstance(p, Tensor):
        raise NoRuleError("a Bernoulli variable with a tensor of probabilities")
    return _law_like(call, float(p), float(p) * (1.0 - float(p)))


@rule("uniform", "rand", "rand_like")
def _uniform(call: Call) -> Thing:
    low, high = (float(call.argument(k, n, d)) for k, n, d in ((1, "from", 0.0), (2, "to", 1.0)))
    if call.name != "uniform":
        low, high = 0.0, 1.0
    return _law_like(call, 0.5 * (low + high), (high - low) ** 2 / 12.0)


@rule("normal", "normal_functional", "randn", "randn_like")
def _normal(call: Call) -> Thing:
    if call.name in ("randn", "randn_like"):
        return _law_like(call, 0.0, 1.0)
    mean, std = call.argument(1, "mean", 0.0), call.argument(2, "std", 1.0)
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        raise NoRuleError("a normal variable with tensors of moments")
    return _law_like(call, float(mean), float(std) ** 2)


@rule("fill", "full_like", "new_full")
def _fill(call: Call) -> Thing:
    value = call.argument(1 if call.name != "new_full" else 2, "value")
    if isinstance(value, Tensor):
        known = call.engine.look_up(value)
        if not isinstance(known, Known) or known.value.numel() != 1:
            raise NoRuleError("filled with an unknown number")
        value = known.value.item()
    return _law_like(call, float(value), 0.0)


@rule("zero", "zeros_like", "new_zeros", "zeros")
def _zero(call: Call) -> Thing:
    return _law_like(call, 0.0, 0.0)


@rule("ones_like", "new_ones", "ones")
def _ones(call: Call) -> Thing:
    return _law_like(call, 1.0, 0.0)


@rule("empty_like", "new_empty", "empty", "empty_strided", "new_empty_strided")
def _empty(call: Call) -> Thing | None:
    return _law_like(call, 0.0, 0.0)


@rule("native_dropout")
def _native_dropout(call: Call) -> list[Thing | None]:
    thing, p, train = call.thing(0), float(call.args[1]), call.argument(2, "train", True)
    if not train or p == 0.0:
        return [thing, None]
    if p >= 1.0:
        return [scaled(thing, 0.0), None]
    # The mask is 0 or 1; the output is x · mask / (1 - p).
    mask = Law(thing.axes, 1.0 - p, p * (1.0 - p))
    kept = multiply(call, thing, scaled(mask, 1.0 / (1.0 - p)))
    return [kept, mask]


@rule("native_dropout_backward")
def _native_dropout_backward(call: Call) -> Thing:
    return scaled(multiply(call, call.thing(0), call.thing(1)), float(call.args[2]))


@rule("masked_fill")
def _masked_fill(call: Call) -> Thing:
    thing, mask = call.thing(0), call.thing(1)
    value = call.argument(2, "value")
    if isinstance(value, Tensor):
        known = call.engine.look_up(value)
        value = known.value.item() if isinstance(known, Known) else None
    if (isinstance(mask, Signal) and mask.stats.average() == 0.0) or constant_of(mask) == 0.0:
        return thing  # never true
    if not isinstance(mask, Known) or value is None:
        raise NoRuleError("a mask whose values are not known")
    if isinstance(thing, Signal) and thing.structure is not None:
        bias = torch.zeros_like(mask.value, dtype=torch.float64).masked_fill(mask.value, float(value))
        result: Thing = thing.structure.masked(thing, Known(mask.axes, bias))
        return result
    kept = multiply(call, thing, Known(mask.axes, (~mask.value.bool()).double()))
    return kept if value == 0.0 else add(call, kept, Known(mask.axes, mask.value.double() * float(value)))


@rule("where")
def _where(call: Call) -> Thing:
    mask = call.thing(0)
    if isinstance(mask, Signal):
        # where(x > 0, a, b) of functions of the same Gaussian
        chosen = multiply(call, mask, call.thing(1))
        return add(call, chosen, multiply(call, apply_function(mask, lambda t: 1.0 - t), call.thing(2)))
    if not isinstance(mask, Known):
        raise NoRuleError("a choice by an unknown mask")
    picks = mask.value.double()
    first, second = call.thing(1), call.thing(2)
    kept = multiply(call, first, Known(mask.axes, picks))
    if constant_of(second) == 0.0:
        return kept
    return add(call, kept, multiply(call, second, Known(mask.axes, 1.0 - picks)))
