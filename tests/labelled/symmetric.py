"""Units that start as copies and stay copies."""

from __future__ import annotations

import copy

import torch
from tests.labelled.evidence import learns, twins
from tests.labelled.kit import bce_logits, case, ce, clusters, first_step_decides, he, mlp, mse, pictures, xavier
from torch import nn


def fill(module, value):
    for p in module.parameters():
        nn.init.constant_(p, value)
    return module


@case(
    "symmetric",
    "0,2",
    "SO 'why not initialise weights to zero': sigmoid net",
    twins("0.weight"),
    twin=learns(),
    also=("zero_gradient",),
)
def zeros_sigmoid(fixed):
    """16-32-4 sigmoid, every weight 0: the hidden layer is one unit in 32 copies."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 4], nn.Sigmoid, xavier)
    return net if fixed else fill(net, 0.0), x, y, ce


@case("symmetric", "0,2,4", "Keras threads: kernel_initializer='ones'", twins("0.weight,2.weight"), twin=learns())
def ones_relu(fixed):
    """16-24-24-4 with every weight 1 and ReLU."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 24, 24, 4], nn.ReLU, he)
    if not fixed:
        for i in (0, 2, 4):
            nn.init.ones_(net[i].weight)
    return net, 0.1 * x.abs(), y, ce


@case("symmetric", "0,2", "the XOR exercise with all weights 0.5", twins("0.weight"), twin=learns(0.1, 200, 0.05))
def xor_equal_weights(fixed):
    """2-2-1 sigmoid on XOR, every weight 0.5: two copies cannot solve it."""
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([[0.0], [1], [1], [0]])
    net = mlp([2, 2, 1], nn.Sigmoid, xavier)
    return net if fixed else fill(net, 0.5), x, y, bce_logits


class Last(nn.Module):
    def __init__(self, rnn, hidden):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(hidden, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@case(
    "symmetric",
    "rnn",
    "NeuraLint: constant weight initialisation, in a recurrent net",
    twins("rnn.weight_*"),
    twin=learns(0.02),
)
def constant_elman(fixed):
    """nn.RNN with every parameter 0.05, output layer as well: 16 copies of one state."""
    x, y = first_step_decides(48, 6)
    net = Last(nn.RNN(3, 16, batch_first=True), 16)
    return net if fixed else fill(net, 0.05), x, y, ce


@case("symmetric", "rnn", "constant weight initialisation of a GRU", twins("rnn.weight_*", 3), twin=learns(0.02))
def constant_gru(fixed):
    """nn.GRU with every parameter 0.1."""
    x, y = first_step_decides(48, 6)
    net = Last(nn.GRU(3, 16, batch_first=True), 16)
    return net if fixed else fill(net, 0.1), x, y, ce


@case(
    "symmetric",
    "2,0",
    "Chen et al. 2016, Net2Net: widening by copying units needs noise",
    twins("2.weight"),
    twin=learns(),
)
def widened_by_exact_copies(fixed):
    """The second hidden layer is 32 exact copies of one unit, with equal outgoing weights. Repair: random."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 32, 4], nn.Tanh, xavier)
    if not fixed:
        with torch.no_grad():
            net[2].weight.copy_(net[2].weight[:1].expand(32, 32).clone())
            net[4].weight.copy_(net[4].weight[:, :1].expand(4, 32).clone())
    return net, x, y, ce


@case(
    "symmetric", "0,3,7", "constant kernels in a convolutional net with tanh", twins("0.weight,3.weight"), twin=learns()
)
def constant_conv_tanh(fixed):
    """conv 8, conv 16, dense 32, all weights 0.02, tanh."""
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 32),
        nn.Tanh(),
        nn.Linear(32, 6),
    )
    return net if fixed else fill(net, 0.02), x, y, ce


class SoftMixture(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        first = mlp([16, 16, 4], nn.ReLU, he)
        self.experts = nn.ModuleList(
            [mlp([16, 16, 4], nn.ReLU, he) if fixed else copy.deepcopy(first) for _ in range(4)]
        )
        self.gate = nn.Linear(16, 4)
        nn.init.zeros_(self.gate.weight), nn.init.zeros_(self.gate.bias)

    def forward(self, x):
        p = torch.softmax(self.gate(x), 1)
        return sum(p[:, k : k + 1] * expert(x) for k, expert in enumerate(self.experts))


def _experts_stay_equal(case_):
    from tests.labelled.evidence import after_steps

    model = after_steps(case_)
    a, b = (e[0].weight for e in (model.experts[0], model.experts[3]))
    assert torch.allclose(a, b, rtol=1e-5), "the experts differ"
    assert float(model.gate.weight.grad.abs().max()) < 1e-6 * float(a.grad.abs().max())
    return "experts 0 and 3 are equal after 3 steps and the gate has no gradient"


@case(
    "symmetric",
    "experts.*,gate",
    "sparse upcycling threads: experts copied from one, gate at zero",
    _experts_stay_equal,
    twin=learns(),
    also=("zero_gradient",),
)
def upcycled_experts_identical(fixed):
    """Four experts are deep copies and the soft gate starts at zero: they get equal gradients for ever."""
    x, y = clusters(96, 16, 4)
    return SoftMixture(fixed), x, y, ce


@case(
    "symmetric",
    "0,2,4,6",
    "autoencoder homework: nn.init.constant_(w, 0.1) everywhere",
    twins("0.weight,2.weight,4.weight"),
    twin=learns(),
)
def constant_autoencoder(fixed):
    """20-12-6-12-20 tanh autoencoder with all weights 0.1: it reproduces only the mean."""
    x, _ = clusters(96, 20, 4)
    net = mlp([20, 12, 6, 12, 20], nn.Tanh, xavier)
    return net if fixed else fill(net, 0.1), x, x, mse
