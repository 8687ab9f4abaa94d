"""Losses: their gradient with respect to the output, for targets that are known or independent of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.theory.forecast.axes import NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.elementwise import add, constant_of, scaled
from headwater.theory.forecast.signals import Known, Law, Signal, Thing
from headwater.theory.forecast.stats import Stats


@dataclass(frozen=True, eq=False)
class LogProbabilities:
    """log_softmax of logits over their features.

    Attributes:
        logits: the signal.
    """

    logits: Signal


@dataclass(frozen=True, eq=False)
class TargetGradient:
    """What the negative log-likelihood sends back: -w at each target.

    Attributes:
        weight: size of each of its entries.
        targets: classes, when known.
    """

    weight: float
    targets: Thing | None


_SCALAR = Stats.constant(math.nan, math.nan)


def _scalar(call: Call) -> Signal:
    """The loss itself: its value is not forecast."""
    return Signal.of((), _SCALAR, call.samples, 0.0, "loss")


@rule("_log_softmax")
def _log_softmax(call: Call) -> Thing:
    thing = call.thing(0)
    if not isinstance(thing, Signal) or thing.structure is not None:
        raise NoRuleError("a log-softmax of something that is no signal")
    if int(call.args[1]) % len(thing.axes) != len(thing.axes) - 1:
        raise NoRuleError("a log-softmax over a dimension that is not the last")
    return Signal.of(thing.axes, Stats.constant(math.nan, math.nan), call.samples, 0.0, LogProbabilities(thing))


@rule("nll_loss_forward", "nll_loss2d_forward")
def _nll(call: Call) -> list[Thing | None]:
    if int(call.args[3]) == 0:
        raise NoRuleError("a loss without reduction")
    return [_scalar(call), Law((), 1.0, 0.0)]


@rule("nll_loss_backward")
def _nll_backward(call: Call) -> Thing:
    # nll_loss_backward(grad, self, target, weight, reduction, ignore_index, total_weight)
    size = constant_of(call.thing(0))
    if size is None or (len(call.args) > 3 and call.args[3] is not None):
        raise NoRuleError("a weighted loss")
    targets = call.engine.look_up(call.args[2])
    known = targets if isinstance(targets, Known | Law) else None
    count = call.args[2].numel()
    ignored = int(call.args[5])
    if isinstance(known, Known):
        count = int((known.value != ignored).sum())
    weight = size / max(1, count) if int(call.args[4]) == 1 else size
    source = call.thing(1)
    return Signal.of(source.axes, Stats.constant(math.nan, math.nan), call.samples, 0.0, TargetGradient(weight, known))


@rule("_log_softmax_backward_data")
def _log_softmax_backward(call: Call) -> Thing:
    """(softmax(z) - onehot) w: q = w² (E p² - 2/C² + 1/C), covariances from those of p and from equal targets."""
    gradient, output = call.thing(0), call.thing(1)
    source = gradient.structure if isinstance(gradient, Signal) else None
    log = output.structure if isinstance(output, Signal) else None
    if not isinstance(source, TargetGradient) or not isinstance(log, LogProbabilities):
        raise NoRuleError("the gradient of a log-softmax that no likelihood follows")
    logits = log.logits
    classes = math.prod(a.size for a in logits.axes[-1])
    stats = logits.stats
    rows = (*logits.axes[:-1],)
    targets = source.targets
    match = None
    if isinstance(targets, Known) and targets.value.numel() == math.prod(a.size for d in rows for a in d):
        named = Known((tuple(a for d in rows for a in d),), targets.value.reshape(-1))
        from headwater.theory.forecast.rules.selection import _matches

        match = _matches(call, Known(named.axes, targets.value.reshape(-1)), named.axes).broadcast(stats.atoms)
    c2 = 1.0 / classes**2
    variance = (stats.square - stats.mean**2).clamp_min(0.0)

    def probabilities(covariance: Tensor) -> Tensor:
        # E p p' = e^c / (C (C - 1 + e^c)): 1/C² for c = 0, c/C² (1 - 1/C) more for small c, 1/C where one class wins.
        grown = torch.exp(covariance.clamp(-50.0, 50.0))
        return grown / (classes * (classes - 1.0 + grown)) - c2

    mean = stats.mean
    outer = mean[:, None] * mean[None, :]
    square = probabilities(variance) + c2
    hit_within = c2 * 0.0 if match is None else (match.within / classes - c2)
    hit_between = c2 * 0.0 if match is None else (match.between / classes - c2)
    hit_aligned = c2 * 0.0 if match is None else (match.aligned / classes - c2)
    w2 = source.weight**2
    delta = Stats(
        stats.atoms,
        torch.zeros_like(mean),
        w2 * (square - 2.0 * c2 + 1.0 / classes),
        w2 * (probabilities(stats.within - outer) + hit_within),
        w2 * (probabilities(stats.aligned - mean**2) + hit_aligned),
        w2 * (probabilities(stats.between - outer) + hit_between),
    ).fixed_diagonals()
    return Signal.of(logits.axes, delta, call.samples)


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits")
def _elementwise_loss(call: Call) -> Thing:
    if call.outputs[0].dim() != 0:
        raise NoRuleError("a loss without reduction")
    return _scalar(call)


@rule("mse_loss_backward")
def _mse_backward(call: Call) -> Thing:
    size = constant_of(call.thing(0))
    if size is None:
        raise NoRuleError("a loss that is not the last operation")
    factor = 2.0 * size / (call.outputs[0].numel() if int(call.args[3]) == 1 else 1)
    first, second = call.thing(1), call.thing(2)
    return scaled(add(call, first, scaled(second, -1.0)), factor)
