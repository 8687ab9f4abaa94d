"""The parts that the front ends share, without any framework."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from headwater.errors import HeadwaterError, InputError
from headwater.integrations.front_end import StepLoss
from headwater.integrations.optimizers import bare_optimizer, optimizers_in, pairs
from headwater.integrations.sink import library


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def test_the_loss_of_a_step_is_the_sum_or_the_mean_of_its_parts() -> None:
    loss = StepLoss()
    assert loss.take() is None
    for part in (torch.tensor(1.0, requires_grad=True), torch.tensor([2.0]), 6):
        loss.add(part)
    total = loss.take()
    assert isinstance(total, torch.Tensor)
    assert not total.requires_grad
    assert float(total) == 9.0
    loss.add(1.0)
    loss.add(2.0)
    assert loss.take(mean=True) == 1.5
    assert loss.take() is None


@pytest.mark.parametrize("output", [None, "0.5", True, torch.zeros(2), {"loss": 0.5}, (0.5,)])
def test_what_is_no_number_is_no_loss(output: Any) -> None:
    loss = StepLoss()
    loss.add(output)
    assert loss.take() is None


def test_a_loss_that_changes_in_place_later_is_kept_as_it_was() -> None:
    loss, value = StepLoss(), torch.tensor(1.0)
    loss.add(value)
    value.mul_(7.0)
    assert float(loss.take()) == 1.0  # type: ignore[arg-type]


def test_the_plain_optimizer_is_found_inside_wrappers() -> None:
    optimizer = sgd(nn.Linear(1, 1))
    assert bare_optimizer(optimizer) is optimizer
    assert bare_optimizer(SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))) is optimizer
    with pytest.raises(InputError, match="SimpleNamespace"):
        bare_optimizer(SimpleNamespace(optimizer=3))


def test_optimizers_are_found_in_whatever_watch_takes() -> None:
    first, second = sgd(nn.Linear(1, 1)), sgd(nn.Linear(1, 1))
    assert optimizers_in({"G": (nn.Linear(1, 1), first), "D": (nn.Linear(1, 1), [second])}, None) == [first, second]


def test_each_optimizer_gets_the_smallest_module_that_holds_what_it_trains() -> None:
    model = nn.ModuleDict({"generator": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "critic": nn.Linear(2, 1)})
    found = pairs(model, [sgd(model["generator"]), sgd(model["critic"])])
    assert {name: module for name, (module, _) in found.items()} == {
        "generator": model["generator"],
        "critic": model["critic"],
    }


def test_optimizers_that_cannot_be_told_apart_are_numbered() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    weights = torch.optim.SGD([model[0].weight, model[1].weight], lr=0.1)
    biases = torch.optim.SGD([model[0].bias, model[1].bias], lr=0.1)
    assert list(pairs(model, [weights, biases])) == ["optimizer_0", "optimizer_1"]
    one = torch.optim.SGD([model[0].weight], lr=0.1), torch.optim.SGD([model[0].bias], lr=0.1)
    assert list(pairs(model, one)) == ["0_0", "0_1"]


def test_a_missing_library_is_not_confused_with_one_that_lacks_something_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HeadwaterError, match="this test needs nowhere, which is not installed: pip install nowhere"):
        library("no_such_module_anywhere", "nowhere", "this test")
    tmp_path.joinpath("broken_library.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        library("broken_library", "broken", "this test")
