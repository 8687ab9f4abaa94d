"""Gated halves (GLU), softmax over features, stacking, bags of embeddings, and lengths of vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.rules.elementwise import apply_function, constant_of, multiply, scaled, slope_product
from headwater.theory.forecast.rules.linear import _dimensions
from headwater.theory.forecast.rules.losses import _probability_products
from headwater.theory.forecast.rules.max_pooling import two_samples
from headwater.theory.forecast.rules.selection import _matches
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats

# -------------------------------------------------------------------- GLU


def _halves(call: Call, position: int, dim: int) -> tuple[Signal, Signal, int]:
    thing = call.thing(position)
    dim = dim % len(thing.axes)
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None or any(a.kind in ("position", "sample") for a in signal.axes[dim]):
        raise NoRuleError("a gate that halves something else than features")
    size = math.prod(a.size for a in signal.axes[dim]) // 2
    half = (Atom("feature", size),) if size > 1 else ()
    axes: Axes = tuple(half if i == dim else d for i, d in enumerate(signal.axes))
    one, two = (Signal.of(axes, signal.stats, call.samples, signal.spread) for _ in range(2))
    return one, two, dim


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


@rule("glu")
def _glu(call: Call) -> Thing:
    """The product a · σ(b): a and b are different features of one tensor."""
    value, gate, _ = _halves(call, 0, int(call.argument(1, "dim", -1)))
    return multiply(call, value, apply_function(gate, torch.sigmoid))


@rule("glu_backward")
def _glu_backward(call: Call) -> Thing:
    """δ σ(b) for one half of the features and δ a σ'(b) for the other: their average."""
    value, gate, dim = _halves(call, 1, int(call.args[2]))
    _, delta = unify(value, call.thing(0), [(i, i) for i in range(len(value.axes))])
    to_value = multiply(call, delta, apply_function(gate, torch.sigmoid))
    to_gate = multiply(call, multiply(call, delta, value), apply_function(gate, _sigmoid_slope))
    one, two = (to_signal(t, t.axes, call.samples) for t in (to_value, to_gate))
    atoms = tuple(dict.fromkeys((*one.atoms, *two.atoms)))
    stats = _mixed((one.stats.broadcast(atoms), 0.5), (two.stats.broadcast(atoms), 0.5))
    size = 2 * math.prod(a.size for a in value.axes[dim])
    axes: Axes = tuple((Atom("feature", size),) if i == dim else d for i, d in enumerate(value.axes))
    return Signal.of(axes, stats, call.samples, max(one.spread, two.spread))


def _mixed(*parts: tuple[Stats, float]) -> Stats:
    """Of features of which each share has statistics of its own."""
    first = parts[0][0]

    def total(name: str) -> Tensor:
        values: list[Tensor] = [getattr(stats, name) * share for stats, share in parts]
        return torch.stack(values).sum(0)

    return Stats(first.atoms, *(total(n) for n in ("mean", "square", "within", "aligned", "between")))


# -------------------------------------------------------------------- softmax over features


def plain_softmax(call: Call, logits: Signal, dim: int) -> Signal:
    """Probabilities over features: mean 1/C, products as for the cross entropy's.

    Args:
        call: the operation.
        logits: the signal.
        dim: the dimension of the classes.

    Returns:
        The probabilities.

    Raises:
        NoRuleError: the dimension counts something else than features.
    """
    atoms = logits.axes[dim]
    if atoms and all(a.kind == "position" for a in atoms):
        return _softmax_over_positions(call, logits, atoms)
    if not atoms or any(a.kind not in ("feature", "unknown") for a in atoms):
        raise NoRuleError("a softmax over something that is no product of queries and keys")
    classes = math.prod(a.size for a in atoms)
    stats = logits.stats
    variance = (stats.square - stats.mean**2).clamp_min(0.0)
    average = float(variance.mean())
    shares, products = _probability_products(classes, average)

    def looked_up(covariance: Tensor) -> Tensor:
        place = (covariance / max(average, 1e-300)).clamp(0.0, 1.0) * (len(shares) - 1)
        left = place.floor().clamp(0, len(shares) - 2).long()
        part = place - left
        return products[left] * (1.0 - part) + products[left + 1] * part

    outer = stats.mean[:, None] * stats.mean[None, :]
    found = Stats(
        stats.atoms,
        torch.full_like(stats.mean, 1.0 / classes),
        looked_up(variance),
        looked_up(stats.within - outer),
        looked_up(stats.aligned - stats.mean**2),
        looked_up(stats.between - outer),
    ).fixed_diagonals()
    return Signal.of(logits.axes, found, call.samples, logits.spread)


