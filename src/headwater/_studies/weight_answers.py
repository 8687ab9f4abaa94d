"""Answers about raw weights and initialisation strategies."""

from __future__ import annotations

import math
from collections.abc import Callable

from headwater._studies.evidence import Evidence, split_words
from headwater._studies.observations import mean_square_growth
from headwater._studies.run import VariantRun
from headwater._studies.words import FLAT, decades, moves, power, rate, signed
from headwater.records.study import Trend
from headwater.theory.gain import gain, torch_gain

__all__ = ["WEIGHT_ANSWERS"]

# -------------------------------------------------------------------------------------------------- raw weights


def _explode_or_vanish(evidence: Evidence) -> str:
    texts = []
    for one in evidence.run:
        trend = one.result.trend("∂L/∂h")
        if trend is None:
            texts.append(f"{one.variant.title}: no draw has a gradient in every layer.")
            continue
        largest = power(float(one.ensemble.max_abs.median()))
        texts.append(f"{one.variant.title}: ∂L/∂h {rate(trend)}, largest element {largest}.")
    return (
        "On its way to the input, in the typical network of each kind (median of the largest element of a weight "
        "gradient): " + " ".join(texts)
    )


def _why_tanh(evidence: Evidence) -> str:
    one = next((v for v in evidence.run if v.result.activation == "tanh"), None)
    trend = None if one is None else one.result.trend("∂L/∂h")
    if one is None or trend is None or one.result.slope_decades is None or one.result.weight_decades is None:
        return ""
    network, theory = one.variant.network, one.theory
    variance = network.weight_variance
    outcome = {
        "grows": "the weights win",
        "falls": "the slope wins after all",
        "stays level": "the two balance",
    }[moves(trend)]
    wide = (
        ""
        if theory is None
        else f" (in a wide network {signed(theory.weight_decades)} and {signed(theory.slope_decades)})"
    )
    return (
        f"{network.rule.title.split(' whatever')[0]} weights have σ_w² = fan_in · Var(W) = {variance:.3g} at layer size "
        f"{network.width}: in a wide network they alone multiply the gradient by √{variance:.3g} = "
        f"{math.sqrt(variance):.3g} per layer. Measured at this width: {signed(one.result.weight_decades)} decades per "
        f"layer from the weights and {signed(one.result.slope_decades)} from the slope of tanh{wide}, so {outcome}: "
        f"∂L/∂h {rate(trend)}. The mean square over all draws moves by {signed(mean_square_growth(one))} per layer."
    )


def _zero_explained(evidence: Evidence) -> str:
    counts: dict[str, int] = {}
    for view in evidence.matrices:
        for row in view.reasons:
            for reason in row:
                if reason:
                    counts[reason] = counts.get(reason, 0) + 1
    tested = [o for o in evidence.observations if "relation" in o.claim]
    if not counts and not tested:
        return "None of the gradients has an exact zero."
    elements = sum(len(row) for view in evidence.matrices for row in view.weight)
    shown = ", ".join(f"{count} by {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    lead = (
        f"In the matrices shown, {sum(counts.values())} of {elements} elements are exactly zero ({shown}). A column "
        "of ∂L/∂W is zero when the unit that it feeds is inactive on the whole batch, a row when the unit that feeds "
        "it is. "
        if counts
        else ""
    )
    # the sentence of the first network, the number alone for the others
    more = "; ".join(f"{o.claim.split(':')[0]} {100 * o.value:+.0f} points" for o in tested[1:])
    return lead + (tested[0].sentence if tested else "") + (f" The same difference elsewhere: {more}." if more else "")


# ------------------------------------------------------------------------------------------------ init strategies


def _ends(one: VariantRun) -> str:
    weights = [f for f in one.result.figures if f.parameter.endswith(".weight")]
    first, last = weights[0], weights[-1]
    sizes = [power(math.log10(f.value)) if f.value else "0" for f in (first, last)]
    return f"{sizes[0]} at {first.parameter} against {sizes[1]} at {last.parameter}"


def _hidden_trends(evidence: Evidence) -> list[tuple[VariantRun, Trend]]:
    pairs = ((one, one.result.trend("∂L/∂h")) for one in evidence.run)
    return [(one, trend) for one, trend in pairs if trend is not None]


def _pattern(evidence: Evidence) -> str:
    pairs = _hidden_trends(evidence)
    if not pairs:
        return ""
    ordered = sorted(pairs, key=lambda pair: pair[1].decades_per_layer)
    rates = "; ".join(f"{one.variant.title} {signed(t.decades_per_layer)}" for one, t in ordered)
    falling = [one.variant.title for one, t in ordered if moves(t) == "falls"]
    one, worst = ordered[0]
    text = f"Decades of ∂L/∂h per layer towards the input, steepest first: {rates}."
    if not falling:
        return text + " Nothing vanishes."
    return (
        f"{text} It is most evident with {one.variant.title}: its L2 norms are {_ends(one)}, ∂L/∂h {rate(worst)}. "
        f"{len(falling)} of {len(ordered)} networks lose gradient towards the input."
    )


