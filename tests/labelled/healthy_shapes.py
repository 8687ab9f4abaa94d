"""Healthy networks of ordinary and extreme shapes: small, deep, wide, narrow, odd activations, odd losses."""

from __future__ import annotations

import math

import torch
from tests.labelled.evidence import flat, learns
from tests.labelled.kit import (
    bce_logits,
    ce,
    clusters,
    control,
    curve,
    fit,
    he,
    initialise,
    mlp,
    mse,
    pictures,
    standard,
    variance,
    xavier,
)
from torch import nn
from torch.nn import functional as F

OK = "healthy control; "


@control(OK + "linear regression", learns(lr=0.05))
def ok_linear_regression():
    x, y = curve(96, 8)
    return nn.Linear(8, 1), x, y, mse


@control(OK + "logistic regression", learns(lr=0.05))
def ok_logistic_regression():
    x, y = clusters(96, 8, 2)
    return nn.Linear(8, 1), x, y[:, None].float(), bce_logits


@control(OK + "XOR with three hidden tanh units", learns(steps=200, lr=0.05), seed=1)
def ok_xor_three_units():
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    return mlp([2, 3, 1], nn.Tanh, xavier), x, torch.tensor([[0.0], [1], [1], [0]]), bce_logits


@control(OK + "one-dimensional input and output, ReLU with torch's default init", learns())
def ok_curve_fit_one_dimension():
    x = torch.linspace(-2, 2, 96)[:, None]
    return mlp([1, 64, 64, 1], nn.ReLU), x, torch.sin(3 * x), mse


@control(OK + "two hidden ReLU layers, torch's defaults", learns())
def ok_default_mlp():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 4], nn.ReLU), x, y, ce


@control(OK + "one sigmoid hidden layer, torch's defaults", learns())
def ok_one_hidden_sigmoid():
    x, y = clusters(96, 16, 4)
    return mlp([16, 32, 4], nn.Sigmoid), x, y, ce


@control(OK + "width 8192", learns(lr=3e-4))
def ok_width_8192():
    x, y = clusters(32, 8, 4)
    return mlp([8, 8192, 128, 4], nn.ReLU, he), x, y, ce


@control(OK + "tanh, depth 100, orthogonal (Pennington et al. 2017)", (flat("1", "199", 1.5), learns(lr=3e-4)))
def ok_orthogonal_tanh_100():
    x, y = clusters(96, 20, 4)
    return mlp([20] + [48] * 100 + [4], nn.Tanh, nn.init.orthogonal_), 0.1 * x, y, ce


@control(OK + "deep linear, depth 60, orthogonal (Saxe et al. 2014)", (flat("0", "59", 0.1), learns(lr=3e-4)))
def ok_deep_linear_orthogonal_60():
    x, y = clusters(96, 20, 4)
    net = nn.Sequential(nn.Linear(20, 32), *[nn.Linear(32, 32) for _ in range(59)], nn.Linear(32, 4))
    return initialise(net, nn.init.orthogonal_), x, y, ce


@control(OK + "He-ReLU, depth 25, width 192", (flat("1", "49", 1), learns(lr=1e-3)))
def ok_he_relu_25():
    x, y = clusters(96, 20, 4)
    return mlp([20] + [192] * 25 + [4], nn.ReLU, he), x, y, ce


@control(OK + "GELU, depth 12, He", (flat("1", "23", 1), learns(lr=1e-3)))
def ok_gelu_12_he():
    x, y = clusters(96, 20, 4)
    return mlp([20] + [96] * 12 + [4], nn.GELU, he), x, y, ce


@control(OK + "SELU, depth 12, LeCun normal (Klambauer et al. 2017)", (flat("1", "23", 1), learns(lr=1e-3)))
def ok_selu_12():
    x, y = clusters(96, 20, 4)
    return mlp([20] + [96] * 12 + [4], nn.SELU, variance(1.0)), x, y, ce


@control(OK + "PReLU with its default slope", learns())
def ok_prelu():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 64, 4], nn.PReLU, he), x, y, ce


