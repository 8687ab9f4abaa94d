"""Gradients that die or grow along time."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import learns, steady_in_time, through_time
from tests.labelled.kit import bce_logits, case, ce, ce_tokens, first_step_decides, mse
from torch import nn


class LastState(nn.Module):
    def __init__(self, rnn, hidden, classes=2):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(hidden, classes)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def set_gate_bias(rnn, block, value, hidden):
    """Set one gate's bias (its sum over b_ih and b_hh) in every layer and direction."""
    for name, p in rnn.named_parameters():
        if "bias" in name:
            p.data[block * hidden : (block + 1) * hidden] = value if "bias_ih" in name else 0.0
    return rnn


@case(
    "vanishing_in_time",
    "rnn",
    "Cho et al. 2014 GRU on the first-symbol task, default gates",
    through_time(-6),
    twin=(steady_in_time(1.5), learns(0.02)),
)
def gru_120_steps(fixed):
    """nn.GRU with default biases, 120 steps, only the first decides. Repair: update gate bias +5 keeps the state."""
    x, y = first_step_decides(48, 120)
    rnn = nn.GRU(3, 32, batch_first=True)
    return LastState(set_gate_bias(rnn, 1, 5.0, 32) if fixed else rnn, 32), x, y, ce


@case(
    "vanishing_in_time",
    "rnn",
    "Le et al. 2015 (IRNN): ReLU RNNs with small Gaussian recurrent weights forget",
    through_time(-6),
    twin=(steady_in_time(1.0), learns(0.02, lr=1e-3)),
)
def relu_rnn_small_recurrence(fixed):
    """ReLU RNN, recurrent N(0, 0.03²), 60 steps. Repair: identity recurrence, zero bias."""
    x, y = first_step_decides(48, 60)
    rnn = nn.RNN(3, 48, nonlinearity="relu", batch_first=True)
    nn.init.normal_(rnn.weight_ih_l0, std=0.1)
    nn.init.zeros_(rnn.bias_ih_l0), nn.init.zeros_(rnn.bias_hh_l0)
    nn.init.eye_(rnn.weight_hh_l0) if fixed else nn.init.normal_(rnn.weight_hh_l0, std=0.03)
    return LastState(rnn, 48), x, y, ce


class BothEnds(nn.Module):
    def __init__(self, rnn, hidden):
        super().__init__()
        self.rnn, self.out, self.hidden = rnn, nn.Linear(2 * hidden, 2), hidden

    def forward(self, x):
        h = self.rnn(x)[0]
        return self.out(torch.cat([h[:, -1, : self.hidden], h[:, 0, self.hidden :]], 1))


@case(
    "vanishing_in_time",
    "rnn",
    "bidirectional LSTM whose evidence lies in the middle of the series",
    through_time(-6, early=75, late=-1),
    twin=(steady_in_time(1.5, 75, -1), learns(0.02)),
)
def bidirectional_lstm_middle(fixed):
    """150 steps, the class is set in the middle; both directions forget it. Repair: forget bias 5."""
    x = torch.randn(40, 150, 3)
    y = (x[:, 75, 0] > 0).long()
    rnn = nn.LSTM(3, 24, batch_first=True, bidirectional=True)
    return BothEnds(set_gate_bias(rnn, 1, 5.0, 24) if fixed else rnn, 24), x, y, ce


class CellLoop(nn.Module):
    """A recurrent net written as a loop over time."""

    def __init__(self, cell, hidden, start=None):
        super().__init__()
        self.cell, self.out, self.hidden, self.start = cell, nn.Linear(hidden, 2), hidden, start

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.hidden)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.out(h)


@case(
    "vanishing_in_time",
    "cell",
    "hand-written loop over nn.RNNCell with default weights",
    through_time(-6),
    twin=(steady_in_time(1.5), learns(0.02)),
    also=("vanishing",),
)
def rnn_cell_loop_50(fixed):
    """nn.RNNCell, tanh, 50 steps in a Python loop. Repair: orthogonal recurrence, small inputs."""
    x, y = first_step_decides(48, 50)
    cell = nn.RNNCell(3, 32)
    if fixed:
        nn.init.orthogonal_(cell.weight_hh)
        cell.weight_ih.data.mul_(0.3), cell.bias_ih.data.zero_(), cell.bias_hh.data.zero_()
    return CellLoop(cell, 32), 0.3 * x if fixed else x, y, ce