def plain_softmax_backward(call: Call, gradient: Signal, probabilities: Signal, dim: int) -> Signal:
    """The gradient p (g - Σ p g) for g independent of p: q = q_g E[p² (1 - 2p + Σ p²)], Σ p² taken as C E p².

    Args:
        call: the operation.
        gradient: g.
        probabilities: p.
        dim: the dimension of the classes.

    Returns:
        The gradient of the logits.
    """
    _, moved = unify(probabilities, gradient, [(i, i) for i in range(len(probabilities.axes))])
    assert isinstance(moved, Signal)
    drawn = call.engine.notes.get(("weights", call.engine.key(call.args[1])))
    if drawn is not None:
        return _over_positions_backward(call, moved, probabilities, drawn)
    classes = math.prod(a.size for a in probabilities.axes[dim])
    atoms = tuple(dict.fromkeys((*probabilities.atoms, *moved.atoms)))
    g, p = moved.stats.broadcast(atoms).centred(), probabilities.stats.broadcast(atoms)
    factor = min(1.0, max(0.0, 1.0 - 2.0 / classes + classes * float(p.square.mean()))) if classes > 1 else 0.0
    return Signal.of(probabilities.axes, g.product(p).scaled(math.sqrt(factor)), call.samples, moved.spread)


def _softmax_over_positions(call: Call, logits: Signal, atoms: tuple[Atom, ...]) -> Signal:
    """Weights of an attention that pools over time: logits drawn for two samples together, as for a maximum."""
    if set(logits.stats.atoms) != set(atoms) or not logits.stats.dense:
        raise NoRuleError("a softmax over some of the positions")
    stats = logits.stats.reordered(atoms)
    count = int(min(1024, max(32, 1e8 / stats.nodes**3)))
    first, second = (torch.softmax(u, dim=1) for u in two_samples(stats, count))
    call.engine.notes["weights", call.engine.key(call.outputs[0])] = first, second
    within = (first.T @ first + second.T @ second) / (2 * count)
    between = first.T @ second / count
    between = 0.5 * (between + between.T)
    mean = 0.5 * (first.mean(0) + second.mean(0))
    found = Stats(atoms, mean, within.diagonal().clone(), within, between.diagonal().clone(), between)
    return Signal.of(logits.axes, found, call.samples, logits.spread)


def _over_positions_backward(call: Call, gradient: Signal, weights: Signal, drawn: tuple[Tensor, Tensor]) -> Signal:
    """J g with J = diag p - p pᵀ, averaged over the draws of p: E J K_g Jᵀ."""
    atoms = weights.stats.atoms
    g = gradient.stats.broadcast(atoms).fixed_diagonals()
    one, two = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :] for p in drawn)
    within = 0.5 * sum((j @ g.within @ j.transpose(1, 2)).mean(0) for j in (one, two))
    between = (one @ g.between @ two.transpose(1, 2)).mean(0)
    assert isinstance(within, Tensor)
    between = 0.5 * (between + between.T)
    zero = torch.zeros(len(within), dtype=torch.float64)
    found = Stats(atoms, zero, within.diagonal().clone(), within, between.diagonal().clone(), between)
    return Signal.of(weights.axes, found, call.samples, gradient.spread)


# -------------------------------------------------------------------- PReLU


@rule("_prelu_kernel")
def _prelu(call: Call) -> Thing:
    """The function x for x > 0, a x else."""
    thing, slope = call.thing(0), constant_of(call.thing(1))
    if slope is None or not isinstance(thing, Signal):
        raise NoRuleError("a PReLU with different slopes")
    return apply_function(thing, lambda t: torch.where(t > 0, t, slope * t))


@rule("_prelu_kernel_backward")
def _prelu_backward(call: Call) -> list[Thing | None]:
    gradient, thing, slope = call.thing(0), call.thing(1), constant_of(call.thing(2))
    if slope is None:
        raise NoRuleError("a PReLU with different slopes")
    own = slope_product(call, gradient, thing, lambda t: 1.0 - (1.0 - slope) * (t <= 0).to(t.dtype))
    return [own, slope_product(call, gradient, thing, lambda t: t.clamp(max=0.0))]


# -------------------------------------------------------------------- stack


