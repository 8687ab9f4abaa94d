"""The gradient over time equals that of an explicit loop over nn.RNNCell, nn.LSTMCell and nn.GRUCell."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import headwater as hw
from headwater.records import Profile

B, T, D, H = 3, 6, 4, 5
RTOL = 1e-5

# -------------------------------------------------------------------- the twin: a loop over torch's own cells


@dataclass
class _Loop:
    """Every state of an explicit loop, kept with retain_grad: lists over time, by (stack, reverse)."""

    output: list[Tensor] = field(default_factory=list)
    final_h: list[Tensor] = field(default_factory=list)
    final_c: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    hidden: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)
    cell: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)


def _cell_of(module: nn.RNNBase, stack: int, reverse: bool) -> nn.RNNCellBase:
    suffix = f"l{stack}" + ("_reverse" if reverse else "")
    weight = getattr(module, f"weight_ih_{suffix}")
    kinds: dict[str, Any] = {
        "LSTM": nn.LSTMCell,
        "GRU": nn.GRUCell,
        "RNN_TANH": lambda *a, **k: nn.RNNCell(*a, nonlinearity="tanh", **k),
        "RNN_RELU": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
    }
    cell: nn.RNNCellBase = kinds[module.mode](weight.shape[1], module.hidden_size, bias=module.bias, dtype=weight.dtype)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        if module.bias or name.startswith("weight"):
            getattr(cell, name).data.copy_(getattr(module, f"{name}_{suffix}"))
    return cell


def _loop(
    module: nn.RNNBase, x: Tensor, lengths: list[int], hx: Any = None, masks: list[Tensor] | None = None
) -> _Loop:
    """Run one sequence after another, one step after another.

    Args:
        module: not an LSTM with projections.
        x: (B, T, D).
        lengths: steps of each sequence.
        hx: None, or (layers · directions, B, H) tensors.
        masks: dropout multipliers (B, T, features) after each stack but the last.
    """
    loop = _Loop()
    lstm = module.mode == "LSTM"
    samples = len(lengths)
    x = x.detach().clone()
    rows = [[x[b, t].clone().requires_grad_() for t in range(lengths[b])] for b in range(samples)]
    loop.inputs = [row for sequence in rows for row in sequence]
    per_step_inputs = rows
    directions = (False, True) if module.bidirectional else (False,)
    for stack in range(module.num_layers):
        outputs: dict[bool, list[list[Tensor]]] = {}
        for reverse in directions:
            cell = _cell_of(module, stack, reverse)
            index = stack * len(directions) + reverse
            hs: list[list[Tensor]] = []
            cs: list[list[Tensor]] = []
            for b in range(samples):
                given = None if hx is None else (hx if isinstance(hx, tuple) else (hx,))
                h = x.new_zeros(1, module.hidden_size) if given is None else given[0][index, b : b + 1]
                c = x.new_zeros(1, module.hidden_size) if given is None or not lstm else given[1][index, b : b + 1]
                order = range(lengths[b] - 1, -1, -1) if reverse else range(lengths[b])
                row_h: dict[int, Tensor] = {}
                row_c: dict[int, Tensor] = {}
                for t in order:
                    step = per_step_inputs[b][t].unsqueeze(0)
                    if lstm:
                        h, c = cell(step, (h, c))
                        if c.requires_grad:
                            c.retain_grad()
                        row_c[t] = c
                    else:
                        h = cell(step, h)
                    h.retain_grad()
                    row_h[t] = h
                hs.append([row_h[t] for t in range(lengths[b])])
                cs.append([row_c[t] for t in range(lengths[b])] if lstm else [])
                loop.final_h.append(h)
                loop.final_c.append(c)
            outputs[reverse] = hs
            loop.hidden[stack, reverse] = [h for row in hs for h in row]
            loop.cell[stack, reverse] = [c for row in cs for c in row]
        per_step_inputs = [
            [torch.cat([outputs[r][b][t][0] for r in directions]) for t in range(lengths[b])] for b in range(samples)
        ]
        if masks is not None and stack < module.num_layers - 1:
            per_step_inputs = [
                [per_step_inputs[b][t] * masks[stack][b, t] for t in range(lengths[b])] for b in range(samples)
            ]
    loop.output = [step for sequence in per_step_inputs for step in sequence]
    return loop


def _rms_per_step(tensors: list[Tensor], lengths: list[int]) -> list[float]:
    """Root mean square over all sequences that reach step t; the list holds sequence after sequence."""
    starts = [sum(lengths[:b]) for b in range(len(lengths))]
    found = []
    for t in range(max(lengths)):
        grads = [tensors[starts[b] + t].grad for b in range(len(lengths)) if t < lengths[b]]
        flat = torch.cat([torch.zeros(0) if g is None else g.flatten().double() for g in grads])
        size = sum(tensors[starts[b] + t].numel() for b in range(len(lengths)) if t < lengths[b])
        found.append(math.sqrt(float(flat.square().sum()) / size))
    return found


# -------------------------------------------------------------------- losses that look at different outputs

Weights = dict[str, Tensor]


def _loss_weights(which: str, lengths: list[int], module: nn.RNNBase) -> Weights:
    width = H * (2 if module.bidirectional else 1)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    output = torch.zeros(B, max(lengths), width)
    final = torch.zeros(layers, B, H)
    cell = torch.zeros(layers, B, H)
    for b, length in enumerate(lengths):
        if which == "last step":
            output[b, length - 1] = torch.randn(width)
        elif which == "all steps":
            output[b, :length] = torch.randn(length, width)
    if which in ("h_n", "everything"):
        final = torch.randn(layers, B, H)
    if which == "everything":
        cell = torch.randn(layers, B, H)
        for b, length in enumerate(lengths):
            output[b, :length] = torch.randn(length, width)
    return {"output": output, "final": final, "cell": cell}


class Reader(nn.Module):
    """A recurrent module and a loss that is linear in what it returns; a little Linear before it, so there is depth."""

    def __init__(self, rnn: nn.RNNBase, lengths: list[int], *, packed: bool, sort: bool, hx: Any, w: Weights) -> None:
        super().__init__()
        self.rnn, self.lengths, self.packed, self.sort, self.hx, self.w = rnn, lengths, packed, sort, hx, w

    def forward(self, x: Tensor) -> Tensor:
        if not self.rnn.batch_first:
            x = x.transpose(0, 1)
        given: Any = x
        if self.packed:
            lengths = torch.tensor(self.lengths)
            given = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=not self.sort)
        out, final = self.rnn(given) if self.hx is None else self.rnn(given, self.hx)
        if self.packed:
            out, _ = pad_packed_sequence(out, batch_first=self.rnn.batch_first)
        if not self.rnn.batch_first:
            out = out.transpose(0, 1)
        h, c = final if isinstance(final, tuple) else (final, torch.zeros(()))
        total = (out * self.w["output"]).sum()
        if self.w["final"].any():
            total = total + (h * self.w["final"]).sum()
        if self.w["cell"].any() and isinstance(final, tuple):
            total = total + (c * self.w["cell"]).sum()
        return total


def _twin_loss(loop: _Loop, w: Weights, lengths: list[int], module: nn.RNNBase) -> Tensor:
    total = torch.zeros(())
    position = 0
    for b, length in enumerate(lengths):
        for t in range(length):
            total = total + (loop.output[position] * w["output"][b, t]).sum()
            position += 1
    for i in range(w["final"].shape[0]):
        for b in range(B):
            total = total + (loop.final_h[i * B + b][0] * w["final"][i, b]).sum()
            if module.mode == "LSTM":
                total = total + (loop.final_c[i * B + b][0] * w["cell"][i, b]).sum()
    return total


def _make(kind: str, **options: Any) -> nn.RNNBase:
    makers: dict[str, Any] = {
        "tanh": lambda *a, **k: nn.RNN(*a, nonlinearity="tanh", **k),
        "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
        "LSTM": nn.LSTM,
        "GRU": nn.GRU,
    }
    module: nn.RNNBase = makers[kind](D, H, **options)
    return module


def _assert_equals_loop(
    module: nn.RNNBase, which: str, *, lengths: list[int] | None = None, sort: bool = False, hx: Any = None
) -> Profile:
    packed = lengths is not None
    lengths = lengths or [T] * B
    w = _loss_weights(which, lengths, module)
    x = torch.randn(B, max(lengths), D)
    model = Reader(module, lengths, packed=packed, sort=sort, hx=hx, w=w)
    profile = hw.measure(model, x, loss_fn=lambda out: out)
    loop = _loop(module, x, lengths, hx)
    loss = _twin_loss(loop, w, lengths, module)
    assert profile.loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-5)
    loss.backward()
    for (stack, reverse), tensors in loop.hidden.items():
        found = profile.through_time("rnn", "hidden", stack=stack, reverse=reverse)
        assert found == pytest.approx(_rms_per_step(tensors, lengths), rel=RTOL, abs=1e-12)
        if module.mode == "LSTM":
            cells = profile.through_time("rnn", "cell", stack=stack, reverse=reverse)
            assert cells == pytest.approx(_rms_per_step(loop.cell[stack, reverse], lengths), rel=RTOL, abs=1e-12)
    steps = profile.through_time("rnn", "input")
    assert steps == pytest.approx(_rms_per_step(loop.inputs, lengths), rel=RTOL, abs=1e-12)
    assert all(time.exact and time.note == "" for time in profile.times)
    states = 3 if module.mode == "LSTM" else 2
    assert len(profile.times) == 1 + (states - 1) * len(loop.hidden)
    return profile


KINDS = ("tanh", "relu", "LSTM", "GRU")


@pytest.mark.parametrize("which", ["last step", "all steps", "h_n", "everything"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_over_time_equals_a_loop_of_cells(kind: str, layers: int, bidirectional: bool, which: str) -> None:
    _assert_equals_loop(_make(kind, num_layers=layers, bidirectional=bidirectional, batch_first=True), which)


@pytest.mark.parametrize("sort", [False, True], ids=["sorted", "enforce_sorted=False"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_equal_a_loop_of_cells(kind: str, bidirectional: bool, batch_first: bool, sort: bool) -> None:
    module = _make(kind, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)
    _assert_equals_loop(module, "all steps", lengths=[2, 6, 4] if sort else [6, 4, 2], sort=sort)


@pytest.mark.parametrize("which", ["last step", "h_n", "everything"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_packed_sequences_with_a_loss_on_the_final_state_equal_a_loop(kind: str, which: str) -> None:
    _assert_equals_loop(_make(kind, num_layers=2, bidirectional=True), which, lengths=[3, 6, 1], sort=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_given_initial_state_enters_the_loop(kind: str, packed: bool) -> None:
    state = torch.randn(2, B, H)
    hx = (state, torch.randn(2, B, H)) if kind == "LSTM" else state
    lengths = [3, 6, 2] if packed else None
    _assert_equals_loop(_make(kind, num_layers=2, batch_first=True), "everything", lengths=lengths, sort=True, hx=hx)


@pytest.mark.parametrize("kind", ["tanh", "LSTM"])
def test_layers_without_a_bias_and_in_sequence_first_order(kind: str) -> None:
    _assert_equals_loop(_make(kind, bias=False, batch_first=False), "all steps")


def test_the_steps_of_packed_sequences_count_only_those_that_are_alive() -> None:
    module = _make("GRU", batch_first=True)
    profile = _assert_equals_loop(module, "all steps", lengths=[2, 6, 4], sort=True)
    hidden = next(t for t in profile.times if t.state == "hidden")
    assert [s.count for s in hidden.steps if s is not None] == [3 * H, 3 * H, 2 * H, 2 * H, H, H]


# -------------------------------------------------------------------- projections: no cell in torch, written by hand


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_with_projections_equals_its_equations(layers: int, bidirectional: bool) -> None:
    P = 3
    module = nn.LSTM(D, H, proj_size=P, num_layers=layers, bidirectional=bidirectional, batch_first=True)
    x, directions = torch.randn(B, T, D), (False, True) if bidirectional else (False,)
    profile = hw.measure(nn.ModuleDict({"rnn": module}), loss=lambda m: m["rnn"](x)[0][:, -1].square().sum())

    steps = [x[:, t].clone().requires_grad_() for t in range(T)]
    inputs, hidden, cells = steps, {}, {}
    for stack in range(layers):
        sides = []
        for reverse in directions:
            s = f"l{stack}" + ("_reverse" if reverse else "")
            w_ih, w_hh, w_hr, b_ih, b_hh = (
                getattr(module, f"{n}_{s}").detach()
                for n in ("weight_ih", "weight_hh", "weight_hr", "bias_ih", "bias_hh")
            )
            h, c = torch.zeros(B, P), torch.zeros(B, H)
            hs, cs = [None] * T, [None] * T
            for t in range(T - 1, -1, -1) if reverse else range(T):
                gates = steps[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh
                i, f, g, o = gates[:, :H], gates[:, H : 2 * H], gates[:, 2 * H : 3 * H], gates[:, 3 * H :]
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = (torch.sigmoid(o) * torch.tanh(c)) @ w_hr.T
                c.retain_grad()
                h.retain_grad()
                hs[t], cs[t] = h, c
            hidden[stack, reverse], cells[stack, reverse] = hs, cs
            sides.append(hs)
        steps = [torch.cat(parts, 1) for parts in zip(*sides, strict=True)]
    steps[-1].square().sum().backward()

    def rms(tensors: list[Tensor]) -> list[float]:
        return [0.0 if t.grad is None else float(t.grad.double().square().mean().sqrt()) for t in tensors]

    for key in hidden:
        found = profile.through_time("rnn", "hidden", stack=key[0], reverse=key[1])
        assert found == pytest.approx(rms(hidden[key]), rel=RTOL, abs=1e-12, nan_ok=True)
        found = profile.through_time("rnn", "cell", stack=key[0], reverse=key[1])
        assert found == pytest.approx(rms(cells[key]), rel=RTOL, abs=1e-12, nan_ok=True)
    assert profile.through_time("rnn", "input") == pytest.approx(rms(inputs), rel=RTOL)


# -------------------------------------------------------------------- dropout between layers, other forms of input


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_the_layers_is_repeated_with_the_same_masks(kind: str) -> None:
    module = _make(kind, num_layers=2, dropout=0.5, batch_first=True)
    x = torch.randn(B, T, D)
    w = _loss_weights("last step", [T] * B, module)
    model = Reader(module, [T] * B, packed=False, sort=False, hx=None, w=w)
    profile = hw.measure(model, x, loss_fn=lambda out: out)
    assert all(time.exact for time in profile.times), profile.times[0].note
    # ∂L/∂x of the module's own fused kernels, under the random state that measure() saw and restored.
    leaf = x.clone().requires_grad_()
    model(leaf).backward()
    wanted = [float(leaf.grad[:, t].double().square().mean().sqrt()) for t in range(T)]
    assert profile.through_time("rnn", "input") == pytest.approx(wanted, rel=RTOL)


def test_dropout_in_evaluation_mode_is_off() -> None:
    module = _make("LSTM", num_layers=2, dropout=0.5, batch_first=True).eval()
    _assert_equals_loop(module, "last step")


def test_an_unbatched_sequence_has_steps_too() -> None:
    module, x = nn.GRU(D, H), torch.randn(T, D)
    profile = hw.measure(nn.ModuleDict({"rnn": module}), loss=lambda m: m["rnn"](x)[0][-1].sum())
    leaf = x.clone().requires_grad_()
    module(leaf)[0][-1].sum().backward()
    wanted = [float(leaf.grad[t].double().square().mean().sqrt()) for t in range(T)]
    assert profile.through_time("rnn", "input") == pytest.approx(wanted, rel=RTOL)
    assert len(profile.through_time("rnn")) == T


def test_a_packed_sequence_as_the_input_of_the_model_itself() -> None:
    x = pack_padded_sequence(torch.randn(B, T, D), torch.tensor([6, 4, 2]), batch_first=True)
    module = nn.LSTM(D, H, batch_first=True)

    def loss_fn(output: Any) -> Tensor:
        packed: PackedSequence = output[0]
        return packed.data.square().sum()

    profile = hw.measure(nn.Sequential(module), loss=lambda m: loss_fn(m(x)))
    assert len(profile.through_time("0")) == T


def test_the_input_gradient_equals_the_modules_own_where_a_hook_on_the_output_sees_one_step() -> None:
    module, x = nn.LSTM(D, H, batch_first=True), torch.randn(B, 20, D)
    profile = hw.measure(nn.ModuleDict({"rnn": module}), loss=lambda m: m["rnn"](x)[0][:, -1].square().sum())
    hidden = profile.through_time("rnn")
    assert len(hidden) == 20
    assert all(value > 0 for value in hidden)
    assert hidden[0] < hidden[-1]


def test_two_recurrent_modules_have_a_series_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.GRU(D, H, batch_first=True)
            self.decoder = nn.LSTM(H, H, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x)[0])[0][:, -1]

    model, x = Two(), torch.randn(B, T, D)
    profile = hw.measure(model, x, loss_fn=lambda out: out.square().sum())
    assert {t.layer for t in profile.times} == {"encoder", "decoder"}
    out = model.encoder(x)[0]
    out.retain_grad()
    model.decoder(out)[0][:, -1].square().sum().backward()
    # The decoder's inputs are the encoder's outputs.
    wanted = [float(out.grad[:, t].double().square().mean().sqrt()) for t in range(T)]
    assert profile.through_time("decoder", "input") == pytest.approx(wanted, rel=RTOL)


def test_a_recurrent_module_called_twice_has_a_series_per_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(D, D, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.rnn(x)[0])[0][:, -1]

    model, x = Twice(), torch.randn(B, T, D)
    profile = hw.measure(model, x, loss_fn=lambda out: out.square().sum())
    assert {t.layer for t in profile.times} == {"rnn#0", "rnn#1"}
    middle = model.rnn(x)[0]
    middle.retain_grad()
    model.rnn(middle)[0][:, -1].square().sum().backward()
    wanted = [float(middle.grad[:, t].double().square().mean().sqrt()) for t in range(T)]
    assert profile.through_time("rnn#1", "input") == pytest.approx(wanted, rel=RTOL)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_cell_in_a_python_loop_is_a_series_of_its_calls(cell: Any) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(D, H)

        def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
            state = None
            h = torch.zeros(())
            for t in range(T):
                state = self.cell(x[:, t], state)
                h = state[0] if isinstance(state, tuple) else state
                if keep is not None:
                    h.retain_grad()
                    keep.append(h)
            return h

    model, x = Loop(), torch.randn(B, T, D)
    profile = hw.measure(model, x, loss_fn=lambda out: out.square().sum())
    kept: list[Tensor] = []
    model(x, kept).square().sum().backward()
    wanted = [float(h.grad.double().square().mean().sqrt()) for h in kept if h.grad is not None]
    assert profile.through_time("cell") == pytest.approx(wanted, rel=RTOL)


def test_a_recurrent_module_without_a_gradient_has_no_series() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.GRU(D, H, batch_first=True), nn.Linear(D, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.rnn(x)
            return self.fc(x[:, 0])

    profile = hw.measure(Unused(), torch.randn(B, T, D))
    assert profile.times == ()
    with pytest.raises(KeyError, match="rnn"):
        profile.through_time("rnn")


def test_states_that_do_not_exist_are_refused_with_those_that_do() -> None:
    profile = hw.measure(nn.ModuleDict({"g": nn.GRU(D, H)}), loss=lambda m: m["g"](torch.randn(T, B, D))[0].sum())
    with pytest.raises(KeyError, match="hidden"):
        profile.through_time("g", "cell")


def test_half_precision_is_unrolled_in_single_precision() -> None:
    module = nn.LSTM(D, H, batch_first=True).bfloat16()
    x = torch.randn(B, T, D).bfloat16()
    profile = hw.measure(nn.ModuleDict({"rnn": module}), loss=lambda m: m["rnn"](x)[0][:, -1].float().square().sum())
    assert all(time.exact for time in profile.times)
    assert all(value > 0 for value in profile.through_time("rnn"))


def test_double_precision_follows_a_gradient_over_hundreds_of_steps() -> None:
    # A linear recurrence h_t = w h_{t-1} + x_t with tanh near 0: ∂L/∂h_t = w^(T-1-t) · ∂L/∂h_{T-1}.
    module = nn.RNN(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight_hh_l0.fill_(0.5)
        module.weight_ih_l0.fill_(1.0)
    x = torch.full((400, 1, 1), 1e-9).double()
    profile = hw.measure(nn.ModuleDict({"rnn": module}), loss=lambda m: m["rnn"](x)[0][-1].sum())
    hidden = profile.through_time("rnn")
    assert hidden[-1] == pytest.approx(1.0)
    assert math.log10(hidden[0]) == pytest.approx(399 * math.log10(0.5), rel=1e-6)