class Maxout(nn.Module):
    def __init__(self, d_in, d_out, pieces=3):
        super().__init__()
        self.lin, self.pieces = nn.Linear(d_in, d_out * pieces), pieces

    def forward(self, h):
        return self.lin(h).unflatten(1, (-1, self.pieces)).amax(2)


@control(OK + "maxout (Goodfellow et al. 2013), three pieces", learns())
def ok_maxout():
    x, y = clusters(96, 16, 4)
    return nn.Sequential(Maxout(16, 32), Maxout(32, 32), Maxout(32, 32), nn.Linear(32, 4)), x, y, ce


class Sine(nn.Module):
    def __init__(self, d_in, d_out, omega, first):
        super().__init__()
        self.lin, self.omega = nn.Linear(d_in, d_out), omega
        bound = 1 / d_in if first else math.sqrt(6 / d_in) / omega
        nn.init.uniform_(self.lin.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.lin(x))


@control(OK + "SIREN with its own init, omega 30 (Sitzmann et al. 2020)", learns(lr=1e-3))
def ok_siren():
    x = torch.linspace(-1, 1, 128)[:, None]
    net = nn.Sequential(Sine(1, 64, 30.0, True), Sine(64, 64, 30.0, False), Sine(64, 64, 30.0, False), nn.Linear(64, 1))
    return net, x, torch.sin(12 * x) + 0.3 * torch.cos(25 * x), mse


@control(OK + "softplus hidden units", learns())
def ok_softplus():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 4], nn.Softplus), x, y, ce


@control(OK + "autoencoder with a bottleneck of 2", learns())
def ok_autoencoder_bottleneck_2():
    x, _ = clusters(96, 20, 4)
    return mlp([20, 32, 2, 32, 20], nn.ELU, he), x, x, mse


@control(OK + "dropout 0.9 in training mode", learns(0.02, steps=120))
def ok_dropout_nine_tenths():
    x, y = clusters(96, 16, 4)
    net = nn.Sequential(
        nn.Linear(16, 256),
        nn.ReLU(),
        nn.Dropout(0.9),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Dropout(0.9),
        nn.Linear(256, 4),
    )
    return initialise(net, he), x, y, ce


@control(OK + "loss times 1e-8", learns())
def ok_tiny_loss_scale():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 4], nn.ReLU, he), x, y, lambda o, t: 1e-8 * ce(o, t)


@control(OK + "sum reduction over the batch, times 1e6", learns())
def ok_huge_loss_scale():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 4], nn.ReLU, he), x, y, lambda o, t: 1e6 * F.cross_entropy(o, t, reduction="sum")


@control(OK + "class-weighted cross-entropy on 3 positives in 128", learns())
def ok_imbalanced_classes():
    x, _ = clusters(128, 16, 4)
    y = (torch.arange(128) % 43 == 0).long()
    x[y == 1] += 1.5
    return mlp([16, 32, 2], nn.ReLU, he), x, y, lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 40.0]))


@control(OK + "Huber loss", learns())
def ok_huber():
    x, y = curve(96, 8)
    return mlp([8, 32, 32, 1], nn.ReLU, he), x, y, F.huber_loss


@control(OK + "quantile loss for three quantiles", learns(0.05))
def ok_quantile_loss():
    x, y = curve(96, 8)
    q = torch.tensor([0.1, 0.5, 0.9])

    def pinball(o, t):
        e = t - o
        return torch.maximum(q * e, (q - 1) * e).mean()

    return mlp([8, 32, 3], nn.ReLU, he), x, y, pinball


@control(OK + "batch of one sample", learns())
def ok_batch_of_one():
    return mlp([16, 64, 64, 4], nn.ReLU), torch.randn(1, 16), torch.tensor([2]), ce


@control(OK + "one-hot input of 2000 columns: most rows of the first weight gradient are zero", learns())
def ok_one_hot_input():
    ids = torch.randint(0, 2000, (96,))
    return mlp([2000, 32, 4], nn.ReLU), F.one_hot(ids, 2000).float(), ids % 4, ce


@control(OK + "already trained to a loss near 0.02: gradients are small everywhere", learns(0.02, lr=1e-3))
def ok_trained_to_small_loss():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 48, 48, 4], nn.ReLU, he)
    return fit(net, x, y, ce, steps=25, optimizer=torch.optim.Adam(net.parameters(), lr=3e-3)), x, y, ce


