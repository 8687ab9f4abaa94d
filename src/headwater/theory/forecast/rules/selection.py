"""Parts of tensors and their reunion: select, slice, split, cat, and their backwards; look-ups in tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.signals import Known, Law, Signal, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats


def _part(call: Call, thing: Thing, dim: int, index: Tensor, keep: bool) -> Thing:
    """The elements ``index`` along one dimension."""
    atoms = thing.axes[dim]
    call.engine.notes["part", _sizes(thing.axes), dim] = atoms
    size = len(index)
    if size == math.prod(a.size for a in atoms) and keep:
        return thing
    if isinstance(thing, Known):
        raise NoRuleError("part of a constant too large to compute")
    if len(atoms) > 1 and any(a.kind in ("position", "sample") for a in atoms):
        raise NoRuleError("part of a dimension that counts several things")
    atom = atoms[0] if atoms else None
    new = () if size == 1 or atom is None else (Atom(atom.kind, size, atom.dense),)
    axes: Axes = tuple(new if i == dim else d for i, d in enumerate(thing.axes) if i != dim or keep)
    if isinstance(thing, Law):
        total = math.prod(a.size for a in atoms)
        if dim == 0 and thing.pieces and int(index[-1]) - int(index[0]) == size - 1:
            return Law(axes, *thing.part(int(index[0]) / total, (int(index[-1]) + 1) / total))
        return Law(axes, thing.mean, thing.variance)
    if thing.structure is not None:
        raise NoRuleError("part of attention scores")
    if atom is None or atom.kind == "unknown":
        return thing.with_axes(axes)
    stats = thing.stats
    if atom.kind == "position" and atom in stats.atoms:
        stats = _positions(stats, atom, index, new[0] if new else None)
    # Other features are other numbers: no multiple or function of what was there.
    return Signal.of(axes, stats, call.samples, thing.spread)


def _sizes(axes: Axes) -> tuple[int, ...]:
    return tuple(math.prod(a.size for a in d) for d in axes)


def _positions(stats: Stats, atom: Atom, index: Tensor, new: Atom | None) -> Stats:
    if not atom.dense:
        if new is None:
            return Stats(
                tuple(a for a in stats.atoms if a is not atom),
                stats.mean,
                stats.square,
                stats.square[None] if len(stats.atoms) == 1 else stats.within,
                stats.aligned,
                stats.aligned[None] if len(stats.atoms) == 1 else stats.between,
            )
        return stats.with_atoms([new if a == atom else a for a in stats.atoms])
    shape = [a.nodes for a in stats.atoms]
    place = stats.atoms.index(atom)
    nodes = torch.arange(stats.nodes).reshape(shape).index_select(place, index).reshape(-1)
    atoms = [new if a == atom else a for a in stats.atoms]
    return stats.fixed_diagonals().indexed(nodes, [a for a in atoms if a is not None])


@rule("select")
def _select(call: Call) -> Thing:
    thing = call.thing(0)
    dim = int(call.argument(1, "dim")) % len(thing.axes)
    size = math.prod(a.size for a in thing.axes[dim])
    index = torch.tensor([int(call.argument(2, "index")) % size])
    return _part(call, thing, dim, index, keep=False)


@rule("slice")
def _slice(call: Call) -> Thing:
    thing = call.thing(0)
    dim = int(call.argument(1, "dim", 0)) % len(thing.axes)
    size = math.prod(a.size for a in thing.axes[dim])
    index = torch.arange(size)[slice(call.argument(2, "start"), call.argument(3, "end"))]
    return _part(call, thing, dim, index[:: int(call.argument(4, "step", 1))], keep=True)


@rule("narrow")
def _narrow(call: Call) -> Thing:
    start = int(call.args[2])
    return _part(call, call.thing(0), int(call.args[1]), torch.arange(start, start + int(call.args[3])), keep=True)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "tensor_split")
def _split(call: Call) -> list[Thing | None]:
    thing = call.thing(0)
    dim = int(call.argument(2, "dim", 0)) % len(thing.axes)
    parts: list[Thing | None] = []
    start = 0
    for output in call.outputs:
        stop = start + output.shape[dim]
        parts.append(_part(call, thing, dim, torch.arange(start, stop), keep=True))
        start = stop
    return parts


@rule("unbind")
def _unbind(call: Call) -> list[Thing | None]:
    thing = call.thing(0)
    dim = int(call.argument(1, "dim", 0)) % len(thing.axes)
    return [_part(call, thing, dim, torch.tensor([k]), keep=False) for k in range(len(call.outputs))]


# -------------------------------------------------------------------- zeros around a part


def _padded(call: Call, thing: Thing, sizes: tuple[int, ...], dim: int, index: Tensor, keep: bool) -> Thing:
    """A tensor of zeros with this one at ``index`` of one dimension."""
    if isinstance(thing, Law) and thing.mean == 0.0 == thing.variance:
        return Law(axes_of_shape(sizes), 0.0, 0.0)
    noted = call.engine.notes.get(("part", tuple(sizes), dim))
    if noted is None:
        raise NoRuleError("the gradient of a part that was not seen")
    atom: Atom | None = noted[0] if len(noted) == 1 else None
    if len(noted) > 1 and any(a.kind != "feature" for a in noted):
        raise NoRuleError("the gradient of part of a dimension that counts several things")
    axes_before = thing.axes if keep else (*thing.axes[:dim], (), *thing.axes[dim:])
    axes: Axes = tuple(tuple(noted) if i == dim else d for i, d in enumerate(axes_before))
    signal = to_signal(thing, thing.axes, call.samples)
    stats = signal.stats
    share = len(index) / max(1, sizes[dim])
    if atom is not None and atom.kind == "position":
        own = axes_before[dim]
        if not atom.dense:
            pairs = share * (len(index) - 1) / max(1, sizes[dim] - 1)
            stats = Stats(
                (*(a for a in stats.atoms if a not in own), atom),
                stats.mean * share,
                stats.square * share,
                stats.within * pairs,
                stats.aligned * share,
                stats.between * pairs,
            )
        else:
            stats = _embedded(stats.fixed_diagonals(), own, atom, index)
    else:
        stats = Stats(
            stats.atoms,
            stats.mean * share,
            stats.square * share,
            stats.within * share,
            stats.aligned * share,
            stats.between * share,
        )
    return Signal.of(axes, stats, call.samples, signal.spread)


def _embedded(stats: Stats, own: tuple[Atom, ...], atom: Atom, index: Tensor) -> Stats:
    rest = [a for a in stats.atoms if a not in own]
    inner = math.prod(a.nodes for a in rest)
    if own and own[0] in stats.atoms:
        ordered = stats.reordered([own[0], *rest])
        count = own[0].nodes
    else:
        ordered, count = stats.reordered(rest), len(index)
        ordered = ordered.indexed(torch.arange(inner).repeat(count), rest)
    place = (index[:, None] * inner + torch.arange(inner)[None, :]).reshape(-1)
    total = atom.nodes * inner

    def one(values: Tensor) -> Tensor:
        out = torch.zeros(total, dtype=torch.float64)
        out[place] = values
        return out

    def two(values: Tensor) -> Tensor:
        out = torch.zeros(total, total, dtype=torch.float64)
        out[place[:, None], place[None, :]] = values
        return out

    return Stats(
        (atom, *rest), one(ordered.mean), one(ordered.square), two(ordered.within), one(ordered.aligned),
        two(ordered.between),
    )  # fmt: skip


@rule("select_backward")
def _select_backward(call: Call) -> Thing:
    sizes = tuple(call.args[1])
    dim = int(call.args[2]) % len(sizes)
    return _padded(call, call.thing(0), sizes, dim, torch.tensor([int(call.args[3]) % sizes[dim]]), keep=False)


@rule("slice_backward")
def _slice_backward(call: Call) -> Thing:
    sizes = tuple(call.args[1])
    dim = int(call.args[2]) % len(sizes)
    index = torch.arange(sizes[dim])[slice(int(call.args[3]), int(call.args[4]))][:: int(call.args[5])]
    if len(index) == sizes[dim]:
        return call.thing(0)
    return _padded(call, call.thing(0), sizes, dim, index, keep=True)


# -------------------------------------------------------------------- cat


@rule("cat")
def _cat(call: Call) -> Thing:
    things = []
    for tensor in call.args[0]:
        found = call.engine.look_up(tensor)
        if not isinstance(found, Signal | Law | Known):
            raise NoRuleError("an argument about which nothing is known")
        if tensor.numel() > 0:
            things.append(found)
    dim = int(call.argument(1, "dim", 0)) % len(things[0].axes)
    lead = next((t for t in things if isinstance(t, Signal)), None)
    if lead is None:
        laws = [t for t in things if isinstance(t, Law)]
        if len(laws) == len(things) and len({(t.mean, t.variance) for t in laws}) == 1:
            return Law(axes_of_shape(call.shape), laws[0].mean, laws[0].variance)
        raise NoRuleError("parameters put together")
    kinds = {a.kind for t in things for a in t.axes[dim]}
    wanted = "position" if "position" in kinds else "feature" if "feature" in kinds else "unknown"
    signals: list[Signal] = []
    for thing in things:
        pairs = [(i, i) for i in range(len(lead.axes)) if i != dim]
        _, thing = unify(lead, thing, pairs)
        names = {a: a.of_kind(wanted) for a in thing.axes[dim] if a.kind == "unknown"}  # type: ignore[arg-type]
        if isinstance(thing, Signal) and names and wanted == "position":
            raise NoRuleError("copies and positions put together")
        thing = thing.renamed(names)
        signals.append(to_signal(thing, thing.axes, call.samples))
    sizes = [t.shape[dim] for t in call.args[0] if t.numel() > 0]
    spread = max(s.spread for s in signals)
    if wanted == "position":
        dense = all(a.dense for s in signals for a in s.axes[dim])
        atom = Atom("position", sum(sizes), dense)
        axes: Axes = tuple((atom,) if i == dim else d for i, d in enumerate(lead.axes))
        return Signal.of(axes, _joined(signals, sizes, dim, atom), call.samples, spread)
    atom = Atom("feature", sum(sizes))
    axes = tuple((atom,) if i == dim else d for i, d in enumerate(lead.axes))
    positions = tuple(dict.fromkeys(a for s in signals for a in s.atoms))
    total: Stats | None = None
    for signal, size in zip(signals, sizes, strict=True):
        share = size / sum(sizes)
        part = signal.stats.broadcast(positions)
        part = Stats(
            part.atoms, part.mean * share, part.square * share, part.within * share, part.aligned * share,
            part.between * share,
        )  # fmt: skip
        if total is None:
            total = part
        else:
            total = Stats(
                part.atoms, total.mean + part.mean, total.square + part.square, total.within + part.within,
                total.aligned + part.aligned, total.between + part.between,
            )  # fmt: skip
    assert total is not None
    return Signal.of(axes, total, call.samples, spread)


def _joined(signals: list[Signal], sizes: list[int], dim: int, atom: Atom) -> Stats:
    """Along positions: covariances of different parts are the products of their means."""
    rest = tuple(dict.fromkeys(a for s in signals for a in s.atoms if a not in s.axes[dim]))
    if rest:
        raise NoRuleError("parts of several position dimensions put together")
    parts = [s.stats for s in signals]
    if not atom.dense:
        shares = [n / sum(sizes) for n in sizes]

        def mixed(values: list[Tensor]) -> Tensor:
            total = math.fsum(float(v.mean()) * w for v, w in zip(values, shares, strict=True))
            return torch.tensor([total], dtype=torch.float64)

        return Stats(
            (atom,),
            mixed([p.mean for p in parts]),
            mixed([p.square for p in parts]),
            mixed([p.within for p in parts])[None],
            mixed([p.aligned for p in parts]),
            mixed([p.between for p in parts])[None],
        )
    parts = [p.fixed_diagonals() if p.nodes == n else p.indexed(torch.zeros(n, dtype=torch.long), p.atoms)
             for p, n in zip(parts, sizes, strict=True)]  # fmt: skip
    mean = torch.cat([p.mean for p in parts])
    within, between = mean[:, None] * mean[None, :], mean[:, None] * mean[None, :]
    start = 0
    for part in parts:
        stop = start + part.nodes
        within[start:stop, start:stop] = part.within
        between[start:stop, start:stop] = part.between
        start = stop
    return Stats((atom,), mean, within.diagonal().clone(), within, between.diagonal().clone(), between)


# -------------------------------------------------------------------- tables


def _matches(call: Call, ids: Known, axes: Axes) -> Stats:
    """How often two look-ups get the same row: the covariance of a table's rows of variance 1."""
    positions = tuple(a for a in (x for d in axes for x in d) if a.kind == "position")
    sample = [a for d in axes for a in d if a.kind == "sample"]
    b = math.prod(a.size for a in sample)
    p = math.prod(a.size for a in positions)
    value = ids.value.reshape(b, p) if sample else ids.value.reshape(1, p)
    if any(not a.dense for a in positions):
        same = _share(value.reshape(-1))
        own = sum(_share(row) for row in value) / len(value)
        n = p
        within = (own * n * n - n) / max(1, n * (n - 1))
        aligned = sum(_share(column) for column in value.T[:512]) / min(512, n)
        aligned = (aligned * b * b - b) / max(1, b * (b - 1)) if sample else 1.0
        between = max(0.0, (same * b * b - b * own) / max(1, b * (b - 1))) if b > 1 else within
        t = [torch.tensor([x], dtype=torch.float64) for x in (0.0, 1.0, within, aligned, between)]
        return Stats(positions, t[0], t[1], t[2][None], t[3], t[4][None])
    inside = (value[:, :, None] == value[:, None, :]).double().mean(0)
    if sample and b > 1:
        rows = [_counts(value, k) for k in range(p)]
        table = torch.stack(rows)  # (P, ids)
        across = (table @ table.T - b * inside) / (b * (b - 1))
    else:
        across = inside if not sample else torch.zeros_like(inside)
    one = torch.ones(p, dtype=torch.float64)
    return Stats(positions, one * 0.0, one, inside, across.diagonal().clone() if sample else one, across)