class SigmoidCell(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inp, self.rec = nn.Linear(3, width), nn.Linear(width, width)

    def forward(self, x, h):
        return torch.sigmoid(self.inp(x) + self.rec(h))


@case(
    "vanishing_in_time",
    "cell*",
    "Pascanu et al. 2013: a sigmoid recurrence passes at most λ/4 per step",
    through_time(-6),
    also=("vanishing",),
)
def sigmoid_cell_20():
    """A sigmoid Elman cell over 20 steps in a loop."""
    x, y = first_step_decides(48, 20)
    return CellLoop(SigmoidCell(32), 32), x, y, ce


@case(
    "vanishing_in_time",
    "rnn",
    "two stacked LSTMs with default biases",
    through_time(-8),
    twin=(steady_in_time(1.5), learns(0.02)),
)
def stacked_lstm_150(fixed):
    """2-layer LSTM over 150 steps. Repair: forget bias 6 in both layers."""
    x, y = first_step_decides(32, 150)
    rnn = nn.LSTM(3, 24, num_layers=2, batch_first=True)
    return LastState(set_gate_bias(rnn, 1, 6.0, 24) if fixed else rnn, 24), x, y, ce


class Translate(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(3, 24, batch_first=True), nn.LSTM(4, 24, batch_first=True)
        self.out, self.attend, self.mix = nn.Linear(24, 4), attend, nn.Linear(48, 24)

    def forward(self, pair):
        source, target = pair
        memory, state = self.encoder(source)
        h = self.decoder(target, state)[0]
        if self.attend:
            a = torch.softmax(h @ memory.transpose(1, 2) / math.sqrt(24), -1)
            h = torch.tanh(self.mix(torch.cat([h, a @ memory], -1)))
        return self.out(h)


def _source_forgotten(case_):
    model, (source, target) = case_.model, case_.x
    source = source.clone().requires_grad_()
    case_.loss_fn(model((source, target)), case_.y).backward()
    g = source.grad.pow(2).mean((0, 2)).sqrt()
    for p in model.parameters():
        p.grad = None
    change = math.log10(float(g[0] / g[-1])) if g[0] > 0 else -math.inf
    assert change < -8
    return f"source step 0 gets {change:.1f} decades of the last step's gradient"


@case(
    "vanishing_in_time",
    "encoder",
    "Bahdanau et al. 2015: an encoder-decoder without attention forgets long sentences",
    _source_forgotten,
    twin=learns(0.01),
)
def seq2seq_without_attention(fixed):
    """LSTM encoder over 150 steps, LSTM decoder; the encoder's first words get nothing. Repair: attention, 12 steps."""
    source, target = torch.randn(24, 12 if fixed else 150, 3), torch.randn(24, 6, 4)
    y = (source[:, 0, 0] > 0).long()[:, None].expand(24, 6) + 2 * (target[:, :, 0] > 0).long()
    net = Translate(fixed)
    if not fixed:
        net.mix.requires_grad_(False)
    return net, (source, target), y.contiguous(), ce_tokens


@case("vanishing_in_time", "rnn", "an LSTM whose forget bias was set to -3 by a wrong slice", through_time(-6))
def lstm_negative_forget_bias():
    """Forget gates at 0.05: the cell empties in two steps; 20 steps are too many."""
    x, y = first_step_decides(48, 20)
    return LastState(set_gate_bias(nn.LSTM(3, 24, batch_first=True), 1, -3.0, 24), 24), x, y, ce


@case(
    "exploding_in_time",
    "rnn",
    "ReLU RNN with an identity recurrence times 1.3 (Le et al. 2015 use 1.0)",
    through_time(4),
    twin=(steady_in_time(1.0), learns(0.02, lr=1e-3)),
    also=("exploding",),
)
def relu_rnn_identity_times_1_3(fixed):
    """1.3^60 = 7e6. Repair: the identity itself."""
    x, y = first_step_decides(48, 60)
    rnn = nn.RNN(3, 32, nonlinearity="relu", batch_first=True)
    rnn.weight_hh_l0.data = (1.0 if fixed else 1.3) * torch.eye(32)
    rnn.weight_ih_l0.data.mul_(0.3), rnn.bias_ih_l0.data.zero_(), rnn.bias_hh_l0.data.zero_()
    return LastState(rnn, 32), x, y, lambda o, t: ce(o / (1.0 if fixed else o.detach().abs().max()), t)


class LinearStateSpace(nn.Module):
    """h ← A h + B x with A a plain parameter, no module of torch's."""

    def __init__(self, radius, width=24):
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(width, width))
        self.A, self.B, self.C = (
            nn.Parameter(radius * q),
            nn.Parameter(0.3 * torch.randn(width, 3)),
            nn.Parameter(0.2 * torch.randn(1, width)),
        )

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.A.shape[0])
        for t in range(x.shape[1]):
            h = h @ self.A.T + x[:, t] @ self.B.T
        return torch.tanh(0.01 * h @ self.C.T)


