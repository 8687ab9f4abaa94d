"""Answers about depth, shortcuts and what weight gradients hide."""

from __future__ import annotations

import math
from collections.abc import Callable

from headwater._studies.evidence import Evidence, split_words, theory_words
from headwater._studies.run import VariantRun
from headwater._studies.words import decades, factor, hides_its_signal, moves, percent, power, rate, signed

__all__ = ["DEPTH_ANSWERS"]

# ------------------------------------------------------------------------------------------------ one network


def _first(evidence: Evidence) -> VariantRun:
    return next(iter(evidence.run))


def _rate(evidence: Evidence) -> str:
    one = _first(evidence)
    trend = one.result.trend("∂L/∂h")
    if trend is None:
        return ""
    weight = one.result.trend("∂L/∂W")
    steps = trend.layers - 1
    text = (
        f"On its way to the input ∂L/∂h {rate(trend)}: {factor(trend.decades_per_layer)} per layer, "
        f"{signed(trend.decades_per_layer * steps)} decades over {steps} layers{theory_words(one.theory)}. A single "
        f"network can lie between {signed(trend.single_low)} and {signed(trend.single_high)}."
    )
    if weight is not None:
        text += f" The weight gradients, which are what is printed, move by {signed(weight.decades_per_layer)}."
    published = [f for f in one.result.figures if f.published]
    if len(published) > 1:
        first, last = published[0], published[-1]
        names = [f.parameter for f in one.result.figures]
        layers = names.index(last.parameter) - names.index(first.parameter)
        slope = math.log10((first.published or 1.0) / (last.published or 1.0)) / layers
        text += f" The published figures themselves, {first.parameter} over {last.parameter}: {signed(slope)}."
    return text


def _cause(evidence: Evidence) -> str:
    one = _first(evidence)
    words = split_words(one)
    if not words:
        return ""
    slope, weights = one.result.slope_decades or 0.0, one.result.weight_decades or 0.0
    text = f"Per layer {words}; together {signed(slope + weights)}."
    if slope < 0 and weights < 0:
        text += f" So {percent(slope / (slope + weights))} of the fall is the activation's."
    if one.theory is not None:
        text += (
            f" Theory: {signed(one.theory.slope_decades)} from the slope, {signed(one.theory.weight_decades)} from the "
            "weights."
        )
    return text


def _hidden_by_format(evidence: Evidence) -> str:
    one = _first(evidence)
    figures = one.result.figures
    decimals = one.variant.published_decimals or 10
    hidden = [f for f in figures if f"{f.value:.{decimals}f}" == f"{0:.{decimals}f}"]
    zero = [f for f in figures if f.value == 0.0]
    if not hidden:
        return f"With {decimals} decimals none of the {len(figures)} gradients prints as zero in this run."
    if zero:
        return (
            f"{len(hidden)} of {len(figures)} gradients print as zero with {decimals} decimals; {len(zero)} of "
            "them are exactly zero: they have underflowed."
        )
    smallest = min(hidden, key=lambda f: f.value)
    return (
        f"No. {len(hidden)} of {len(figures)} gradients print as {0:.{decimals}f} in this run and not one is zero: the "
        f"smallest, {smallest.parameter}, is {power(math.log10(smallest.value))}. The fixed format hides them."
    )


def _underflow(evidence: Evidence) -> str:
    table = evidence.tables.get("underflow")
    return table.reading if table else "The gradient does not fall: no depth makes it underflow."


# ---------------------------------------------------------------------------------------------------- shortcut


def _shortcut_gain(evidence: Evidence) -> str:
    table = evidence.tables.get("shortcut_gain")
    if table is None:
        return ""
    first = table.rows[0]
    one_seed, low, high = (float(first[i] or 0.0) for i in (1, 3, 4))
    return (
        f"{table.reading} (95 % interval for the first layer {signed(low)} to {signed(high)}.) Seed "
        f"{evidence.run.seed} alone shows {signed(one_seed)}."
    )


