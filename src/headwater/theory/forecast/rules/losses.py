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


_DRAWS = 2048  # of the logits: 1/√(draws · classes) relative error, 1 % for ten classes; chosen by us


def _probability_products(classes: int, variance: float) -> tuple[Tensor, Tensor]:
    """E p p' of one class for two softmaxes whose logits share a part of their variance.

    For small variances v the closed form e^c / (C (C - 1 + e^c)), c the shared part; else an average over fixed
    pseudo-random logits, because no closed form holds where one class wins.

    Args:
        classes: C.
        variance: v of the logits.

    Returns:
        The shares 0 to 1, and E p p' at each.
    """
    shares = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)
    if variance < 0.1 or classes > 2048:
        grown = torch.exp((shares * variance).clamp(max=50.0))
        return shares, grown / (classes * (classes - 1.0 + grown))
    generator = torch.Generator().manual_seed(0)
    common, first, second = (
        torch.randn(_DRAWS, classes, generator=generator, dtype=torch.float64) * math.sqrt(variance) for _ in range(3)
    )
    found = []
    for share in shares.tolist():
        one, two = (
            torch.softmax(math.sqrt(share) * common + math.sqrt(1.0 - share) * own, dim=1) for own in (first, second)
        )
        found.append(float((one * two).mean()))
    return shares, torch.tensor(found, dtype=torch.float64)


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

    average = float(variance.mean())
    shares, products = _probability_products(classes, average)

    def probabilities(covariance: Tensor) -> Tensor:
        """E p p' - 1/C² by linear interpolation over the share of the variance that two logits have in common."""
        place = (covariance / max(average, 1e-300)).clamp(0.0, 1.0) * (len(shares) - 1)
        left = place.floor().clamp(0, len(shares) - 2)
        part = place - left
        index = left.long()
        return products[index] * (1.0 - part) + products[index + 1] * part - c2

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