@case(
    "exploding_in_time",
    "A",
    "state-space threads (Gu et al. 2022): eigenvalues outside the unit circle",
    through_time(3),
    twin=(steady_in_time(1.0), learns(0.005)),
    also=("exploding",),
)
def linear_state_space_unstable(fixed):
    """|λ| = 1.06 over 150 steps: 1.06^150 = 6e3, in a loop over plain parameters. Repair: |λ| = 1."""
    x, y = first_step_decides(32, 150)
    return LinearStateSpace(1.0 if fixed else 1.06), x if fixed else 0.02 * x, 2.0 * y[:, None] - 1, mse


@case(
    "exploding_in_time",
    "cell",
    "a ReLU cell with U(0, 0.1) recurrent weights: spectral radius n·0.05",
    through_time(3),
    also=("exploding",),
)
def relu_cell_positive_weights():
    """nn.RNNCell(relu), 48 units, U(0, 0.1): radius 2.4, 16 steps in a loop."""
    x, y = first_step_decides(48, 16)
    cell = nn.RNNCell(3, 48, nonlinearity="relu")
    nn.init.uniform_(cell.weight_hh, 0, 0.1)
    return (
        CellLoop(cell, 48),
        x,
        y[:, None].expand(48, 2).float(),
        lambda o, t: bce_logits(o / o.detach().abs().max(), t),
    )


@case(
    "exploding_in_time",
    "rnn",
    "Pascanu et al. 2013: gradients explode when the recurrent spectrum is above 1 and units are not saturated",
    through_time(2.5),
    also=("exploding",),
)
def tanh_rnn_gain_two_weak_input():
    """tanh RNN, recurrent N(0, 2²/n), inputs of 0.02, 70 steps: chaotic, not saturated."""
    x, y = first_step_decides(32, 70)
    rnn = nn.RNN(3, 160, batch_first=True)
    nn.init.normal_(rnn.weight_hh_l0, std=2.2 / math.sqrt(160))
    rnn.bias_ih_l0.data.zero_(), rnn.bias_hh_l0.data.zero_()
    return LastState(rnn, 160), 0.02 * x, y, ce


@case(
    "exploding_in_time",
    "rnn",
    "a 2-layer ReLU RNN with He's recurrent weights on a long series",
    through_time(3),
    also=("exploding",),
)
def two_layer_relu_rnn_he():
    """Recurrent weights N(0, 2/n)·1.3 in both layers, 40 steps: memory grows every step."""
    x, y = first_step_decides(32, 40)
    rnn = nn.RNN(3, 64, num_layers=2, nonlinearity="relu", batch_first=True)
    for name, p in rnn.named_parameters():
        nn.init.normal_(p, std=1.35 * math.sqrt(2 / 64)) if "weight_hh" in name else None
    return LastState(rnn, 64), x, y, lambda o, t: ce(o / o.detach().abs().max(), t)
