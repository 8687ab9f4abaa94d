"""Layers looked at step after step: the rows of before are used again, and are right where something changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater.records.step import StepRecord


class _Changing(nn.Module):
    """Overwrites outputs in place, and leaves a layer out at odd steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.bend = nn.ReLU(inplace=True)
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.bend(self.first(x))
        if self.step % 2 == 0:
            h = self.second(h)
        h = h * 1.0
        h += 1.0
        out: Tensor = self.last(h)
        return out


def test_rows_follow_a_batch_that_shrinks_and_a_layer_that_is_left_out() -> None:
    torch.manual_seed(0)
    model = _Changing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    records: list[StepRecord] = []
    # The slow twin: a copy of every output, made before anything can overwrite it, and of the gradient that comes to it.
    outputs: list[dict[str, Tensor]] = []
    gradients: list[dict[str, Tensor]] = []

    def copying(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[-1][name] = output.detach().clone()
            output.register_hook(lambda g: gradients[-1].__setitem__(name, g.clone()))

        return hook

    for name in ("first", "bend", "second", "last"):
        getattr(model, name).register_forward_hook(copying(name))
    with hw.watch(model, optimizer, every=1, activations="recorded", alerts=(), on_record=records.append):
        for i, batch in enumerate((8, 8, 8, 3, 8, 3, 8, 8)):
            model.step = i if i != 6 else 7
            outputs.append({})
            gradients.append({})
            optimizer.zero_grad()
            model(torch.randn(batch, 6)).square().mean().backward()
            optimizer.step()
    assert [r.step for r in records] == list(range(8))
    for record, found, returned in zip(records, outputs, gradients, strict=True):
        block = record.block("activation")
        assert block is not None
        sizes = {t.name: (t.shape, s) for t, s in block.statistics()}
        assert set(found) <= set(sizes)
        for name, output in found.items():
            shape, statistics = sizes[name]
            assert shape == tuple(output.shape)
            assert statistics.count == output.numel()
            assert statistics.rms == pytest.approx(float(output.square().mean().sqrt()), rel=1e-5)
        block = record.block("output_gradient")
        assert block is not None
        norms = {t.name: s for t, s in block.statistics()}
        for name in ("bend", "last"):
            expected = float(returned[name].square().mean().sqrt())
            assert norms[name].rms == pytest.approx(expected, rel=1e-5)
