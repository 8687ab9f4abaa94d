"""``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells, each followed as one operation.

On the meta device torch takes them apart into one product per step; step by step the covariance between steps, which the
shared weights bring, would be lost. ``capture`` hands the whole call over under the names ``recurrence`` and
``recurrence_backward`` instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Atom, Axes, NoRuleError, axes_of_shape
from headwater.theory.forecast.engine import Call, rule
from headwater.theory.forecast.recurrence import CELLS, Cell, Gates, LongShortTerm
from headwater.theory.forecast.rules.linear import as_positions
from headwater.theory.forecast.signals import Known, Law, Signal, Source, Thing, to_signal, unify
from headwater.theory.forecast.stats import Stats

__all__ = ["SAMPLES_ALONG_TIME", "Recurrence"]

SAMPLES_ALONG_TIME = "samples along time"
"""Note of the engine: the dimension that was taken for samples counts the steps of a recurrence."""

_GATES = {"LSTM": 4, "GRU": 3}


@dataclass(frozen=True)
class Recurrence:
    """A recurrent module.

    Attributes:
        mode: ``RNN_TANH``, ``RNN_RELU``, ``LSTM`` or ``GRU``.
        layers: how many are stacked.
        bidirectional: whether each runs in both directions.
        batch_first: whether the input is (B, T, D), else (T, B, D).
        hidden: H.
        biased: whether there are biases.
        dropout: between stacked layers, 0 in evaluation.
        cell: whether it is a cell: one step, (B, D) in and (B, H) out.
    """

    mode: str
    layers: int
    bidirectional: bool
    batch_first: bool
    hidden: int
    biased: bool
    dropout: float = 0.0
    cell: bool = False

    @property
    def gates(self) -> int:
        """How many gates a weight holds."""
        return _GATES.get(self.mode, 1)

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1


@dataclass
class _Trace:
    """What the forward leaves for the backward."""

    x: Signal
    time: tuple[Atom, ...]
    samples: tuple[Atom, ...]
    cells: list[Cell] = field(default_factory=list)  # per layer and direction, in torch's order
    steps: int = 1
    directions: int = 1
    states: list[list[float]] = field(default_factory=list)  # E h² per step, per cell
    gradients: list[list[float]] = field(default_factory=list)  # E (∂L/∂h)² per step, per cell
    cell_gradients: list[list[float]] = field(default_factory=list)  # E (∂L/∂c)² per step, per LSTM cell


def _by_gate(thing: Any, gates: int) -> Gates:
    if thing is None:
        return Gates((0.0,) * gates, (0.0,) * gates)
    if isinstance(thing, Known):
        parts = thing.value.double().reshape(gates, -1)
        return Gates(tuple(parts.mean(1).tolist()), tuple(parts.var(1, correction=0).tolist()))
    if not isinstance(thing, Law):
        raise NoRuleError("a recurrence with a computed weight")
    found = [thing.part(k / gates, (k + 1) / gates) for k in range(gates)]
    return Gates(tuple(m for m, _ in found), tuple(v for _, v in found))


def _pairs(stats: Stats) -> Tensor:
    dense = stats.fixed_diagonals()
    return torch.stack([dense.within, dense.between])


def _stats(atoms: tuple[Atom, ...], pairs: Tensor, mean: Tensor | None = None) -> Stats:
    within, between = pairs[0], pairs[1]
    first = torch.zeros(len(within), dtype=torch.float64) if mean is None else mean
    return Stats(atoms, first, within.diagonal().clone(), within, between.diagonal().clone(), between)


def _sequence(call: Call, spec: Recurrence) -> tuple[Signal, tuple[Atom, ...], tuple[Atom, ...]]:
    thing = as_positions(call.thing(2), (-1,), call, pixels=True)
    if len(thing.axes) != (2 if spec.cell else 3):
        raise NoRuleError("a recurrence over a sequence without samples")
    signal = to_signal(thing, thing.axes, call.samples)
    if signal.structure is not None:
        raise NoRuleError("a recurrence over attention scores")
    if spec.cell:
        return signal, (), signal.axes[0]
    time, samples = (signal.axes[1], signal.axes[0]) if spec.batch_first else (signal.axes[0], signal.axes[1])
    if any(a.kind == "sample" for a in time):
        call.engine.notes[SAMPLES_ALONG_TIME] = True
        raise NoRuleError("a recurrence along what was taken for samples")
    if any(a.kind == "position" for a in samples):
        raise NoRuleError("a recurrence with several sequences in each sample")
    if any(not a.dense for a in time):
        raise NoRuleError("a recurrence over more steps than are kept apart")
    return signal, time, samples


def _start(call: Call, position: int, spec: Recurrence, index: int) -> Tensor:
    """E of the square of an initial state within a sample and between two, (2,)."""
    tensor = call.args[position]
    zero = torch.zeros(2, dtype=torch.float64)
    if tensor is None:
        return zero
    thing = call.thing(position)
    if isinstance(thing, Law):
        return torch.tensor([thing.square, thing.mean**2], dtype=torch.float64)
    if isinstance(thing, Known):
        value = thing.value.double() if spec.cell else thing.value[index].double()
        return torch.stack([value.square().mean(), value.mean(0).square().mean()])
    stats = thing.stats
    place = 0 if len(stats.square) == 1 or spec.cell else index
    if len(stats.square) not in (1, spec.layers * spec.directions):
        raise NoRuleError("a recurrence whose initial state counts positions")
    return torch.stack([stats.square[place], stats.aligned[place]])


def _parameters(call: Call, spec: Recurrence, index: int) -> tuple[Gates, Gates, Gates, Gates]:
    each = 4 if spec.biased else 2
    found = []
    for k in range(4):
        thing = call.engine.look_up(call.args[5][index * each + k]) if k < each else None
        if isinstance(thing, Source) or (thing is None and k < each):
            raise NoRuleError("a recurrence whose weights have an unknown law")
        found.append(_by_gate(thing, spec.gates))
    return found[0], found[1], found[2], found[3]


@rule("recurrence")
def _recurrence(call: Call) -> list[Thing | None]:
    """The call (spec, token, x, h_0, c_0, weights): the sequence of states, the last ones, for an LSTM the last cells."""
    spec: Recurrence = call.args[0]
    signal, time, samples = _sequence(call, spec)
    steps = math.prod(a.size for a in time)
    x = _pairs(signal.stats.broadcast(time)) if time else _pairs(signal.stats)
    if x.shape[1] != steps:
        raise NoRuleError("a recurrence over copies of one step")
    trace = _Trace(signal, time, samples, steps=steps, directions=spec.directions)
    width = math.prod(a.size for a in signal.axes[-1])
    spread = signal.spread
    hidden: Axes = ((Atom("feature", spec.hidden * spec.directions),) if spec.hidden * spec.directions > 1 else (),)
    means = torch.zeros(steps, dtype=torch.float64)
    for layer in range(spec.layers):
        sides = []
        for direction in range(spec.directions):
            index = layer * spec.directions + direction
            cell = CELLS[spec.mode](steps, spec.hidden, width, *_parameters(call, spec, index))
            cell.forward(x.flip(1, 2) if direction else x, _start(call, 3, spec, index), _start(call, 4, spec, index))
            trace.cells.append(cell)
            states = cell.state.flip(1, 2) if direction else cell.state
            trace.states.append(states[0].diagonal().tolist())
            sides.append((states, cell.state_mean.flip(0) if direction else cell.state_mean))
        x = torch.stack([s for s, _ in sides]).mean(0)
        means = torch.stack([m for _, m in sides]).mean(0)
        width = spec.hidden * spec.directions
        if spec.dropout and layer < spec.layers - 1:
            x[0].diagonal().div_(1.0 - spec.dropout)
    stats = _stats(time, x, means)
    spread += 2.0 * stats.mean_squared_correlation(call.samples) / width
    call.engine.notes["recurrence", call.args[1]] = trace
    order: Axes = (samples,) if spec.cell else (samples, time) if spec.batch_first else (time, samples)
    out: list[Thing | None] = [Signal.of((*order, *hidden), stats, call.samples, spread)]
    if not spec.cell:
        out.append(_last(call, spec, trace, [c.state for c in trace.cells], spread))
    if spec.mode == "LSTM":
        cells = [c.cell_state for c in trace.cells if isinstance(c, LongShortTerm)]
        if spec.cell:
            out.append(Signal.of((*order, *hidden), _stats((), cells[0]), call.samples, spread))
        else:
            out.append(_last(call, spec, trace, cells, spread))
    return out


def _last(call: Call, spec: Recurrence, trace: _Trace, states: list[Tensor], spread: float) -> Signal:
    """The last state of every layer and direction, (layers · directions, B, H): independent of one another."""
    count = len(states)
    atoms = (Atom("position", count),) if count > 1 else ()
    pairs = torch.stack([s[:, -1, -1] for s in states], dim=1)  # (2, count)
    axes: Axes = (atoms, trace.samples, (Atom("feature", spec.hidden),) if spec.hidden > 1 else ())
    return Signal.of(axes, _stats(atoms, torch.diag_embed(pairs)), call.samples, spread)


@rule("recurrence_backward")
def _recurrence_backward(call: Call) -> list[Thing | None]:
    """The call (spec, token, x, h_0, c_0, weights, gradients): gradients of x, h_0, c_0 and of every weight."""
    spec: Recurrence = call.args[0]
    trace = call.engine.notes.get(("recurrence", call.args[1]))
    if not isinstance(trace, _Trace):
        raise NoRuleError("the gradient of a recurrence that was not followed")
    steps, directions = trace.steps, spec.directions
    spread = 0.0
    given: list[Signal | None] = []
    for gradient in call.args[6]:
        thing = None if gradient is None else call.engine.look_up(gradient)
        if gradient is not None and (thing is None or isinstance(thing, Source)):
            raise NoRuleError(thing.operation if isinstance(thing, Source) else "a gradient that was not seen")
        signal = None if thing is None or isinstance(thing, Source) else to_signal(thing, thing.axes, call.samples)
        given.append(signal)
        spread = max(spread, 0.0 if signal is None else signal.spread)
    direct = torch.zeros(2, steps, steps, dtype=torch.float64)
    if given[0] is not None:
        direct = direct + _over_time(given[0], trace, spec)
    finals = given[1:] + [None] * (3 - len(given))
    if spec.cell:
        finals = [None, given[1] if len(given) > 1 else None]
    weights: list[Thing | None] = []
    starts: list[tuple[Tensor, Tensor]] = []
    trace.gradients = [[] for _ in trace.cells]
    trace.cell_gradients = [[] for _ in trace.cells]
    below = direct
    for layer in reversed(range(spec.layers)):
        direct, below = below, torch.zeros(2, steps, steps, dtype=torch.float64)
        if spec.dropout and layer < spec.layers - 1:
            direct = direct.clone()
            direct[0].diagonal().div_(1.0 - spec.dropout)
        of_layer: list[Thing | None] = []
        of_starts: list[tuple[Tensor, Tensor]] = []
        for direction in range(directions):
            index = layer * directions + direction
            cell = trace.cells[index]
            arriving = (direct.flip(1, 2) if direction else direct).clone()
            arriving[:, -1, -1] += _at(finals[0], index, spec)
            total, gates = cell.backward(arriving, _at(finals[1], index, spec))
            trace.gradients[index] = _per_step(total, direction)
            if isinstance(cell, LongShortTerm):
                trace.cell_gradients[index] = _per_step(cell.cell_gradient, direction)
            to_input = cell.input_gradient(gates)
            below += to_input.flip(1, 2) if direction else to_input
            of_cell = cell.start_cell_gradient() if isinstance(cell, LongShortTerm) else torch.zeros(2)
            of_starts.append((cell.start_gradient(gates), of_cell))
            squares = cell.weight_gradients(gates, call.samples)
            shapes = ((spec.gates * spec.hidden, cell.inputs), (spec.gates * spec.hidden, spec.hidden))
            for k, square in enumerate(squares[: 4 if spec.biased else 2]):
                shape = shapes[k] if k < 2 else shapes[0][:1]
                axes = axes_of_shape(shape, ["feature"] * len(shape))
                of_layer.append(Signal.of(axes, Stats.constant(0.0, square), call.samples, spread))
        weights = of_layer + weights
        starts = of_starts + starts
    stats = _stats(trace.time, below)
    features = math.prod(a.size for a in trace.x.axes[-1])
    more = 2.0 * stats.mean_squared_correlation(call.samples) / features
    own = Signal.of(trace.x.axes, stats, call.samples, spread + more)
    return [own, *(_starting(call, spec, trace, [s[k] for s in starts], spread) for k in (0, 1)), *weights]


def _per_step(pairs: Tensor, direction: int) -> list[float]:
    values = pairs[0].diagonal()
    found: list[float] = (values.flip(0) if direction else values).tolist()
    return found


def _over_time(signal: Signal, trace: _Trace, spec: Recurrence) -> Tensor:
    """The gradient of the sequence of states under the names of its own steps."""
    if spec.cell:
        return _pairs(signal.stats)
    place = 1 if spec.batch_first else 0
    shaped = Signal.of(((trace.time,) if trace.time else ((),)), Stats.constant(0.0, 0.0), signal.samples)
    if trace.time:
        _, named = unify(shaped, signal, [(0, place)])
        assert isinstance(named, Signal)
        names = {a: b for a, b in zip(named.axes[place], trace.time, strict=True) if a != b}
        signal = named.renamed(names)
    return _pairs(signal.stats.broadcast(trace.time))


def _at(signal: Signal | None, index: int, spec: Recurrence) -> Tensor:
    """E of the gradient of one last state, (2,)."""
    if signal is None:
        return torch.zeros(2, dtype=torch.float64)
    stats = signal.stats
    if len(stats.square) not in (1, spec.layers * spec.directions):
        raise NoRuleError("the gradient of last states that counts positions")
    place = 0 if len(stats.square) == 1 else index
    return torch.stack([stats.square[place], stats.aligned[place]])


def _starting(call: Call, spec: Recurrence, trace: _Trace, squares: list[Tensor], spread: float) -> Signal:
    count = len(squares)
    atoms = (Atom("position", count),) if count > 1 else ()
    pairs = torch.stack(squares, dim=1).to(torch.float64)
    feature = (Atom("feature", spec.hidden),) if spec.hidden > 1 else ()
    axes: Axes = (trace.samples, feature) if spec.cell else (atoms, trace.samples, feature)
    return Signal.of(axes, _stats(atoms, torch.diag_embed(pairs)), call.samples, spread)
