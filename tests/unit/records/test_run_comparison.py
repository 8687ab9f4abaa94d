"""Two runs held against each other: the first step and tensor at which they part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import runs

from headwater.errors import InputError, NothingObservedError
from headwater.records.run_comparison import RunComparison, compare_runs, renamed


def descent(learning_rate: Callable[[int], float], steps: int = 15, name: str = "a") -> runs.FormulaRun:
    """Gradient descent on L = Σ w²/2, in closed form.

    The gradient is w itself, an update is -lr·w, so ‖Δw‖/‖w‖ = lr and w after t steps is w_0·∏(1 - lr_s). The value and
    the gradient of step t are those before its update.
    """
    start = {"fc1.weight": 1.0, "fc2.weight": 2.0}

    def value(tensor: runs.WatchedTensor, step: int) -> float:
        w = start[tensor.name]
        for s in range(step):
            w *= 1.0 - learning_rate(s)
        return w

    return runs.FormulaRun(
        name=name,
        tensors=(runs.weight("fc1.weight", 0), runs.weight("fc2.weight", 1)),
        steps=tuple(range(steps)),
        formulas={"value": value, "gradient": value, "update": lambda t, s: learning_rate(s)},
        learning_rate=learning_rate,
        loss=lambda s: sum(value(runs.weight(n, 0), s) ** 2 / 2 for n in start),
    )


def test_a_learning_rate_changed_at_step_7_is_seen_in_the_update_at_7_and_the_gradient_at_8() -> None:
    a = descent(lambda s: 0.1)
    b = descent(lambda s: 0.1 if s < 7 else 0.05, name="b")
    found = compare_runs(a, b)
    assert not found.same
    first = found.partings[0]
    assert (first.step, first.name, first.quantity) == (7, "fc1.weight", "update")
    assert (first.value_a, first.value_b) == (0.1, 0.05)
    assert first.relative_difference == pytest.approx(0.5)
    gradient, value = found.first("gradient"), found.first("value")
    assert gradient is not None
    assert value is not None
    assert (gradient.step, value.step) == (8, 8)
    # At step 8 w is 0.9**8 in a and 0.9**7 · 0.95 in b: 1 - 0.9/0.95.
    assert gradient.relative_difference == pytest.approx(1 - 0.9 / 0.95)
    (setting,) = found.settings
    assert (setting.step, setting.quantity) == (7, "learning_rate")
    assert [(p.step, p.quantity) for p in found.results] == [(8, "loss"), (8, "gradient_norm")]


def test_within_a_step_differences_come_in_the_order_in_which_training_makes_the_numbers() -> None:
    a, b = descent(lambda s: 0.1), descent(lambda s: 0.1 if s < 7 else 0.05, name="b")
    at_8 = [p.quantity for p in compare_runs(a, b).partings if p.step == 8]
    assert at_8 == ["value", "value", "gradient", "gradient"]


def test_a_run_is_the_same_as_itself() -> None:
    run = descent(lambda s: 0.1)
    found = compare_runs(run, run)
    assert found.same
    assert found.partings == found.settings == found.results == ()
    assert {d.quantity: max(d.largest) for d in found.drift} == {"value": 0.0, "gradient": 0.0, "update": 0.0}


def test_a_comparison_reads_back_equal() -> None:
    found = compare_runs(descent(lambda s: 0.1), descent(lambda s: 0.1 + 1e-4 * s, name="b"))
    assert RunComparison.from_json(found.to_json()) == found


@given(st.floats(1e-9, 0.5), st.floats(1e-9, 0.5))
def test_a_difference_counts_from_the_tolerance_on(difference: float, rtol: float) -> None:
    a, b = descent(lambda s: 0.1, 3), descent(lambda s: 0.1, 3, name="b")
    b.formulas = {**b.formulas, "update": lambda t, s: 0.1 * (1 - difference)}
    if abs(difference - rtol) > 1e-12:  # on the edge itself rounding decides
        assert compare_runs(a, b, rtol=rtol).same == (difference < rtol)


def test_numbers_outside_the_range_of_a_double_are_compared_by_their_logarithm() -> None:
    # FormulaRun gives log10 itself here: 10**-400 and 1.1 times that.
    a, b = descent(lambda s: 0.1, 2), descent(lambda s: 0.1, 2, name="b")
    shift = math.log10(1.1)

    def matrix(run: runs.FormulaRun, log10: float) -> Callable[..., object]:
        plain = run.matrix

        def read(quantity: runs.Quantity, statistic: str, **options: object) -> object:
            found = plain(quantity, statistic, **options)  # type: ignore[arg-type]
            if quantity != "gradient":
                return found
            return dataclasses.replace(found, values=tuple(tuple(log10 for _ in row) for row in found.values))

        return read

    a.matrix = matrix(a, -400.0)  # type: ignore[method-assign, assignment]
    b.matrix = matrix(b, -400.0 + shift)  # type: ignore[method-assign, assignment]
    first = compare_runs(a, b).first("gradient")
    assert first is not None
    assert first.relative_difference == pytest.approx(1 - 1 / 1.1)


def test_a_zero_and_a_nan_differ_from_a_number_and_not_from_themselves() -> None:
    for special in (0.0, math.nan):
        a, b = descent(lambda s: 0.1, 3), descent(lambda s: 0.1, 3, name="b")
        b.formulas = {**b.formulas, "gradient": lambda t, s, special=special: special}
        first = compare_runs(a, b).first("gradient")
        assert first is not None
        assert first.relative_difference == (1.0 if special == 0.0 else math.inf)
        assert compare_runs(b, b).same


def test_names_are_aligned_by_rules_and_the_rest_is_listed() -> None:
    a, b = runs.healthy(2, 20), runs.healthy(3, 20)
    a.tensors = runs.stack(2, "old.{}")
    found = compare_runs(a, b, renames={"old": "layers"})
    assert found.tensors == 6
    assert found.missing_in_a == ("layers.2", "layers.2.weight", "layers.2.bias")
    assert found.missing_in_b == ()
    assert all(p.name.startswith("layers.") for p in found.partings)


def test_runs_with_other_schedules_are_compared_at_their_common_steps() -> None:
    a, b = descent(lambda s: 0.1, 20), descent(lambda s: 0.1, 20, name="b")
    b.steps = tuple(range(0, 40, 3))
    found = compare_runs(a, b)
    assert found.same
    # 0, 3, …, 18 of 20 and of 14 steps.
    assert (found.common_steps, found.only_a, found.only_b) == (7, 13, 7)


def test_runs_with_nothing_in_common_are_not_called_the_same() -> None:
    a, b = descent(lambda s: 0.1, 3), descent(lambda s: 0.1, 3, name="b")
    b.steps = (100, 101)
    with pytest.raises(NothingObservedError, match="3 steps from 0 to 2 and 2 steps from 100 to 101"):
        compare_runs(a, b)
    b = runs.healthy()
    with pytest.raises(NothingObservedError, match="--rename OLD=NEW"):
        compare_runs(a, b)


def test_rules_that_give_two_tensors_one_name_are_refused() -> None:
    a = descent(lambda s: 0.1, 3)
    with pytest.raises(InputError, match=r"both 'fc1\.weight' and 'fc2\.weight' to 'fc\.weight'"):
        compare_runs(a, a, renames={"fc1": "fc", "fc2": "fc"})


def test_a_negative_tolerance_is_refused() -> None:
    a = descent(lambda s: 0.1, 3)
    for wrong in (-1.0, math.nan):
        with pytest.raises(InputError, match="rtol"):
            compare_runs(a, a, rtol=wrong)


def test_of_many_differences_the_first_of_every_quantity_is_kept() -> None:
    a, b = runs.healthy(100, 40), runs.healthy(100, 40)
    usual, update = b.formulas["gradient"], b.formulas["update"]
    b.formulas = {
        **b.formulas,
        "update": lambda t, s: 2 * (update(t, s) or 0.0),
        "gradient": lambda t, s: (usual(t, s) or 0.0) * (2 if s >= 20 else 1),
    }
    found = compare_runs(a, b)
    # 200 parameters part in their update at step 0, and again 200 in their gradient at step 20.
    assert found.parting_count == 400
    assert len(found.partings) == 51
    assert found.partings[-1].quantity == "gradient"
    assert found.partings[-1].step == 20


def test_the_drift_is_thinned_out_and_keeps_both_ends() -> None:
    a, b = runs.healthy(1, 1_000), runs.healthy(1, 1_000)
    a.steps = b.steps = tuple(range(1_000))
    (drift,) = [d for d in compare_runs(a, b).drift if d.quantity == "update"]
    assert len(drift.steps) <= 300
    assert (drift.steps[0], drift.steps[-1]) == (0, 999)


@pytest.mark.parametrize(
    ("name", "rules", "expected"),
    [
        ("a.b.c", {"a": "x"}, "x.b.c"),
        ("a", {"a": "x"}, "x"),
        ("ab.c", {"a": "x"}, "ab.c"),
        ("a.b", {"a": ""}, "b"),
        ("b", {"": "a"}, "a.b"),
        ("a.b", {"a": "x", "x": "y"}, "x.b"),
    ],
)
def test_a_rule_changes_whole_parts_at_the_start_of_a_name(name: str, rules: dict[str, str], expected: str) -> None:
    assert renamed(name, rules) == expected
