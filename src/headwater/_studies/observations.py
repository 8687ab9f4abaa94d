"""What the author of ``raw-weights`` saw in a few printouts, tested over many networks."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from headwater._studies.raw_matrices import ZeroCensus
from headwater._studies.run import StudyRun, VariantRun
from headwater._studies.trends import interval_of_mean
from headwater._studies.words import FLAT, decades, percent, power, rate, signed
from headwater.records.study import Observation

__all__ = ["mean_square_growth", "observe"]

Outcome = Literal["holds", "does not hold", "undecided"]
# "Many" exact zeros: more than one element in ten. Chosen by us.
_MANY = 0.1


def observe(run: StudyRun, censuses: dict[str, ZeroCensus]) -> tuple[Observation, ...]:
    """Test every observation on every network that it speaks of.

    Args:
        run: the study, run.
        censuses: the zeros of each network that has any.

    Returns:
        One observation per claim and network.
    """
    found: list[Observation] = []
    for one in run:
        activation = one.result.activation
        if activation == "sigmoid":
            found.append(_trend(one, f"{one.variant.title}: gradients vanish", -1))
        elif activation in ("relu", "tanh"):
            found.append(_trend(one, f"{one.variant.title}: gradients explode", +1))
        found.append(_zeros(one))
        census = censuses.get(one.variant.name)
        if census is not None:
            found.append(_signs(one, census))
    return tuple(found)


def mean_square_growth(one: VariantRun) -> float:
    """Decades per layer that the root mean square over ALL draws gains on its way to the input.

    Args:
        one: a network, run.

    Returns:
        log10 of √(mean δ₁² / mean δ_H²) over the hidden layers, per layer: a few huge draws decide it, and draws
        that are exactly zero count.
    """
    hidden = one.variant.network.hidden
    squares = 2.0 * one.ensemble.preactivation_gradient[:, [0, hidden - 1]]
    total = torch.logsumexp(squares * math.log(10.0), dim=0) / math.log(10.0)
    return float(0.5 * (total[0] - total[1])) / (hidden - 1)


def _trend(one: VariantRun, claim: str, sign: int) -> Observation:
    trend = one.result.trend("∂L/∂h")
    if trend is None:
        return Observation(
            claim=claim, statistic="slope of log10 rms ∂L/∂h towards the input", value=math.nan, low=math.nan,
            high=math.nan, unit="decades per layer", draws=0, outcome="undecided",
            sentence="No draw of this network has a gradient in every layer: there is no slope to speak of.",
        )  # fmt: skip
    low, high = sorted((sign * trend.low, sign * trend.high))
    # a rate below FLAT decades per layer neither vanishes nor explodes
    outcome: Outcome = "holds" if low > FLAT else "does not hold" if high < FLAT else "undecided"
    largest = float(one.ensemble.max_abs.median())
    lost = 1.0 - trend.draws / one.ensemble.draws
    sentence = (
        f"{one.variant.title}: on its way to the input ∂L/∂h {rate(trend)}; the largest element of a weight gradient "
        f"is {power(largest)} in the median network"
    )
    if sign > 0:
        growth = mean_square_growth(one)
        sentence += (
            f". The mean square over all networks moves by {signed(growth)} decades per layer (wide-network theory: "
            f"{signed(trend.theory)})" if trend.theory is not None else ""
        )  # fmt: skip
        gained = trend.decades_per_layer * (trend.layers - 1)
        if 0.0 < gained < 1.0 and largest > 3.0:
            sentence += (
                f", yet the typical network gains only {decades(gained)} decades over all its layers: these gradients "
                f"are large everywhere, the loss being a sum over {_terms(one):,} terms, rather than growing towards "
                "the input"
            )
    if lost > 0:
        sentence += f"; {percent(lost)} of the networks have a layer whose gradient is exactly zero and are left out"
    return Observation(
        claim=claim, statistic="mean slope of log10 rms ∂L/∂h towards the input", value=trend.decades_per_layer,
        low=trend.low, high=trend.high, unit="decades per layer", draws=trend.draws, outcome=outcome,
        sentence=sentence + ".",
    )  # fmt: skip


def _terms(one: VariantRun) -> int:
    output = one.result.profile.output_shape or (1,)
    target = one.result.profile.target_shape or output
    return math.prod(torch.broadcast_shapes(output, target))


def _zeros(one: VariantRun) -> Observation:
    shares = one.ensemble.zero_fraction.mean(1)
    mean, low, high = interval_of_mean(shares)
    gives_many = one.result.activation == "relu"
    claim = f"{one.variant.title}: {'many' if gives_many else 'no'} exact zeros"
    outcome: Outcome
    if gives_many:
        outcome = "holds" if low > _MANY else "does not hold" if high < _MANY else "undecided"
    else:
        outcome = "holds" if mean == 0.0 else "does not hold"
    return Observation(
        claim=claim, statistic="mean share of exact zeros in the weight gradients", value=mean, low=low, high=high,
        unit="share", draws=len(shares), outcome=outcome,
        sentence=f"{one.variant.title}: {percent(mean)} of all weight-gradient elements are exactly zero.",
    )  # fmt: skip


def _signs(one: VariantRun, census: ZeroCensus) -> Observation:
    difference = _finite(census.zero_if_negative - census.zero_if_positive)
    mean, low, high = interval_of_mean(difference)
    related = not low <= 0.0 <= high
    total = max(1, sum(census.reasons.values()))
    shares = {name: count / total for name, count in census.reasons.items() if count}
    sentence = (
        f"{one.variant.title}: the gradient is exactly zero for {percent(_mean(census.zero_if_negative))} of the "
        f"negative weights and {percent(_mean(census.zero_if_positive))} of the others"
    )
    if related:
        sentence += (
            ". So there is a relation, too weak to see in one printout: a unit fed by values that are never negative "
            f"is active when its positive weights outweigh the others, and {percent(census.negative_into_inactive)} "
            f"of the weights into inactive units are negative against {percent(census.negative_into_active)} "
            "elsewhere. The sign of one weight decides nothing, its unit does"
        )
    sentence += ": " + ", ".join(f"{percent(share)} of the zeros by {_WHY[name]}" for name, share in shares.items())
    return Observation(
        claim=f"{one.variant.title}: no relation between a weight below 0 and a zero gradient",
        statistic="P(zero | weight < 0) − P(zero | weight ≥ 0), mean over networks", value=mean, low=low, high=high,
        unit="share", draws=len(difference), outcome="does not hold" if related else "holds", sentence=sentence + ".",
    )  # fmt: skip


_WHY = {
    "column": "a whole column (the unit fed is inactive on the whole batch)",
    "row": "a whole row (the unit that feeds is)",
    "no path": "no active path from the unit to the loss",
    "disjoint": "no sample in which both ends are active",
    "underflow": "underflow or exact cancellation",
}


def _finite(values: Tensor) -> Tensor:
    return values[torch.isfinite(values)]


def _mean(values: Tensor) -> float:
    return float(_finite(values).mean())