def _shortcut_depth(evidence: Evidence) -> str:
    cells = evidence.run.grid
    texts = []
    for name in dict.fromkeys(c.initialization for c in cells):
        mine = [c for c in cells if c.initialization == name]
        ends = [[c for c in mine if c.depth == d] for d in (min(c.depth for c in mine), max(c.depth for c in mine))]
        spans = [
            f"{decades(min(c.gain for c in end))} to {decades(max(c.gain for c in end))} decades at depth "
            f"{end[0].depth}"
            for end in (ends if ends[0] != ends[1] else ends[:1])
        ]
        sure = sum(c.gain_low > 0 for c in mine)
        texts.append(
            f"With {name} weights the shortcut brings {' and '.join(spans)} more of the gradient to the first layer "
            f"(widths {min(c.width for c in mine)} to {max(c.width for c in mine)}; the 95 % interval of the gain is "
            f"above 0 in {sure} of {len(mine)} cells)."
        )
    return " ".join(texts)


def _shortcut_scale(evidence: Evidence) -> str:
    cells = evidence.run.grid
    if not cells:
        return ""
    deepest = max(c.depth for c in cells)
    texts = []
    for name in dict.fromkeys(c.initialization for c in cells):
        mine = [c for c in cells if c.initialization == name and c.depth == deepest]
        unscaled = max(c.decades["shortcut"] for c in mine)
        scaled = max((c.decades["scaled"] for c in mine), key=abs)
        # one decade over the whole depth is called an explosion; chosen by us
        verdict = "explodes" if unscaled > 1.0 else "does not explode"
        repair = "keeps it to" if abs(scaled) < abs(unscaled) else "does not help:"
        texts.append(
            f"{name}: at depth {deepest} the gradient of x + f(x) {verdict} ({signed(unscaled)} decades from the last "
            f"layer to the first); a branch scale of 1/√L {repair} {signed(scaled)}."
        )
    return " ".join(texts)


# ------------------------------------------------------------------------------------------ activation and init


def _weights_alone(evidence: Evidence) -> str:
    linear = [one for one in evidence.run if one.result.activation == "identity"]
    texts = []
    for one in linear:
        trend = one.result.trend("∂L/∂h")
        if trend is None:
            continue
        lead = "Yes" if moves(trend) == "falls" else "Not here"
        theory = theory_words(one.theory)
        texts.append(
            f"{lead}. Without any activation (φ' = 1) and with {one.variant.network.rule.title.split(' whatever')[0]} "
            f"weights ∂L/∂h {rate(trend)}{theory}: √σ_w² = "
            f"{math.sqrt(one.variant.network.weight_variance):.3g}"
            " per layer."
        )
        for other in evidence.run:
            other_trend = other.result.trend("∂L/∂h")
            if other is not one and other_trend is not None:
                texts.append(f"{other.variant.title}: {signed(other_trend.decades_per_layer)}.")
    return " ".join(texts)


def _cancellation(evidence: Evidence) -> str:
    texts = []
    for one in evidence.run:
        weight, hidden, forward = (one.result.trend(q) for q in ("∂L/∂W", "∂L/∂h", "activation"))
        if weight is None or hidden is None or forward is None:
            continue
        if hides_its_signal(weight, hidden):
            texts.append(
                f"No. {one.variant.title}: ∂L/∂W looks level ({signed(weight.decades_per_layer)} decades per layer "
                f"towards the input), yet ∂L/∂h {rate(hidden)}{theory_words(one.theory)}. What each layer reads "
                f"{moves(forward)} {decades(forward.decades_per_layer)} per layer on its way forward; a weight "
                "gradient is the product of the two, and there they cancel."
            )
    return " ".join(texts) or "In these networks the weight gradients show what ∂L/∂h does: nothing cancels."


DEPTH_ANSWERS: dict[str, Callable[[Evidence], str]] = {
    "rate": _rate,
    "cause": _cause,
    "hidden_by_format": _hidden_by_format,
    "underflow": _underflow,
    "shortcut_gain": _shortcut_gain,
    "shortcut_depth": _shortcut_depth,
    "shortcut_scale": _shortcut_scale,
    "weights_alone": _weights_alone,
    "cancellation": _cancellation,
}
