"""Whose mistake an exception is: the model's, or headwater's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headwater import measure
from headwater.cli.failures import model_failures
from headwater.errors import InputError, TargetError


def test_an_exception_inside_a_torch_function_is_the_models() -> None:
    with (
        pytest.raises(TargetError, match=r"the model or its loss raised RuntimeError: mat1 and mat2.*\n.*try this"),
        model_failures("try this"),
    ):
        measure(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), torch.zeros(2, 9))


def test_an_exception_in_the_loss_names_its_line() -> None:
    def loss_fn(output: torch.Tensor) -> torch.Tensor:
        raise ValueError("no loss today")

    with (
        pytest.raises(TargetError, match=r"ValueError: no loss today \(.*test_failures\.py, line \d+\)"),
        model_failures(),
    ):
        measure(nn.Linear(6, 8), torch.ones(2, 6), None, loss_fn)


def test_headwaters_own_errors_pass_unchanged() -> None:
    with pytest.raises(InputError, match="empty"), model_failures():
        measure(nn.Linear(6, 8), torch.ones(0, 6))