def _counts(value: Tensor, position: int) -> Tensor:
    _, inverse = torch.unique(value, return_inverse=True)
    return torch.bincount(inverse[:, position], minlength=int(inverse.max()) + 1).double()


def _share(ids: Tensor) -> float:
    _, counts = torch.unique(ids, return_counts=True)
    return float((counts.double() ** 2).sum() / len(ids) ** 2)


def _id_axes(call: Call, ids: Thing) -> tuple[Thing, Axes]:
    from headwater.theory.forecast.rules.linear import as_positions

    named = as_positions(ids, (), call)
    return named, named.axes


@rule("embedding")
def _embedding(call: Call) -> Thing:
    table, ids = call.thing(0), call.thing(1)
    if not isinstance(table, Law):
        raise NoRuleError("a look-up in a computed table")
    if isinstance(ids, Signal):
        raise NoRuleError("a look-up by a computed index")
    ids, axes = _id_axes(call, ids)
    rows = math.prod(a.size for a in table.axes[0])
    out: Axes = (*axes, table.axes[1] and (Atom("feature", math.prod(a.size for a in table.axes[1])),))
    if isinstance(ids, Known):
        match = _matches(call, ids, axes)
    else:  # ids without values: every row is as likely
        law = to_signal(Law(ids.axes, 0.0, 1.0), axes, call.samples).stats
        equal = 1.0 / rows
        match = Stats(
            law.atoms, law.mean, law.square, law.within.clamp_min(equal), law.aligned.clamp_min(equal),
            law.between.clamp_min(equal),
        )  # fmt: skip
    mean = torch.full_like(match.mean, table.mean)
    square = table.mean**2
    stats = Stats(
        match.atoms,
        mean,
        match.square * table.variance + square,
        match.within * table.variance + square,
        match.aligned * table.variance + square,
        match.between * table.variance + square,
    )
    return Signal.of(out, stats, call.samples)


@rule("embedding_dense_backward", "embedding_backward")
def _embedding_backward(call: Call) -> Thing:
    gradient, ids = call.thing(0), call.thing(1)
    rows = int(call.args[2])
    gradient, ids = unify(gradient, ids, [(i, i) for i in range(len(ids.axes))])
    ids, axes = _id_axes(call, ids)
    delta = to_signal(gradient, (*axes, gradient.axes[-1]), call.samples)
    if not isinstance(ids, Known):
        raise NoRuleError("the gradient of a table by ids without values")
    match = _matches(call, ids, axes)
    positions = tuple(dict.fromkeys((*match.atoms, *delta.atoms)))
    within, between = delta.stats.broadcast(positions).pair_sums(match.broadcast(positions))
    b = math.prod(a.size for d in axes for a in d if a.kind == "sample")
    square = float(b * within + b * (b - 1) * between) / rows
    return Signal.of(
        axes_of_shape(call.shape, ("feature", "feature")), Stats.constant(0.0, square), call.samples, delta.spread
    )
