"""``headwater phase``: the diagram, the mark of a network, the table of gains, files and errors."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from click.testing import CliRunner, Result

from headwater.cli import main
from headwater.records.phase import ActivationTable, PhaseDiagram
from headwater.reports import to_figure, to_text
from headwater.reports.phase_words import read_diagram

SOURCE = """
import torch
from torch import nn

def deep():
    return nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(100, 100), nn.Tanh())], nn.Linear(100, 2))

def he():
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(200, 200), nn.ReLU())])
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model

def mixed():
    return nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.Tanh())

def linear():
    return nn.Linear(3, 3)

class Cube(nn.Module):
    def forward(self, x):
        return torch.tanh(x) + 0.1 * x
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "hw_phase_models.py"
    path.write_text(SOURCE)
    return path


def phase(*words: object) -> Result:
    return CliRunner().invoke(main, ["phase", *map(str, words)])


def diagram(*words: object) -> PhaseDiagram:
    result = phase(*words, "--resolution", 15, "--json")
    assert result.exit_code == 0, result.output
    return PhaseDiagram.from_json(result.stdout)


def test_the_critical_line_and_the_map_are_printed() -> None:
    result = phase("tanh", "--resolution", 15)
    assert result.exit_code == 0, result.output
    assert ". vanishes   # explodes" in result.stdout
    assert "1.761" in result.stdout  # σ_w² at σ_b² = 0.05
    assert "On the line (σ_w² = 1 at σ_b² = 0, 2.51 at σ_b² = 0.3)" in " ".join(result.stdout.split())


def test_json_is_a_record_that_reads_back() -> None:
    record = diagram("tanh")
    assert len(record.multipliers) == len(record.bias_variances) == 15
    assert PhaseDiagram.from_json(record.to_json()) == record


def test_a_network_is_placed_by_its_mean_variances(models: Path) -> None:
    record = diagram("--target", f"{models}:deep")
    assert record.activation == "tanh"
    assert record.network is not None
    # torch's default Linear: fan_in · Var(W) = 1/3, Var(b) = 1/(3 · 100); 40,000 weights
    assert record.network.mean.weight_variance == pytest.approx(1 / 3, rel=0.02)
    assert record.network.mean.bias_variance == pytest.approx(1 / 300, rel=0.2)
    assert list(record.network.layers) == ["0.weight", "2.weight", "4.weight", "6.weight"]
    assert record.network.mean.phase == "ordered"
    assert record.network.matches
    text = phase("--target", f"{models}:deep", "--resolution", 15).stdout
    assert "is in the ordered phase: 0.24 decades of gradient are lost per layer" in " ".join(text.split())


def test_he_initialisation_sits_on_the_critical_line(models: Path) -> None:
    record = diagram("relu", "--target", f"{models}:he")
    assert record.network is not None
    assert record.network.mean.phase == "critical"
    assert "sits on the critical line" in read_diagram(record)


def test_another_activation_than_the_networks_own_is_said(models: Path) -> None:
    record = diagram("tanh", "--target", f"{models}:he")
    assert record.network is not None
    assert not record.network.matches
    assert "followed by ReLU, not by tanh" in " ".join(to_text(record).split())


def test_of_several_activations_the_named_one_chooses_the_layers(models: Path) -> None:
    record = diagram("relu", "--target", f"{models}:mixed")
    assert record.network is not None
    assert list(record.network.layers) == ["0.weight"]


def test_an_activation_of_ones_own_is_a_target(models: Path) -> None:
    record = diagram(f"{models}:Cube")
    assert record.activation == "Cube"
    # slope 1.1 at 0: χ = σ_w² · 1.21 for small signals
    assert record.critical[0].weight_variance == pytest.approx(1 / 1.21, rel=1e-3)


def test_the_seed_fixes_the_network(models: Path) -> None:
    words = ("--target", f"{models}:deep")
    assert diagram(*words) == diagram(*words)
    assert diagram(*words) != diagram(*words, "--seed", 1)


def test_the_page_is_written_and_needs_no_network(tmp_path: Path) -> None:
    path = tmp_path / "phase.html"
    assert phase("relu", "--resolution", 5, "--html", path).exit_code == 0
    page = path.read_text()
    assert "Phase diagram of deep relu networks" in page
    assert "cdn.plot.ly" not in page.split("<script")[0]


def test_the_figure_has_the_line_the_mark_and_units(models: Path) -> None:
    record = diagram("--target", f"{models}:deep")
    figure = to_figure(record)
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["critical line, χ = 1", "its layers", "deep"]
    assert "fan_in · Var(W)" in figure.layout.xaxis.title.text
    assert "layers" in figure.data[0].colorbar.title.text
    mark = figure.data[-1]
    assert record.network is not None
    assert (mark.x[0], mark.y[0]) == (record.network.mean.weight_variance, record.network.mean.bias_variance)
    # ξ = 1 layer is one end of the colours, ξ = 10 two thirds of the way: 1 - log10(10)/3
    flat = [z for row in figure.data[0].z for z in row]
    assert -1.0 <= min(flat) < 0.0 < max(flat) <= 1.0


def test_a_map_with_a_jump_is_not_smoothed_over_it() -> None:
    assert to_figure(diagram("gelu")).data[0].zsmooth is False
    assert to_figure(diagram("tanh")).data[0].zsmooth == "best"


@pytest.mark.slow
def test_without_an_activation_the_gains_of_all_are_listed() -> None:
    result = phase("--json")
    assert result.exit_code == 0, result.output
    table = ActivationTable.from_json(result.stdout)
    assert ActivationTable.from_json(table.to_json()) == table
    text = to_text(table)
    assert "calculate_gain" in text
    assert "1.4811" in text  # backward, GELU


def test_a_picture_is_drawn_where_kaleido_is_there_and_explained_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        return None if name == "kaleido" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    result = phase("tanh", "--png", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "pip install 'headwater[png]'" in result.stderr

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: object() if name == "kaleido" else find(name, package)
    )
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(go.Figure, "write_image", lambda self, path, **options: drawn.update(options, path=path))
    assert phase("tanh", "--resolution", 5, "--png", tmp_path / "a.png").exit_code == 0
    assert drawn["path"] == tmp_path / "a.png"
    assert drawn["format"] == "png"

    def broken(self: go.Figure, path: Path, **options: Any) -> None:
        raise RuntimeError("no browser\n  here")

    monkeypatch.setattr(go.Figure, "write_image", broken)
    result = phase("tanh", "--resolution", 5, "--png", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "(RuntimeError: no browser here)" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "no activation named 'nope'"),
        (["--target", "{m}:mixed"], "say which activation the diagram is for"),
        (["tanh", "--target", "{m}:linear"], "no place in the diagram"),
        (["tanh", "--weight-max", "-1"], "weight_max should be"),
        (["tanh", "--html", "/no/such/folder/a.html"], "does not exist"),
        (["tanh", "--resolution", "1"], "Invalid value for '--resolution'"),
    ],
)
def test_what_cannot_be_drawn_is_explained_without_a_traceback(models: Path, words: list[str], said: str) -> None:
    result = phase(*[w.replace("{m}", str(models)) for w in words])
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_the_json_document_names_its_schema() -> None:
    assert json.loads(phase("tanh", "--resolution", 5, "--json").stdout)["schema"] == "headwater.phase"
