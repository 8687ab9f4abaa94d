"""Products of two signals: weight gradients, attention scores, attention weights, and the gradients through them.

Notation: scores s_ij = scale · q_i·k_j over n features; a_ij the softmax of the mask alone; K_x the covariance matrix of x
over positions. For near-Gaussian scores, E[A_ij A_i'j'] ∝ a_ij a_i'j' (1 + [j = j'] (e^C - 1)), where C is the covariance
of s_ij and s_i'j after the part that all keys share, which the softmax removes. With one row and no mask this is
Σ_j A_ij² = e^{τ²}/T (THEORY.md). Derived by us under independence of queries, keys, values and gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.length import weight_moments
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal
from headwater.theory.forecast.stats import Stats


@dataclass(frozen=True, eq=False)
class Scores:
    """s_ij = Σ_f left_if right_jf.

    Attributes:
        left: its statistics over the row positions.
        right: over the column positions.
        rows: position atoms of the rows.
        columns: of the columns.
        features: how many are summed over.
        mask: added to the scores, (rows, columns); None for none.
        spread: of the two factors.
        keep: of a gradient of attention weights: the probability that dropout let a weight pass.
    """

    left: Stats
    right: Stats
    rows: tuple[Atom, ...]
    columns: tuple[Atom, ...]
    features: int
    mask: Tensor | None
    spread: float
    keep: float = 1.0

    def multiplied(self, signal: Signal, other: Thing) -> Signal:
        """The gradient of attention weights times the dropout mask of the forward, 0 and 1/keep."""
        if not isinstance(other, Law) or other.mean == 0.0:
            raise NoRuleError("attention scores times a tensor")
        scores = self if signal.factor == 1.0 else self.scaled_by(signal.factor)
        kept = replace(scores.scaled_by(other.mean), keep=self.keep * other.mean**2 / other.square)
        return _structured(signal.axes, kept, signal)

    def masked(self, signal: Signal, mask: Known) -> Signal:
        """The scores with a constant added."""
        value = mask.value.detach().double()
        value = value.expand(*([1] * max(0, 2 - value.dim())), *value.shape) if value.dim() < 2 else value
        while value.dim() > 2:  # masks of several samples: the first stands for all
            value = value[0]
        shape = math.prod(a.size for a in self.rows), math.prod(a.size for a in self.columns)
        value = value.expand(shape)
        total = value if self.mask is None else self.mask + value
        return _structured(signal.axes, replace(self, mask=total), signal)

    def scaled_by(self, factor: float) -> Scores:
        """The scores times a number."""
        return replace(self, left=self.left.scaled(factor))


@dataclass(frozen=True, eq=False)
class Weights:
    """A = softmax(s) over the columns.

    Attributes:
        scores: s.
        keep: probability that a weight survives dropout.
    """

    scores: Scores
    keep: float = 1.0

    def multiplied(self, signal: Signal, other: Thing) -> Signal:
        """The weights times a dropout mask of 0 and 1/keep."""
        if not isinstance(other, Law) or other.mean == 0.0:
            raise NoRuleError("attention weights times a tensor")
        # E[mask²]/E[mask]² = 1/keep
        return _structured(signal.axes, replace(self, keep=self.keep * other.mean**2 / other.square), signal)


@dataclass(frozen=True, eq=False)
class WeightsGradient:
    """∂L/∂s of attention weights A whose own gradient is the product of δ and the values.

    Attributes:
        weights: A.
        gradient: ∂L/∂A as a product, rows δ and columns v.
    """

    weights: Weights
    gradient: Scores


def _structured(axes: Axes, structure: Any, signal: Signal) -> Signal:
    # Moments of the entries themselves are not needed by any rule; a placeholder keeps the form.
    return Signal.of(axes, Stats.constant(math.nan, math.nan), signal.samples, signal.spread, structure)


def _scores_of(signal: Signal) -> Scores | None:
    structure = signal.structure
    if isinstance(structure, Scores):
        return structure if signal.factor == 1.0 else structure.scaled_by(signal.factor)
    return None


# -------------------------------------------------------------------- products


def contracted(call: Call, first: Thing, second: Thing) -> Thing:
    """The matrix product of two tensors whose contracted dimensions carry the same atoms.

    Args:
        call: the operation.
        first: (…, n, k).
        second: (…, k, m).

    Returns:
        The product, by what k counts: features give scores, positions an attention output or a weight gradient.

    Raises:
        NoRuleError: a combination without a rule.
    """
    for thing, other in ((first, second), (second, first)):
        if isinstance(thing, Signal) and thing.structure is not None:
            if not isinstance(other, Signal):
                raise NoRuleError("attention weights times a constant")
            return _through(call, first, second)  # type: ignore[arg-type]
    shared = first.axes[-1]
    kinds = {a.kind for a in shared}
    everything = (*first.axes[:-1], shared, *second.axes[-1:])
    if kinds & {"sample", "position"}:
        return _weight_gradient(call, first, second)
    left, right = to_signal(first, everything, call.samples), to_signal(second, everything, call.samples)
    rows = tuple(a for a in first.axes[-2] if a.kind == "position")
    columns = tuple(a for a in second.axes[-1] if a.kind == "position")
    if not rows and not columns:
        raise NoRuleError("a product of two signals over features, without positions")
    if set(left.atoms) - set(rows) or set(right.atoms) - set(columns):
        raise NoRuleError("attention over some of the positions")
    axes = (*first.axes[:-1], second.axes[-1])
    scores = Scores(
        left.stats.broadcast(rows),
        right.stats.broadcast(columns),
        rows,
        columns,
        math.prod(a.size for a in shared),
        None,
        left.spread + right.spread,
    )
    if set(rows) & set(columns):  # queries and keys of one tensor: the same positions under two names
        fresh = {a: a.renewed() for a in columns}
        columns = tuple(fresh[a] for a in columns)
        axes = (*axes[:-1], tuple(fresh.get(a, a) for a in axes[-1]))
        scores = replace(scores, right=scores.right.with_atoms(columns), columns=columns)
    return _structured(axes, scores, left)


def _weight_gradient(call: Call, first: Thing, second: Thing) -> Signal:
    """Σ_n δ_n a_n: E of the square is Σ over pairs of samples and positions of K_δ K_a."""
    everything = (first.axes[-2], first.axes[-1], second.axes[-1])
    left, right = to_signal(first, everything, call.samples), to_signal(second, everything, call.samples)
    shared = first.axes[-1]
    positions = tuple(a for a in shared if a.kind == "position")
    # Rows and columns that count positions of their own (flattened pixels, mixed tokens): the average over them.
    one, two = (s.stats.averaged(positions).broadcast(positions) for s in (left, right))
    within, between = one.pair_sums(two)
    samples = math.prod(a.size for a in shared if a.kind == "sample")
    features = math.prod(a.size for a in shared if a.kind in ("feature", "unknown"))
    own, apart, spread = 1.0, 1.0, left.spread + right.spread
    for delta, entered in ((left, right), (right, left)):
        if delta.profile is not None and not positions:
            own, apart, lengths = weight_moments(delta.profile, call.samples)
            spread = delta.noise + entered.noise + lengths
    square = float(samples * own * within + samples * (samples - 1) * apart * between) * features
    axes = (*first.axes[:-1], second.axes[-1])
    return Signal.of(axes, Stats.constant(0.0, square), call.samples, spread)


# -------------------------------------------------------------------- attention


def _rate(scores: Scores) -> Tensor | None:
    """a: the weights that the mask alone gives; None when all positions share one node."""
    if not scores.right.dense or not scores.left.dense:
        if scores.mask is not None and not bool((scores.mask == 0).all()):
            return None
        return None
    rows, columns = scores.left.nodes, scores.right.nodes
    mask = torch.zeros(rows, columns, dtype=torch.float64) if scores.mask is None else scores.mask
    top = mask.amax(1, keepdim=True).clamp_min(-1e300)
    weight = torch.exp(mask - top)
    return weight / weight.sum(1, keepdim=True)


def _pooled_rate(scores: Scores) -> tuple[float, float]:
    """Σ_j a_ij² averaged over rows, and Σ_j a_ij a_i'j averaged over pairs of rows, when positions share a node."""
    columns = scores.right.positions
    if scores.mask is None or bool((scores.mask == 0).all()):
        return 1.0 / columns, 1.0 / columns
    seen = (scores.mask > -1e30).double()
    a = seen / seen.sum(1, keepdim=True).clamp_min(1.0)
    n = len(a)
    own = float((a * a).sum(1).mean())
    total = a.sum(0)
    pairs = float((total * total).sum()) - own * n
    return own, pairs / max(1, n * (n - 1))


