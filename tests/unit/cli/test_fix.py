"""``headwater fix``: what it prints, what it writes, what it never overwrites."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from headwater.cli.fix import command
from headwater.errors import OutputError, TargetError
from headwater.records.remedy import Prescriptions

SICK = """
import torch
from torch import nn

def make():
    layers = [m for _ in range(8) for m in (nn.Linear(12, 12), nn.Sigmoid())]
    x = torch.randn(24, 12)
    return nn.Sequential(*layers, nn.Linear(12, 3)), x, torch.arange(24) % 3, nn.functional.cross_entropy

def fine():
    x = torch.randn(24, 12)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)), x, torch.arange(24) % 3, nn.functional.cross_entropy

def broken():
    class Broken(nn.Linear):
        def forward(self, x):
            raise ValueError("on purpose")
    return Broken(3, 3), torch.randn(2, 3)
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "sick_model.py"
    path.write_text(SICK, encoding="utf-8")
    return f"{path}:make"


def fix(*words: str) -> Result:
    return CliRunner().invoke(command, [*words, "--steps", "5"])


def test_the_recommendation_and_its_code_are_printed(target: str) -> None:
    result = fix(target)
    assert result.exit_code == 0, result.output
    assert "vanishing, healed by" in result.output
    assert "Code to paste" in result.output
    assert "torch" in result.output


def test_the_code_is_written_where_asked_and_runs(target: str, tmp_path: Path) -> None:
    path = tmp_path / "repair.py"
    result = fix(target, "--apply-to", str(path))
    assert result.exit_code == 0, result.output
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    layers = [m for _ in range(8) for m in (torch.nn.Linear(12, 12), torch.nn.Sigmoid())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(12, 3))
    exec(text, {"model": model})
    assert model(torch.randn(2, 12)).shape == (2, 3)


def test_a_file_is_never_overwritten_without_force(target: str, tmp_path: Path) -> None:
    path = tmp_path / "repair.py"
    path.write_text("mine", encoding="utf-8")
    result = fix(target, "--apply-to", str(path))
    assert isinstance(result.exception, OutputError)
    assert path.read_text(encoding="utf-8") == "mine"
    assert fix(target, "--apply-to", str(path), "--force").exit_code == 0
    assert path.read_text(encoding="utf-8") != "mine"


def test_json_alone_on_standard_output(target: str) -> None:
    result = fix(target, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert data["schema"] == "headwater.prescriptions"
    assert Prescriptions.from_json(result.stdout).healed


def test_a_page_has_both_pictures(target: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert fix(target, "--html", str(path)).exit_code == 0
    page = path.read_text(encoding="utf-8")
    assert "Gradient of every weight, before and after" in page
    assert "Loss of the trial" in page


def test_a_healthy_model_is_left_alone(target: str, tmp_path: Path) -> None:
    path = tmp_path / "repair.py"
    result = fix(target.replace(":make", ":fine"), "--apply-to", str(path))
    assert result.exit_code == 0, result.output
    assert "nothing to prescribe" in result.output
    assert not path.exists()


def test_a_model_that_nothing_heals_exits_with_1(target: str) -> None:
    result = CliRunner().invoke(command, [target, "--budget", "0.0001"])
    assert result.exit_code == 1
    assert "no remedy could be tried" in result.output


def test_force_without_a_file_is_wrong_usage(target: str) -> None:
    assert fix(target, "--force").exit_code == 2


def test_a_model_that_raises_is_said_in_one_line(target: str) -> None:
    result = fix(target.replace(":make", ":broken"))
    assert isinstance(result.exception, TargetError)
    assert "on purpose" in str(result.exception)
