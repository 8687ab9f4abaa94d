"""``headwater check``: what it measures and prints, where, and what it returns; its verdict: test_check_diagnosis.py."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headwater import Profile
from headwater.cli import main

SOURCE = """
import torch
from torch import nn

print("imported")

def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

def with_batch():
    print("called")
    return mlp(), torch.randn(5, 6), torch.randn(5, 2), nn.functional.mse_loss

def with_loss():
    x = torch.randn(5, 6)
    return {"model": mlp(), "loss": lambda m: m(x).square().mean()}

def convolution():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))

def detached():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()
    return Net(6, 2), torch.randn(5, 6)

def frozen():
    return mlp().requires_grad_(False)

def raising():
    class Net(nn.Linear):
        def forward(self, x):
            raise KeyError("the model's own mistake")
    return Net(6, 2), torch.randn(5, 6)

def mode():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout()).eval()
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "hw_check_models.py"
    path.write_text(SOURCE)
    return path


def check(*words: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


def measured(*words: object) -> Result:
    return check("--profile-only", *words)


def test_the_table_names_the_layers_and_the_coverage(models: Path) -> None:
    result = check(f"{models}:with_batch")
    assert result.exit_code == 0, result.output
    assert "Tanh" in result.stdout
    assert "observed 4 of 4 trainable parameters (100 %)" in " ".join(result.stdout.split())


def test_json_on_stdout_is_json_alone_whatever_the_target_prints(models: Path) -> None:
    result = measured("--json", f"{models}:with_batch")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["schema"] == "headwater.profile"
    assert document["target_shape"] == [5, 2]
    assert "called" in result.stderr


def test_files_are_written_and_the_table_is_still_shown(models: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / f"out.{name}" for name in ("json", "html", "csv")}
    result = measured(
        f"{models}:with_batch", "--json", places["json"], "--html", places["html"], "--csv", places["csv"]
    )
    assert result.exit_code == 0, result.output
    assert "Tanh" in result.stdout
    profile = Profile.from_json(places["json"])
    rows = list(csv.DictReader(io.StringIO(places["csv"].read_text())))
    assert len(rows) == len(profile.layers) + len(profile.parameters)
    assert places["html"].read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_inputs_of_a_bare_model_are_made_up_and_described(models: Path) -> None:
    result = measured("--json", f"{models}:mlp", "--batch", 3)
    assert result.exit_code == 0, result.output
    assert "random inputs, from 0, a Linear: (3, 6) float32" in result.stderr
    document = json.loads(result.stdout)
    assert document["batch_size"] == 3
    assert document["loss_source"] == "probe"


def test_a_loss_of_the_model_replaces_inputs(models: Path) -> None:
    result = measured("--json", f"{models}:with_loss")
    assert json.loads(result.stdout)["loss_source"] == "loss"


def test_the_shape_can_be_given(models: Path) -> None:
    # 8 x 8 pixels without padding: 6 x 6 x 4 channels = 144 features.
    assert check(f"{models}:convolution", "--input-shape", "2,3,8,8").exit_code == 0
    assert check(f"{models}:convolution", "--input-shape", "2x3x8x8").exit_code == 0


def test_the_seed_fixes_weights_and_inputs(models: Path) -> None:
    words = (f"{models}:mlp", "--json")
    first, again, other = measured(*words), measured(*words), measured(*words, "--seed", 1)
    assert first.stdout == again.stdout
    assert json.loads(first.stdout)["parameters"] != json.loads(other.stdout)["parameters"]


def test_draws_give_a_spread(models: Path) -> None:
    document = json.loads(measured(f"{models}:mlp", "--json", "--draws", 4).stdout)
    assert document["draws"] == 4
    assert document["parameters"][0]["spread"]["gradient.rms"]["count"] == 4


@pytest.mark.parametrize(("words", "training"), [((), False), (("--train",), True), (("--eval",), False)])
def test_the_mode_is_the_targets_unless_it_is_switched(models: Path, words: tuple[str, ...], training: bool) -> None:
    assert json.loads(measured(f"{models}:mode", "--json", *words).stdout)["training"] is training


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["{m}:convolution"], 2, "give --input-shape 8,3,32,32"),
        (["{m}:nothing"], 2, "has no 'nothing'"),
        (["{m}:frozen"], 2, "frozen"),
        (["{m}:detached"], 3, ""),
        (["{m}:raising"], 2, "the model or its loss raised KeyError"),
        (["{m}:mlp", "--input-shape", "2,9"], 2, "It was given random inputs, from the options: (2, 9) float32"),
        (["{m}:mlp", "--input-shape", "two"], 2, "is no shape"),
        (["{m}:mlp", "--input-shape", "2,6", "--batch", "2"], 2, "--batch is for inferred shapes"),
        (["{m}:with_batch", "--batch", "2"], 2, "brings its own inputs"),
        (["{m}:mlp", "--html", "/no/such/folder/a.html"], 2, "does not exist"),
        ([], 2, "Missing argument 'TARGET'"),
    ],
)
def test_what_cannot_be_measured_is_explained_without_a_traceback(
    models: Path, words: list[str], code: int, said: str
) -> None:
    result = check(*[w.replace("{m}", str(models)) for w in words])
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_an_unwritable_place_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "hw_never_run.py"
    path.write_text("raise AssertionError('this file must not be imported')")
    result = check(f"{path}:make", "--html", tmp_path)
    assert result.exit_code == 2
    assert "is a folder" in result.stderr


def test_the_debug_variable_shows_the_traceback(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_DEBUG", "1")
    result = check(f"{models}:raising")
    assert result.exception is not None
    assert isinstance(result.exception.__cause__, KeyError)


def test_a_mistake_in_headwater_itself_is_not_blamed_on_the_model(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater._measure._check_arguments", None)  # calling it is a TypeError in headwater's file
    result = check(f"{models}:with_batch")
    assert isinstance(result.exception, TypeError)


def test_explain_init_prints_a_table_and_json(models: Path) -> None:
    result = CliRunner().invoke(main, ["explain-init", f"{models}:mlp"])
    assert result.exit_code == 0, result.output
    assert "0.weight" in result.stdout
    result = CliRunner().invoke(main, ["explain-init", "--json", f"{models}:mlp"])
    assert json.loads(result.stdout)["schema"].startswith("headwater.")
