"""Units that no sample of the batch can wake."""

from __future__ import annotations

import torch
from tests.labelled.evidence import dead, learns
from tests.labelled.kit import bce_logits, case, ce, clusters, fit, he, initialise, mlp, mse, pictures, standard
from torch import nn


@case(
    "dead_units",
    "3,2,0",
    "SageMaker Debugger and PEERS-style check: a bias of -10 in front of a ReLU",
    dead("3", 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def bias_minus_ten(fixed):
    """The second hidden layer's bias was set to -10: none of its units fires."""
    x, y = clusters(96, 16, 4)
    net = mlp([16, 64, 64, 4], nn.ReLU, he)
    nn.init.constant_(net[2].bias, 0.01 if fixed else -10.0)
    return net, x, y, ce


@case(
    "dead_units",
    "*",
    "Lu et al. 2019, Dying ReLU and Initialization: narrow deep nets are born dead",
    dead("37", 0.99),
    twin=learns(0.02, steps=80),
    also=("zero_gradient", "vanishing"),
    seed=4,
)
def born_dead_narrow(fixed):
    """20 ReLU layers of 2 units learning |x|: the output is a constant. Repair: 2 layers of 16 units."""
    x = torch.linspace(-1.7, 1.7, 96)[:, None]
    return mlp([1] + ([16] * 2 if fixed else [2] * 20) + [1], nn.ReLU, he), x, x.abs(), mse


@case(
    "dead_units",
    "1,0",
    "forum question: temperatures in °C below zero, positive uniform weights, ReLU outputs 0",
    dead("1", 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def negative_inputs_positive_weights(fixed):
    """Inputs between -40 and -10, weights U(0, 0.1): every pre-activation is negative. Repair: standardise, He."""
    x = -40 + 30 * torch.rand(96, 6)
    y = standard(x[:, :1]) + 0.3 * standard(x[:, 1:2])
    net = mlp([6, 32, 1], nn.ReLU, he)
    if not fixed:
        nn.init.uniform_(net[0].weight, 0, 0.1)
    return net, standard(x) if fixed else x, y, mse


@case(
    "dead_units",
    "1,3",
    "Stack Overflow pattern: auto-mpg regression on raw kilograms and cubic inches, SGD 0.01",
    dead("3", 0.9),
    twin=learns(steps=80, lr=0.01),
    also=("zero_gradient",),
)
def raw_features_kill_regressor(fixed):
    """4-32-32-1 on raw features up to 5000 after 10 SGD steps: the first one throws nearly every unit to the dark side."""
    scale = torch.tensor([400.0, 200.0, 5000.0, 20.0])
    x = torch.rand(96, 4) * scale
    y = 40 - 25 * (x[:, 2:3] / 5000)
    net = mlp([4, 32, 32, 1], nn.ReLU, he)
    inputs = (x - x.mean(0)) / x.std(0) if fixed else x / 10
    fit(net, inputs, y, mse, steps=0 if fixed else 10, optimizer=torch.optim.SGD(net.parameters(), lr=1e-5))
    return net, inputs, y, mse


@case(
    "dead_units",
    "4,5,2",
    "Pendulum DQN threads: rewards are negative, the last layer has a ReLU",
    dead("5", 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def relu_output_negative_targets(fixed):
    """A value net that ends in ReLU, trained on returns between -16 and 0: the outputs die at 0. Repair: no ReLU."""
    s = torch.randn(96, 3)
    returns = -8 + 3 * torch.tanh(s[:, :1]) * s[:, 1:2].sign()
    net = mlp([3, 32, 32, 1], nn.ReLU, he, out=nn.Identity() if fixed else nn.ReLU())
    if not fixed:
        nn.init.constant_(net[4].bias, 0.5)
    fit(net, s, returns, mse, steps=0 if fixed else 60, optimizer=torch.optim.SGD(net.parameters(), lr=0.05))
    return net, s, returns, mse


@case(
    "dead_units",
    "1",
    "dead filters after pruning threads: most channels of the first convolution are always off",
    dead("1", 0.8),
    twin=learns(),
)
def most_filters_dead(fixed):
    """28 of 32 filters carry a bias of -6 on images in [0,1]; the other four still learn."""
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 6),
    )
    initialise(net, he)
    if not fixed:
        net[0].bias.data[:28] = -6.0
    return net, x, y, ce


@case(
    "dead_units",
    "5,4",
    "network slimming threads: the shift of BatchNorm went to -5 under a sparsity penalty",
    dead("5", 0.9),
    twin=learns(),
    also=("zero_gradient",),
)
def batchnorm_shift_minus_five(fixed):
    """The second BatchNorm has beta = -5: its ReLU never fires, whatever the input."""
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(
        nn.Linear(16, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )
    if not fixed:
        nn.init.constant_(net[4].bias, -5.0)
    return net, x, y, ce


@case(
    "dead_units",
    "1,3",
    "LISTA-like sparse coding: the shrinkage threshold is above every pre-activation",
    dead("3", 0.9),
    twin=learns(),
    also=("zero_gradient",),
)
def softshrink_threshold_too_high(fixed):
    """Two Softshrink layers with lambda 2.5 on pre-activations of 0.6: the code is all zeros. Repair: lambda 0.1."""
    x, y = clusters(96, 16, 4)
    shrink = 0.05 if fixed else 2.5
    return mlp([16, 48, 48, 4], lambda: nn.Softshrink(shrink), None if not fixed else he), x, y, ce


@case(
    "dead_units",
    "1,0",
    "neuromorphic threads: nn.Threshold set above the largest membrane potential",
    dead("1", 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def threshold_never_reached(fixed):
    """nn.Threshold(10, 0) on pre-activations of unit scale."""
    x, y = clusters(96, 16, 4)
    return mlp([16, 48, 4], lambda: nn.Threshold(0.1 if fixed else 10.0, 0.0), he), x, y, ce


class FeedForward(nn.Module):
    def __init__(self, width, bias):
        super().__init__()
        self.norm, self.up, self.act, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 96),
            nn.ReLU(),
            nn.Linear(96, width),
        )
        nn.init.constant_(self.up.bias, bias)

    def forward(self, h):
        return h + self.down(self.act(self.up(self.norm(h))))


@case(
    "dead_units",
    "2.act,2.up,3.act,3.up",
    "Li et al. 2023, The Lazy Neuron Phenomenon, taken too far: two dead feed-forward blocks",
    (dead("2.act", 0.95), dead("3.act", 0.95)),
    twin=learns(),
    also=("zero_gradient",),
)
def dead_feed_forward_in_residual_stream(fixed):
    """Two of four residual feed-forward blocks never fire; the stream hides it, the loss still falls."""
    x, y = clusters(96, 16, 4)
    blocks = [FeedForward(32, -6.0 if i in (1, 2) and not fixed else 0.0) for i in range(4)]
    return nn.Sequential(nn.Linear(16, 32), *blocks, nn.Linear(32, 4)), x, y, ce


class Detector(nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.body = mlp([16, 64, 32], nn.ReLU, he, out=nn.ReLU())
        self.score, self.box = nn.Linear(32, 1), nn.Sequential(nn.Linear(32, 4), nn.ReLU())
        if not fixed:
            nn.init.constant_(self.box[0].bias, -8.0)

    def forward(self, x):
        h = self.body(x)
        return torch.cat([self.score(h), self.box(h)], 1)


@case(
    "dead_units",
    "box.*",
    "Faster R-CNN threads: box sizes behind a ReLU that is dead, the score learns",
    dead("box.1", 0.99),
    twin=learns(),
    also=("zero_gradient",),
)
def box_head_dead_score_head_alive(fixed):
    """The box head's ReLU is off for every sample, so boxes never improve while the score does."""
    x, y = clusters(96, 16, 2)
    boxes = torch.rand(96, 4)

    def loss(o, t):
        return bce_logits(o[:, 0], t.float()) + mse(o[:, 1:], boxes)

    return Detector(fixed), x, y, loss


@case(
    "dead_units",
    "7",
    "SO 'my conv net predicts one class': lr 1 without normalisation, ReLU before the classifier",
    dead("7", 0.75),
    twin=learns(),
)
def hidden_layer_killed_by_one_big_step(fixed):
    """One SGD step with lr 20 on a CNN: three quarters of the last hidden layer are off on every image."""
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 6),
    )
    initialise(net, he)
    fit(net, x, y, ce, steps=2, optimizer=torch.optim.SGD(net.parameters(), lr=0.01 if fixed else 3.0))
    return net, x, y, ce


@case(
    "dead_units",
    "1",
    "CReLU and curve-fit threads: every kink lies outside the data",
    dead("1", 0.7),
    twin=learns(0.05),
)
def kinks_outside_the_data(fixed):
    """A one-dimensional fit on [0, 1] whose 64 units have w < 0 and b < 0 for most: nothing to bend. Repair: spread kinks."""
    x = torch.linspace(0, 1, 96)[:, None]
    net = mlp([1, 64, 1], nn.ReLU, he)
    with torch.no_grad():
        if fixed:
            net[0].bias.uniform_(-1, 1)
        else:
            net[0].weight[:50] = -net[0].weight[:50].abs()
            net[0].bias[:50] = -0.5
    return net, x, torch.sin(6 * x), mse
