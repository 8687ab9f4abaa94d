"""Recurrent layers: forecast states, gradients through time and weight gradients against sampled networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headwater as hw
from headwater._predict import predict
from headwater.capture.meta_run import predict_run

Make = Callable[[], nn.Module]
WIDTH = 64


class LastStep(nn.Module):
    """A recurrent layer and a linear one on its last step."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(32, WIDTH, batch_first=True, **options)
        self.out = nn.Linear(WIDTH * (2 if self.layer.bidirectional else 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(x)[0][:, -1])
        return out


class MeanOverTime(LastStep):
    """The same on the mean over the steps: the gradients at different steps are equal."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(x)[0].mean(1))
        return out


class LastStates(LastStep):
    """The same on the last states of both directions."""

    def forward(self, x: Tensor) -> Tensor:
        final = self.layer(x)[1]
        states = final[0] if isinstance(final, tuple) else final
        out: Tensor = self.out(torch.cat([states[-2], states[-1]], dim=1))
        return out


def mean_logs(make: Make, draws: int, *run: Any) -> dict[str, float]:
    """Mean over draws of log10 rms: ``h name`` of activations, ``g name`` of gradients, ``w name`` of weight gradients."""
    found: dict[str, list[float]] = {}
    for seed in range(draws):
        torch.manual_seed(seed)
        profile = hw.measure(make(), *run)
        for row in profile.layers:
            found.setdefault(f"h {row.name}", []).append(row.activation.rms_log10)
            if row.gradient is not None:
                found.setdefault(f"g {row.name}", []).append(row.gradient.rms_log10)
        for parameter in profile.parameters:
            if parameter.gradient is not None:
                found.setdefault(f"w {parameter.name}", []).append(parameter.gradient.rms_log10)
        for times in profile.times:
            for t, step in enumerate(times.steps):
                if step is not None:
                    key = f"t {times.state} {times.stack} {times.reverse} {t}"
                    found.setdefault(key, []).append(step.rms_log10)
    return {name: math.fsum(v) / len(v) for name, v in found.items()}


def assert_forecast(make: Make, *run: Any, draws: int = 8, tolerance: float = 0.06) -> None:
    """Every activation, gradient and weight gradient within a tolerance in decades."""
    forecast = predict(make, *run)
    assert forecast.coverage.complete, forecast.coverage
    logs = mean_logs(make, draws, *run)
    for row in forecast.layers:
        for key, value in ((f"h {row.name}", row.activation_rms_log10), (f"g {row.name}", row.gradient_rms_log10)):
            if key in logs:  # the 10 outputs of the last layer share a bias: √(2/10/8)/(2 ln 10) = 0.034 decades
                assert value == pytest.approx(logs[key], abs=max(tolerance, 0.1 if key == "h out" else 0.0)), key
    for parameter in forecast.parameters:
        assert parameter.gradient_rms_log10 == pytest.approx(logs[f"w {parameter.name}"], abs=tolerance), parameter.name


# 8 draws of width 64: the reference of a bias' gradient, 64 numbers, has a standard error of √(2/64/8)/(2 ln 10) = 0.014
# decades, times the fluctuation of the layers above; 0.06 is allowed.
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}),
        ("LSTM", {"num_layers": 2}),
        ("GRU", {}),
        ("GRU", {"bias": False, "num_layers": 2}),
    ],
    ids=lambda v: str(v),
)
@pytest.mark.parametrize("network", [LastStep, MeanOverTime])
def test_states_and_gradients_of_a_recurrent_layer_are_forecast(
    kind: str, options: dict[str, Any], network: type[LastStep]
) -> None:
    torch.manual_seed(100)
    assert_forecast(lambda: network(kind, **options), torch.randn(8, 10, 32))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_last_states_of_both_directions_carry_the_gradient(kind: str) -> None:
    torch.manual_seed(100)
    assert_forecast(lambda: LastStates(kind, bidirectional=True, num_layers=2), torch.randn(8, 6, 32))


def test_correlated_steps_add_up_in_the_weight_gradient() -> None:
    # The same input at every step: T contributions of one sign. The mean over steps lets them meet.
    torch.manual_seed(100)
    x = torch.randn(8, 1, 32).expand(8, 12, 32).contiguous()
    for kind in ("RNN", "LSTM", "GRU"):
        assert_forecast(lambda kind=kind: MeanOverTime(kind), x, draws=12)  # type: ignore[misc]


def times_error(make: Make, x: Tensor, draws: int) -> float:
    """Largest error in decades of log10 rms(∂L/∂h_t) over all steps, layers and states."""
    found = predict_run(make, x)
    logs = mean_logs(make, draws, x)
    errors = []
    for states in found.times.values():
        for state in states:
            for t, value in enumerate(state.gradient_rms_log10):
                key = f"t {state.state} {state.stack} {state.reverse} {t}"
                errors.append(abs(value - logs[key]))
    return max(errors)


# Over T steps of one matrix of width n the mean-field value is off by about T²/n of what one step changes: measured
# 0.03 decades at T = 15 of 5 (RNN), and the drift per step falls as 1/n (0.0045 at n = 64, 0.0015 at n = 256).
@pytest.mark.parametrize(
    ("kind", "options"), [("RNN", {}), ("LSTM", {}), ("GRU", {}), ("LSTM", {"num_layers": 2})], ids=str
)
def test_the_gradient_at_every_step_is_forecast(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(100)
    assert times_error(lambda: LastStep(kind, **options), torch.randn(8, 15, 32), 8) < 0.10


def test_an_orthogonal_tanh_recurrence_of_gain_09_loses_09_per_step() -> None:
    # THEORY: 0.9^100 = 2.66e-5 (sampled 2.53e-5). With states near 0, tanh' = 1 and every step multiplies by 0.9.
    def make() -> nn.Module:
        model = LastStep("RNN")
        nn.init.orthogonal_(model.layer.weight_hh_l0, 0.9)
        nn.init.normal_(model.layer.weight_ih_l0, 0.0, 1e-3)
        nn.init.zeros_(model.layer.bias_ih_l0)
        nn.init.zeros_(model.layer.bias_hh_l0)
        return model

    states = predict_run(make, torch.empty(4, 101, 32, device="meta")).times["layer"][0].gradient_rms_log10
    assert states[0] - states[-1] == pytest.approx(100 * math.log10(0.9), abs=0.02)


@pytest.mark.parametrize("bias", [1.0, 5.0])
def test_the_forget_gates_bias_keeps_the_cells_gradient(bias: float) -> None:
    # Without weights into the gates but the input's small ones, c_{t-1} gets σ(b_f) of what c_t gets: 200 steps of b = 5
    # leave σ(5)^199 = 0.26, of b = 1 nothing (THEORY: 0.73 and 0.993 per step).
    def make() -> nn.Module:
        model = LastStep("LSTM")
        with torch.no_grad():
            model.layer.weight_hh_l0.normal_(0.0, 1e-6)
            model.layer.weight_ih_l0.normal_(0.0, 1e-6)
            model.layer.bias_ih_l0.zero_()
            model.layer.bias_hh_l0.zero_()
            model.layer.bias_ih_l0[WIDTH : 2 * WIDTH].fill_(bias)
        return model

    states = predict_run(make, torch.empty(4, 200, 32, device="meta")).times["layer"]
    cell = next(s for s in states if s.state == "cell").gradient_rms_log10
    expected = 199 * math.log10(1.0 / (1.0 + math.exp(-bias)))
    assert cell[0] - cell[-1] == pytest.approx(expected, abs=1e-3)


def test_a_long_memory_is_forecast() -> None:
    # σ(5) = 0.993: gradients enter the cell at every step, so those that entered at different steps meet (T ε large).
    def make() -> nn.Module:
        model = LastStep("LSTM")
        with torch.no_grad():
            model.layer.bias_ih_l0[WIDTH : 2 * WIDTH].fill_(5.0)
            model.layer.bias_hh_l0[WIDTH : 2 * WIDTH].zero_()
        return model

    torch.manual_seed(100)
    assert times_error(make, torch.randn(8, 50, 32), 8) < 0.10


def test_the_laws_of_gates_are_read_off_a_model_with_values() -> None:
    torch.manual_seed(0)
    model = LastStep("LSTM")
    with torch.no_grad():
        model.layer.bias_ih_l0[WIDTH : 2 * WIDTH].fill_(3.0)
    x = torch.randn(8, 10, 32)
    profile = hw.measure(model, x)
    forecast = predict(model, x)
    for name in ("layer", "out"):
        measured = profile.layer(name)
        assert forecast.layer(name).activation_rms_log10 == pytest.approx(measured.activation.rms_log10, abs=0.1)
    for parameter in profile.parameters:
        assert parameter.gradient is not None
        value = forecast.parameter(parameter.name).gradient_rms_log10
        assert value == pytest.approx(parameter.gradient.rms_log10, abs=0.15), parameter.name


class CellLoop(nn.Module):
    """A cell called in a loop."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(32, WIDTH)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        assert state is not None
        out: Tensor = self.out(state[0] if isinstance(state, tuple) else state)
        return out


# A cell is called step by step, so covariances between steps are left out: up to 0.04 decades per step are missing where
# the state carries the gradient itself (LSTM, GRU), and the forecast says so.
@pytest.mark.parametrize(("kind", "tolerance"), [("RNNCell", 0.06), ("LSTMCell", 0.20), ("GRUCell", 0.27)])
def test_a_cell_in_a_loop_is_followed(kind: str, tolerance: float) -> None:
    torch.manual_seed(100)
    x = torch.randn(8, 6, 32)
    assert_forecast(lambda: CellLoop(kind), x, tolerance=tolerance)
    said = predict(lambda: CellLoop(kind), x).coverage.assumptions
    assert any("called once per step" in s for s in said) == (kind != "RNNCell")


class Tokens(nn.Module):
    """Token ids, (T, B): torch's default layout of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 32)
        self.layer = nn.LSTM(32, WIDTH)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(self.table(ids))[0][-1])
        return out


def test_samples_are_found_along_the_second_dimension_where_the_layer_takes_them_there() -> None:
    torch.manual_seed(100)
    assert_forecast(Tokens, torch.randint(0, 500, (7, 16)))


class Translator(nn.Module):
    """An encoder whose last state starts a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(32, WIDTH, batch_first=True)
        self.decoder = nn.GRU(32, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        _, state = self.encoder(x)
        out: Tensor = self.out(self.decoder(y, state)[0])
        return out


def test_an_initial_state_hands_the_gradient_to_the_encoder() -> None:
    torch.manual_seed(100)
    assert_forecast(Translator, (torch.randn(8, 5, 32), torch.randn(8, 6, 32)))


# -------------------------------------------------------------------- what is not known is said


def unknown(make: Make | nn.Module, x: Any) -> tuple[str, ...]:
    forecast = predict(make, x)
    assert not forecast.coverage.complete
    assert forecast.coverage.unruled
    return forecast.coverage.unknown_parameters


def test_an_identity_recurrence_is_not_taken_for_a_random_one() -> None:
    # Le et al. 2015: U = 1 is no matrix of independent entries; its forecast would be silently wrong.
    def make() -> nn.Module:
        model = LastStep("RNN", nonlinearity="relu")
        nn.init.eye_(model.layer.weight_hh_l0)
        return model

    assert "layer.weight_hh_l0" in unknown(make, torch.randn(4, 5, 32))
    torch.manual_seed(0)
    assert "layer.weight_hh_l0" in unknown(make(), torch.randn(4, 5, 32))


class Packed(LastStep):
    """Sequences of different lengths."""

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 3, 2]), batch_first=True)
        out: Tensor = self.out(self.layer(packed)[1][-1])
        return out


