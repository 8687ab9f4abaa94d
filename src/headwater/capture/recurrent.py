"""Gradient over time: nn.RNN, nn.LSTM and nn.GRU unrolled with the same weights.

A hook on a recurrent module sees only what the loss sends to each output, not what travels through time: with a
loss on the last step, 1 of 20 steps. Here the module's own call is repeated as a loop of cells, the gradient of its
outputs is sent back through the loop, and ∂L/∂h_t is read at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from headwater.records import TimeProfile
from headwater.stats import summarize_many

__all__ = ["RecurrentCall", "time_profiles"]

State = tuple[Tensor, Tensor | None]  # h and, for an LSTM, c


@dataclass
class RecurrentCall:
    """What one call of a recurrent module took and gave, and the gradients that came back.

    Attributes:
        module: the module.
        inputs: padded (T, B, D) or (B, T, D), unbatched (T, D), or packed data.
        batch_sizes: sequences still alive at each step, for a packed input.
        order: the sequences of a packed input sorted by length, where the module undoes the sorting in its states.
        initial: the initial hidden (and cell) state that was passed, or None.
        random_state: the CPU generator's state when the call began, where dropout between layers needs it.
        output: the first output, to check the unrolled loop against.
        gradients: ∂L/∂output, ∂L/∂h_n, ∂L/∂c_n by position, as far as they came back.
    """

    module: nn.RNNBase
    inputs: Tensor
    batch_sizes: tuple[int, ...] | None
    order: Tensor | None
    initial: tuple[Tensor, ...] | None
    random_state: Tensor | None
    output: Tensor | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, module: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RecurrentCall | None:
        """Note down a call before it runs; None for an input that nn.RNN does not take (its own forward says so)."""
        inputs = args[0] if args else kwargs.get("input")
        hx = args[1] if len(args) > 1 else kwargs.get("hx")
        sizes: tuple[int, ...] | None = None
        order: Tensor | None = None
        if isinstance(inputs, PackedSequence):
            sizes = tuple(inputs.batch_sizes.tolist())
            order = inputs.sorted_indices
            if hx is not None and order is not None:
                hx = tuple(h.index_select(1, order) for h in hx) if isinstance(hx, tuple) else hx.index_select(1, order)
            inputs = inputs.data
        if not isinstance(inputs, Tensor):
            return None
        initial = None if hx is None else tuple(h.detach() for h in (hx if isinstance(hx, tuple) else (hx,)))
        noisy = module.dropout > 0 and module.training and module.num_layers > 1
        return cls(module, inputs.detach(), sizes, order, initial, torch.get_rng_state() if noisy else None)

    def finish(self, outputs: Any) -> list[tuple[int, Tensor]]:
        """Note down the outputs.

        Args:
            outputs: what the module returned.

        Returns:
            (position, tensor) of output, h_n and c_n, whose gradients are wanted.
        """
        sequence, final = outputs
        if isinstance(sequence, PackedSequence):
            sequence = sequence.data
        self.output = sequence.detach()
        finals = final if isinstance(final, tuple) else (final,)
        return list(enumerate((sequence, *finals)))


def _cell(
    module: nn.RNNBase, weights: dict[str, Tensor], suffix: str
) -> Callable[[Tensor, Tensor, Tensor | None], State]:
    """One step of the module: x (b, D), h (b, H), c (b, C) to the next h and c, by torch's own documented equations."""
    w_ih, w_hh = weights[f"weight_ih_{suffix}"], weights[f"weight_hh_{suffix}"]
    b_ih, b_hh = weights.get(f"bias_ih_{suffix}"), weights.get(f"bias_hh_{suffix}")
    w_hr = weights.get(f"weight_hr_{suffix}")
    mode = module.mode

    def lstm(x: Tensor, h: Tensor, c: Tensor | None) -> State:
        assert c is not None
        i, f, g, o = (F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, 1)
        following = f.sigmoid() * c + i.sigmoid() * g.tanh()
        out = o.sigmoid() * following.tanh()
        return (out if w_hr is None else F.linear(out, w_hr)), following

    def gru(x: Tensor, h: Tensor, c: Tensor | None) -> State:
        xr, xz, xn = F.linear(x, w_ih, b_ih).chunk(3, 1)
        hr, hz, hn = F.linear(h, w_hh, b_hh).chunk(3, 1)
        z = (xz + hz).sigmoid()
        n = (xn + (xr + hr).sigmoid() * hn).tanh()
        return (1 - z) * n + z * h, None

    def rnn(x: Tensor, h: Tensor, c: Tensor | None) -> State:
        total = F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
        return (total.tanh() if mode == "RNN_TANH" else total.relu()), None

    return {"LSTM": lstm, "GRU": gru}.get(mode, rnn)


@dataclass
class _Unrolled:
    output: Tensor
    finals: list[Tensor]
    inputs: list[Tensor]
    hidden: dict[tuple[int, bool], list[Tensor]]
    cell: dict[tuple[int, bool], list[Tensor]]


