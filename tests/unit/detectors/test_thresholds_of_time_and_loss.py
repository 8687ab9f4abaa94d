"""Detectors of time, of the loss and of updates just on either side of their thresholds, on profiles made by hand."""

from __future__ import annotations

import pytest
from tests.profiles import layer, parameter, profile, statistics

from headwater.detectors import (
    Detector,
    ExplodingInTime,
    LossBroadcast,
    LossSaturation,
    UpdateSize,
    VanishingInTime,
)
from headwater.records import (
    Finding,
    ParameterProfile,
    Profile,
    SecondLook,
    Severity,
    TimeProfile,
    TrunkPoint,
    UpdateProfile,
)


def _one(detector: Detector, found: Profile) -> Finding | None:
    findings = list(detector(found))
    assert len(findings) <= 1
    return findings[0] if findings else None


def _severity(detector: Detector, found: Profile) -> Severity | None:
    finding = _one(detector, found)
    return None if finding is None else finding.severity


def _look(*rows: ParameterProfile, **more: object) -> SecondLook:
    fields = {"steps": 3, "optimizer": "SGD", "layers": (), "parameters": rows, "loss": 1.0, **more}
    return SecondLook(**fields)  # type: ignore[arg-type]


# -------------------------------------------------------------------- over time


def _times(per_step: float, steps: int, state: str = "hidden", reverse: bool = False, stack: int = 0) -> TimeProfile:
    """The gradient changes by ``per_step`` decades per step on its way from the last step processed to the first."""
    series = [statistics(10.0 ** (per_step * (steps - 1 - t))) for t in range(steps)]
    ordered = tuple(series[::-1] if reverse else series)
    return TimeProfile(layer="rnn", state=state, stack=stack, reverse=reverse, steps=ordered, exact=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("per_step", "severity"), [(-0.12, None), (-0.14, Severity.WARNING), (-0.22, None), (-0.24, Severity.CRITICAL)]
)
def test_vanishing_in_time_by_decades(per_step: float, severity: Severity | None, reverse: bool) -> None:
    # 31 steps, 30 factors: 0.12 gives 3.6, 0.14 gives 4.2, 0.24 gives 7.2; 0.22 gives 6.6, which is a warning
    expected = Severity.WARNING if per_step == -0.22 else severity
    found = profile([], times=(_times(per_step, 31, reverse=reverse),))
    assert _severity(VanishingInTime(), found) is expected
    assert _one(ExplodingInTime(), found) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("per_step", "found"), [(0.09, False), (0.11, True)])
def test_exploding_in_time_by_decades(per_step: float, found: bool, reverse: bool) -> None:
    # 30 factors: 2.7 and 3.3
    measured = profile([], times=(_times(per_step, 31, reverse=reverse),))
    assert (_one(ExplodingInTime(), measured) is not None) is found
    assert _one(VanishingInTime(), measured) is None


def test_a_state_or_a_stacked_layer_that_carries_the_gradient_is_enough() -> None:
    fades = _times(-0.3, 31)
    assert _one(VanishingInTime(), profile([], times=(fades,))) is not None
    assert _one(VanishingInTime(), profile([], times=(fades, _times(-0.01, 31, "cell")))) is None
    assert _one(VanishingInTime(), profile([], times=(fades, _times(-0.01, 31, stack=1)))) is None
    # another direction has its own early steps
    assert _one(VanishingInTime(), profile([], times=(fades, _times(-0.01, 31, reverse=True)))) is not None


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_too_few_steps_say_nothing(steps: int) -> None:
    for detector in (VanishingInTime(), ExplodingInTime()):
        assert _one(detector, profile([], times=(_times(-9.0, steps), _times(9.0, steps, "cell")))) is None


# -------------------------------------------------------------------- loss and updates


@pytest.mark.parametrize(
    ("output", "target", "dtype", "found"),
    [
        ((16, 1), (16,), "float32", True),
        ((16,), (16, 1), "float32", True),
        ((16, 3), (3,), "bfloat16", True),
        ((16, 1), (16, 1), "float32", False),
        ((16, 5), (16,), "int64", False),  # class indices
        ((16, 5), (16,), "float32", False),  # does not broadcast: torch itself raises
        (None, (16,), "float32", False),
    ],
)
def test_shapes_that_broadcast(
    output: tuple[int, ...] | None, target: tuple[int, ...], dtype: str, found: bool
) -> None:
    measured = profile([], output_shape=output, target_shape=target, target_dtype=dtype)
    assert (_one(LossBroadcast(), measured) is not None) is found


@pytest.mark.parametrize(("rms", "operation", "found"), [
    (9.9, "NllLossBackward0", False), (10.1, "NllLossBackward0", True), (10.1, "MseLossBackward0", False),
])  # fmt: skip
def test_logits_that_saturate_the_loss(rms: float, operation: str, found: bool) -> None:
    rows = [layer("head", "Linear", 0, rms, 1.0, parameters=("head.weight",))]
    loss = TrunkPoint(order=1, operation=operation, kind="loss", layer=None, next_layer=None, gradient=statistics(1.0))
    assert (_one(LossSaturation(), profile(rows, trunk=(loss,))) is not None) is found


@pytest.mark.parametrize(
    ("ratio", "gradient", "eps", "defects"),
    [
        (0.49, 1.0, None, []),
        (0.51, 1.0, None, ["updates as large as the weights"]),
        (1e-7, 1.0, None, []),
        (5e-8, 1.0, None, ["updates below rounding"]),
        (5e-8, 0.0, None, []),  # no gradient: not a matter of the step
        (1e-3, 1.1e-8, 1e-8, []),
        (1e-3, 0.9e-8, 1e-8, ["eps dominates the step"]),
        (None, 1.0, None, []),  # a weight that starts at zero
    ],
)
def test_update_sizes(ratio: float | None, gradient: float, eps: float | None, defects: list[str]) -> None:
    update = UpdateProfile(
        name="0.weight", optimizer="Adam", learning_rate=1e-3, epsilon=eps, update_ratio=ratio, gradient_rms=gradient
    )  # fmt: skip
    row = parameter("0.weight", 1.0)
    found = profile([], [row], second_look=_look(row, updates=(update,)))
    assert [f.defect for f in UpdateSize()(found)] == defects


def test_parameters_and_optimizer_that_do_not_match_are_listed() -> None:
    row = parameter("0.weight", 1.0)
    look = _look(row, unassigned=("0.weight",), frozen_in_optimizer=("1.weight",))
    findings = {f.defect: f for f in UpdateSize()(profile([], [row], second_look=look))}
    assert findings["parameters in no optimizer group"].where == ("0.weight",)
    assert findings["parameters in no optimizer group"].severity is Severity.WARNING
    assert findings["frozen parameters in the optimizer"].where == ("1.weight",)
    assert findings["frozen parameters in the optimizer"].severity is Severity.INFO
