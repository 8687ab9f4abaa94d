"""The questions of each study, answered from its measurements; no conclusion is written in advance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headwater._studies.observations import mean_square_growth
from headwater._studies.run import StudyRun, VariantRun
from headwater._studies.trends import WideTheory
from headwater._studies.words import FLAT, decades, factor, hides_its_signal, moves, percent, power, rate, signed
from headwater.records.study import Answer, MatrixView, Observation, StudyTable, Trend
from headwater.theory.gain import gain, torch_gain

__all__ = ["Evidence", "compose"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an answer may draw on.

    Attributes:
        run: the study, run.
        tables: its own tables, by the name of the extra.
        observations: claims tested over many draws.
        matrices: weights beside gradients.
    """

    run: StudyRun
    tables: Mapping[str, StudyTable]
    observations: tuple[Observation, ...]
    matrices: tuple[MatrixView, ...]


def compose(evidence: Evidence) -> tuple[Answer, ...]:
    """Answer every question of a study that its (possibly varied) networks can answer.

    Args:
        evidence: what was measured.

    Returns:
        The answers, in the order of the questions.
    """
    answers = []
    for question in evidence.run.study.questions:
        text = _COMPOSERS[question.key](evidence)
        if text:
            answers.append(Answer(question=question.text, text=text))
    return tuple(answers)


# ------------------------------------------------------------------------------------------------ one network


def _first(evidence: Evidence) -> VariantRun:
    return next(iter(evidence.run))


def _theory_words(theory: WideTheory | None) -> str:
    return "" if theory is None else f"; wide-network theory gives {signed(theory.decades_per_layer)}"


def _split_words(one: VariantRun) -> str:
    slope, weights = one.result.slope_decades, one.result.weight_decades
    if slope is None or weights is None:
        return ""
    network = one.variant.network
    variance = network.weight_variance
    mean_square_slope = 10.0 ** (2.0 * slope)
    verbs = [("takes" if part < 0 else "gives") for part in (slope, weights)]
    return (
        f"the slope of {one.result.activation} {verbs[0]} {decades(slope)} decades per layer (mean φ'² = "
        f"{mean_square_slope:.3g}) and the weights {verbs[1].rstrip('s')} {decades(weights)} (σ_w² = {variance:.3g}; "
        "1 would keep it)"
    )


def _rate(evidence: Evidence) -> str:
    one = _first(evidence)
    trend = one.result.trend("∂L/∂h")
    if trend is None:
        return ""
    weight = one.result.trend("∂L/∂W")
    steps = trend.layers - 1
    text = (
        f"On its way to the input ∂L/∂h {rate(trend)}: {factor(trend.decades_per_layer)} per layer, "
        f"{signed(trend.decades_per_layer * steps)} decades over {steps} layers{_theory_words(one.theory)}. A single "
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
    words = _split_words(one)
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
        theory = _theory_words(one.theory)
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
                f"towards the input), yet ∂L/∂h {rate(hidden)}{_theory_words(one.theory)}. What each layer reads "
                f"{moves(forward)} {decades(forward.decades_per_layer)} per layer on its way forward; a weight "
                "gradient is the product of the two, and there they cancel."
            )
    return " ".join(texts) or "In these networks the weight gradients show what ∂L/∂h does: nothing cancels."


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
        f"A slope of at most 1/4: in {one.variant.title}, {_split_words(one)}; {largest} cost{'s' * (slope < weights)} "
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


_COMPOSERS: dict[str, Callable[[Evidence], str]] = {
    "rate": _rate,
    "cause": _cause,
    "hidden_by_format": _hidden_by_format,
    "underflow": _underflow,
    "shortcut_gain": _shortcut_gain,
    "shortcut_depth": _shortcut_depth,
    "shortcut_scale": _shortcut_scale,
    "weights_alone": _weights_alone,
    "cancellation": _cancellation,
    "explode_or_vanish": _explode_or_vanish,
    "why_tanh": _why_tanh,
    "zero_explained": _zero_explained,
    "pattern": _pattern,
    "why_sigmoid": _why_sigmoid,
    "what_relu_changes": _what_relu_changes,
    "what_init_changes": _what_init_changes,
}
