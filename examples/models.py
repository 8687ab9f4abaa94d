"""Networks to try the command line on.

headwater check examples/models.py:deep_sigmoid
headwater check examples/models.py:lstm_last_step
headwater explain-init examples/models.py:deep_sigmoid
"""

import torch
from torch import nn


def deep_sigmoid() -> tuple[nn.Module, torch.Tensor, torch.Tensor, object]:
    """Twenty sigmoid layers: the gradient does not reach the first of them."""
    layers: list[nn.Module] = []
    for _ in range(20):
        layers += [nn.Linear(100, 100), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(100, 1))
    return model, torch.randn(32, 100), torch.randn(32, 1), nn.functional.mse_loss


def sigmoid_mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor, object]:
    """Seven sigmoid layers: enough to see it, few enough for one screen."""
    layers = [module for _ in range(7) for module in (nn.Linear(64, 64), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(64, 1)), torch.randn(32, 64), torch.randn(32, 1), nn.functional.mse_loss


def residual_mlp(depth: int = 20, width: int = 100) -> nn.Module:
    """The same depth with shortcuts. The model alone: headwater makes up the inputs and probes the output."""
    return nn.Sequential(nn.Linear(width, width), *[Residual(width, depth) for _ in range(depth)], nn.Linear(width, 1))


class Residual(nn.Module):
    """x + f(x) / sqrt(depth): the factor keeps the sum of all branches at the size of one."""

    def __init__(self, width: int, depth: int) -> None:
        """Make one block of ``depth``."""
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.factor = depth**-0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the branch to the stream (B, D)."""
        return x + self.factor * self.body(x)


class LastStep(nn.Module):
    """Read a sequence (B, T, 8) with an LSTM and classify from its last step."""

    def __init__(self) -> None:
        """Make the LSTM and the head."""
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, 4)."""
        output, _ = self.lstm(x)
        return self.head(output[:, -1])


def lstm_last_step() -> dict[str, object]:
    """An LSTM over 60 steps: how far back in time does the gradient reach?"""
    return {
        "model": LastStep(),
        "inputs": torch.randn(16, 60, 8),
        "targets": torch.randint(4, (16,)),
        "loss_fn": nn.functional.cross_entropy,
    }
