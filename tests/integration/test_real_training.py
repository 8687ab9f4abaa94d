"""Real trainings, sound and broken on purpose: what the alerts, the run file and the commands say of each.

The trainings are those of examples/train_digits.py and examples/train_gpt2_on_docstrings.py.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import headwater as hw
from headwater.cli import main
from headwater.detectors.over_time import DEFAULT_ALERTS, with_actions
from headwater.errors import UnhealthyError

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 300


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    pytest.importorskip("sklearn")
    return example("train_digits")


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    pytest.importorskip("transformers")
    return example("train_gpt2_on_docstrings")


def finding(outcome: Any, code: str) -> hw.Finding:
    return next(f for f in outcome.findings if f.code == code)


# ------------------------------------------------------------ digits: sound networks


@pytest.mark.parametrize(
    ("name", "seed", "accuracy"),
    [
        ("mlp", 0, 0.95), ("mlp", 1, 0.95), ("cnn", 0, 0.97), ("cnn", 1, 0.97), ("lstm", 0, 0.75), ("lstm", 1, 0.75),
        pytest.param("transformer", 0, 0.5, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_sound_network_learns_and_raises_no_alert(digits: ModuleType, name: str, seed: int, accuracy: float) -> None:
    outcome = digits.train(digits.CASES[name], STEPS, seed=seed)
    assert outcome.findings == ()
    assert outcome.accuracy > accuracy


def test_low_rank_factors_that_start_at_zero_are_information_only(digits: ModuleType) -> None:
    (only,) = digits.train(digits.CASES["lora"], STEPS).findings
    assert (only.code, only.severity, only.defect) == ("HW604", hw.Severity.INFO, "zero gradient at first")
    assert only.where == tuple(f"{i}.down.weight" for i in (0, 2, 4, 6))


# ------------------------------------------------------------ digits: planted faults


def test_the_deep_sigmoid_network_is_named_by_step_four(digits: ModuleType) -> None:
    first = digits.train(digits.CASES["deep_sigmoid"], 5).findings[0]
    assert (first.code, first.verdict, first.step) == ("HW101", hw.Verdict.VANISHING, 0)
    assert first.where[0] == "0"
    assert "Sigmoid's slope" in first.cause


def test_the_action_stop_ends_the_deep_sigmoid_training_by_step_four(digits: ModuleType) -> None:
    alerts = with_actions(DEFAULT_ALERTS, {"HW608": "stop"})
    pixels, _ = digits.load()
    torch.manual_seed(0)
    model = digits.deep_sigmoid()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taken = 0
    with hw.watch(model, optimizer, alerts=alerts):
        for _ in range(20):
            model(pixels[:64]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
    assert taken <= 4


def test_the_causes_of_the_deep_sigmoid_networks_troubles_come_before_their_symptoms(digits: ModuleType) -> None:
    root, *others = digits.train(digits.CASES["deep_sigmoid"], STEPS).findings
    assert root.code == "HW101"
    assert others
    assert {other.symptom_of for other in others} == {"HW101"}


@pytest.mark.parametrize(
    ("name", "code", "verdict", "step", "place"),
    [
        ("exploding", "HW102", hw.Verdict.EXPLODING, 0, "0"),
        ("overflowing", "HW102", hw.Verdict.EXPLODING, 0, "0"),
        ("nan", "HW601", hw.Verdict.NAN, 120, "0"),  # the division in layer 0
        ("spike", "HW602", None, 150, None),
        ("clip_starved", "HW606", None, 0, "0.weight"),
        ("slow", "HW607", None, 0, "0.weight"),
    ],
)
def test_a_planted_fault_is_named_with_its_place_and_step(
    digits: ModuleType, name: str, code: str, verdict: hw.Verdict | None, step: int, place: str | None
) -> None:
    found = finding(digits.train(digits.CASES[name], max(step + 31, 60)), code)
    assert (found.verdict, found.step) == (verdict, step)
    if place is not None:
        assert found.where[0] == place


def test_an_overflowing_network_is_called_exploding_before_it_is_called_nan(digits: ModuleType) -> None:
    found = digits.train(digits.CASES["overflowing"], 60).findings
    assert {f.code for f in found} == {"HW102", "HW601"}
    assert finding(digits.train(digits.CASES["overflowing"], 60), "HW601").step == 2


@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_a_network_whose_relus_all_die_is_reported(digits: ModuleType, rate: float) -> None:
    # With every ReLU off, the head's bias is all that gets a gradient: ten classes, so the loss stays near log 10 = 2.30.
    outcome = digits.train(replace(digits.CASES["dying_relu"], optimizer=digits.sgd(rate)), STEPS)
    assert outcome.losses[-1] == pytest.approx(math.log(10), abs=0.1)
    found = finding(outcome, "HW604")
    assert (found.severity, found.verdict) == (hw.Severity.CRITICAL, hw.Verdict.ZERO_GRADIENT)
    assert "0.weight" in found.where


@pytest.mark.parametrize(
    ("action", "outcome"), [("stop", nullcontext()), ("raise", pytest.raises(UnhealthyError, match="HW601"))]
)
def test_a_nan_is_not_applied_where_the_alert_ends_the_training(digits: ModuleType, action: Any, outcome: Any) -> None:
    alerts = with_actions(DEFAULT_ALERTS, {"HW601": action})
    torch.manual_seed(0)
    model = digits.whitened()
    optimizer = digits.adam(1e-3)(model)
    pixels, labels = digits.load()
    taken = 0
    with outcome, hw.watch(model, optimizer, every=1, alerts=alerts):
        for taken in range(12):
            x = digits.one_empty_image(pixels[:64]) if taken == 7 else pixels[:64]
            torch.nn.functional.cross_entropy(model(x), labels[:64]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert taken == 7
    assert all(p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------ digits: what is written


def test_the_contributions_to_a_spike_sum_to_one(digits: ModuleType, tmp_path: Path) -> None:
    digits.train(digits.CASES["spike"], 160, tmp_path / "run")
    shares = dict(hw.open_run(tmp_path / "run").top_contributors(150))
    assert sum(shares.values()) == pytest.approx(1.0)
    assert max(shares, key=lambda name: shares[name]).endswith("weight")


def test_watching_changes_no_bit_of_a_network_with_batch_norm(digits: ModuleType, tmp_path: Path) -> None:
    case = replace(digits.CASES["cnn"], every=3, activations="recorded")
    bare, watched = digits.train(case, 60, watched=False), digits.train(case, 60, tmp_path / "run")
    assert bare.losses == watched.losses
    for (name, a), b in zip(bare.model.state_dict().items(), watched.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [("mlp", 0, "healthy"), ("deep_sigmoid", 1, "unhealthy: first HW101 vanishing gradient"),
     ("overflowing", 1, "unhealthy: first HW102 exploding gradient")],
)  # fmt: skip
def test_the_report_of_a_training_says_what_happened_first(
    digits: ModuleType, tmp_path: Path, name: str, code: int, said: str
) -> None:
    digits.train(digits.CASES[name], 60, tmp_path / name)
    result = CliRunner().invoke(main, ["report", str(tmp_path / name), "--width", "120"])
    assert result.exit_code == code, result.output
    assert said in result.output
    result = CliRunner().invoke(main, ["top", str(tmp_path / name), "--once"])
    assert result.exit_code == 0, result.output


def test_two_equal_trainings_compare_as_the_same_and_a_spoiled_batch_parts_them_there(
    digits: ModuleType, tmp_path: Path
) -> None:
    spoiled = replace(digits.CASES["spike"], fault_step=7, every=1)
    for name, case in (("a", digits.CASES["mlp"]), ("b", digits.CASES["mlp"]), ("c", spoiled)):
        digits.train(replace(case, every=1), 12, tmp_path / name)
    same = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    parted = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "c")])
    assert same.exit_code == 0, same.output
    assert parted.exit_code == 1
    assert "step 7" in parted.output


# ------------------------------------------------------------ GPT-2 on docstrings


@pytest.mark.slow
@pytest.mark.integration
def test_a_small_gpt2_learns_and_raises_no_alert(docstrings: ModuleType, tmp_path: Path) -> None:
    losses, watch = docstrings.train(docstrings.CASES["sound"], 40, tmp_path / "run")
    assert watch.findings == ()
    assert losses[-1] < losses[0] - 1.5  # from log 256 = 5.5 for bytes that are all alike
    assert "gradients of 52 of 52 trainable parameters" in watch.summary()


@pytest.mark.slow
@pytest.mark.integration
def test_a_learning_rate_a_hundred_times_too_large_is_named_within_five_steps(docstrings: ModuleType) -> None:
    _, watch = docstrings.train(docstrings.CASES["hundredfold"], 15, None)
    found = next(f for f in watch.findings if f.code == "HW607")
    assert found.defect == "updates as large as the weights"
    assert found.step is not None
    assert found.step <= 5


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.filterwarnings(
    "ignore:Detected call of `lr_scheduler.step:UserWarning"
)  # its own, as the first steps are skipped
def test_steps_that_the_gradient_scaler_skips_are_no_alert(docstrings: ModuleType) -> None:
    _, watch = docstrings.train(docstrings.CASES["scaled"], 12, None)
    assert watch.findings == ()
    assert sum(event.kind == "skipped" for event in watch.events) >= 2
