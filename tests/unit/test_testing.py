"""``headwater.testing``: what fails, what is allowed, what the failure says, and the plugin in real pytest runs."""

from __future__ import annotations

import subprocess
import sys
import unittest

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.capture.loss_run import LossRun, probe_seed
from headwater.errors import InputError, UnhealthyError
from headwater.testing import assert_gradients_flow

pytest_plugins = ["pytester"]


class Branch(nn.Module):
    """Two branches; the gradient of one is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aside, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.main(x)) + self.aside(x).detach())


def convolution_and_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def sigmoids(depth: int = 10) -> nn.Module:
    return nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(32, 32), nn.Sigmoid())))


def test_convolution_and_batchnorm_are_not_flagged_without_a_loss() -> None:
    # The sum of a BatchNorm's output over the batch is constant: an all-ones cotangent gives a gradient of exactly
    # nothing but rounding. A random cotangent does not cancel.
    diagnosis = assert_gradients_flow(convolution_and_norm(), torch.randn(8, 3, 8, 8), fail_on="warning")
    assert diagnosis.ok
    assert diagnosis.profile.loss_source == "probe"


def test_the_cancelling_loss_itself_is_flagged() -> None:
    x = torch.randn(8, 3, 8, 8)
    with pytest.raises(UnhealthyError, match="vanishing"):
        assert_gradients_flow(convolution_and_norm(), loss=lambda m: m(x).sum())


@pytest.mark.parametrize("with_loss", [False, True])
def test_a_detached_branch_is_flagged_by_name(with_loss: bool) -> None:
    x = torch.randn(16, 8)
    batch = (x, torch.randn(16, 1), F.mse_loss) if with_loss else (x,)
    with pytest.raises(UnhealthyError) as caught:
        assert_gradients_flow(Branch(), *batch)
    message = str(caught.value)
    assert "zero_gradient" in message
    assert "HW302 critical: zero gradient at aside.weight, aside.bias" in message
    assert "seen with 3 of 3 seeds" in message
    assert "main.weight" not in message
    (finding,) = caught.value.findings
    assert isinstance(finding, hw.Finding)
    assert finding.where == ("aside.weight", "aside.bias")


def test_the_failure_says_what_it_does_not_prove_and_how_to_allow_it() -> None:
    with pytest.raises(AssertionError, match="whether training converges") as caught:
        assert_gradients_flow(Branch(), torch.randn(16, 8))
    assert 'allow=["aside.weight"] or allow=["HW302"]' in str(caught.value)


@pytest.mark.parametrize(
    "allow", ["aside", "aside.*", ["a*.weight", "a*.bias"], "HW302", "HW3*", "zero_gradient", ["zero gradient"]]
)
def test_what_is_meant_is_allowed_by_name_code_or_verdict(allow: str | list[str]) -> None:
    assert assert_gradients_flow(Branch(), torch.randn(16, 8), allow=allow).verdict is hw.Verdict.ZERO_GRADIENT


def test_what_is_allowed_in_part_fails_for_the_rest() -> None:
    with pytest.raises(UnhealthyError) as caught:
        assert_gradients_flow(Branch(), torch.randn(16, 8), allow=["aside.bias", "main.*"])
    (finding,) = caught.value.findings
    assert isinstance(finding, hw.Finding)
    assert finding.where == ("aside.weight",)


def test_a_name_with_brackets_is_taken_literally() -> None:
    from headwater.testing import _matches

    assert _matches("rnn[1]", "rnn[1]")
    assert not _matches("rnn2", "rnn[1]")


def test_a_vanishing_gradient_fails_and_its_symptoms_come_after_it() -> None:
    with pytest.raises(UnhealthyError) as caught:
        assert_gradients_flow(sigmoids(12), torch.randn(16, 32), seeds=1)
    assert str(caught.value).splitlines()[1].startswith("  HW101 critical")
    assert isinstance(caught.value.findings[0], hw.Finding)
    assert caught.value.findings[0].symptom_of is None


def test_a_model_without_any_gradient_is_a_failed_assertion_too() -> None:
    class Cut(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(UnhealthyError, match="Cut: no parameter receives a gradient"):
        assert_gradients_flow(Cut(4, 2), torch.randn(3, 4))


class Flaky(nn.Module):
    """A network whose output is NaN for every second forward."""

    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * float("nan") if torch.initial_seed() in self.bad else y


def test_one_nan_among_three_seeds_fails() -> None:
    with pytest.raises(UnhealthyError, match="seen with 1 of 3 seeds"):
        assert_gradients_flow(Flaky((1,)), torch.randn(16, 8))


class SometimesCut(Branch):
    def __init__(self, bad: tuple[int, ...]) -> None:
        super().__init__()
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        aside = self.aside(x)
        return self.head(torch.relu(self.main(x)) + (aside.detach() if torch.initial_seed() in self.bad else aside))


def test_any_other_finding_needs_more_than_half_of_the_seeds() -> None:
    x = torch.randn(16, 8)
    assert_gradients_flow(SometimesCut((1,)), x)
    with pytest.raises(UnhealthyError, match="seen with 2 of 3 seeds"):
        assert_gradients_flow(SometimesCut((0, 2)), x)


def test_each_seed_probes_with_another_cotangent_and_the_copy_with_the_same() -> None:
    x = torch.ones(2, 3)
    net = nn.Linear(3, 5)
    values = []
    for seed in (0, 0, 1):
        with probe_seed(seed):
            run = LossRun(x, None, None, None)
        values.append(float(run(net).detach()))  # after the block: the seed belongs to the run
    assert values[0] == values[1] != values[2]
    assert float(LossRun(x, None, None, None)(net).detach()) == values[0]


def test_the_probe_without_autograd_is_the_probe_with_it() -> None:
    run = LossRun(torch.ones(2, 8), None, None, None)
    net = Branch()
    with torch.no_grad():
        without = float(run(net).detach())
    assert without == float(run(net).detach())


def test_model_and_random_state_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert_gradients_flow(net, torch.ones(16, 8) * torch.arange(16).unsqueeze(1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": 0}, "positive integer"),
        ({"seeds": True}, "positive integer"),
        ({"fail_on": "bad"}, "it can be 'info'"),
    ],
)
def test_a_wrong_argument_is_an_input_error(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        assert_gradients_flow(nn.Linear(2, 2), torch.randn(3, 2), **arguments)  # type: ignore[arg-type]


def test_it_works_without_pytest_in_unittest() -> None:
    class Case(unittest.TestCase):
        def test_branch(self) -> None:
            assert_gradients_flow(Branch(), torch.randn(16, 8))

    result = unittest.TestResult()
    Case("test_branch").run(result)
    assert len(result.failures) == 1  # a failure, not an error
    assert "aside.weight" in result.failures[0][1]


# ---------------------------------------------------------------- the plugin

SUITE = """
    import pytest, torch
    from torch import nn

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(torch.relu(self.main(x)) + self.aside(x).detach())

    def test_healthy(gradients_flow):
        torch.manual_seed(0)
        gradients_flow(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(16, 8))

    def test_cut(gradients_flow):
        gradients_flow(Branch(), torch.randn(16, 8))

    def test_other():
        pass
