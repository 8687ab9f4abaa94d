"""torch.compile and the watch do not disturb each other, whichever comes first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

import headwater as hw
from headwater.errors import InputError
from headwater.records.step import StepRecord

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


def run(
    order: str, steps: int = 6, how: str = "function", **options: Any
) -> tuple[list[StepRecord], Any, dict[str, Any]]:
    """Rows, the watch and dynamo's counters of a short training, compiled before, after, or not at all."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    model: nn.Module = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    called: Any = model
    if order == "before":
        if how == "function":
            called = model = torch.compile(model, backend="aot_eager")  # type: ignore[assignment]
        else:
            model.compile(backend="aot_eager")
    records: list[StepRecord] = []
    options = {"every": 2, "alerts": (), **options}
    with hw.watch(model, optimizer, on_record=records.append, **options) as watch:
        if order == "after":
            if how == "function":
                called = torch.compile(model, backend="aot_eager")
            else:
                model.compile(backend="aot_eager")
        for i in range(steps):
            generator = torch.Generator().manual_seed(i)
            optimizer.zero_grad()
            loss = F.cross_entropy(called(torch.randn(4, 8, generator=generator)), torch.tensor([0, 1, 2, 0]))
            loss.backward()
            optimizer.step()
    counters = torch._dynamo.utils.counters
    return records, watch, {
        "breaks": dict(counters["graph_break"]),
        "graphs": counters["stats"]["unique_graphs"],
        "recompiles": dict(counters["recompiles"]),
    }  # fmt: skip


@pytest.mark.parametrize("how", ["function", "method"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_gradient_rows_are_equal_and_nothing_breaks_or_recompiles(order: str, how: str) -> None:
    reference, _, _ = run("never")
    records, watch, counters = run(order, how=how)
    assert counters == {"breaks": {}, "graphs": 1, "recompiles": {}}
    assert [r.step for r in records] == [r.step for r in reference]
    for record, expected in zip(records, reference, strict=True):
        found, wanted = record.block("gradient"), expected.block("gradient")
        assert found is not None
        assert wanted is not None
        assert [t.name for t in found.tensors] == [t.name for t in wanted.tensors]
        for (_, s), (_, t) in zip(found.statistics(), wanted.statistics(), strict=True):
            assert s.l2_norm == pytest.approx(t.l2_norm, rel=1e-5)
        assert record.block("activation") is None
    said = [e for e in watch.events if e.kind == "not_observed"]
    assert len(said) == 1
    assert "compile" in said[0].message


def test_a_compiled_part_leaves_the_layers_around_it_visible() -> None:
    model = models.mlp(8, 16, 16, 3)
    model[2].compile(backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    with hw.watch(model, optimizer, alerts=(), on_record=records.append):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    block = records[0].block("activation")
    assert block is not None
    assert [t.name for t in block.tensors] == ["0", "1", "3", "4"]


def test_layers_of_a_compiled_model_asked_for_on_purpose_are_refused_with_advice() -> None:
    model = torch.compile(models.mlp(8, 16, 3), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"is compiled.*activations"):
        hw.watch(model, optimizer, activations="recorded").attach()
