"""Each detector just on either side of its threshold, on profiles made by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.profiles import deep_sigmoid, layer, parameter, profile, statistics
from tests.unit.detectors.planted import BareAttention
from torch.nn import functional as F

import headwater as hw
from headwater.detectors import (
    DeadUnits,
    Detector,
    ExplodingGradient,
    NonFiniteValues,
    SaturatedActivation,
    SignalCollapse,
    StarvedWeights,
    SymmetricUnits,
    Underflow,
    VanishingGradient,
    ZeroGradient,
)
from headwater.records import (
    Finding,
    ParameterProfile,
    Profile,
    SecondLook,
    Severity,
    Statistics,
)


def _one(detector: Detector, found: Profile) -> Finding | None:
    findings = list(detector(found))
    assert len(findings) <= 1
    return findings[0] if findings else None


def _severity(detector: Detector, found: Profile) -> Severity | None:
    finding = _one(detector, found)
    return None if finding is None else finding.severity


def _stack(depth: int, decades_per_layer: float, width: int = 10_000) -> Profile:
    """Linear layers only, wide enough that chance is nothing: the head and ``depth`` layers below it.

    The trunk has the output of every layer; between the head's input and the first layer's output lie ``depth`` - 1
    layers that count.
    """
    rows = [
        layer(
            str(i), "Linear", i, 1.0, statistics(10.0 ** (decades_per_layer * (depth - i))), shape=(8, width),
            parameters=(f"{i}.weight",),
        )
        for i in range(depth + 1)
    ]  # fmt: skip
    return profile(rows, [parameter(f"{i}.weight", 1.0, fan_in=width) for i in range(depth + 1)], batch_size=8)


# -------------------------------------------------------------------- over depth


@pytest.mark.parametrize(
    ("layers", "per_layer", "severity"),
    [
        (10, -0.19, None),  # 1.9 in all
        (10, -0.22, Severity.WARNING),  # 2.2: beyond the warning
        (10, -0.29, Severity.WARNING),  # 2.9
        (10, -0.31, Severity.CRITICAL),  # 3.1: beyond the total
        (3, -0.65, None),  # 1.95 in all, and not fast enough
        (3, -0.72, Severity.CRITICAL),  # 2.16, fast
        (2, -0.72, None),  # 1.44: fast, and less than the least
        (2, -0.9, Severity.CRITICAL),
        (30, 0.0, None),
    ],
)
def test_vanishing_gradient_by_total_and_by_rate(layers: int, per_layer: float, severity: Severity | None) -> None:
    assert _severity(VanishingGradient(), _stack(layers + 1, per_layer)) is severity
    assert _one(ExplodingGradient(), _stack(layers + 1, per_layer)) is None


@pytest.mark.parametrize(
    ("layers", "per_layer", "severity"),
    [
        (10, 0.19, None),
        (10, 0.29, Severity.WARNING),
        (10, 0.31, Severity.CRITICAL),
        (3, 0.65, None),
        (3, 0.72, Severity.CRITICAL),
        (2, 0.72, None),
    ],
)
def test_exploding_gradient_is_the_mirror_image(layers: int, per_layer: float, severity: Severity | None) -> None:
    assert _severity(ExplodingGradient(), _stack(layers + 1, per_layer)) is severity
    assert _one(VanishingGradient(), _stack(layers + 1, per_layer)) is None


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_narrow_network_is_undecided(sign: int) -> None:
    # 10 layers of width 4: √(5·10/4)/2/ln 10 = 0.77 decades; 3.1 is 4.0 of them, at width 1 (1.54) it is 2.0.
    detector: Detector = VanishingGradient() if sign < 0 else ExplodingGradient()
    decided, undecided = _one(detector, _stack(11, 0.31 * sign, 4)), _one(detector, _stack(11, 0.31 * sign, 1))
    assert decided is not None
    assert undecided is not None
    assert (decided.severity, undecided.severity) == (Severity.CRITICAL, Severity.WARNING)
    assert "undecided" in undecided.cause
    assert "undecided" not in decided.cause


def test_the_cause_names_both_mechanisms_with_their_numbers() -> None:
    # Per layer (20 of them): sigmoid -0.6, weights -0.245·19/20 = -0.23.
    finding = _one(VanishingGradient(), deep_sigmoid(20, -0.845))
    assert finding is not None
    assert "falls 0.84 decades per layer over 20 layers (16.7 in all" in finding.cause.replace("0.85", "0.84")
    assert "Sigmoid's slope -0.60 per layer" in finding.cause
    assert "the weights -0.23 per layer" in finding.cause
    assert finding.evidence[0].value == pytest.approx(-12 - 19 * 0.245)
    assert finding.where[0] == "0"


@pytest.mark.parametrize(
    ("fraction", "severity"), [(1.1e-6, None), (0.9e-6, Severity.WARNING), (1e-15, Severity.CRITICAL)]
)
def test_signal_collapse_by_fraction_and_by_the_rounding_unit(fraction: float, severity: Severity | None) -> None:
    # float32: (1.2e-7)² = 1.4e-14 is where the samples are the same number.
    rows = [
        layer("0", "Linear", 0, 1.0, 1.0, between_sample_fraction=0.9, parameters=("0.weight",)),
        layer("1", "Linear", 1, 1.0, 1.0, between_sample_fraction=fraction, parameters=("1.weight",)),
        layer("2", "Linear", 2, 1.0, 1.0, between_sample_fraction=fraction, parameters=("2.weight",)),
    ]
    finding = _one(SignalCollapse(), profile(rows))
    assert (finding.severity if finding else None) is severity
    assert finding is None or finding.where == ("1",)  # the head is not below the head


def test_identical_samples_are_no_collapse() -> None:
    rows = [layer(str(i), "Linear", i, 1.0, 1.0, between_sample_fraction=0.0, parameters=("w",)) for i in range(3)]
    assert _one(SignalCollapse(), profile(rows)) is None


@pytest.mark.parametrize(("decades", "severity"), [(3.9, None), (4.1, Severity.WARNING), (7.0, Severity.CRITICAL)])
@pytest.mark.parametrize("starved", [1, 4, 5])
def test_starved_weights_by_the_distance_to_the_best_fed_quarter(
    decades: float, severity: Severity | None, starved: int
) -> None:
    # Of eight weights up to five, the larger part, may starve: the upper quartile is still a fed one.
    rows = [parameter(f"{i}.weight", 1.0) for i in range(8 - starved)]
    rows += [parameter(f"low{i}.weight", 10.0**-decades) for i in range(starved)]
    finding = _one(StarvedWeights(), profile([], rows))
    assert (finding.severity if finding else None) is severity
    assert finding is None or finding.where == tuple(f"low{i}.weight" for i in range(starved))


@pytest.mark.parametrize("depth", [4, 6, 12, 24])
def test_identical_tokens_are_found_at_any_depth(depth: int) -> None:
    torch.manual_seed(0)
    model = BareAttention(depth)
    for attention in model.layers:
        torch.nn.init.orthogonal_(attention.v.weight)
    tokens = torch.randint(0, 20, (4, 6))
    result = hw.diagnose(model, tokens, tokens, lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()))
    assert result.verdict is hw.Verdict.VANISHING
    assert result.root is not None
    assert result.root.defect == "rank collapse"
    assert {f"layers.{depth - 1}.q.weight", f"layers.{depth - 1}.k.weight"} <= set(result.root.where)


# -------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("units", "fraction", "severity"),
    [
        (100, 0.50, None),
        (100, 0.60, Severity.WARNING),  # 3 sd of a fair coin over 100 units: 0.15
        (100, 0.66, Severity.CRITICAL),
        (10_000, 0.52, Severity.CRITICAL),  # 3 sd: 0.015
        (9, 1.0, Severity.WARNING),  # all of them: 9 coins, less than ten
        (10, 1.0, Severity.CRITICAL),
    ],
)
def test_dead_units_beyond_chance(units: int, fraction: float, severity: Severity | None) -> None:
    rows = [layer("act", "ReLU", 0, 1.0, 1.0, dead_fraction=fraction, unit_count=units)]
    assert _severity(DeadUnits(), profile(rows)) is severity


@pytest.mark.parametrize(("between", "severity"), [(0.05, Severity.WARNING), (0.5, Severity.CRITICAL)])
def test_few_units_dead_for_many_different_samples_are_dead(between: float, severity: Severity) -> None:
    # 4 units are off for each of 8 samples: 32 coins where the samples differ, 4 where they are alike.
    rows = [
        layer("fc", "Linear", 0, 1.0, 1.0, shape=(8, 4), between_sample_fraction=between),
        layer("act", "ReLU", 1, 1.0, 1.0, shape=(8, 4), dead_fraction=1.0, unit_count=4),
    ]
    assert _severity(DeadUnits(), profile(rows)) is severity


def test_units_that_came_back_are_not_dead() -> None:
    row = layer("act", "ReLU", 0, 1.0, 1.0, dead_fraction=0.9, unit_count=100)
    revived = SecondLook(
        steps=3, optimizer="SGD", layers=(dataclasses.replace(row, dead_fraction=0.1),), parameters=(), loss=1.0
    )  # fmt: skip
    assert _severity(DeadUnits(), profile([row], second_look=revived)) is Severity.WARNING
    still = dataclasses.replace(revived, layers=(row,))
    assert _severity(DeadUnits(), profile([row], second_look=still)) is Severity.CRITICAL


def test_the_saturation_promised_for_standard_normal_inputs_is_right() -> None:
    # |x| beyond which the slope is below 5 % of its largest. tanh: 1/cosh² = 0.05 at acosh √20 = 2.178;
    # sigmoid: σ(1-σ) = 0.0125 at 2·2.178. P(|z| > x) = erfc(x/√2).
    limit = math.acosh(math.sqrt(20))
    assert math.erfc(limit / math.sqrt(2)) == pytest.approx(0.03, abs=0.002)
    assert 100 * math.erfc(2 * limit / math.sqrt(2)) == pytest.approx(0.001, abs=0.0005)


@pytest.mark.parametrize(("fraction", "severity"), [(0.24, None), (0.26, Severity.WARNING), (0.51, Severity.CRITICAL)])
def test_saturation_by_the_fraction_of_elements(fraction: float, severity: Severity | None) -> None:
    rows = [layer("act", "Sigmoid", 0, 1.0, 1.0, saturated_fraction=fraction)]
    assert _severity(SaturatedActivation(), profile(rows)) is severity


@pytest.mark.parametrize(("copies", "found"), [(49, False), (50, True), (99, True)])
def test_symmetric_units_from_one_half_on(copies: int, found: bool) -> None:
    row = parameter("0.weight", 1.0, duplicate_units=copies)
    assert (_one(SymmetricUnits(), profile([], [row])) is not None) is found
    frozen = dataclasses.replace(row, state="frozen", gradient=None)
    assert _one(SymmetricUnits(), profile([], [frozen])) is None


@pytest.mark.parametrize(("state", "copies", "found"), [
    ("finite", 90, True), ("exact_zero", 90, True), ("finite", 10, False), ("exact_zero", 10, False),
])  # fmt: skip
def test_twins_are_symmetric_when_they_still_are_after_the_steps(state: str, copies: int, found: bool) -> None:
    # Whether a gradient still moves them is another matter: twins that died are twins.
    row = parameter("0.weight", 1.0, duplicate_units=90)
    gradient = statistics(0.0 if state == "exact_zero" else 1.0)
    later = dataclasses.replace(row, duplicate_units=copies, gradient=gradient, state=state)
    assert (_one(SymmetricUnits(), profile([], [row], second_look=_look(later))) is not None) is found


# -------------------------------------------------------------------- values


def _nan(count: int = 4) -> Statistics:
    return Statistics.of([math.nan] * count)


def test_the_first_producer_is_named_and_the_rest_passes_it_on() -> None:
    # forward: 3 of 6 makes it, 4 and 5 pass it on
    rows = [layer(str(i), "Linear", i, 1.0, _nan()) for i in range(6)]
    bad = [dataclasses.replace(row, activation=_nan()) if i >= 3 else row for i, row in enumerate(rows)]
    finding = _one(NonFiniteValues(), profile(bad, loss=math.nan))
    assert finding is not None
    assert finding.where[0] == "3"
    assert "The output of 3 (Linear) is the first" in finding.cause
    assert "5 layers pass it on" in finding.cause  # 4 and 5 forward, 0, 1 and 2 backward


def test_the_first_producer_backward_is_the_one_nearest_the_loss() -> None:
    # R3: injected in the backward of layer 7 of 12: ∂L/∂(output of 6) is the first, 0 to 5 pass it on
    rows = [layer(str(i), "Linear", i, 1.0, _nan() if i < 7 else statistics(1.0)) for i in range(12)]
    finding = _one(NonFiniteValues(), profile(rows))
    assert finding is not None
    assert finding.where[0] == "6"
    assert "6 layers pass it on" in finding.cause
    assert "the backward of" in finding.cause


def test_a_parameter_that_holds_nan_is_the_producer() -> None:
    row = parameter("0.weight", 1.0, value=_nan())
    rows = [layer("0", "Linear", 0, 1.0, _nan())]
    finding = _one(NonFiniteValues(), profile(rows, [row], loss=math.nan))
    assert finding is not None
    assert finding.where[0] == "0.weight"


def _zero(name: str, **more: object) -> ParameterProfile:
    return parameter(name, statistics(0.0), state="exact_zero", **more)


def _look(*rows: ParameterProfile, **more: object) -> SecondLook:
    fields = {"steps": 3, "optimizer": "SGD", "layers": (), "parameters": rows, "loss": 1.0, **more}
    return SecondLook(**fields)  # type: ignore[arg-type]


def test_zeros_that_stay_are_critical_and_zeros_that_go_are_information() -> None:
    row = _zero("0.weight")
    later = parameter("0.weight", 1.0)
    assert _severity(ZeroGradient(), profile([], [row], second_look=_look(row))) is Severity.CRITICAL
    assert _severity(ZeroGradient(), profile([], [row], second_look=_look(later))) is Severity.INFO
    # with no second look nothing is certain
    assert _severity(ZeroGradient(), profile([], [row])) is Severity.WARNING


def test_no_gradient_is_cut_off_when_the_loss_moves_and_unused_when_it_does_not() -> None:
    row = parameter("0.weight", None)
    cut = _look(row, influences={"0.weight": True})
    unused = _look(row, influences={"0.weight": False})
    assert _severity(ZeroGradient(), profile([], [row], second_look=cut)) is Severity.CRITICAL
    assert _severity(ZeroGradient(), profile([], [row], second_look=unused)) is Severity.INFO


@pytest.mark.parametrize(
    ("dtype", "largest", "zeros", "found"),
    [
        ("float16", 6e-4, 3, True),  # below 100 times 6.1e-5, three of four flushed
        ("float16", 6e-2, 3, False),  # far above
        ("float16", 6e-4, 1, False),  # a quarter only
        ("float32", 6e-4, 3, False),  # float32 has room
    ],
)
def test_underflow_of_half_precision(dtype: str, largest: float, zeros: int, found: bool) -> None:
    gradient = Statistics.of([0.0] * zeros + [largest] * (4 - zeros))
    rows = [parameter("0.weight", gradient, dtype=dtype)]
    assert (_one(Underflow(), profile([], rows)) is not None) is found


def test_the_underflow_state_is_enough() -> None:
    row = parameter("0.weight", statistics(1e-40), state="underflow")
    assert _severity(Underflow(), profile([], [row])) is Severity.CRITICAL
