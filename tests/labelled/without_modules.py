"""The same faults in code that uses functions, one module many times, or bare parameters."""

from __future__ import annotations

from itertools import pairwise

import torch
from tests.labelled.evidence import learns, nonfinite
from tests.labelled.kit import (
    Case,
    case,
    ce,
    clusters,
    control,
    curve,
    he,
    initialise,
    mse,
    normal,
    sentences,
    variance,
    xavier,
)
from torch import nn
from torch.nn import functional as F


class Functional(nn.Module):
    """Three Linears with a functional activation, the preactivations kept for the evidence."""

    def __init__(self, act, sizes=(16, 48, 48, 4)):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(i, o) for i, o in pairwise(sizes))
        self.act = act

    def hidden(self, x):
        z1 = self.fc1(x)
        z2 = self.fc2(self.act(z1))
        return z1, z2

    def forward(self, x):
        return self.fc3(self.act(self.hidden(x)[1]))


def second_layer(below: float, share: float):
    """At least ``share`` of the second hidden layer's entries have a slope below ``below``."""

    def check(case_: Case) -> str:
        z = case_.model.hidden(case_.x)[1].detach().requires_grad_()
        slope = torch.autograd.grad(case_.model.act(z).sum(), z)[0].abs()
        flat = float((slope < below).double().mean())
        assert flat >= share, f"{flat:.2f} of the entries are flat"
        return f"{flat:.2f} of the second layer's entries have a slope below {below}"

    return check


@case(
    "dead_units",
    "fc2,fc2.*,fc1",
    "F.relu in forward, a bias of -12: nothing to hook but the Linear",
    second_layer(1e-9, 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def functional_relu_dead(fixed):
    """F.relu after fc2 never fires."""
    x, y = clusters(96, 16, 4)
    net = initialise(Functional(F.relu), he)
    nn.init.constant_(net.fc2.bias, 0.0 if fixed else -12.0)
    return net, x, y, ce


@case(
    "dead_units",
    "fc2,fc2.*,fc1",
    "GELU has a dead side too: a bias of -12",
    second_layer(1e-6, 0.99),
    twin=learns(),
    also=("zero_gradient", "saturated", "vanishing"),
)
def functional_gelu_dead(fixed):
    """F.gelu after fc2 sits far on its flat side."""
    x, y = clusters(96, 16, 4)
    net = initialise(Functional(F.gelu), he)
    nn.init.constant_(net.fc2.bias, 0.0 if fixed else -12.0)
    return net, x, y, ce


@case(
    "saturated",
    "fc1,fc2,fc1.*,fc2.*",
    "torch.tanh in forward behind weights of stddev 1",
    second_layer(0.01, 0.5),
    twin=learns(),
    also=("vanishing",),
)
def functional_tanh_saturated(fixed):
    """torch.tanh after Linears with N(0,1) weights."""
    x, y = clusters(96, 16, 4)
    return initialise(Functional(torch.tanh), xavier if fixed else normal(1.0)), x, y, ce


class OneReLU(nn.Module):
    """One nn.ReLU object for all layers, as many tutorials write it."""

    def __init__(self, bias):
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Linear(16, 48),
            nn.Linear(48, 48),
            nn.Linear(48, 48),
            nn.Linear(48, 4),
        )
        self.relu = nn.ReLU()
        initialise(self, he)
        nn.init.constant_(self.fc3.bias, bias)

    def third(self, x):
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))

    def forward(self, x):
        return self.fc4(self.relu(self.third(x)))


def _third_is_off(case_):
    alive = float((case_.model.third(case_.x).amax(0) > 0).double().mean())
    assert alive < 0.01
    return f"{alive:.2f} of the third layer's units are alive"


@case(
    "dead_units",
    "relu,fc3,fc3.*",
    "one self.relu used three times; only its third use is dead",
    _third_is_off,
    twin=learns(),
    also=("zero_gradient",),
)
def one_relu_object_dead_at_third_use(fixed):
    """The mean over the uses looks harmless (half off); the third is off for good."""
    x, y = clusters(96, 16, 4)
    return OneReLU(0.0 if fixed else -12.0), x, y, ce