@control(
    OK + "targets offset by 50, as in a regression on years or prices, with unit-scale inputs", learns(0.05, lr=0.03)
)
def ok_offset_targets():
    x, y = curve(96, 8)
    return mlp([8, 32, 1], nn.ReLU), x, 50 + y, mse


@control(OK + "float64", learns())
def ok_float64():
    x, y = clusters(96, 16, 4)
    return mlp([16, 32, 32, 4], nn.Tanh).double(), x.double(), y, ce


@control(OK + "bf16 parameters and activations", learns(0.05))
def ok_bfloat16():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 64, 4], nn.GELU, he).bfloat16(), x.bfloat16(), y, lambda o, t: ce(o.float(), t)


@control(OK + "complex-valued network: complex Linear layers, magnitude at the end", learns(0.05))
def ok_complex():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 32, dtype=torch.complex64), nn.Linear(32, 4, dtype=torch.complex64)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.complex(torch.relu(h.real), torch.relu(h.imag))).abs()

    x = torch.randn(96, 8, dtype=torch.complex64)
    return Net(), x, (x[:, 0].abs() > 0.8).long() + 2 * (x[:, 1].real > 0).long(), ce


@control(OK + "ReLU on 0..1 pixels, default init, a small CNN", learns())
def ok_small_cnn():
    x, y = pictures(48, 1, 12)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 6),
    )
    return net, x, y, ce


@control(OK + "LeNet-5 with tanh and average pooling (LeCun et al. 1998)", learns())
def ok_lenet_tanh():
    x, y = pictures(48, 1, 28)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, 6),
    )
    return initialise(net, xavier), standard(x), y, ce


@control(
    OK + "hidden layer starts at zero under a random head: proportional rows, but they part", learns(quiet="0.bias")
)
def ok_first_layer_zero():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 4], nn.Tanh, xavier)
    nn.init.zeros_(net[0].weight)
    return net, x, y, ce


@control(OK + "all weights equal but random biases: the symmetry is broken", learns())
def ok_equal_weights_random_biases():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 32, 4], nn.Tanh, xavier)
    nn.init.constant_(net[0].weight, 0.05)
    nn.init.uniform_(net[0].bias, -1.5, 1.5)
    return net, x, y, ce


@control(OK + "one unit of 64 is dead from the start", learns())
def ok_one_dead_unit():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 64, 64, 4], nn.ReLU, he)
    net[2].bias.data[5] = -30.0
    return net, x, y, ce


@control(OK + "trained for a while: the first layer has a tenth of dead units, the loss is low", learns(0.02))
def ok_few_dead_after_training():
    x, y = clusters(96, 16, 4)
    net = mlp([16, 64, 64, 4], nn.ReLU, he)
    net[0].bias.data[:6] = -9.0
    return fit(net, x, y, ce, steps=15, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)), x, y, ce


@control(OK + "sigmoid output with binary cross-entropy on probabilities", learns())
def ok_sigmoid_output_bce():
    x, y = clusters(96, 16, 2)
    return mlp([16, 32, 32, 1], nn.ReLU, he, out=nn.Sigmoid()), x, y[:, None].float(), F.binary_cross_entropy


@control(OK + "two units per layer, four layers of tanh: noisy because narrow", learns(0.02, steps=100, lr=0.01))
def ok_width_two():
    x, y = curve(96, 2 + 1)
    return mlp([3, 2, 2, 2, 1], nn.Tanh, xavier), x, y, mse


@control(OK + "weights of torch's default on tanh, 5 layers: a fall of one decade", learns())
def ok_default_tanh_5():
    x, y = clusters(96, 16, 4)
    return mlp([16, 64, 64, 64, 64, 64, 4], nn.Tanh), x, y, ce


@control(OK + "pyramid 512-256-128-64-32", learns(lr=1e-3))
def ok_pyramid():
    x, y = clusters(96, 64, 4)
    return mlp([64, 512, 256, 128, 64, 32, 4], nn.ReLU, he), x, y, ce
