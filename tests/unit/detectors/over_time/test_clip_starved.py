"""Gradients that clipping pushes below the optimizer's eps, and clipping that never ends."""

from __future__ import annotations

import pytest
from tests.unit.detectors.over_time.synthetic import alarms, record

from headwater.detectors.over_time import ClipStarved
from headwater.records import Severity, StepRecord

USUAL = {f"{k}.weight": 0.1 for k in range(9)}


def clipped(largest: float, steps: int = 3, eps: float = 1e-8) -> list[StepRecord]:
    """One tensor sets the norm of the whole gradient, which is clipped to 1: coefficient = 1/(4·largest)."""
    sizes = {**USUAL, "huge.weight": largest}
    coefficient = 1 / (4 * largest)  # √16 elements of that size
    after = {name: size * coefficient for name, size in sizes.items()}
    return [
        record(s, sizes, post_clip=after, clip_coefficient=coefficient, epsilon=eps, root_rms=sizes)
        for s in range(steps)
    ]


def test_a_norm_of_5e7_starves_all_other_weights() -> None:
    # Megatron-LM PR 5395: norm 5e7, so coefficient 2e-8; 0.1 becomes 2e-9, below Adam's eps of 1e-8.
    (finding,) = alarms(clipped(5e7 / 4), ClipStarved())
    assert finding.defect == "clip-starved updates"
    assert finding.where == tuple(USUAL)
    assert "multiplies the gradient by 2e-08" in finding.cause


def test_without_the_block_after_clipping_the_coefficient_says_the_same() -> None:
    sizes = {**USUAL, "huge.weight": 5e7 / 4}
    roots = dict.fromkeys(sizes, 1e-9)
    records = [record(s, sizes, clip_coefficient=2e-8, epsilon=1e-8, root_rms=roots) for s in range(3)]
    assert [f.defect for f in alarms(records, ClipStarved())] == ["clip-starved updates"]


def test_a_norm_of_5e6_does_not() -> None:
    assert alarms(clipped(5e6 / 4), ClipStarved()) == []  # coefficient 2e-7: 0.1 becomes 2e-8


def test_eps_is_flagged_when_the_loss_is_small_and_not_when_eps_is_negligible() -> None:
    # R24: the same network with loss·1e-6, eps 1e-16 and 1e-5.
    small = {name: 1e-6 * size for name, size in USUAL.items()}
    assert alarms([record(s, small, epsilon=1e-16) for s in range(3)], ClipStarved()) == []
    (finding,) = alarms([record(s, small, epsilon=1e-5) for s in range(3)], ClipStarved())
    assert finding.defect == "eps dominates the step"
    assert finding.evidence[0].value == pytest.approx(1e-7)


def test_a_gradient_that_is_small_only_now_is_judged_by_its_second_moment() -> None:
    small = {name: 1e-10 for name in USUAL}
    assert alarms([record(s, small, epsilon=1e-8, root_rms=USUAL) for s in range(3)], ClipStarved()) == []


def test_one_weight_in_twenty_and_one_blip_are_left_alone() -> None:
    one = {f"{k}.weight": 0.1 for k in range(19)} | {"small.weight": 1e-10}
    assert alarms([record(s, one, epsilon=1e-8) for s in range(3)], ClipStarved()) == []
    assert alarms(clipped(5e7 / 4, steps=1), ClipStarved()) == []


def test_optimizers_without_eps_are_not_judged() -> None:
    tiny = {name: 1e-12 for name in USUAL}
    assert alarms([record(s, tiny, epsilon=float("nan")) for s in range(3)], ClipStarved()) == []
    assert alarms([record(s, tiny) for s in range(3)], ClipStarved()) == []


def coefficients(*values: float) -> list[StepRecord]:
    return [record(s, USUAL, clip_coefficient=value) for s, value in enumerate(values)]


def test_a_run_clipped_hard_at_nearly_every_step_is_told_for_information() -> None:
    # 29 of 32 are 91 %, 28 are 88 %.
    (finding,) = alarms(coefficients(*[0.01] * 29, *[1.0] * 3, *[0.01] * 4), ClipStarved())
    assert (finding.defect, finding.severity) == ("clipped hard all the time", Severity.INFO)
    assert alarms(coefficients(*[0.01, 0.01, 0.01, 1.0] * 16), ClipStarved()) == []
    assert alarms(coefficients(*[0.2] * 64), ClipStarved()) == []
