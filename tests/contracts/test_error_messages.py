"""Bad input gets an error that says what was wrong, with names, shapes or values, and what to do; nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import mlp
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.errors import GradModeError, HeadwaterError, InputError, LossError, NothingObservedError


class _NoTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> str:
        self.fc(x)
        return "done"


class _IntegerOutput(_NoTensor):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x).argmax(1)


class _Detached(_NoTensor):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc(x).detach()


class _WithoutReset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def _net() -> nn.Module:
    return mlp(4, 6, 2)


def _x() -> Tensor:
    return torch.randn(3, 4)


def _y() -> Tensor:
    return torch.zeros(3, 2)


def _with(tensor: Tensor, value: float) -> Tensor:
    tensor[1, 2] = value
    return tensor


def _frozen() -> nn.Module:
    return _net().requires_grad_(False)


def _no_grad() -> None:
    with torch.no_grad():
        hw.measure(_net(), _x())


def _inference_mode() -> None:
    with torch.inference_mode():
        hw.measure(_net(), _x())


def _inference_tensor() -> None:
    with torch.inference_mode():
        x = _x()
    hw.measure(_net(), x)


def _meta() -> None:
    with torch.device("meta"):
        net = _net()
    hw.measure(net, _x())


def _nested_nan() -> None:
    class TakesDict(_NoTensor):
        def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> Tensor:  # type: ignore[override]
            return self.fc(batch["x"])

    hw.measure(TakesDict(), ({"x": _with(_x(), float("nan"))}, 2.0))


def _draws_without_reset() -> None:
    hw.measure(nn.Sequential(nn.Linear(4, 4), _WithoutReset()), _x(), draws=2)


@dataclass(frozen=True)
class Bad:
    """One wrong call.

    Attributes:
        name: what is wrong.
        call: does it.
        error: the class that must come.
        says: regular expressions that the message must match.
    """

    name: str
    call: Callable[[], Any]
    error: type[HeadwaterError]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


BAD_CALLS = (
    Bad("loss not scalar", lambda: hw.measure(_net(), _x(), _y(), nn.MSELoss(reduction="none")), LossError,
        (r"scalar", r"\(3, 2\)", r"mean")),
    Bad("loss is a float", lambda: hw.measure(_net(), _x(), _y(), lambda o, y: F.mse_loss(o, y).item()), LossError,
        (r"scalar", r"float", r"\.item\(\)")),
    Bad("loss is None", lambda: hw.measure(_net(), _x(), _y(), lambda o, y: None), LossError, (r"scalar", r"NoneType")),
    Bad("loss of the model is no scalar", lambda: hw.measure(_net(), loss=lambda m: m(_x())), LossError,
        (r"scalar", r"\(3, 2\)", r"mean")),
    Bad("loss is complex", lambda: hw.measure(_net(), _x(), _y(), lambda o, y: o.sum() * 1j), LossError,
        (r"complex", r"real")),
    Bad("loss is a constant", lambda: hw.measure(_net(), _x(), _y(), lambda o, y: torch.tensor(1.0)),
        NothingObservedError, (r"does not depend on any parameter", r"detach|no_grad")),
    Bad("loss depends on the input only",
        lambda: hw.measure(_net(), torch.randn(3, 4, requires_grad=True), loss_fn=None, targets=None)
        and hw.measure(_net(), loss=lambda m: torch.randn(3, requires_grad=True).sum()),
        NothingObservedError, (r"does not depend on any", r"4 trainable")),
    Bad("loss depends on another model", lambda: hw.measure(_net(), loss=lambda m: _net()(_x()).sum()),
        NothingObservedError, (r"does not depend on any", r"another model|detached")),
    Bad("output is detached", lambda: hw.measure(_Detached(), _x(), _y(), F.mse_loss), NothingObservedError,
        (r"does not depend on any parameter", r"detached")),
    Bad("output is detached and probed", lambda: hw.measure(_Detached(), _x()), NothingObservedError,
        (r"depends on", r"detached")),
    Bad("no parameters", lambda: hw.measure(nn.ReLU(), _x()), InputError, (r"ReLU", r"no parameters")),
    Bad("all frozen", lambda: hw.measure(_frozen(), _x(), _y(), F.mse_loss), InputError,
        (r"all 4 parameters", r"Sequential", r"frozen", r"requires_grad", r"unfreeze")),
    Bad("output without a tensor", lambda: hw.measure(_NoTensor(), _x()), InputError,
        (r"_NoTensor", r"str", r"tensor", r"loss=")),
    Bad("integer output", lambda: hw.measure(_IntegerOutput(), _x()), InputError, (r"_IntegerOutput", r"floating")),
    Bad("under no_grad", _no_grad, GradModeError, (r"torch\.no_grad", r"outside")),
    Bad("under inference_mode", _inference_mode, GradModeError, (r"torch\.inference_mode", r"outside")),
    Bad("inference tensor", _inference_tensor, GradModeError, (r"inputs", r"inference_mode", r"clone")),
    Bad("NaN input", lambda: hw.measure(_net(), _with(_x(), float("nan")), _y(), F.mse_loss), InputError,
        (r"inputs", r"\b1 NaN", r"\b12\b", r"clean")),
    Bad("infinite input", lambda: hw.measure(_net(), _with(_x(), float("-inf"))), InputError, (r"inputs", r"infinite")),
    Bad("NaN deep in the inputs", _nested_nan, InputError, (r"inputs\[0\]\['x'\]", r"NaN")),
    Bad("empty batch", lambda: hw.measure(_net(), torch.zeros(0, 4), torch.zeros(0, 2), F.mse_loss), InputError,
        (r"inputs", r"empty", r"\(0, 4\)", r"sample")),
    Bad("meta-device model", _meta, InputError, (r"Sequential", r"meta device", r"to_empty")),
    Bad("meta-device input", lambda: hw.measure(_net(), torch.zeros(3, 4, device="meta")), InputError,
        (r"inputs", r"meta")),
    Bad("lazy model", lambda: hw.measure(nn.Sequential(nn.LazyLinear(3)), _x()), InputError,
        (r"0\.weight|LazyLinear", r"(?i)uninitiali[sz]ed|lazy", r"forward|once")),
    Bad("model is no module", lambda: hw.measure(lambda x: x, _x()), InputError,  # type: ignore[arg-type]
        (r"nn\.Module", r"function")),
    Bad("model is a class", lambda: hw.measure(nn.ReLU, _x()), InputError,  # type: ignore[arg-type]
        (r"nn\.Module", r"type")),
    Bad("no inputs", lambda: hw.measure(_net()), InputError, (r"inputs", r"loss=")),
    Bad("targets without loss_fn", lambda: hw.measure(_net(), _x(), _y()), InputError, (r"targets", r"loss_fn")),
    Bad("both kinds of loss", lambda: hw.measure(_net(), _x(), _y(), F.mse_loss, loss=lambda m: m(_x()).sum()),
        InputError, (r"loss", r"either|instead|replaces")),
    Bad("loss_fn not callable", lambda: hw.measure(_net(), _x(), _y(), "mse"), InputError,  # type: ignore[arg-type]
        (r"loss_fn", r"callable", r"str")),
    Bad("loss_fn in the place of targets", lambda: hw.measure(_net(), _x(), F.mse_loss), InputError,  # type: ignore[arg-type]
        (r"loss_fn",)),
    Bad("draws is zero", lambda: hw.measure(_net(), _x(), draws=0), InputError, (r"draws", r"positive", r"\b0\b")),
    Bad("draws is a float", lambda: hw.measure(_net(), _x(), draws=2.5), InputError,  # type: ignore[arg-type]
        (r"draws", r"integer", r"2\.5")),
    Bad("draws without reset_parameters", _draws_without_reset, InputError,
        (r"reset_parameters", r"\b1 \(_WithoutReset\)")),
    Bad("include is a number", lambda: hw.measure(_net(), _x(), include=3), InputError, (r"include", r"int")),
    Bad("include matches nothing", lambda: hw.measure(_net(), _x(), include="nowhere.*"), NothingObservedError,
        (r"include", r"nowhere")),
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD_CALLS, ids=str)
def test_a_wrong_call_is_told_what_is_wrong_and_what_to_do(bad: Bad) -> None:
    with pytest.raises(HeadwaterError) as raised:
        bad.call()
    assert isinstance(raised.value, bad.error), f"{type(raised.value).__name__}: {raised.value}"
    for pattern in bad.says:
        assert re.search(pattern, str(raised.value)), f"{pattern!r} is not in: {raised.value}"


def test_an_error_of_the_model_itself_comes_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        hw.measure(_net(), torch.randn(3, 5))


@pytest.mark.parametrize("bad", BAD_CALLS[:4], ids=str)
def test_the_model_can_be_measured_after_a_wrong_call(bad: Bad) -> None:
    net = _net()
    with pytest.raises(LossError):
        hw.measure(net, _x(), _y(), nn.MSELoss(reduction="none"))
    assert hw.measure(net, _x(), _y(), F.mse_loss).coverage.observed == 4


def test_input_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        hw.measure(nn.ReLU(), _x())


def test_an_unknown_layer_suggests_near_names() -> None:
    profile = hw.measure(_net(), _x())
    with pytest.raises(KeyError, match="'0'"):
        profile.layer("00")
    with pytest.raises(KeyError, match=r"0\.weight"):
        profile.parameter("0.wieght")
    with pytest.raises(KeyError, match="rms"):
        profile.gradients("rsm")
    with pytest.raises(KeyError, match="no recurrent layer"):
        profile.through_time("0")


def test_writing_a_profile_where_it_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    profile = hw.measure(_net(), _x())
    for path in (tmp_path / "nowhere" / "profile.json", tmp_path):
        with pytest.raises(hw.errors.OutputError, match=re.escape(str(path))):
            profile.to_json(path)
        with pytest.raises(hw.errors.OutputError, match=re.escape(str(path))):
            profile.to_csv(path)


# -------------------------------------------------------------------- the command line: exit codes and messages

_SOURCE = """
import torch
from torch import nn

