"""What a forecast record derives from its rows."""

from __future__ import annotations

import dataclasses
import math

import pytest

from headwater.errors import InputError
from headwater.records.budget import Budget
from headwater.records.forecast import Forecast, ForecastCoverage, LayerForecast
from headwater.records.time_forecast import TimeForecast


def forecast(*gradients_log10: float | None) -> Forecast:
    """A trunk of layers "0", "1", …, input side first."""
    layers = tuple(
        LayerForecast(
            name=str(i),
            type="Linear",
            kind="linear",
            on_trunk=True,
            shape=(4, 8),
            activation_rms_log10=0.0,
            activation_band_decades=0.1,
            gradient_rms_log10=value,
            gradient_band_decades=None if value is None else 0.1,
            unknown="odd" if value is None else None,
        )
        for i, value in enumerate(gradients_log10)
    )
    return Forecast(
        layers=layers,
        parameters=(),
        budget=Budget(()),
        coverage=ForecastCoverage(operations=3, unruled={"odd": "no rule"}, unknown_layers=("1",)),
        loss_source="probe",
        model_type="Sequential",
        batch_size=4,
        parameter_count=0,
        dtype="float32",
        torch_version="2",
        headwater_version="0",
    )


def test_a_multiplier_is_the_factor_on_the_squared_gradient() -> None:
    # −1 decade of the rms per step is 10⁻² of the square; ξ = 1/ln 100 = 0.217 steps.
    record = forecast(-3.0, -2.0, -1.0)
    assert [b.multiplier for b in record.blocks] == pytest.approx([1e-2, 1e-2])
    assert record.multiplier == pytest.approx(1e-2)
    assert record.depth_scale == pytest.approx(1.0 / math.log(100.0))


def test_an_even_gradient_has_an_infinite_depth_scale() -> None:
    assert forecast(-1.0, -1.0).depth_scale == math.inf


def test_an_unknown_layer_is_left_out_of_the_blocks_and_never_taken_as_one() -> None:
    record = forecast(-3.0, None, -1.0)
    assert [(b.name, b.above) for b in record.blocks] == [("0", "2")]
    assert record.layer("1").gradient_rms is None
    assert not record.coverage.complete
    assert "odd (no rule)" in str(record.coverage)


# 2^-14 = 10^-4.21 and 65504 = 10^4.82 in float16; 2^-126 = 10^-37.93 in float32 and bfloat16.
@pytest.mark.parametrize(
    ("gradients", "dtype", "layer", "kind"),
    [
        ((-5.0, -4.3, -4.2), "float16", "1", "underflow"),
        ((5.0, 4.9, 4.8), "fp16", "1", "overflow"),
        ((-39.0, -38.0, -37.9), "bfloat16", "1", "underflow"),
        ((-38.0, -37.0, -1.0), "torch.float32", "0", "underflow"),
    ],
)
def test_the_first_layer_from_the_loss_that_does_not_fit_is_named(
    gradients: tuple[float, ...], dtype: str, layer: str, kind: str
) -> None:
    point = forecast(*gradients).fails_at(dtype)
    assert point is not None
    assert (point.layer, point.kind, point.depth) == (layer, kind, 2 - int(layer))


def test_a_gradient_that_fits_fails_nowhere_and_an_unknown_format_raises() -> None:
    assert forecast(-5.0, -4.0).fails_at("float32") is None
    with pytest.raises(InputError, match="one of float64"):
        forecast(-5.0).fails_at("int8")


def test_a_forecast_reads_back_as_it_was_written() -> None:
    record = forecast(-3.0, None, -math.inf)
    assert Forecast.from_json(record.to_json()) == record


def test_the_table_has_no_number_where_nothing_is_known() -> None:
    rows = forecast(-3.0, None).table()
    assert rows[0]["gradient_rms"] == pytest.approx(1e-3)
    assert rows[1]["gradient_rms"] is None
    assert "odd" in str(rows[1]["unknown"])


def test_coverage_claims_a_rule_for_each_operation_only_where_everything_is_known() -> None:
    assert str(ForecastCoverage(operations=7)) == "a rule for each of 7 operations"
    lost = ForecastCoverage(operations=7, unknown_layers=("a", "b"), unknown_parameters=("a.weight",))
    assert str(lost) == "7 operations; 2 layers and 1 parameters are unknown"


def test_steps_of_several_stacks_are_pooled_as_mean_squares() -> None:
    def state(stack: int, *gradients: float | None) -> TimeForecast:
        return TimeForecast(
            layer="rnn",
            state="hidden",
            stack=stack,
            reverse=False,
            activation_rms_log10=(),
            gradient_rms_log10=gradients,
        )

    record = dataclasses.replace(forecast(-1.0), times=(state(0, 0.0, None), state(1, math.log10(7.0), 0.0)))
    # √((1² + 7²)/2) = 5; a step that one of them does not know is not known.
    pooled = record.through_time("rnn")
    assert pooled[0] == pytest.approx(5.0)
    assert math.isnan(pooled[1])
    assert record.through_time("rnn", stack=1) == pytest.approx((7.0, 1.0))
    with pytest.raises(KeyError, match="no activation"):
        record.through_time("rnn", kind="activation")
