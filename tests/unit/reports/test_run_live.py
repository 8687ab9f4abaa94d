"""The frame of ``headwater top``: speed, silence, the end, the worst layers, at any width."""

from __future__ import annotations

import pytest
from tests import runs

from headwater.records import Severity
from headwater.reports import to_text
from headwater.reports.run_live import build_live_document, steps_per_second


def frame(run: runs.FormulaRun, *, after: float = 0.0, width: int = 100, height: int = 40) -> str:
    now = runs.START + (run.steps[-1] if run.steps else 0) * runs.SECONDS_PER_STEP + after
    return to_text(build_live_document(run, now=now, width=width, height=height), width=width, ascii_only=False)


def test_a_frame_says_step_speed_loss_norm_and_cost() -> None:
    shown = frame(runs.healthy())
    assert "step 200" in shown
    assert "20 steps/s" in shown  # 0.05 seconds per step
    assert "0.004975" in shown  # 1 / 201
    assert "3.16e-03" in shown
    assert "watching: 0.5% of the time, 0.25 s" in shown
    assert "no finding that matters" in shown


def test_the_worst_layers_are_the_smallest_and_the_largest() -> None:
    lines = frame(runs.vanishing(12)).splitlines()
    rows = [line.split() for line in lines if "layers." in line and ("smallest" in line or "largest" in line)]
    assert [(row[0], row[2]) for row in rows] == [
        ("layers.0.weight", "smallest"), ("layers.1.weight", "smallest"), ("layers.2.weight", "smallest"),
        ("layers.9.weight", "largest"), ("layers.10.weight", "largest"), ("layers.11.weight", "largest"),
    ]  # fmt: skip


def test_the_newest_finding_comes_first() -> None:
    run = runs.vanishing()
    run.findings = tuple(runs.finding(f"HW{i}", Severity.WARNING, step=i) for i in range(101, 109))
    shown = frame(run)
    assert shown.index("step 108") < shown.index("step 107") < shown.index("step 105")
    assert "step 104 " not in shown


def test_a_run_without_a_new_step_is_paused_or_killed() -> None:
    assert "No new step" not in frame(runs.healthy(), after=29)
    assert "No new step for 2 min" in frame(runs.healthy(), after=120)
    assert "No new step" not in frame(runs.spiking(), after=120)  # it has ended
    assert "ended" in frame(runs.spiking())


def test_a_run_that_is_slow_by_nature_is_not_called_paused() -> None:
    run = runs.healthy()
    slow = run.recorded_steps
    import dataclasses

    run.recorded_steps = lambda group=None: tuple(  # type: ignore[method-assign]
        dataclasses.replace(row, time=runs.START + 60.0 * row.step) for row in slow(group)
    )
    shown = to_text(build_live_document(run, now=runs.START + 60.0 * 200 + 1200), width=100)
    assert "No new step" not in shown  # every tenth step is recorded: ten minutes apart


def test_the_speed_is_that_of_the_last_steps_after_a_resume() -> None:
    rows = runs.healthy(1, 400).recorded_steps()
    assert steps_per_second(rows) == pytest.approx(20.0)
    assert steps_per_second(rows[:1]) is None
    again = (*rows, *runs.healthy(1, 20).recorded_steps())  # the clock went back
    assert steps_per_second(again) == pytest.approx(20.0)


def test_a_run_before_its_first_step_waits() -> None:
    assert "no step yet" in frame(runs.nothing())


@pytest.mark.parametrize("run", [runs.spiking(), runs.hostile(), runs.vanishing(1000, 20, 0.02)])
@pytest.mark.parametrize("width", [20, 30, 60, 120])
def test_a_frame_fits_a_narrow_terminal_and_a_short_one(run: runs.FormulaRun, width: int) -> None:
    lines = frame(run, width=width).splitlines()
    assert max(map(len, lines)) <= width
    if width >= 60:
        assert len(lines) <= 32
        assert len(frame(run, width=width, height=24).splitlines()) <= 24