def _excess(scores: Scores, a: Tensor, within: bool) -> tuple[Tensor, Tensor]:
    """e^C - 1 for each pair of rows, and Σ_j a_ij a_i'j."""
    left = scores.left.within if within else scores.left.between
    right = scores.right.within if within else scores.right.between
    mean = a @ right  # (rows, columns)
    inner = (mean * a).sum(1)  # a K a per row
    own = (a * right.diagonal()[None, :]).sum(1)
    spread = (own - inner).clamp_min(0.0)  # Σ_j a_ij (K_jj - …) = variance over the keys of a row
    covariance = scores.features * left * torch.sqrt(spread[:, None] * spread[None, :])
    overlap = a @ a.T
    return torch.expm1(covariance.clamp(max=50.0)), overlap


def _boost(weights: Weights, excess: Tensor) -> Tensor:
    """Dropout on the weights adds to the same weight's square: 1 + excess → (1 + excess)/keep on the diagonal."""
    if weights.keep == 1.0:
        return excess
    boosted = excess.clone()
    boosted.diagonal().copy_((1.0 + excess.diagonal()) / weights.keep - 1.0)
    return boosted


def _mixture(weights: Weights, values: Stats, rows: tuple[Atom, ...]) -> Stats:
    """A v."""
    scores = weights.scores
    a = _rate(scores)
    if a is None:
        own, pair = _pooled_rate(scores)
        n = scores.right.positions
        tau = [
            scores.features * float(left.reshape(-1)[0]) * max(0.0, float(k)) * (1.0 - 1.0 / n)
            for left, k in _pooled_pairs(scores)
        ]
        found = []
        for index, (square, apart) in enumerate(
            ((values.square, values.within), (values.square, values.within), (values.aligned, values.between),
             (values.aligned, values.between))
        ):  # fmt: skip
            q, c = float(square[0]), float(apart[0, 0])
            same = own if index % 2 == 0 else pair
            extra = same * math.expm1(min(50.0, tau[index]))
            if index == 0 and weights.keep != 1.0:
                extra = same * (math.exp(min(50.0, tau[0])) / weights.keep - 1.0)
            found.append((c + same * (q - c) + extra * q) / (1.0 + extra))
        t = [torch.tensor([x], dtype=torch.float64) for x in found]
        return Stats(rows, values.mean, t[0], t[1][None], t[2], t[3][None])
    mean = a @ values.mean

    def covariance(kernel: Tensor, within: bool) -> Tensor:
        excess, overlap = _excess(scores, a, within)
        excess = _boost(weights, excess) if within else excess
        base = a @ kernel @ a.T
        same = (a * kernel.diagonal()[None, :]) @ a.T
        return (base + excess * same) / (1.0 + excess * overlap)

    inside = covariance(values.fixed_diagonals().within, True)
    outside = covariance(values.fixed_diagonals().between, False)
    return Stats(rows, mean, inside.diagonal().clone(), inside, outside.diagonal().clone(), outside)