@rule("stack")
def _stack(call: Call) -> Thing:
    """Tensors side by side along a new dimension of positions; of two of them only the means are shared."""
    things = [call.engine.look_up(t) for t in call.args[0]]
    if any(not isinstance(t, Signal | Law | Known) for t in things):
        raise NoRuleError("an argument about which nothing is known")
    lead = next((t for t in things if isinstance(t, Signal)), None)
    if lead is None:
        raise NoRuleError("parameters put together")
    dim = int(call.argument(1, "dim", 0)) % len(call.shape)
    parts: list[Signal] = []
    for thing in things:
        assert isinstance(thing, Signal | Law | Known)
        _, thing = unify(lead, thing, [(i, i) for i in range(len(lead.axes))])
        parts.append(to_signal(thing, lead.axes, call.samples))
    rest = tuple(dict.fromkeys(a for p in parts for a in p.atoms))
    n = len(parts)
    if any(p.structure is not None for p in parts):
        raise NoRuleError("attention scores put together")
    every = [p.stats.broadcast(rest) for p in parts]
    parted = call.engine.notes.get(("part", tuple(call.shape), dim))
    if parted and all(a.kind == "feature" for a in parted):  # the gradient of features that were taken apart
        across: Axes = (*lead.axes[:dim], tuple(parted), *lead.axes[dim:])
        return Signal.of(across, _mixed(*((s, 1.0 / n) for s in every)), call.samples, max(p.spread for p in parts))
    dense = all(s.dense for s in every)
    atom = Atom("position", n, dense)
    call.engine.notes["part", tuple(call.shape), dim] = (atom,)
    axes: Axes = (*lead.axes[:dim], (atom,) if n > 1 else (), *lead.axes[dim:])
    spread = max(p.spread for p in parts)
    if n == 1:
        return Signal.of(axes, every[0], call.samples, spread)
    if not dense:
        if rest:
            raise NoRuleError("pooled positions put together")
        return Signal.of(axes, _mixed(*((s, 1.0 / n) for s in every)).with_atoms((atom,)), call.samples, spread)
    every = [s.fixed_diagonals() for s in every]
    mean = torch.cat([s.mean for s in every])
    within, between = mean[:, None] * mean[None, :], mean[:, None] * mean[None, :]
    start = 0
    for stats in every:
        stop = start + stats.nodes
        within[start:stop, start:stop] = stats.within
        between[start:stop, start:stop] = stats.between
        start = stop
    joined = Stats((atom, *rest), mean, within.diagonal().clone(), within, between.diagonal().clone(), between)
    return Signal.of(axes, joined, call.samples, spread)


# -------------------------------------------------------------------- bags of embeddings


def _bags(call: Call, ids: int, offsets: int) -> tuple[Stats, int, tuple[Atom, ...]]:
    """How often two look-ups of one bag, or of two, get the same row, (L, L); the size of a bag; the samples."""
    found, starts = call.thing(ids), call.thing(offsets)
    if not isinstance(found, Known) or not isinstance(starts, Known):
        raise NoRuleError("a bag of ids without values")
    bags = starts.value.numel()
    size = found.value.numel() // max(1, bags)
    if not torch.equal(starts.value.reshape(-1).cpu(), torch.arange(bags) * size):
        raise NoRuleError("bags of different sizes")
    sample = (Atom("sample", bags),) if bags > 1 else ()
    place = (Atom("position", size),) if size > 1 else ()
    axes: Axes = (sample, place)
    return _matches(call, Known(axes, found.value.reshape(bags, size)), axes), size, sample


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> list[Thing | None]:
    table = call.thing(0)
    mode = int(call.argument(4, "mode", 0))
    if not isinstance(table, Law) or mode == 2 or call.argument(6, "per_sample_weights") is not None:
        raise NoRuleError("a bag that is no sum or mean of a table's rows")
    match, size, sample = _bags(call, 1, 2)
    within, between = match.pair_sums(match.ones())
    share = 1.0 / size**2 if mode == 1 else 1.0
    mean = table.mean * (1.0 if mode == 1 else size)
    square = torch.stack([within, between]) * share * table.variance + mean**2
    first = torch.tensor([mean], dtype=torch.float64)
    q, c = square[0].reshape(1), square[1].reshape(1)
    width = call.shape[-1]
    axes: Axes = (sample, (Atom("feature", width),) if width > 1 else ())
    return [Signal.of(axes, Stats((), first, q, q[None], c, c[None]), call.samples), None, None, None]


@rule("_embedding_bag_backward", "_embedding_bag_dense_backward")
def _embedding_bag_backward(call: Call) -> Thing:
    # (grad, indices, offsets, offset2bag, bag_size, maximum_indices, num_weights, scale_grad_by_freq, mode, …)
    dense = call.name == "_embedding_bag_dense_backward"
    rows = int(call.args[5 if dense else 6])
    mode = int(call.args[7 if dense else 8])
    thing = call.thing(0)
    delta = to_signal(thing, thing.axes, call.samples)
    offsets = call.engine.notes.get("bags") if dense else call.args[2]
    if offsets is None:
        raise NoRuleError("the gradient of a bag that was not seen")
    match, size, sample = _bags(call, 1, 2)
    within, between = match.pair_sums(match.ones())
    b = math.prod(a.size for a in sample)
    share = 1.0 / size**2 if mode == 1 else 1.0
    stats = delta.stats
    total = b * float(within) * float(stats.square[0]) + b * (b - 1) * float(between) * float(stats.aligned[0])
    axes = axes_of_shape(call.shape, ("feature", "feature"))
    return Signal.of(axes, Stats.constant(0.0, total * share / rows), call.samples, delta.spread)


