"""TARGET: what it may be, and what is said when it is something else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headwater.cli.target import load_target
from headwater.errors import TargetError

SOURCE = """
import torch
from torch import nn

READY = nn.Linear(3, 2)
NUMBER = 3

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 2))

class Nested:
    @staticmethod
    def make():
        return Net()

def make_model():
    return Net()

def make_tuple():
    return Net(), torch.zeros(4, 3), torch.zeros(4, 2), nn.functional.mse_loss

def make_mapping():
    return {"model": Net(), "inputs": {"input": torch.zeros(4, 3)}}

def make_with_loss():
    return {"model": Net(), "loss": lambda m: m(torch.ones(1, 3)).sum()}

def needs(width, depth=3):
    return Net()

def fails():
    return nn.Linear(3, "two")

def gives_nothing():
    Net()

def gives_class():
    return Net, torch.zeros(4, 3)

def gives_five():
    return 1, 2, 3, 4, 5

def bad_key():
    return {"model": Net(), "input": torch.zeros(4, 3)}

def bad_inputs():
    return Net(), "text"

def bad_loss():
    return Net(), torch.zeros(4, 3), None, "mse"

def loss_without_inputs():
    return Net(), None, None, nn.functional.mse_loss
"""
FAILING_LINE = SOURCE.splitlines().index('    return nn.Linear(3, "two")') + 1


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and "pytest" in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "hw_models.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("name", ["make_model", "Net", "READY", "Nested.make"])
def test_a_function_a_class_an_instance_and_a_dotted_name_give_a_model(models: Path, name: str) -> None:
    target = load_target(f"{models}:{name}")
    assert isinstance(target.model, torch.nn.Module)
    assert target.inputs is None


def test_a_tuple_gives_model_inputs_targets_and_loss(models: Path) -> None:
    target = load_target(f"{models}:make_tuple")
    assert target.inputs.shape == (4, 3)
    assert target.targets.shape == (4, 2)
    assert target.loss_fn is torch.nn.functional.mse_loss


def test_a_mapping_gives_its_keys(models: Path) -> None:
    assert load_target(f"{models}:make_mapping").inputs["input"].shape == (4, 3)
    assert callable(load_target(f"{models}:make_with_loss").loss)


def test_a_module_is_found_in_the_current_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.parent)
    assert isinstance(load_target("hw_models:make_model").model, torch.nn.Module)


def test_a_file_can_import_its_neighbours(models: Path, tmp_path: Path) -> None:
    (tmp_path / "hw_entry.py").write_text("from hw_models import make_model\n")
    assert isinstance(load_target(f"{tmp_path / 'hw_entry.py'}:make_model").model, torch.nn.Module)


def test_a_file_named_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "random.py"
    path.write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    load_target(f"{path}:make")
    import random

    assert hasattr(random, "shuffle")


# Each message names what was wrong and what to do: the words that must be in it.
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("make_modle", ["make_modle", "did you mean make_model"]),
        ("NUMBER", ["NUMBER is a int", "function that returns the model"]),
        ("needs", ["needs arguments (width)", "def make()"]),
        ("fails", ["calling fails()", "TypeError", f"hw_models.py, line {FAILING_LINE}", "HEADWATER_DEBUG=1"]),
        ("gives_nothing", ["NoneType", "return the model?"]),
        ("gives_class", ["the class itself: call it"]),
        ("gives_five", ["5 values", "(model, inputs[, targets[, loss_fn]])"]),
        ("bad_key", ["unknown key 'input'", "did you mean inputs"]),
        ("bad_inputs", ["inputs are a str", "a tensor, a tuple"]),
        ("bad_loss", ["loss_fn is a str"]),
        ("loss_without_inputs", ["loss_fn without inputs"]),
    ],
)
def test_the_error_says_what_was_wrong_and_what_to_do(models: Path, name: str, words: list[str]) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(f"{models}:{name}")
    for word in words:
        assert word in str(caught.value)


def test_a_target_without_a_name_lists_what_the_file_defines(models: Path) -> None:
    with pytest.raises(TargetError, match=r"names no function.*defines Net, Nested, make_model"):
        load_target(str(models))


def test_a_missing_file_suggests_its_neighbour(models: Path) -> None:
    with pytest.raises(TargetError, match=r"no file .*hw_model\.py; did you mean hw_models\.py"):
        load_target(f"{models.parent / 'hw_model.py'}:make_model")


def test_a_missing_module_suggests_a_local_one(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.parent)
    with pytest.raises(TargetError, match=r"no module named 'hw_model'.*did you mean hw_models"):
        load_target("hw_model:make_model")
    with pytest.raises(TargetError, match="no module named 'nowhere'"):
        load_target("nowhere.at.all:make")


@pytest.mark.parametrize("spec", [":", "module:", ":name", ""])
def test_an_incomplete_target_is_explained(spec: str) -> None:
    with pytest.raises(TargetError, match=r"package\.module:name"):
        load_target(spec)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is a folder"):
        load_target(f"{tmp_path}/:make")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import not_installed_anywhere\n", "ModuleNotFoundError"),
        ("def broken(:\n", r"line 1"),
        ("import sys\nsys.exit(2)\n", r"__name__ == \"__main__\""),
        ("1 / 0\n", r"ZeroDivisionError.*hw_broken\.py, line 1"),
    ],
)
def test_a_file_that_fails_to_import_says_why(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "hw_broken.py"
    path.write_text(source)
    with pytest.raises(TargetError, match=words):
        load_target(f"{path}:make")
    assert "hw_broken" not in sys.modules
