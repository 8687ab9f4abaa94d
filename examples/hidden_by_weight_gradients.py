"""A flat row of weight gradients can hide a signal that fades in both directions.

In a ReLU network the forward signal shrinks towards the output and the backward signal shrinks towards the input. A
weight's gradient is the product of the two, so it looks the same in every layer. The gradient of the layers' outputs
shows what happens.
"""

import math

import torch
from torch import nn

import headwater as hw

torch.manual_seed(0)
blocks = [module for _ in range(12) for module in (nn.Linear(256, 256, bias=False), nn.ReLU())]
model = nn.Sequential(*blocks)
profile = hw.measure(model, torch.randn(64, 256))  # no loss: the output is probed with random numbers

linear = [row for row in profile.layers if row.kind == "linear"]
print("layer   activation    gradient of output   gradient of weight")
for row in linear:
    weight = profile.parameter(row.parameters[0])
    print(f"{row.name:>5}   {row.activation.rms:.2e}      {row.gradient.rms:.2e}             {weight.gradient.rms:.2e}")

spread = math.log10(linear[-1].gradient.rms / linear[0].gradient.rms)
weights = [profile.parameter(row.parameters[0]).gradient.rms for row in linear]
print(f"outputs: {spread:.1f} decades from last to first layer")
print(f"weights: {math.log10(max(weights) / min(weights)):.1f} decades between the largest and the smallest")