class BareWeights(nn.Module):
    """Layers as bare parameters: x ← act(x W)."""

    def __init__(self, depth, width, act, std):
        super().__init__()
        sizes = [16] + [width] * depth
        self.weights = nn.ParameterList([nn.Parameter(std(i) * torch.randn(i, o)) for i, o in pairwise(sizes)])
        self.last = nn.Parameter(width**-0.5 * torch.randn(width, 4))
        self.act = act

    def states(self, x):
        kept = []
        for w in self.weights:
            x = self.act(x @ w)
            kept.append(x)
        return kept

    def forward(self, x):
        return self.states(x)[-1] @ self.last


def states_change(low: float, high: float):
    """log10 of rms(∂L/∂h) at the first state over the last."""

    def check(case_: Case) -> str:
        states = case_.model.states(case_.x)
        loss = case_.loss_fn(states[-1] @ case_.model.last, case_.y)
        first, last = (g.double().square().mean().sqrt() for g in torch.autograd.grad(loss, [states[0], states[-1]]))
        change = float(torch.log10(first / last))
        assert low <= change <= high, f"{change:+.2f} decades"
        return f"{change:+.1f} decades from the last state back to the first"

    return check


@case(
    "vanishing",
    "weights.0,weights.1,weights.2",
    "raw-weight notebooks: no nn.Module layer at all, sigmoid",
    states_change(-40, -5),
    twin=(states_change(-1, 1), learns()),
)
def bare_weights_sigmoid_12(fixed):
    """12 bare matrices with N(0, 1/n) and torch.sigmoid. Repair: tanh."""
    x, y = clusters(96, 16, 4)
    return BareWeights(12, 48, torch.tanh if fixed else torch.sigmoid, lambda n: n**-0.5), x, y, ce


@case(
    "exploding",
    "weights.0,weights.1,weights.2",
    "raw-weight notebooks: N(0,1) matrices and ReLU",
    states_change(4, 40),
    twin=(states_change(-1, 1), learns()),
)
def bare_weights_relu_unit_normal(fixed):
    """10 bare N(0,1) matrices of width 48. Repair: times √(2/n)."""
    x, y = clusters(96, 16, 4)
    return BareWeights(10, 48, torch.relu, lambda n: (2 / n) ** 0.5 if fixed else 1.0), x, y, ce


class FunctionalAttention(nn.Module):
    def __init__(self, scale, width=96):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, width), nn.Linear(width, 5)
        self.wq, self.wk, self.wv = (nn.Parameter(width**-0.5 * torch.randn(width, width)) for _ in range(3))
        self.scale = scale

    def pattern(self, t):
        h = self.embed(t)
        return torch.softmax((h @ self.wq) @ (h @ self.wk).transpose(1, 2) * self.scale, -1), h

    def forward(self, t):
        a, h = self.pattern(t)
        return self.head((a @ (h @ self.wv)).mean(1))


def _pattern_is_one_hot(case_):
    top = float(case_.model.pattern(case_.x)[0].amax(-1).mean().detach())
    assert top > 0.9, f"mean top attention weight {top:.3f}"
    return f"mean top attention weight {top:.3f}"


@case(
    "saturated",
    "wq,wk,embed*",
    "attention written with torch.softmax and bare weights, multiplied by √d instead of divided",
    _pattern_is_one_hot,
    twin=learns(),
    also=("vanishing", "zero_gradient"),
)
def functional_attention_scaled_up(fixed):
    """q·k times √d: logits of std 96."""
    x, y = sentences()
    return FunctionalAttention(96**-0.5 if fixed else 96**0.5), x, y, ce


