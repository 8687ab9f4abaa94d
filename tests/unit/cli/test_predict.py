"""``headwater predict``: the meta device by default, values where they are needed, comparison, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headwater.cli import main
from headwater.records import Forecast

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F

SCALE = torch.ones(())  # made when the file is imported: it keeps its value
called_on = []

def deep():
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 32))

def counted():
    called_on.append(str(torch.empty(()).device))
    print("calls", len(called_on))
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))

def wide_weights():
    layers = []
    for _ in range(4):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=0.3)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 32))

ready = deep()

def huge():
    # 10 million times 10 million weights of 4 bytes are 400 terabytes.
    return nn.Sequential(nn.Linear(10_000_000, 10_000_000), nn.ReLU(), nn.Linear(10_000_000, 32))

def tokens():
    return nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 50))

def with_batch():
    return deep(), torch.randn(64, 64), torch.randint(32, (64,)), F.cross_entropy

def with_loss():
    return {"model": deep(), "loss": lambda model: model(torch.ones(2, 64)).sum()}

def needs_values():
    return nn.Linear(64, int(SCALE.item()) * 32) if torch.randn(()).item() < 99 else None

class Lost(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        return torch.cumprod(self.a(x), 1)

def lost():
    return Lost()
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "hw_predict_models.py"
    path.write_text(SOURCE)
    return path


def predict(*words: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def test_a_model_alone_is_called_on_the_meta_device(models: Path) -> None:
    result = predict(f"{models}:huge", "--json")
    assert result.exit_code == 0, result.output
    record = Forecast.from_json(result.stdout)
    assert record.parameter_count == 10**14 + 10**7 + 32 * 10**7 + 32
    assert record.coverage.complete


def test_a_model_alone_is_made_once(models: Path) -> None:
    result = predict(f"{models}:counted", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("calls") == 1  # what a TARGET prints goes to standard error


def test_the_text_has_the_table_the_trunk_and_the_sentence(models: Path) -> None:
    result = predict(f"{models}:deep", "--width", 120)
    assert result.exit_code == 0, result.output
    assert "random inputs, from 0, a Linear: (8, 64) float32" in result.stderr
    assert "Trunk: 8 → 0" in result.stdout
    assert "From 8 to 0 the gradient shrinks by" in result.stdout


def test_tokens_have_values_so_that_nothing_is_unknown(models: Path) -> None:
    record = Forecast.from_json(predict(f"{models}:tokens", "--json").stdout)
    assert record.coverage.complete
    assert not record.coverage.unruled


def test_the_inputs_that_target_brings_are_used(models: Path) -> None:
    record = Forecast.from_json(predict(f"{models}:with_batch", "--json").stdout)
    assert record.batch_size == 64
    assert record.loss_source == "loss_fn"
    refused = predict(f"{models}:with_batch", "--batch", 4)
    assert refused.exit_code == 2
    assert "brings its own inputs" in refused.output


def test_compare_measures_as_well(models: Path) -> None:
    result = predict(f"{models}:deep", "--compare", "--batch", 64, "--draws", 5, "--json")
    assert result.exit_code == 0, result.output
    both = json.loads(result.stdout)
    forecast = Forecast.from_dict(both["forecast"])
    assert len(both["comparison"]["rows"]) == len(forecast.layers) == 9
    # Five layers of width 64, mean of five draws: a deviation of about √(5/64)/√5 in the squared gradient.
    assert both["comparison"]["rms_error_decades"] < 0.1


@pytest.mark.parametrize("name", ["wide_weights", "ready"])
def test_draws_keep_the_initialisers_of_the_target(models: Path, name: str) -> None:
    # Weights of std 0.3 would be off by log10(0.3/0.072) = 0.6 decades per layer after each module's own reset_parameters.
    # A ready object cannot be called again: it is re-initialised that way.
    result = predict(f"{models}:{name}", "--compare", "--batch", 64, "--draws", 5, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["comparison"]["rms_error_decades"] < 0.1


def test_compare_shows_both_and_writes_both_on_one_page(models: Path, tmp_path: Path) -> None:
    page = tmp_path / "forecast.html"
    result = predict(f"{models}:with_batch", "--compare", "--html", page)
    assert result.exit_code == 0, result.output
    for text in (result.stdout, page.read_text()):
        assert "Gradient forecast of Sequential" in text
        assert "Forecast and measurement" in text


def test_a_target_that_needs_values_is_called_with_them_and_says_so(models: Path) -> None:
    result = predict(f"{models}:needs_values", "--input-shape", "8,64", "--json")
    assert result.exit_code == 0, result.output
    assert "called with values, as it cannot be called on the meta device" in result.stderr
    assert Forecast.from_json(result.stdout).parameter_count == 64 * 32 + 32


def test_nothing_to_forecast_is_exit_code_3(models: Path) -> None:
    result = predict(f"{models}:lost")
    assert result.exit_code == 3
    assert "cumprod" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deep", "--draws", "3"], "add --compare"),
        (["deep", "--input-shape", "8,64", "--batch", "4"], "--batch is for inferred shapes"),
        (["deep", "--input-shape", "8,63"], "It was given random inputs"),
        (["with_loss"], "a forecast needs inputs"),
        (["nothing"], "has no 'nothing'"),
        (["deep", "--html", "/no/such/folder/page.html"], "does not exist"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_to_do(models: Path, words: list[str], message: str) -> None:
    result = predict(f"{models}:{words[0]}", *words[1:])
    assert result.exit_code == 2
    assert message in result.output


def test_a_target_without_a_name_is_refused(models: Path) -> None:
    result = predict(models)
    assert result.exit_code == 2
    assert "names no function" in result.output
