"""Watched runs from end to end: file, alerts, resuming, sinks, throttling, the model's own in-place operations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import models
from torch import nn
from torch.nn import functional as F

import headwater as hw
from headwater.capture.training import schedule as schedules
from headwater.records.step import StepRecord


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    watch: Any = None,
    scale: float = 1.0,
    shape: Any = (8,),
) -> None:
    for i in steps:
        generator = torch.Generator().manual_seed(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(4, *shape, generator=generator)), torch.tensor([0, 1, 2, 0])) * scale
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.record(loss=loss)


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = models.mlp(8, 16, 16, 3)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


# -------------------------------------------------------------------- the file


def test_the_file_holds_what_was_recorded(tmp_path: Path) -> None:
    model, optimizer = make()
    records: list[StepRecord] = []
    with hw.watch(model, optimizer, run=tmp_path / "run", every=5, on_record=records.append) as watch:
        train(model, optimizer, range(12), watch)
    run = hw.open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2, 4, 5, 8, 10, 11)
    assert [r.step for r in records] == list(run.steps)
    by_step = {r.step: r for r in records}
    for step, rms in run.series("2.weight", "gradient.rms"):
        block = by_step[step].block("gradient")
        assert block is not None
        assert rms == pytest.approx(next(s.rms for t, s in block.statistics() if t.name == "2.weight"))
    assert [row.loss for row in run.recorded_steps()][:-1] == [r.loss for r in records][:-1]
    profile = run.profile(8)
    assert [layer.name for layer in profile.layers] == ["0", "1", "2", "3", "4"]
    assert all(layer.on_trunk and layer.gradient is not None for layer in profile.layers)
    assert [q.layer for q in profile.parameters] == ["0", "0", "2", "2", "4", "4"]
    assert run.metadata["overhead"]["seconds"] > 0
    assert {e.kind for e in run.events} >= {"attached", "detached"}


def test_a_recorded_step_has_the_profile_that_measure_gives() -> None:
    model, optimizer = make()
    x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    measured = hw.measure(model, x, y, F.cross_entropy)
    from headwater.records import RunContext, profile_of_step

    records: list[StepRecord] = []
    with hw.watch(model, optimizer, on_record=records.append, alerts=()):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    profile = profile_of_step(records[0], RunContext())
    assert profile.gradients("rms") == pytest.approx(measured.gradients("rms"), rel=1e-5)
    for mine, theirs in zip(profile.layers, measured.layers, strict=True):
        assert (mine.name, mine.kind, mine.on_trunk, mine.shape) == (
            theirs.name,
            theirs.kind,
            theirs.on_trunk,
            theirs.shape,
        )
        assert mine.activation.rms == pytest.approx(theirs.activation.rms, rel=1e-5)
        assert mine.gradient is not None
        assert theirs.gradient is not None
        assert mine.gradient.rms == pytest.approx(theirs.gradient.rms, rel=1e-5)
        assert mine.dead_fraction == theirs.dead_fraction
        assert mine.unit_count == theirs.unit_count


@pytest.mark.parametrize("when", ["before the step", "after the step"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_loss_belongs_to_its_step_whenever_it_is_given(when: str, every: int) -> None:
    model, optimizer = make()
    records: list[StepRecord] = []
    losses: list[float] = []
    with hw.watch(model, optimizer, every=every, alerts=(), on_record=records.append) as watch:
        for i in range(13):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 0])) + i
            losses.append(float(loss.detach()))
            if when == "before the step":
                watch.record(loss=loss)
            loss.backward()
            optimizer.step()
            if when == "after the step":
                watch.record(loss=loss)
    found = {r.step: r.loss for r in records if r.loss is not None}
    assert (
        len(found) >= len(records) - 1
    )  # the last step, recorded when the watch ends, is read from the gradients alone
    assert found == {step: pytest.approx(losses[step]) for step in found}


# -------------------------------------------------------------------- alerts


def test_a_run_that_vanishes_is_caught_with_its_cause_by_step_4() -> None:
    torch.manual_seed(0)
    model = models.deep_sigmoid_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hw.watch(model, optimizer) as watch:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
        findings = watch.findings
    assert "HW101" in {f.code for f in findings}
    assert all(f.step is not None and f.step <= 4 for f in findings)


def test_an_infinity_stops_the_run_before_the_weights_see_it() -> None:
    from headwater.detectors.over_time import DEFAULT_ALERTS, with_actions

    nonfinite = next(a.code for a in DEFAULT_ALERTS if type(a).__name__ == "NonFiniteStep")
    model, optimizer = make()
    with hw.watch(model, optimizer, every=1, alerts=with_actions(DEFAULT_ALERTS, {nonfinite: "stop"})) as watch:
        train(model, optimizer, range(3))
        train(model, optimizer, range(3, 6), scale=float("inf"))
    assert watch.step == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert nonfinite in {f.code for f in watch.findings}


def test_training_may_go_on_after_an_alert_was_caught() -> None:
    from headwater.detectors.over_time import DEFAULT_ALERTS, with_actions

    nonfinite = next(a.code for a in DEFAULT_ALERTS if type(a).__name__ == "NonFiniteStep")
    model, optimizer = make()
    records: list[StepRecord] = []
    options: dict[str, Any] = {
        "alerts": with_actions(DEFAULT_ALERTS, {nonfinite: "raise"}),
        "on_record": records.append,
    }
    with hw.watch(model, optimizer, every=1, **options):
        train(model, optimizer, range(2))
        with pytest.raises(hw.HeadwaterError):
            train(model, optimizer, range(2, 3), scale=float("nan"))
        train(model, optimizer, range(3, 5))
    assert [(r.step, r.skipped) for r in records] == [(0, None), (1, None), (2, "not stepped"), (3, None), (4, None)]


# -------------------------------------------------------------------- resuming


def test_a_resumed_run_goes_on_with_the_numbers_and_alarms_of_the_whole_one(tmp_path: Path) -> None:
    whole: list[StepRecord] = []
    model, optimizer = make()
    with hw.watch(model, optimizer, every=3, on_record=whole.append) as watch:
        train(model, optimizer, range(20), watch)
        alarms = watch.findings

    parts: list[StepRecord] = []
    model, optimizer = make()
    options: dict[str, Any] = {"run": tmp_path / "run", "every": 3, "on_record": parts.append}
    with hw.watch(model, optimizer, **options) as watch:
        train(model, optimizer, range(10), watch)
        state = json.loads(json.dumps(watch.state_dict(), allow_nan=False))
        found = watch.findings
    second = hw.watch(model, optimizer, **options)
    second.load_state_dict(state)
    with second as watch:
        train(model, optimizer, range(10, 20), watch)
        found += watch.findings
    assert {r.step for r in whole} <= {r.step for r in parts}
    assert [(f.code, f.step) for f in found] == [(f.code, f.step) for f in alarms]
    run = hw.open_run(tmp_path / "run")
    assert run.steps == tuple(sorted({r.step for r in parts}))
    assert [e.step for e in run.events if e.kind == "resumed"] == [10]


# -------------------------------------------------------------------- sinks, throttling, coverage


class Sink:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.closed = 0

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self.rows[step] = dict(scalars)

    def close(self) -> None:
        self.closed += 1


class BrokenSink(Sink):
    def write(self, scalars: Mapping[str, float], step: int) -> None:
        raise OSError("no route to host")


def test_sinks_get_few_scalars_per_recorded_step_and_a_broken_one_disturbs_nobody() -> None:
    model, optimizer = make()
    sink, broken = Sink(), BrokenSink()
    with hw.watch(model, optimizer, alerts=(), sinks=[broken, sink]) as watch:
        for i in range(3):
            train(model, optimizer, range(i, i + 1))
            watch.record(loss=1.5, accuracy=torch.tensor(0.5))
    assert sorted(sink.rows) == [0, 1, 2]
    assert sink.rows[0]["train/loss"] == 1.5
    assert sink.rows[0]["accuracy"] == 0.5
    assert len(sink.rows[0]) <= 11
    assert sink.closed == 1
    assert any("BrokenSink failed" in e.message for e in watch.events)


def test_recording_that_costs_too_much_is_thinned_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "GRACE_SECONDS", 0.0)
    model, optimizer = make()
    records: list[StepRecord] = []
    with hw.watch(model, optimizer, every=1, max_overhead=1e-6, alerts=(), on_record=records.append) as watch:
        train(model, optimizer, range(60))
    assert len(records) < 20
    assert any(e.kind == "throttled" for e in watch.events)


def test_the_summary_says_what_was_seen_and_what_it_cost() -> None:
    model = nn.ModuleDict({"used": models.mlp(8, 16, 3), "idle": nn.Linear(3, 3)})
    optimizer = torch.optim.SGD([*model["used"].parameters(), model["idle"].weight], lr=0.1)
    with hw.watch(model, optimizer, alerts=()) as watch:
        train(model["used"], optimizer, range(3))
    text = watch.summary()
    assert "gradients of 4 of 6 trainable parameters (66.7 %)" in text
    assert "no gradient: idle.weight, idle.bias" in text
    assert "cost" in text
    said = [e for e in watch.events if e.kind == "not_observed"]
    assert [e.names for e in said] == [("idle.bias",), ("idle.weight", "idle.bias")]
    assert watch.overhead.seconds > 0
    assert 0 < watch.overhead.share < 1


# -------------------------------------------------------------------- R10: in place


def test_in_place_operations_change_no_row() -> None:
    found: list[list[StepRecord]] = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = models.ResNet(6, 2, inplace=inplace)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        records: list[StepRecord] = []
        options: dict[str, Any] = {"every": 1, "activations": "recorded", "max_overhead": None, "alerts": ()}
        with hw.watch(model, optimizer, on_record=records.append, **options):
            train(model, optimizer, range(4), shape=(3, 6, 6))
        found.append(records)
    for plain, inplace in zip(*found, strict=True):
        for quantity in ("gradient", "activation", "output_gradient"):
            one, other = plain.block(quantity), inplace.block(quantity)
            assert one is not None
            assert other is not None
            wanted = {t.name: s.l2_norm for t, s in one.statistics()}
            assert {t.name: s.l2_norm for t, s in other.statistics()} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device() -> None:
    torch.manual_seed(0)
    model = models.ResNet(6, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler("cuda")
    records: list[StepRecord] = []
    x, y = torch.randn(4, 3, 6, 6, device="cuda"), torch.tensor([0, 1, 2, 0], device="cuda")
    options: dict[str, Any] = {"every": 1, "activations": "recorded", "alerts": (), "max_overhead": None}
    with hw.watch(model, optimizer, on_record=records.append, **options) as watch:
        for i in range(6):
            torch.cuda.set_sync_debug_mode("error" if i > 1 else "default")
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            torch.cuda.set_sync_debug_mode("default")
            scaler.step(optimizer)  # the scaler itself asks the device whether there was an infinity
            scaler.update()
            watch.record(loss=loss)
    assert [r.step for r in records] == list(range(6))
