"""``headwater check`` as a gate: exit codes, and the files that a continuous integration reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from headwater import Diagnosis, diagnose
from headwater.cli import main
from headwater.cli.ci_files import detector_rules, source_of
from headwater.detectors import DEFAULT_DETECTORS

SOURCE = """
import torch
from torch import nn
from torch.nn import functional as F


def healthy():
    torch.manual_seed(0)
    layers = []
    for _ in range(3):
        linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(linear.weight)
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 1))
    return model, torch.randn(32, 64), torch.randn(32, 1), F.mse_loss


def vanishing():
    torch.manual_seed(0)
    layers = [m for _ in range(10) for m in (nn.Linear(32, 32), nn.Sigmoid())]
    return nn.Sequential(*layers, nn.Linear(32, 1)), torch.randn(16, 32), torch.randn(16, 1), F.mse_loss


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.aside, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.main(x)) + self.aside(x).detach())


def cut():
    return Branch(), torch.randn(16, 8), torch.randn(16, 1), F.mse_loss


def broadcast():  # (32, 1) against (32,): the loss compares every output with every target
    model, x, y, _ = healthy()
    return model, x, y.squeeze(1), lambda a, b: (a - b).square().mean()


def detached():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()
    return Net(6, 2), torch.randn(5, 6)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "hw_gate_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return "hw_gate_models.py"


def check(*words: object) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, words)])


@pytest.mark.parametrize(
    ("name", "code"), [("healthy", 0), ("vanishing", 1), ("cut", 1), ("detached", 3), ("missing", 2)]
)
def test_the_exit_code_tells_the_verdict(models: str, name: str, code: int) -> None:
    result = check(f"{models}:{name}")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr


def test_the_verdict_is_the_first_thing_said_and_the_last(models: str) -> None:
    lines = check(f"{models}:vanishing").stdout.splitlines()
    assert lines[3].startswith("✗ vanishing: HW101")
    assert lines[-1].startswith("Verdict: vanishing, root cause HW101")


def test_fail_on_warning_fails_on_what_critical_lets_pass(models: str) -> None:
    found = json.loads(check(f"{models}:broadcast", "--json").stdout)
    assert [(f["code"], f["severity"]) for f in found["findings"]] == [("HW502", "warning")]
    assert check(f"{models}:broadcast").exit_code == 0
    assert check(f"{models}:broadcast", "--fail-on", "warning").exit_code == 1
    assert check(f"{models}:healthy", "--fail-on", "warning").exit_code == 0


def test_json_is_the_diagnosis_and_reads_back(models: str, tmp_path: Path) -> None:
    result = check(f"{models}:cut", "--json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["schema_version"]) == ("headwater.diagnosis", 1)
    assert document["verdict"] == "zero_gradient"
    assert document["findings"][0]["code"] == "HW302"
    assert document["findings"][0]["where"] == ["aside.weight", "aside.bias"]
    assert Diagnosis.from_json(result.stdout).verdict.value == "zero_gradient"
    again = check(f"{models}:cut", "--json", tmp_path / "out.json")
    assert again.exit_code == 1
    assert "zero_gradient" in again.stdout


def test_profile_only_measures_and_gives_no_verdict(models: str) -> None:
    result = check(f"{models}:vanishing", "--profile-only", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"] == "headwater.profile"
    refused = check(f"{models}:vanishing", "--profile-only", "--fail-on", "warning", "--sarif", "a.sarif")
    assert refused.exit_code == 2
    assert "leave out --fail-on, --sarif" in refused.stderr


def test_page_and_rows_are_still_written(models: str, tmp_path: Path) -> None:
    result = check(f"{models}:cut", "--html", "a.html", "--csv", "a.csv")
    assert result.exit_code == 1
    page = (tmp_path / "a.html").read_text()
    assert "zero_gradient: HW302" in page
    assert (tmp_path / "a.csv").read_text().startswith("row,name,type")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamm:lr=1", "torch.optim has no 'adamm'"),
        ("sgd:lr=x", "is no option"),
        ("sgd:lr", "is no option"),
        ("sgd:size=1", "unexpected keyword"),
        ("lbfgs", "has no 'lbfgs'"),
    ],
)
def test_an_optimizer_that_does_not_exist_is_a_usage_error(models: str, text: str, said: str) -> None:
    result = check(f"{models}:healthy", "--optimizer", text)
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_optimizer_is_the_one_whose_updates_are_judged(models: str) -> None:
    # lr 1e3: one step of Adam moves each weight by about 1e3, far more than its own size of about 0.1.
    document = json.loads(check(f"{models}:healthy", "--optimizer", "adam:lr=1e3", "--json").stdout)
    assert document["profile"]["second_look"]["optimizer"] == "Adam"
    assert "HW501" in [f["code"] for f in document["findings"]]


# ---------------------------------------------------------------- SARIF


def sarif_of(models: str, name: str) -> dict[str, Any]:
    check(f"{models}:{name}", "--sarif", "out.sarif")
    document: dict[str, Any] = json.loads(Path("out.sarif").read_text(encoding="utf-8"))
    return document


