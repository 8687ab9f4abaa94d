"""The shortest use: a model, a batch, a loss; does the gradient reach the first layer, and if not, why?"""

import torch
from torch import nn

import headwater as hw

torch.manual_seed(0)
model = nn.Sequential(*[m for _ in range(10) for m in (nn.Linear(64, 64), nn.Sigmoid())], nn.Linear(64, 1))
diagnosis = hw.diagnose(model, torch.randn(32, 64), torch.randn(32, 1), nn.functional.mse_loss)

print(diagnosis)
first, last = diagnosis.profile.parameter("0.weight"), diagnosis.profile.parameter("18.weight")
print(f"first layer {first.gradient.rms:.1e}, tenth layer {last.gradient.rms:.1e}")
