"""Recurrent modules on the meta device: each call is one operation that the engine follows as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from headwater.capture._torch_compat import operations_unseen
from headwater.theory.forecast import Engine, Law, Recurrence, axes_of_shape

__all__ = ["PredictedTimes", "StateOverTime", "gate_laws", "recurrences_followed"]


@dataclass(frozen=True)
class StateOverTime:
    """What is forecast of one state of one recurrent call, step by step.

    Attributes:
        state: ``hidden``, or ``cell`` of an LSTM.
        stack: which of the stacked layers, from 0.
        reverse: whether this is the backward direction of a bidirectional layer.
        activation_rms_log10: log10 rms(h_t), t = 0 first; empty for an LSTM's cells, None where it is unknown.
        gradient_rms_log10: log10 rms(∂L/∂h_t), t = 0 first; empty where no gradient came back, None where it is unknown.
    """

    state: Literal["hidden", "cell"]
    stack: int
    reverse: bool
    activation_rms_log10: tuple[float | None, ...]
    gradient_rms_log10: tuple[float | None, ...]


@dataclass
class PredictedTimes:
    """The calls of recurrent modules, in order, and what each left with the engine.

    Attributes:
        engine: that followed them.
        calls: module and token of each call.
    """

    engine: Engine
    calls: list[tuple[nn.Module, object]] = field(default_factory=list)

    def of(self, module: nn.Module, index: int) -> list[StateOverTime]:
        """The states of one call.

        Args:
            module: the recurrent module.
            index: which of its calls, from 0.

        Returns:
            One per stacked layer, direction and state; empty for a call that was not followed.
        """
        tokens = [token for owner, token in self.calls if owner is module]
        trace = self.engine.notes.get(("recurrence", tokens[index])) if index < len(tokens) else None
        if trace is None:
            return []
        directions = trace.directions
        found = []
        for k, states in enumerate(trace.states):
            place = (k // directions, bool(k % directions))
            gradients = trace.gradients[k] if trace.gradients else []
            found.append(StateOverTime("hidden", *place, _logs(states), _logs(gradients)))
            if trace.cell_gradients and trace.cell_gradients[k]:
                found.append(StateOverTime("cell", *place, (), _logs(trace.cell_gradients[k])))
        return found

    def cell_gradient(self, module: nn.Module, index: int) -> float | None:
        """log10 rms of the whole gradient at the new cell state of one call of an ``nn.LSTMCell``; None for others."""
        if not isinstance(module, nn.LSTMCell):
            return None
        found = [s.gradient_rms_log10[0] for s in self.of(module, index) if s.state == "cell" and s.gradient_rms_log10]
        return found[0] if found else None

    def assumptions(self, name_of: Callable[[nn.Module], str]) -> list[str]:
        """What the way in which the modules are called breaks, each with what to do instead.

        Args:
            name_of: the clean name of a module.
        """
        cells = [module for module, _ in self.calls if isinstance(module, nn.RNNCellBase)]
        repeated = [name_of(m) for m in dict.fromkeys(cells) if cells.count(m) > 1 and not isinstance(m, nn.RNNCell)]
        if not repeated:
            return []
        return [
            f"{', '.join(repeated)} called once per step: covariances between steps are left out, which for gated cells "
            "makes early gradients too small by a few hundredths of a decade per step; nn.LSTM and nn.GRU are followed whole"
        ]


def _logs(squares: list[float]) -> tuple[float, ...]:
    return tuple(0.5 * math.log10(q) if q > 0.0 else -math.inf for q in squares)


_CELLS: dict[type, str] = {nn.RNNCell: "RNN_TANH", nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
_GATES = {"LSTM": 4, "GRU": 3}


def _described(module: nn.Module) -> Recurrence | None:
    """What kind of recurrence a module is; None for what this file does not follow."""
    if isinstance(module, nn.RNNBase):
        if module.proj_size:
            return None
        return Recurrence(
            mode=module.mode,
            layers=module.num_layers,
            bidirectional=module.bidirectional,
            batch_first=module.batch_first,
            hidden=module.hidden_size,
            biased=module.bias,
            dropout=float(module.dropout) if module.training else 0.0,
        )
    if isinstance(module, nn.RNNCellBase) and type(module) in _CELLS:
        mode = _CELLS[type(module)]
        if isinstance(module, nn.RNNCell) and module.nonlinearity == "relu":
            mode = "RNN_RELU"
        return Recurrence(mode, 1, False, True, module.hidden_size, module.bias, cell=True)
    return None


def gate_laws(module: nn.Module, law_of: Callable[[Tensor], Any]) -> dict[int, Law]:
    """The laws of a recurrent module's parameters gate by gate, read off their values.

    Args:
        module: with values.
        law_of: gives the law of a tensor's values.

    Returns:
        By ``id`` of the parameter; empty for any other module.
    """
    spec = _described(module)
    gates = _GATES.get(spec.mode, 1) if spec is not None else 1
    if gates == 1:
        return {}
    found = {}
    for parameter in module.parameters(recurse=False):
        laws = [law_of(part) for part in parameter.detach().chunk(gates)]
        if all(isinstance(law, Law) for law in laws):
            pieces = [(1.0 / gates, law.mean, law.variance) for law in laws]
            found[id(parameter)] = Law.of_pieces(axes_of_shape(parameter.shape), pieces)
    return found


@contextmanager
def recurrences_followed(model: nn.Module, engine: Engine) -> Iterator[PredictedTimes]:
    """Hand every call of a recurrent module of ``model`` to the engine as one operation.

    Packed sequences, projections and inputs without samples are left to torch, which takes them apart; nothing is known of
    what it makes of them, and the coverage says so.

    Args:
        model: on the meta device, and nobody else's.
        engine: follows the moments.

    Yields:
        The calls, as they happen.
    """
    times = PredictedTimes(engine)
    changed = []
    for module in model.modules():
        spec = _described(module)
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and "forward" not in vars(module):
            module.forward = _following(module, spec, times, module.forward)
            changed.append(module)
    try:
        yield times
    finally:
        for module in changed:
            del module.forward


def _following(
    module: nn.Module, spec: Recurrence | None, times: PredictedTimes, original: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(input: Any, hx: Any = None) -> Any:
        reason = _not_followed(spec, input)
        if reason or spec is None:
            return original(_lost(input, times.engine, reason), hx)
        hidden, cell = hx if isinstance(hx, tuple | list) else (hx, None)
        weights = list(module.parameters(recurse=False))
        token = object()
        times.calls.append((module, token))
        outputs = _Followed.apply(times.engine, spec, token, input, hidden, cell, *weights)  # type: ignore[no-untyped-call]
        if spec.cell:
            return outputs if spec.mode == "LSTM" else outputs[0]
        return (outputs[0], tuple(outputs[1:])) if spec.mode == "LSTM" else (outputs[0], outputs[1])

    return forward


def _not_followed(spec: Recurrence | None, input: Any) -> str:
    """Why a call is left to torch; empty for one that is followed."""
    if isinstance(input, PackedSequence):
        return "recurrence of a packed sequence"
    if spec is None:
        return "recurrence with a projection"
    if input.dim() != (2 if spec.cell else 3):
        return "recurrence without samples"
    return ""


def _lost(input: Any, engine: Engine, reason: str) -> Any:
    """The same input, of which nothing is known any more: what torch makes of it step by step is not to be trusted."""
    if isinstance(input, PackedSequence):
        data = _Unknown.apply(input.data, engine, reason)  # type: ignore[no-untyped-call]
        return PackedSequence(data, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    return _Unknown.apply(input, engine, reason)  # type: ignore[no-untyped-call]


class _Unknown(torch.autograd.Function):
    """A copy about which nothing is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, engine: Engine, reason: str) -> Tensor:
        out = torch.empty_like(x)
        with operations_unseen():
            engine.apply(reason, [x], {}, [out], None)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class _Followed(torch.autograd.Function):
    """Empty tensors of the right shapes; their moments are the engine's."""

    @staticmethod
    def forward(
        ctx: Any, engine: Engine, spec: Recurrence, token: object, x: Tensor, h: Any, c: Any, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.engine, ctx.spec, ctx.token = engine, spec, token
        ctx.set_materialize_grads(False)
        ctx.states = h is not None, c is not None
        present = [t for t in (x, h, c) if t is not None]
        ctx.save_for_backward(*present, *weights)
        if spec.cell:
            shapes = [(x.shape[0], spec.hidden)] * (2 if spec.mode == "LSTM" else 1)
        else:
            batch = x.shape[0] if spec.batch_first else x.shape[1]
            last = (spec.layers * spec.directions, batch, spec.hidden)
            shapes = [(*x.shape[:2], spec.hidden * spec.directions), last]  # type: ignore[list-item]
            shapes += [last] if spec.mode == "LSTM" else []  # type: ignore[list-item]
        outputs = tuple(x.new_empty(shape) for shape in shapes)
        with operations_unseen():
            engine.apply("recurrence", [spec, token, x, h, c, list(weights)], {}, outputs, None)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        x = saved.pop(0)
        h = saved.pop(0) if ctx.states[0] else None
        c = saved.pop(0) if ctx.states[1] else None
        outputs = [torch.empty_like(t) for t in (x, h, c, *saved) if t is not None]
        placed = iter(outputs)
        found = [None if t is None else next(placed) for t in (x, h, c, *saved)]
        spec: Recurrence = ctx.spec
        # What is not wanted still has a place among the results.
        stand_ins = [t if t is not None else torch.empty_like(x) for t in found]
        with operations_unseen():
            ctx.engine.apply(
                "recurrence_backward", [spec, ctx.token, x, h, c, saved, list(gradients)], {}, stand_ins, None
            )
        needed = ctx.needs_input_grad[3:]
        return (None, None, None, *(t if want else None for t, want in zip(found, needed, strict=True)))