def _unroll(call: RecurrentCall, dtype: torch.dtype) -> _Unrolled:
    module = call.module
    weights = {n: p.detach().to(dtype) for n, p in module.named_parameters(recurse=False)}
    x = call.inputs.to(dtype)
    unbatched = call.batch_sizes is None and x.dim() == 2
    if unbatched:
        x = x.unsqueeze(1)
    elif call.batch_sizes is None and module.batch_first:
        x = x.transpose(0, 1)
    steps = list(x.split(list(call.batch_sizes)) if call.batch_sizes is not None else x.unbind(0))
    steps = [s.detach().clone().requires_grad_() for s in steps]
    inputs = steps
    batch = max(s.shape[0] for s in steps)
    directions = 2 if module.bidirectional else 1
    width = module.proj_size or module.hidden_size

    def start(state: int, index: int, size: int) -> Tensor:
        if call.initial is None:
            return x.new_zeros(batch, size)
        given = call.initial[state].to(dtype)
        return given[index].reshape(batch, size)

    hidden: dict[tuple[int, bool], list[Tensor]] = {}
    cells: dict[tuple[int, bool], list[Tensor]] = {}
    finals_h, finals_c = [], []
    for stack in range(module.num_layers):
        sides = []
        for reverse in (False, True)[:directions]:
            cell = _cell(module, weights, f"l{stack}" + ("_reverse" if reverse else ""))
            index = stack * directions + reverse
            h = start(0, index, width)
            c = start(1, index, module.hidden_size) if module.mode == "LSTM" else None
            hs: list[Tensor] = [h] * len(steps)
            cs: list[Tensor] = []
            times = range(len(steps) - 1, -1, -1) if reverse else range(len(steps))
            for t in times:
                alive = steps[t].shape[0]
                following, memory = cell(steps[t], h[:alive], None if c is None else c[:alive])
                hs[t] = following
                # Sequences that ended keep their last state: packed sequences are sorted, the longest first.
                h = torch.cat([following, h[alive:]]) if alive < batch else following
                if memory is not None and c is not None:
                    cs.append(memory)
                    c = torch.cat([memory, c[alive:]]) if alive < batch else memory
            hidden[stack, reverse] = hs
            if cs:
                cells[stack, reverse] = cs[::-1] if reverse else cs
            finals_h.append(h)
            if c is not None:
                finals_c.append(c)
            sides.append(hs)
        steps = [torch.cat(parts, 1) for parts in zip(*sides, strict=True)]
        if call.random_state is not None and stack < module.num_layers - 1:
            steps = _dropped(steps, module.dropout, packed=call.batch_sizes is not None)
    output = torch.cat(steps) if call.batch_sizes is not None else torch.stack(steps)
    finals = [torch.stack(finals_h)] + ([torch.stack(finals_c)] if finals_c else [])
    if unbatched:
        output, finals = output.squeeze(1), [f.squeeze(1) for f in finals]
    elif call.batch_sizes is None and module.batch_first:
        output = output.transpose(0, 1)
    return _Unrolled(output, finals, inputs, hidden, cells)


def _dropped(steps: list[Tensor], p: float, *, packed: bool) -> list[Tensor]:
    """Dropout between layers, drawn over the whole sequence at once as torch does."""
    whole = F.dropout(torch.cat(steps) if packed else torch.stack(steps), p, training=True)
    return list(whole.split([s.shape[0] for s in steps])) if packed else list(whole.unbind(0))


def time_profiles(call: RecurrentCall, layer: str) -> list[TimeProfile]:
    """Statistics of ∂L/∂h_t, ∂L/∂c_t and ∂L/∂x_t at every step of one recurrent call.

    Args:
        call: what went in, what came out and the gradients of the outputs.
        layer: name of the call's row.

    Returns:
        One record per state, stacked layer and direction; empty when no gradient came back.
    """
    if not call.gradients or call.output is None:
        return []
    dtype = torch.float64 if call.inputs.dtype == torch.float64 else torch.float32
    if call.random_state is not None:
        torch.set_rng_state(call.random_state)  # the guard around the measurement restores the caller's
    with torch.enable_grad():
        loop = _unroll(call, dtype)
        gradients = {i: g.to(dtype) for i, g in call.gradients.items()}
        if call.order is not None:  # the loop's states are sorted by length, those of the module were sorted back
            gradients = {i: g.index_select(1, call.order) if i else g for i, g in gradients.items()}
        pairs = [(t, gradients[i]) for i, t in enumerate((loop.output, *loop.finals)) if i in gradients]
        wanted: list[tuple[Literal["hidden", "cell", "input"], int, bool, list[Tensor]]] = [
            ("input", 0, False, loop.inputs)
        ]
        wanted += [("hidden", stack, reverse, hs) for (stack, reverse), hs in loop.hidden.items()]
        wanted += [("cell", stack, reverse, cs) for (stack, reverse), cs in loop.cell.items()]
        every = [t for _, _, _, tensors in wanted for t in tensors]
        # As one scalar: autograd.grad with grad_outputs loads sympy first, which takes more than a second.
        total = sum(((t * g).sum() for t, g in pairs), torch.zeros(()))
        found = torch.autograd.grad(total, every, allow_unused=True)
    # A gate at the boundary of fp32 leaves about 1e-5 between a fused kernel and the loop; half precision more.
    tolerance = 1e-4 if call.output.dtype in (torch.float32, torch.float64) else 5e-2
    exact = bool(
        torch.allclose(loop.output.detach(), call.output.to(dtype), rtol=tolerance, atol=tolerance, equal_nan=True)
    )
    note = (
        ""
        if exact
        else "the unrolled cells do not reproduce the module's output (its dropout masks cannot be repeated here)"
    )
    statistics = iter(summarize_many([g for g in found if g is not None]))
    profiles, position = [], 0
    for state, stack, reverse, tensors in wanted:
        steps = found[position : position + len(tensors)]
        position += len(tensors)
        profiles.append(
            TimeProfile(
                layer=layer,
                state=state,
                stack=stack,
                reverse=reverse,
                steps=tuple(None if g is None else next(statistics) for g in steps),
                exact=exact,
                note=note,
            )
        )
    return profiles
