"""Alerts that read what a step did to the parameters, and end the training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.detectors.over_time import StalledLayer, UpdateRatio
from headwater.errors import UnhealthyError
from headwater.records.step import StepRecord


class _Run:
    """A run in which every step turns the weight round, w - lr · 2w = -w, so that ‖Δw‖/‖w‖ is 2."""

    def __init__(self, alert: UpdateRatio, every: int) -> None:
        self.records: list[StepRecord] = []
        self.taken = 0
        self.alert, self.every = alert, every

    def train(self) -> None:
        torch.manual_seed(0)
        model = nn.Linear(4, 4, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        options = {"alerts": (self.alert,), "on_record": self.records.append, "every": self.every}
        with hw.watch(model, optimizer, activations=None, **options):  # type: ignore[arg-type]
            for _ in range(60):
                optimizer.zero_grad()
                model.weight.square().sum().backward()
                optimizer.step()
                self.taken += 1


# Recorded are steps 0, 1, 2, 4 and 8: the alarm is that of the patience-th of them; 1 is recorded after 0, 5 is not after 4.
@pytest.mark.parametrize(("patience", "last"), [(1, 0), (4, 4)])
def test_an_alert_on_updates_raises_at_the_hook_after_the_step_it_read(patience: int, last: int) -> None:
    run = _Run(UpdateRatio(action="raise", patience=patience), every=10)
    with pytest.raises(UnhealthyError, match="HW607"):
        run.train()
    assert run.taken == last + 1  # the step is taken, the one after it is not
    assert run.records[-1].step == last
    assert run.records[-1].block("update") is not None


def test_an_alert_on_updates_that_stops_ends_the_block_quietly() -> None:
    run = _Run(UpdateRatio(action="stop", patience=1), every=1)
    run.train()
    assert run.taken == 1


@pytest.mark.parametrize("alert", [UpdateRatio(), StalledLayer()])
def test_the_alerts_that_read_updates_say_so(alert: object) -> None:
    assert getattr(alert, "needs_update", False) is True