def _pooled_pairs(scores: Scores) -> list[tuple[Tensor, Tensor]]:
    left, right = scores.left, scores.right
    key = (right.square - right.within.reshape(-1)[0]).reshape(-1)[0]
    across = (right.aligned - right.between.reshape(-1)[0]).reshape(-1)[0]
    return [(left.square, key), (left.within, key), (left.aligned, across), (left.between, across)]


def _value_gradient(weights: Weights, gradient: Stats, columns: tuple[Atom, ...]) -> Stats:
    """Aᵀ δ: ∂L/∂v."""
    scores = weights.scores
    a = _rate(scores)
    if a is None:
        own, _ = _pooled_rate(scores)
        rows, n = scores.left.positions, scores.right.positions
        tau = [
            scores.features * float(left.reshape(-1)[0]) * max(0.0, float(k)) * (1.0 - 1.0 / n)
            for left, k in _pooled_pairs(scores)
        ]
        found = []
        for index, (square, apart) in enumerate(
            ((gradient.square, gradient.within), (gradient.aligned, gradient.between))
        ):
            q, c = float(square[0]), float(apart[0, 0])
            same_row = math.exp(min(50.0, tau[2 * index])) / (weights.keep if index == 0 else 1.0)
            other_row = math.exp(min(50.0, tau[2 * index + 1]))
            # Σ_i A_ij² δ_i² + Σ_{i≠i'} A_ij A_i'j δ_i δ_i' for the same column, a a' for two different ones.
            share = own * rows / n
            found.append(share * same_row * q + (rows * rows / (n * n) - rows / (n * n)) * other_row * c)
            found.append(rows / (n * n) * q + (rows * rows - rows) / (n * n) * c)
        t = [torch.tensor([x], dtype=torch.float64) for x in found]
        return Stats(columns, gradient.mean[:1] * rows / n, t[0], t[1][None], t[2], t[3][None])
    dense = gradient.fixed_diagonals()

    def covariance(kernel: Tensor, within: bool) -> Tensor:
        excess, overlap = _excess(scores, a, within)
        excess = _boost(weights, excess) if within else excess
        normed = kernel / (1.0 + excess * overlap)
        out = a.T @ normed @ a
        extra = ((a.T @ (excess * normed)).T * a).sum(0)
        return out + torch.diag(extra)

    inside, outside = covariance(dense.within, True), covariance(dense.between, False)
    return Stats(columns, a.T @ gradient.mean, inside.diagonal().clone(), inside, outside.diagonal().clone(), outside)


