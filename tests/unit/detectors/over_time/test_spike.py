"""Spikes against the run's own past, and whose they are."""

from __future__ import annotations

import random

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import AlertDesk, Spike
from headwater.records import Finding, StepRecord


def noisy(steps: int, *, tensors: int = 5, seed: int = 0, decades: float = 0.05) -> list[dict[str, float]]:
    """Gradient sizes near 1 with log-normal noise of 0.05 decades."""
    draw = random.Random(seed)
    return [{f"{k}.weight": 10 ** draw.gauss(0, decades) for k in range(tensors)} for _ in range(steps)]


def run(sizes: list[dict[str, float]], **fields: object) -> list[StepRecord]:
    return [record(step, size, **fields) for step, size in enumerate(sizes)]


def evidence(finding: Finding) -> dict[str, float]:
    return {e.name: e.value for e in reversed(finding.evidence)}


def test_a_spike_in_one_of_two_hundred_tensors_names_it_first() -> None:
    sizes = noisy(41, tensors=200)
    sizes[40]["123.weight"] = 100.0  # √(199 + 100²) = 101 against √200 = 14: a factor of 7, 0.85 decades
    (finding,) = alarms(run(sizes), Spike())
    assert finding.where[0] == "123.weight"
    assert finding.step == 40
    assert evidence(finding)["above the median"] == pytest.approx(0.85, abs=0.05)
    assert evidence(finding)["share of the growth"] > 0.99


def test_a_tiny_tensor_that_grew_by_more_decades_but_adds_nothing_is_not_named_first() -> None:
    sizes = [{**s, "tiny.weight": 1e-9} for s in noisy(41)]
    sizes[40] |= {"tiny.weight": 1e-5, "3.weight": 100.0}  # 4 decades without weight, 2 decades with all of it
    (finding,) = alarms(run(sizes), Spike())
    assert finding.where == ("3.weight",)


def test_one_outlier_does_not_mask_the_next() -> None:
    sizes = noisy(60)
    sizes[40]["0.weight"] = 1e6
    sizes[55]["1.weight"] = 30.0  # next to 1e6 nothing by mean and standard deviation; 1.1 decades above the median
    found = alarms(run(sizes), desk=AlertDesk([Spike()], quiet=5))
    assert [(f.step, f.where[0]) for f in found] == [(40, "0.weight"), (55, "1.weight")]


def test_a_fall_and_steps_within_the_noise_are_no_spike() -> None:
    sizes = noisy(200)
    sizes[100] = dict.fromkeys(sizes[0], 1e-6)
    assert alarms(run(sizes), Spike()) == []


def test_nothing_is_said_before_there_is_a_past() -> None:
    sizes = noisy(16)
    sizes[15]["0.weight"] = 1e6  # the sixteenth record has fifteen before it
    assert alarms(run(sizes), Spike()) == []
    sizes = noisy(17)
    sizes[16]["0.weight"] = 1e6
    assert len(alarms(run(sizes), Spike())) == 1


def test_six_sigma_of_a_run_without_noise_are_no_spike() -> None:
    sizes = [{"0.weight": 1.0}] * 40 + [{"0.weight": 2.0}]  # 0.3 decades: far beyond any z, below the 0.5 asked for
    assert alarms(run(sizes), Spike()) == []
    assert len(alarms(run([*sizes[:40], {"0.weight": 4.0}]), Spike())) == 1


def test_z_is_the_rise_over_the_scaled_median_absolute_deviation() -> None:
    # log10 norms alternate between ±0.1: median 0 (with √16 elements the norm is 4, a constant), MAD 0.1.
    sizes = [{"0.weight": 10 ** (0.1 if k % 2 else -0.1)} for k in range(40)] + [{"0.weight": 100.0}]
    (finding,) = alarms(run(sizes), Spike())
    assert evidence(finding)["robust z"] == pytest.approx(2.0 / (1.4826 * 0.1), rel=1e-6)


