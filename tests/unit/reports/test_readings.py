"""The sentence under a profile says what the numbers say."""

from __future__ import annotations

import math

import pytest
from tests import profiles

from headwater.records import Coverage, TimeProfile, TrunkPoint
from headwater.reports.readings import most_telling, read_profile, read_time, summarize_time, summarize_trunk


def test_the_trunk_is_summed_up_end_to_end_in_decades() -> None:
    # 20 Linears at -0.845 decades each between the first Linear's output and the last one's.
    trunk = summarize_trunk(profiles.deep_sigmoid(20))
    assert trunk is not None
    assert (trunk.first, trunk.last) == ("0", "40")
    assert trunk.decades == pytest.approx(-16.9)
    assert trunk.weight_layers == 20
    assert trunk.decades_per_layer == pytest.approx(-0.845)


def test_the_largest_step_is_found_where_it_was_put() -> None:
    base = profiles.deep_sigmoid(4, -0.1)
    # The gradient at 0 and 1 (everything before the Linear "2") is lowered by three decades more.
    layers = [
        profiles.layer(row.name, row.type, row.order, 1.0, row.gradient.rms * (1e-3 if row.order < 2 else 1.0))
        for row in base.layers
        if row.gradient is not None
    ]
    trunk = summarize_trunk(profiles.profile(layers))
    assert trunk is not None
    assert trunk.steepest == "2"
    # From the output of Linear 2 (10**-0.3) back to Sigmoid 1 (10**(-0.4 + 0.6 - 3)): -2.8 - -0.3 = -2.5 decades.
    assert trunk.steepest_decades == pytest.approx(-2.5)


def test_the_loss_is_no_part_of_the_trunk_s_length() -> None:
    base = profiles.deep_sigmoid(3)
    loss = TrunkPoint(
        order=len(base.trunk), operation="MseLossBackward0", kind="loss", layer=None, next_layer=None,
        gradient=profiles.statistics(1e6),
    )  # fmt: skip
    trunk = summarize_trunk(base.replace(trunk=(*base.trunk, loss)))
    assert trunk is not None
    assert trunk.last == "6"
    assert trunk.decades == pytest.approx(3 * -0.845)


def test_a_shrinking_gradient_is_said_to_shrink_with_its_rate() -> None:
    sentence = read_profile(profiles.deep_sigmoid(20))
    assert "shrinks by 16.9 decades" in sentence
    assert "from 1.00e+00 at `40` to 1.26e-17 at `0`" in sentence
    assert "×0.143 per weight layer" in sentence  # 10**-0.845 = 0.1429


def test_a_growing_gradient_is_said_to_grow() -> None:
    assert "grows by 5 decades" in read_profile(profiles.deep_sigmoid(10, 0.5))


def test_less_than_a_decade_is_said_to_be_about_as_strong() -> None:
    assert "about as strong as it started" in read_profile(profiles.deep_sigmoid(10, -0.05))


def test_an_exact_zero_is_named_where_the_gradient_is_lost() -> None:
    base = profiles.deep_sigmoid(3)
    layers = [
        profiles.layer(row.name, row.type, row.order, 1.0, profiles.statistics(0.0) if row.order < 3 else row.gradient)
        for row in base.layers
    ]
    sentence = read_profile(profiles.profile(layers))
    assert "No gradient reaches the first layer" in sentence
    assert "exactly zero from `2` down to `0`" in sentence


def test_a_zero_at_the_loss_is_said_to_teach_nothing() -> None:
    layers = [profiles.layer(str(i), "Linear", i, 1.0, profiles.statistics(0.0)) for i in range(3)]
    assert "exactly zero where it leaves the loss, at `2`" in read_profile(profiles.profile(layers))


def test_the_first_nonfinite_tensor_on_the_way_back_is_named() -> None:
    # Going back from head: squash is finite, gone is all NaN, mid holds some.
    assert "first holds NaN or infinity at `gone`" in read_profile(profiles.troubled())


def test_a_profile_without_gradients_says_so() -> None:
    layers = [profiles.layer("fc", "Linear", 0, 1.0, None)]
    coverage = Coverage(observed=0, trainable=1)
    assert read_profile(profiles.profile(layers, trunk=(), coverage=coverage)).startswith("No gradient came back")


def test_a_single_gradient_is_given_without_a_trend() -> None:
    sentence = read_profile(profiles.profile([profiles.layer("fc", "Linear", 0, 1.0, 0.25)]))
    assert sentence == "One tensor has a gradient: `fc`, rms 2.50e-01."


def test_a_gradient_over_time_is_measured_from_last_step_to_first() -> None:
    hidden = profiles.recurrent(30).times[0]
    summary = summarize_time(hidden)
    assert summary is not None
    assert summary.decades == pytest.approx(-0.2 * 29)
    assert read_time(hidden) == (
        "In `lstm` the gradient goes from 1.00e-02 at t = 29 to 1.58e-08 at t = 0 (−5.8 decades back through time)."
    )


def test_steps_that_no_sequence_reaches_are_left_out_of_the_ends() -> None:
    time = TimeProfile(
        layer="rnn", state="hidden", stack=0, reverse=False, exact=True,
        steps=(profiles.statistics(1e-4), profiles.statistics(1e-2), None),
    )  # fmt: skip
    summary = summarize_time(time)
    assert summary is not None
    assert (summary.first_step, summary.last_step) == (0, 1)
    assert math.isnan(summary.values_log10[2])


def test_a_layer_without_any_step_says_so() -> None:
    time = TimeProfile(layer="rnn", state="hidden", stack=0, reverse=False, exact=True, steps=(None, None))
    assert summarize_time(time) is None
    assert read_time(time) == "No time step of `rnn` has a gradient."


def test_the_hidden_state_that_changes_most_is_the_telling_one() -> None:
    times = profiles.recurrent().times
    assert most_telling(tuple(reversed(times))) is times[0]


def test_an_exact_zero_in_time_is_said() -> None:
    time = TimeProfile(
        layer="rnn", state="hidden", stack=1, reverse=True, exact=True,
        steps=(profiles.statistics(0.0), profiles.statistics(1.0)),
    )  # fmt: skip
    assert (
        read_time(time, labelled=True) == "In `rnn` (layer 1, reverse) the gradient at the first step is exactly zero."
    )
