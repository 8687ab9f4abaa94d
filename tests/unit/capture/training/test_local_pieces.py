"""What one process holds, where nothing is split: everything, and no detour."""

from __future__ import annotations

import torch
from torch import nn

from headwater.capture.training.sharding import Holding, PartialSums, has_shards, holding, local, readable, sentinels


def test_a_plain_tensor_is_its_own_piece() -> None:
    tensor = torch.ones(3)
    assert local(tensor) is tensor
    assert readable(tensor) is tensor
    assert holding(tensor) == Holding((), 3)


def test_a_plain_model_has_no_shards_and_keeps_its_sentinels() -> None:
    model = nn.Linear(2, 2)
    parameters = list(model.parameters())
    assert not has_shards(model)
    assert [id(p) for p in sentinels(model, parameters)] == [id(p) for p in parameters]


def test_plain_gradients_are_no_partial_sums() -> None:
    parameter, gradient = torch.ones(2, requires_grad=True), torch.ones(2)
    sums = PartialSums()
    assert sums.local(0, parameter, gradient) is gradient
    assert sums.resolved([0], [gradient])[0] is gradient
    assert not sums.unread