def _query_gradient(gradient: WeightsGradient, keys: Stats, rows: tuple[Atom, ...]) -> Stats:
    """∂L/∂s · k: what reaches the queries."""
    scores, product = gradient.weights.scores, gradient.gradient
    a = _rate(scores)
    values, delta = product.right, product.left
    if a is None:
        own, pair = _pooled_rate(scores)
        found = []
        for index, (d, v, k) in enumerate(
            (
                (delta.square, values.square - values.within[0], keys.square - keys.within[0]),
                (delta.within, values.square - values.within[0], keys.square - keys.within[0]),
                (delta.aligned, values.aligned - values.between[0], keys.aligned - keys.between[0]),
                (delta.between, values.aligned - values.between[0], keys.aligned - keys.between[0]),
            )
        ):
            same = own if index % 2 == 0 else pair
            left, key = _pooled_pairs(scores)[index]
            tau = scores.features * float(left.reshape(-1)[0]) * max(0.0, float(key))
            found.append(
                product.features * same * math.exp(min(50.0, tau)) * float(d.reshape(-1)[0]) * float(v) * float(k)
            )
        t = [torch.tensor([x], dtype=torch.float64) for x in found]
        return Stats(rows, torch.zeros(1, dtype=torch.float64), t[0], t[1][None], t[2], t[3][None])

    def covariance(d: Tensor, v: Tensor, k: Tensor, within: bool) -> Tensor:
        u, t = a @ v, a @ k
        w, kk = u @ a.T, t @ a.T
        ut = (u * t) @ a.T
        base = a @ (v * k) @ a.T - ut - ut.T + w * kk
        excess, overlap = _excess(scores, a, within)
        excess = _boost(gradient.weights, excess) if within else excess
        v_own = ((a * v.diagonal()[None, :]).sum(1) - w.diagonal()).clamp_min(0.0)
        k_own = ((a * k.diagonal()[None, :]).sum(1) - kk.diagonal()).clamp_min(0.0)
        own = v_own * k_own
        same = overlap * torch.sqrt(own[:, None] * own[None, :])
        return product.features * d * (base + excess * same) / (1.0 + excess * overlap)

    values, delta, keys = values.fixed_diagonals(), delta.fixed_diagonals(), keys.fixed_diagonals()
    inside = covariance(delta.within, values.within, keys.within, True)
    outside = covariance(delta.between, values.between, keys.between, False)
    zero = torch.zeros(len(inside), dtype=torch.float64)
    return Stats(rows, zero, inside.diagonal().clone(), inside, outside.diagonal().clone(), outside)