def test_packed_sequences_are_unknown_and_said_to_be() -> None:
    found = unknown(lambda: Packed("LSTM"), torch.randn(4, 5, 32))
    assert {"layer.weight_ih_l0", "layer.weight_hh_l0"} <= set(found)


def test_a_gate_that_takes_its_bias_apart_by_hand_is_unknown() -> None:
    # A bias of which one quarter is 5 has no law of its own; its gates would all be given the mean 1.25.
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(32, 4 * WIDTH)
            self.out = nn.Linear(WIDTH, 10)
            with torch.no_grad():
                self.inner.bias[:WIDTH].fill_(5.0)

        def forward(self, x: Tensor) -> Tensor:
            i, f, g, o = self.inner(x).chunk(4, 1)
            out: Tensor = self.out(torch.sigmoid(o) * torch.tanh(torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f)))
            return out

    assert "inner.weight" in unknown(ByHand, torch.randn(4, 32))


def test_a_forecast_has_the_gradient_over_time_under_the_names_of_a_measurement() -> None:
    torch.manual_seed(100)
    x = torch.randn(8, 6, 32)
    forecast = predict(lambda: LastStep("LSTM", num_layers=2), x)
    profile = hw.measure(LastStep("LSTM", num_layers=2), x)
    assert {(t.layer, t.state, t.stack, t.reverse) for t in forecast.times} <= {
        (t.layer, t.state, t.stack, t.reverse) for t in profile.times
    }
    for state in ("hidden", "cell"):
        for stack in (None, 0, 1):
            expected = profile.through_time("layer", state, stack=stack)
            found = forecast.through_time("layer", state, stack=stack)
            # One draw of width 64 over six steps: 0.1 decades are allowed, a factor of 1.26.
            assert found == pytest.approx(expected, rel=0.26), (state, stack)
    assert len(forecast.through_time("layer", kind="activation")) == 6
    comparison = forecast.compare(profile)
    assert len(comparison.times) == 4
    assert comparison.time_error_decades < 0.1
    assert hw.Forecast.from_json(forecast.to_json()) == forecast


def test_a_cell_in_a_loop_is_one_state_over_its_calls() -> None:
    torch.manual_seed(100)
    x = torch.randn(8, 6, 32)
    forecast = predict(lambda: CellLoop("RNNCell"), x)
    profile = hw.measure(CellLoop("RNNCell"), x)
    assert forecast.through_time("cell") == pytest.approx(profile.through_time("cell"), rel=0.3)
    assert len(forecast.through_time("cell", kind="activation")) == 6


def test_a_look_up_of_what_is_not_there_names_what_is() -> None:
    forecast = predict(lambda: LastStep("GRU"), torch.randn(8, 6, 32))
    with pytest.raises(KeyError, match="no recurrent layer named 'lstm'"):
        forecast.through_time("lstm")
    with pytest.raises(KeyError, match="no gradient of state='cell'"):
        forecast.through_time("layer", "cell")