class MultiplicativeGates(nn.Module):
    def __init__(self, skip, depth=20, width=48):
        super().__init__()
        self.inp, self.out, self.skip = nn.Linear(16, width), nn.Linear(width, 4), skip
        self.gates = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x):
        h = self.inp(x)
        for gate in self.gates:
            gated = h * torch.sigmoid(gate(h))
            h = h + 0.2 * gated if self.skip else gated
        return self.out(h)


def _gated_signal_halves(case_):
    model = case_.model
    h = h0 = model.inp(case_.x)
    for gate in model.gates:
        h = h * torch.sigmoid(gate(h))
    g = torch.autograd.grad(case_.loss_fn(model.out(h), case_.y), [h0, h])
    change = float(torch.log10(g[0].norm() / g[1].norm()))
    assert change < -4
    return f"{change:+.1f} decades over 20 gates"


@case(
    "vanishing",
    "inp,inp.*,gates.*",
    "self-gating without a shortcut: each gate starts at one half",
    _gated_signal_halves,
    twin=learns(),
)
def multiplicative_gates_20(fixed):
    """h ← h·σ(Wh), twenty times: 2^-20. Repair: a shortcut."""
    x, y = clusters(96, 16, 4)
    return MultiplicativeGates(fixed), x, y, ce


class OwnNorm(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.fc1, self.fc2, self.eps = nn.Linear(8, 24), nn.Linear(24, 1), eps

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        spread = ((h - h.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True)
        return self.fc2((h - h.mean(1, keepdim=True)) / torch.sqrt(spread + self.eps))


@case(
    "nan",
    "*",
    "a hand-written layer norm without eps, on a sample whose units are all off",
    nonfinite(),
    twin=learns(0.02),
)
def own_layer_norm_without_eps(fixed):
    """0/√0 in one row. Repair: eps."""
    x, y = curve(96, 8)
    net = OwnNorm(1e-5 if fixed else 0.0)
    nn.init.zeros_(net.fc1.bias)
    x[4] = 0.0
    return net, x, y, mse


@control("healthy control; functional ReLU, one reused dropout and one reused ReLU object", learns())
def ok_reused_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3, self.fc4 = (
                nn.Linear(16, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 4),
            )
            self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.2)

        def forward(self, x):
            h = self.drop(self.relu(self.fc1(x)))
            h = self.drop(self.relu(self.fc2(h)))
            return self.fc4(F.relu(self.fc3(h)))

    x, y = clusters(96, 16, 4)
    return initialise(Net(), he), x, y, ce


@control(
    "healthy control; NTK parametrisation: N(0,1) weights, the 1/√n stands in the forward pass (Jacot et al. 2018)",
    learns(lr=0.05),
)
def ok_ntk_parametrisation():
    class NTKLinear(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * (2 / self.in_features) ** 0.5, self.bias)

    x, y = clusters(96, 16, 4)
    net = nn.Sequential(
        NTKLinear(16, 96), nn.ReLU(), NTKLinear(96, 96), nn.ReLU(), NTKLinear(96, 96), nn.ReLU(), NTKLinear(96, 4)
    )
    return initialise(net, normal(1.0)), x, y, ce


@control("healthy control; bare matrices at He's scale, 6 layers", learns())
def ok_bare_weights_he():
    x, y = clusters(96, 16, 4)
    return BareWeights(6, 48, torch.relu, lambda n: (2 / n) ** 0.5), x, y, ce


@control("healthy control; weight standardisation in the forward pass (Qiao et al. 2019)", learns(lr=0.01))
def ok_weight_standardisation():
    class Standardised(nn.Linear):
        def forward(self, x):
            w = self.weight - self.weight.mean(1, keepdim=True)
            return F.linear(x, w / (w.std(1, keepdim=True) * self.in_features**0.5 + 1e-6) * 2**0.5, self.bias)

    x, y = clusters(96, 16, 4)
    net = nn.Sequential(Standardised(16, 64), nn.ReLU(), Standardised(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return initialise(net, variance(2.0)), x, y, ce