def test_the_gradient_before_clipping_is_judged() -> None:
    sizes = noisy(41)
    sizes[40]["0.weight"] = 100.0
    clipped = [
        record(s, size, post_clip=dict.fromkeys(size, 0.01), clip_coefficient=0.01) for s, size in enumerate(sizes)
    ]
    assert [f.defect for f in alarms(clipped, Spike())] == ["gradient spike"]


def test_a_loss_scale_that_changes_is_no_spike_of_a_scaled_gradient() -> None:
    scales = [2.0**16 if s < 40 else 2.0**24 for s in range(60)]
    records = [
        record(s, {n: v * scale for n, v in size.items()}, phase="backward", loss_scale=scale)
        for (s, size), scale in zip(enumerate(noisy(60)), scales, strict=True)
    ]
    assert alarms(records, Spike()) == []


def test_an_update_spike_is_seen_without_one_of_the_gradient() -> None:
    updates = [{n: 1e-3 * v for n, v in s.items()} for s in noisy(41, seed=1)]
    updates[40]["2.weight"] = 0.3
    records = [
        record(s, g, update=u, learning_rate=1e-3) for s, (g, u) in enumerate(zip(noisy(41), updates, strict=True))
    ]
    (finding,) = alarms(records, Spike())
    assert (finding.defect, finding.where) == ("update spike", ("2.weight",))


def test_a_learning_rate_that_is_raised_is_no_update_spike() -> None:
    rates = [1e-5 if s < 40 else 1e-3 for s in range(60)]
    records = [
        record(s, update={"a.weight": rate, "b.weight": rate}, learning_rate=rate) for s, rate in enumerate(rates)
    ]
    assert alarms(records, Spike()) == []


def test_a_loss_spike_is_seen_and_a_loss_below_zero_is_left_alone() -> None:
    draw = random.Random(0)
    losses = [2.0 * 10 ** draw.gauss(0, 0.01) for _ in range(40)]
    records = [record(s, loss=loss) for s, loss in enumerate([*losses, 3.0])]
    assert [(f.defect, f.step) for f in alarms(records, Spike())] == [("loss spike", 40)]
    assert alarms([record(s, loss=-loss) for s, loss in enumerate([*losses, 3.0])], Spike()) == []


def test_steps_that_were_skipped_or_are_not_finite_do_not_enter_the_past() -> None:
    sizes = noisy(41)
    records = [record(s, size, skipped="amp") if s % 2 else record(s, size) for s, size in enumerate(sizes[:32])]
    records += [record(s, dict.fromkeys(sizes[0], float("inf"))) for s in range(32, 40)]
    records.append(record(40, dict.fromkeys(sizes[0], 1e6)))
    (finding,) = alarms(records, Spike())
    assert "the last 16 recorded steps" in finding.cause


def test_a_gradient_that_climbs_is_no_spike() -> None:
    # Flat for 16 steps, then 0.4 decades more at each of five: 2 decades above the median, and never a jump.
    flat = [{"0.weight": 10 ** (0.1 if k % 2 else -0.1)} for k in range(16)]
    climbing = [{"0.weight": 10 ** (0.4 * k)} for k in range(1, 6)]
    assert alarms(run(flat + climbing), Spike()) == []


def test_few_steps_ask_for_a_larger_z() -> None:
    # z = 1.2 / 0.148 = 8.1: beyond 6 √(1 + 16/64) = 6.7 of 64 steps, not beyond 6 √2 = 8.5 of 16.
    def flat(steps: int) -> list[dict[str, float]]:
        return [{"0.weight": 10 ** (0.1 if k % 2 else -0.1)} for k in range(steps)]

    spike = {"0.weight": 10**1.2}
    assert alarms(run([*flat(16), spike]), Spike()) == []
    assert len(alarms(run([*flat(64), spike]), Spike())) == 1