def _why_sigmoid(evidence: Evidence) -> str:
    one = next((v for v in evidence.run if v.result.activation == "sigmoid"), None)
    if one is None or one.result.slope_decades is None or one.result.weight_decades is None:
        return ""
    slope, weights = one.result.slope_decades, one.result.weight_decades
    largest = "the slope" if slope < weights else "the weights"
    ideal = gain("sigmoid")
    return (
        f"A slope of at most 1/4: in {one.variant.title}, {split_words(one)}; {largest} cost{'s' * (slope < weights)} "
        f"most. Weights that make up for the slope would need a gain of {ideal:.3g} at unit pre-activation variance, where "
        f"torch's calculate_gain gives {torch_gain('sigmoid'):.3g} "
        f"({one.variant.title} has {math.sqrt(one.variant.network.weight_variance):.3g})."
    )


def _compare(evidence: Evidence, left: str, right: str) -> tuple[VariantRun, Trend, VariantRun, Trend] | None:
    found = {one.variant.name: (one, trend) for one, trend in _hidden_trends(evidence)}
    if left not in found or right not in found:
        return None
    return (*found[left], *found[right])


def _change(pair: tuple[VariantRun, Trend, VariantRun, Trend]) -> str:
    one, before, other, after = pair
    apart = before.high < after.low or after.high < before.low
    gained = after.decades_per_layer - before.decades_per_layer
    word = ("gains" if gained > 0 else "loses") if apart else "is no different:"
    return (
        f"from {one.variant.title} to {other.variant.title} ∂L/∂h {word} {decades(gained)} decades per layer "
        f"({signed(before.decades_per_layer)} to {signed(after.decades_per_layer)})"
    )


def _what_relu_changes(evidence: Evidence) -> str:
    pair = _compare(evidence, "sigmoid-default", "leaky-default")
    if pair is None:
        return ""
    one, _, other, after = pair
    text = f"With the same initialisation, {_change(pair)}."
    slopes = (one.result.slope_decades, other.result.slope_decades)
    if slopes[0] is not None and slopes[1] is not None:
        weights = (one.result.weight_decades or 0.0, other.result.weight_decades or 0.0)
        text += (
            f" The slope's part goes from {signed(slopes[0])} to {signed(slopes[1])}, the weights' part from "
            f"{signed(weights[0])} to {signed(weights[1])}."
        )
    if moves(after) == "falls":
        text += f" It still {rate(after)}, for σ_w² = {other.variant.network.weight_variance:.3g}."
    weight = other.result.trend("∂L/∂W")
    if weight is not None:
        text += f" Its weight gradients alone would show {signed(weight.decades_per_layer)}."
    return text


def _what_init_changes(evidence: Evidence) -> str:
    sentences = []
    for left, right in (
        ("sigmoid-default", "sigmoid-he"), ("sigmoid-default", "sigmoid-xavier"), ("leaky-default", "leaky-xavier"),
        ("leaky-default", "leaky-he"),
    ):  # fmt: skip
        pair = _compare(evidence, left, right)
        if pair is not None:
            sentences.append(_change(pair))
    if not sentences:
        return ""
    level = [one.variant.title for one, t in _hidden_trends(evidence) if abs(t.decades_per_layer) < 2 * FLAT]
    closing = (
        f" Closest to keeping the gradient (below {2 * FLAT:.2f} decades per layer): {', '.join(level)}."
        if level
        else " None of them keeps the gradient."
    )
    pair = _compare(evidence, "sigmoid-he", "sigmoid-xavier")
    same = ""
    if pair is not None:
        difference = abs(pair[1].decades_per_layer - pair[3].decades_per_layer)
        same = (
            f" On the sigmoid network He with gain 1 and Xavier differ by {difference:.3f} decades per layer: at equal "
            "widths both are Var(W) = 1/n."
        )
    text = "; ".join(sentences)
    return text[0].upper() + text[1:] + "." + same + closing


WEIGHT_ANSWERS: dict[str, Callable[[Evidence], str]] = {
    "explode_or_vanish": _explode_or_vanish,
    "why_tanh": _why_tanh,
    "zero_explained": _zero_explained,
    "pattern": _pattern,
    "why_sigmoid": _why_sigmoid,
    "what_relu_changes": _what_relu_changes,
    "what_init_changes": _what_init_changes,
}
