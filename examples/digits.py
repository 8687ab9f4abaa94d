"""Real data: scikit-learn's handwritten digits, the same network with two initialisations."""

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import nn

import headwater as hw

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:256], dtype=torch.float32) / 16
y = torch.tensor(labels[:256])


def network(initialise: Callable[[torch.Tensor], object] | None = None) -> nn.Module:
    """Ten tanh layers over the 64 pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 10))
    if initialise is not None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                initialise(module.weight)
                nn.init.zeros_(module.bias)
    return model


for name, initialise in {"torch's default": None, "Xavier, gain 1": nn.init.xavier_normal_}.items():
    profile = hw.measure(network(initialise), x, y, nn.functional.cross_entropy)
    rms = profile.gradients("rms")
    print(f"{name:>16}: first layer {rms['0.weight']:.1e}, last {rms['20.weight']:.1e}; {profile.coverage}")