def _key_gradient(gradient: WeightsGradient, queries: Stats, columns: tuple[Atom, ...]) -> Stats:
    """(∂L/∂s)ᵀ q: what reaches the keys."""
    scores, product = gradient.weights.scores, gradient.gradient
    a = _rate(scores)
    values, delta = product.right, product.left
    if a is None:
        rows, n = scores.left.positions, scores.right.positions
        own, _ = _pooled_rate(scores)
        found = []
        for index, (dq, dc, qq, qc, v) in enumerate(
            (
                (delta.square, delta.within, queries.square, queries.within, values.square - values.within[0]),
                (delta.aligned, delta.between, queries.aligned, queries.between, values.aligned - values.between[0]),
            )
        ):
            left, key = _pooled_pairs(scores)[2 * index]
            tau = scores.features * float(left.reshape(-1)[0]) * max(0.0, float(key))
            grow = math.exp(min(50.0, tau))
            one = own * rows / n * grow * float(dq[0] * qq[0])
            two = (rows * rows - rows) / (n * n) * float(dc.reshape(-1)[0] * qc.reshape(-1)[0])
            square = product.features * float(v) * (one + two)
            found += [square, -square / max(1, n - 1)]  # the columns of ∂L/∂s sum to zero
        t = [torch.tensor([x], dtype=torch.float64) for x in found]
        return Stats(columns, torch.zeros(1, dtype=torch.float64), t[0], t[1][None], t[2], t[3][None])

    def covariance(d: Tensor, v: Tensor, q: Tensor, within: bool) -> Tensor:
        z = d * q
        excess, overlap = _excess(scores, a, within)
        excess = _boost(gradient.weights, excess) if within else excess
        z = z / (1.0 + excess * overlap)
        u = a @ v
        w = u @ a.T
        cross = a.T @ (u * (z @ a))
        base = v * (a.T @ z @ a) - cross - cross.T + a.T @ (w * z) @ a
        own = ((a * v.diagonal()[None, :]).sum(1) - w.diagonal()).clamp_min(0.0).sqrt()
        extra = ((a.T @ (excess * z * own[:, None] * own[None, :])).T * a).sum(0)
        # The columns of ∂L/∂s sum to zero, so the keys' gradients do.
        total = extra.sum()
        if float(total) > 1e-3 * float(extra.abs().sum()):
            apart = torch.diag(extra) - extra[:, None] * extra[None, :] / total
        else:  # covariances of both signs: the mean over the columns is taken out instead
            n = len(extra)
            apart = torch.diag(extra) - (extra[:, None] + extra[None, :]) / n + total / n**2
        return product.features * (base + apart)

    values, delta, queries = values.fixed_diagonals(), delta.fixed_diagonals(), queries.fixed_diagonals()
    inside = covariance(delta.within, values.within, queries.within, True)
    outside = covariance(delta.between, values.between, queries.between, False)
    zero = torch.zeros(len(inside), dtype=torch.float64)
    return Stats(columns, zero, inside.diagonal().clone(), inside, outside.diagonal().clone(), outside)


