"""How far back in time does the gradient of an LSTM reach, and what does its forget bias change?"""

import torch
from torch import nn

import headwater as hw


class LastStep(nn.Module):
    """An LSTM whose last step is classified."""

    def __init__(self, forget_bias: float) -> None:
        """Set the forget gates' bias; torch stores the gates in the order input, forget, cell, output."""
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.lstm.bias_ih_l0[32:64].fill_(forget_bias)
            self.lstm.bias_hh_l0[32:64].zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a sequence (B, T, 8) to logits (B, 4)."""
        return self.head(self.lstm(x)[0][:, -1])


for forget_bias in (0.0, 1.0, 5.0):
    torch.manual_seed(0)
    model = LastStep(forget_bias)
    x, y = torch.randn(16, 100, 8), torch.randint(4, (16,))
    profile = hw.measure(model, x, y, nn.functional.cross_entropy)
    steps = profile.through_time("lstm", "cell")
    print(f"forget bias {forget_bias}: gradient at step 0 is {steps[0] / steps[-1]:.1e} of that at step 99")