def good():
    return nn.Linear(4, 2), torch.randn(3, 4)

def detached():
    return {"model": nn.Linear(4, 2), "loss": lambda m: m(torch.randn(3, 4)).detach().sum()}

def raises():
    raise OSError("no data here")
"""

BAD_COMMANDS = (
    ("module that does not exist", ["check", "no_such_package.models:make"], 2, (r"no_such_package",)),
    ("file that does not exist", ["check", "nowhere.py:make"], 2, (r"nowhere\.py",)),
    ("name that does not exist", ["check", "{file}:goood"], 2, (r"goood", r"good")),
    ("no colon", ["check", "justaword"], 2, (r"justaword", r":")),
    ("target that raises", ["check", "{file}:raises"], 2, (r"OSError", r"no data here", r"line \d+")),
    ("nothing observed", ["check", "{file}:detached"], 3, (r"does not depend on any parameter", r"detached")),
    ("unwritable html", ["check", "{file}:good", "--html", "{folder}/nowhere/page.html"], 2, (r"nowhere", r"--html")),
    ("unwritable csv", ["check", "{file}:good", "--csv", "{folder}"], 2, (r"--csv", r"folder")),
    ("unwritable json", ["check", "{file}:good", "--json={folder}/nowhere/p.json"], 2, (r"--json", r"nowhere")),
    ("unknown study", ["demo", "shortcutt"], 2, (r"unknown study 'shortcutt'", r"shortcut\b")),
    ("unknown command", ["chekc"], 2, (r"chekc",)),
)


@pytest.mark.parametrize(("words", "code", "says"), [b[1:] for b in BAD_COMMANDS], ids=[b[0] for b in BAD_COMMANDS])
def test_a_wrong_command_says_why_in_one_message_and_exits_with_the_right_code(
    tmp_path: Path, words: list[str], code: int, says: tuple[str, ...]
) -> None:
    from click.testing import CliRunner

    cli = pytest.importorskip("headwater.cli")
    file = tmp_path / "some_model.py"
    file.write_text(_SOURCE)
    result = CliRunner().invoke(cli.main, [word.format(file=file, folder=tmp_path) for word in words])
    assert result.exit_code == code, result.output
    for pattern in says:
        assert re.search(pattern, result.stderr), f"{pattern!r} is not in: {result.stderr}"
    assert "Traceback" not in result.output