def _turned(signal: Signal) -> Signal:
    return signal.with_axes((*signal.axes[:-2], signal.axes[-1], signal.axes[-2]))


def _through(call: Call, first: Signal, second: Signal) -> Signal:
    """Attention weights, or the gradient of their scores, times a signal."""
    if first.structure is None:  # the signal on the left: the same with both turned
        result = _through(call, _turned(second), _turned(first))
        return _turned(result)
    structure = first.structure
    weights = structure.weights if isinstance(structure, WeightsGradient) else structure
    if not isinstance(weights, Weights):
        raise NoRuleError("attention scores without a softmax")
    scores = weights.scores
    contracted_atoms = tuple(a for a in first.axes[-1] if a.kind == "position")
    over_columns = set(contracted_atoms) == set(scores.columns)
    turned = set(contracted_atoms) == set(scores.rows)
    if not over_columns and not turned:
        raise NoRuleError("attention weights summed over something else")
    other = second.stats.broadcast(scores.columns if over_columns else scores.rows)
    axes = (*first.axes[:-1], second.axes[-1])
    spread = second.spread
    if isinstance(structure, Weights):
        stats = (
            _mixture(structure, other, scores.rows)
            if over_columns
            else _value_gradient(structure, other, scores.columns)
        )
    else:
        spread += structure.gradient.spread
        stats = (
            _query_gradient(structure, other, scores.rows)
            if over_columns
            else _key_gradient(structure, other, scores.columns)
        )
    return Signal.of(axes, stats, call.samples, spread)


@rule("_softmax", "_safe_softmax", "softmax")
def _softmax(call: Call) -> Thing:
    thing = call.thing(0)
    scores = _scores_of(thing) if isinstance(thing, Signal) else None
    dimension = call.argument(1, "dim")
    if isinstance(thing, Signal) and thing.structure is None:
        from headwater.theory.forecast.rules.gating import plain_softmax

        return plain_softmax(call, thing, dimension % len(thing.axes))
    if scores is None or not isinstance(thing, Signal) or dimension % len(thing.axes) != len(thing.axes) - 1:
        raise NoRuleError("a softmax over something that is no product of queries and keys")
    return _structured(thing.axes, Weights(scores), thing)


@rule("_softmax_backward_data", "_safe_softmax_backward")
def _softmax_backward(call: Call) -> Thing:
    gradient, output = call.thing(0), call.thing(1)
    product = _scores_of(gradient) if isinstance(gradient, Signal) else None
    structure = output.structure if isinstance(output, Signal) else None
    if isinstance(output, Signal) and structure is None and isinstance(gradient, Signal) and product is None:
        from headwater.theory.forecast.rules.gating import plain_softmax_backward

        return plain_softmax_backward(call, gradient, output, int(call.args[2]) % len(output.axes))
    if product is None or not isinstance(structure, Weights):
        raise NoRuleError("the gradient of a softmax over something that is no product of queries and keys")
    # The gradient's rows and columns are those of the weights, whatever they were called.
    product = replace(
        product,
        left=product.left.with_atoms(structure.scores.rows),
        right=product.right.with_atoms(structure.scores.columns),
        rows=structure.scores.rows,
        columns=structure.scores.columns,
    )
    assert isinstance(output, Signal)
    return _structured(output.axes, WeightsGradient(replace(structure, keep=product.keep), product), output)