"""


def test_the_fixture_passes_and_fails_in_a_real_run_with_strict_settings(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "headwater.testing", "-W", "error", "--strict-markers", "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*UnhealthyError: gradients do not flow in Branch: zero_gradient*"])
    result.stdout.fnmatch_lines(["*HW302 critical: zero gradient at aside.weight, aside.bias*"])
    text = result.stdout.str()
    assert "_refused(" not in text  # the traceback ends in the test, not inside headwater


def test_the_marker_selects_the_tests_that_use_the_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_inprocess("-p", "headwater.testing", "-W", "error", "-m", "not gradients")
    result.assert_outcomes(passed=1, deselected=2)
    result = pytester.runpytest_inprocess("-p", "headwater.testing", "--markers")
    result.stdout.fnmatch_lines(["*gradients: checks that gradients reach every layer*"])


def test_the_plugin_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_subprocess("-p", "no:headwater.testing", "-W", "error")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("first", ["", "import pytest; "])
def test_the_module_by_itself_loads_the_standard_library_alone(first: str) -> None:
    # By path, without the package around it: what the module costs on its own.
    import headwater.testing

    program = (
        f"{first}import sys; before = set(sys.modules); import runpy; runpy.run_path({headwater.testing.__file__!r}); "
    )
    program += "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= set(sys.stdlib_module_names)