def assert_is_sarif(document: dict[str, Any]) -> None:
    """The required properties of SARIF 2.1.0: sections 3.13, 3.14.6, 3.18.2, 3.19.2, 3.49.3, 3.27.11, 3.11.8."""
    assert document["version"] == "2.1.0"
    assert document["$schema"].endswith("sarif-schema-2.1.0.json")
    assert isinstance(document["runs"], list)
    for run in document["runs"]:
        driver = run["tool"]["driver"]
        assert driver["name"]
        rules = driver["rules"]
        assert len({rule["id"] for rule in rules}) == len(rules)
        for rule in rules:
            assert rule["shortDescription"]["text"]
            assert rule["help"]["text"]
            assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
        for result in run["results"]:
            assert result["message"]["text"]
            assert result["level"] in ("none", "note", "warning", "error")
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            for location in result.get("locations", ()):
                for logical in location.get("logicalLocations", ()):
                    assert logical["name"]
                    assert logical["fullyQualifiedName"]
                physical = location.get("physicalLocation")
                if physical is not None:
                    assert not physical["artifactLocation"]["uri"].startswith("/")
                    assert physical["region"]["startLine"] >= 1


def test_sarif_has_a_rule_per_detector_and_a_result_per_finding(models: str) -> None:
    document = sarif_of(models, "cut")
    assert_is_sarif(document)
    run = document["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [d.code for d in DEFAULT_DETECTORS]
    (result,) = run["results"]
    assert (result["ruleId"], result["level"]) == ("HW302", "error")
    (location,) = result["locations"]
    assert [place["fullyQualifiedName"] for place in location["logicalLocations"]] == ["aside.weight", "aside.bias"]
    line = SOURCE.splitlines().index("def cut():") + 1
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "hw_gate_models.py"},
        "region": {"startLine": line},
    }


def test_sarif_of_a_healthy_model_has_no_result_and_says_what_was_checked(models: str) -> None:
    document = sarif_of(models, "healthy")
    assert_is_sarif(document)
    assert [r for r in document["runs"][0]["results"] if r["level"] == "error"] == []
    assert document["runs"][0]["properties"]["verdict"] == "healthy"


def test_every_rule_is_explained_by_its_detector() -> None:
    rules = detector_rules()
    assert len(rules) == len(DEFAULT_DETECTORS)
    for rule in rules:
        assert "## What it finds" in rule.help
        assert "## What to try" in rule.help
        assert rule.summary.endswith(".")


def test_the_source_line_is_that_of_the_definition_or_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "nets.py").write_text("import os\n\nnet = object()\n\n\nclass Net:\n    pass\n")
    seen = {name: source_of(f"sub/nets.py:{name}") for name in ("net", "Net", "Net.small", "elsewhere")}
    assert {name: s.line for name, s in seen.items() if s} == {"net": 3, "Net": 6, "Net.small": 6, "elsewhere": 1}
    assert all(s is not None and s.uri == "sub/nets.py" for s in seen.values())
    assert source_of("json:dumps") is None  # outside the folder
    assert source_of("no_such_module:f") is None


# ---------------------------------------------------------------- JUnit


def test_junit_has_a_test_case_per_detector_and_a_failure_with_the_finding(models: str) -> None:
    check(f"{models}:cut", "--junit", "out.xml")
    root = ET.parse("out.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [case.attrib["name"].split()[0] for case in cases] == [d.code for d in DEFAULT_DETECTORS]
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == (str(len(cases)), "1", "0")
    (failed,) = [case for case in cases if case.find("failure") is not None]
    failure = failed.find("failure")
    assert failure is not None
    assert failed.attrib["name"] == "HW302 ZeroGradient"
    assert failure.attrib["type"] == "critical"
    assert "aside.weight" in (failure.text or "")
    properties = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    assert properties["verdict"] == "zero_gradient"


def test_junit_fails_from_the_severity_that_the_exit_code_fails_from(models: str) -> None:
    for limit in ("critical", "warning"):
        code = check(f"{models}:broadcast", "--fail-on", limit, "--junit", "out.xml").exit_code
        failures = int(ET.parse("out.xml").getroot().attrib["failures"])
        assert (failures > 0) == (code == 1)


def test_a_crashed_detector_is_an_error_and_strange_characters_stay_readable() -> None:
    import torch
    from torch import nn

    from headwater.records import Severity
    from headwater.reports.junit import to_junit

    class Crashes:
        code = "X1"

        def __call__(self, profile: object, forecast: object = None) -> list[Any]:
            raise ValueError("bad \x00 <&> \x1b[31m")

    diagnosis = diagnose(nn.Linear(4, 2), torch.randn(8, 4), detectors=(Crashes(),))
    suite = ET.fromstring(to_junit(diagnosis, (), fail_on=Severity.CRITICAL)).find("testsuite")
    assert suite is not None
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("1", "0", "1")
    error = suite.find("testcase/error")
    assert error is not None
    assert r"bad \x00 <&> \x1b[31m" in (error.text or "")