# -------------------------------------------------------------------- lengths of vectors


@rule("linalg_vector_norm", "norm")
def _length(call: Call) -> Thing:
    """√(n q): the length of a vector of n features, which the law of large numbers makes a number."""
    order = call.argument(1, "ord" if call.name == "linalg_vector_norm" else "p", 2)
    if order is not None and float(order) != 2.0:
        raise NoRuleError("a norm that is not the Euclidean one")
    thing = call.thing(0)
    shape = call.args[0].shape
    given = call.argument(2, "dim")
    dims = _dimensions(Call(call.engine, call.name, [call.args[0], given], {}, call.outputs), len(shape))
    count = math.prod(shape[d] for d in dims)
    if isinstance(thing, Known):
        raise NoRuleError("the length of a constant too large to compute")
    if isinstance(thing, Law):
        return Law(axes_of_shape(call.shape), math.sqrt(count * thing.square), 0.0)
    atoms = [a for d in dims for a in thing.axes[d]]
    if thing.structure is not None or any(a.kind == "sample" for a in atoms):
        raise NoRuleError("a length over samples")
    keep = bool(call.argument(3, "keepdim", False))
    stats = thing.stats.averaged([a for a in thing.stats.atoms if a not in atoms])
    size = (stats.square * count).sqrt()
    outer = size[:, None] * size[None, :]
    axes: Axes = tuple(() if i in dims else d for i, d in enumerate(thing.axes) if keep or i not in dims)
    return Signal.of(axes, Stats(stats.atoms, size, size * size, outer, size * size, outer), call.samples)


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> list[Thing | None]:
    """The direction of v at length g: g v/|v|, |v| over all dimensions but one."""
    v, g = call.thing(0), call.thing(1)
    shape, dim = call.args[0].shape, int(call.argument(2, "dim", 0))
    if not isinstance(v, Law) or not isinstance(g, Law):
        raise NoRuleError("a weight norm of something that is no parameter")
    size = math.sqrt(v.square * math.prod(shape) / shape[dim])
    weight = Law(v.axes, v.mean * g.mean / size, v.square * g.square / size**2 - (v.mean * g.mean / size) ** 2)
    return [weight, Law(axes_of_shape(call.outputs[1].shape), size, 0.0)]


@rule("_weight_norm_interface_backward")
def _weight_norm_backward(call: Call) -> list[Thing | None]:
    """∂L/∂v = g/|v| (∂L/∂w without its part along v); ∂L/∂g = ∂L/∂w · v/|v|, as large as one entry of ∂L/∂w."""
    gradient, v, g = call.thing(0), call.thing(1), call.thing(2)
    shape, dim = call.args[1].shape, int(call.args[4])
    if not isinstance(gradient, Signal) or not isinstance(v, Law) or not isinstance(g, Law):
        raise NoRuleError("the gradient of a weight norm of something that is no parameter")
    fan = math.prod(shape) / shape[dim]
    size = math.sqrt(v.square * fan)
    direction = scaled(gradient, math.sqrt(g.square) / size * math.sqrt(max(0.0, 1.0 - 1.0 / fan)))
    axes = axes_of_shape(call.outputs[1].shape, ["feature"] * len(shape))
    along = Signal.of(axes, Stats.constant(0.0, gradient.stats.average()), call.samples, gradient.spread)
    return [direction, along]


# -------------------------------------------------------------------- spectral norm


@rule("mv")
def _matrix_vector(call: Call) -> Thing:
    """A weight times a vector of its power iteration."""
    weight, vector = call.thing(0), call.thing(1)
    if not isinstance(weight, Law) or not isinstance(vector, Law):
        raise NoRuleError("a matrix times a vector that is no power iteration")
    call.engine.notes["image", call.engine.key(call.outputs[0])] = weight, tuple(call.args[0].shape)
    square = call.args[0].shape[1] * weight.square * vector.square
    return Law(axes_of_shape(call.shape), 0.0, square)


@rule("vdot")
def _largest_singular_value(call: Call) -> Thing:
    """uᵀ W v after a power iteration: √Var(W) (√rows + √columns) for independent entries (Bai & Yin 1988)."""
    noted = call.engine.notes.get(("image", call.engine.key(call.args[1])))
    if noted is None:
        raise NoRuleError("a product of two vectors")
    weight, (rows, columns) = noted
    return Law((), math.sqrt(weight.square) * (math.sqrt(rows) + math.sqrt(columns)), 0.0)


@rule("set")
def _set(call: Call) -> Thing:
    """A tensor that takes over another's memory, as a parametrisation's does."""
    return call.thing(1)
