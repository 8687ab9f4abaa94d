"""Verdicts of the studies come from the diagnosis of their networks: other networks give others."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import replace

import pytest
import torch

import headwater as hw
from headwater._studies import run_study
from headwater._studies.run import run_variants
from headwater._studies.verdicts import further_verdicts
from headwater.records import Severity, Verdict
from headwater.records.study import StudyResult
from headwater.reports import to_html_page, to_text
from headwater.reports.document import Callout, Figure, Section
from headwater.reports.study_report import build_study_document
from headwater.studies import CLASSICS, LOSSES, Study, build, study

WIDE = 10_000  # columns: nothing is wrapped


@pytest.fixture(scope="module")
def results() -> dict[str, StudyResult]:
    return {name: run_study(replace(s, grid=None, extras=()), draws=3) for name, s in CLASSICS.items()}


def why(result: StudyResult) -> str:
    return next(a.text for a in result.answers if a.question.startswith("What is wrong with"))


def narrowed(name: str, *variants: str, **options: object) -> Study:
    varied = study(name).varied(**options)  # type: ignore[arg-type]
    kept = tuple(v for v in varied.variants if not variants or v.name in variants)
    return replace(varied, variants=kept, grid=None, extras=())


def test_the_stored_verdict_is_that_of_diagnose_on_the_same_network(results: dict[str, StudyResult]) -> None:
    for name, described in CLASSICS.items():
        seed = described.published_seed or 0
        torch.manual_seed(seed)
        for variant in described:
            model = build(variant.network)
            x, y = variant.data.draw(variant.network.sizes[0], variant.network.sizes[-1])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = hw.diagnose(model, x, y, LOSSES[described.loss][0])
            found = results[name].variant(variant.name)
            assert (found.verdict, found.findings) == (expected.verdict, expected.findings)
            assert found.diagnosis.budget == expected.budget
            assert found.diagnosis.root == expected.root


def test_the_deep_sigmoid_network_is_vanishing_and_says_where_and_why(results: dict[str, StudyResult]) -> None:
    result = results["deep-sigmoid"]
    (variant,) = result.variants
    assert variant.verdict is Verdict.VANISHING
    root = variant.diagnosis.root
    assert root is not None
    text = to_text(build_study_document(result), width=WIDE)
    line = next(x for x in text.splitlines() if "20 sigmoid layers: vanishing" in x)
    assert root.code in line
    assert "fc1–" in line  # the place, folded
    assert root.cause in line
    assert "like all 3 further networks" in line


def test_the_answer_splits_the_fall_as_the_finding_does(results: dict[str, StudyResult]) -> None:
    result = results["deep-sigmoid"]
    root = result.variants[0].diagnosis.root
    assert root is not None
    parts = [float(x) for x in re.findall(r"(-\d\.\d+) per layer", root.cause)]  # slope, weights
    assert len(parts) == 2
    shares = [int(x) for x in re.findall(r"(\d+) %", why(result))]
    # the finding rounds its parts to 0.01 of about 0.84: one point of a percentage each, and rounding again
    assert shares == pytest.approx([100 * p / math.fsum(parts) for p in parts], abs=2.5)
    assert f"{root.evidence[0].value:.1f}".replace("-", "−") in why(result)


def test_networks_that_keep_the_gradient_are_healthy_in_the_same_study() -> None:
    he = narrowed("deep-sigmoid", activation="relu", init="kaiming_normal", width=128)
    result = run_study(he, draws=2)
    (variant,) = result.variants
    assert variant.verdict is Verdict.HEALTHY
    assert why(result).startswith("Nothing that decides a verdict.")
    assert "vanishing" not in to_text(build_study_document(result), width=WIDE).split("Verdicts, from")[1]


def test_weights_that_grow_the_gradient_are_called_exploding() -> None:
    # N(0, 1) matrices of width 64 and no activation: √64 = 8 per layer, 0.9 decades, over three layers
    result = run_study(narrowed("activation-and-init", "tiny-linear", init="normal:1"), draws=2)
    assert result.variants[0].verdict is Verdict.EXPLODING
    assert "Exploding: " in why(result)
    assert "weights 100 %" in why(result)


def test_a_loss_that_broadcasts_is_the_detectors_finding_and_told_once(results: dict[str, StudyResult]) -> None:
    (found,) = results["shortcut"].findings
    assert (found.code, found.where) == ("HW502", ("with",))
    told = next(f for f in results["shortcut"].variant("with").findings if f.code == "HW502")
    assert found.text.startswith(told.cause)
    assert "3 terms for 1 target" in found.text
    assert "only a warning of torch" in found.text
    (found,) = results["raw-weights"].findings
    assert found.where == tuple(v.name for v in results["raw-weights"].variants)
    assert "(100, 100): 10,000 terms for 100 targets. Nothing warns" in found.text
    assert "times that of the intended loss" in found.text
    text = to_text(build_study_document(results["raw-weights"]), width=WIDE)
    assert text.count("HW502") == 1
    assert results["init-strategies"].findings == ()
    assert results["activation-and-init"].findings == ()


def test_published_figures_outside_the_ensemble_are_told() -> None:
    one = study("activation-and-init").variants[0]
    wrong = replace(one, published=(1e-9, *one.published[1:]))
    described = replace(narrowed("activation-and-init"), variants=(wrong,))
    (found,) = run_study(described, draws=1000).findings
    assert (found.code, found.where) == ("published-outside", ("sigmoid",))
    assert "fc1.weight" in found.text


def test_further_networks_are_drawn_from_another_seed_and_counted() -> None:
    described = narrowed("init-strategies", "sigmoid-he")
    run = run_variants(described, seed=0, draws=25)
    counts = run.variants["sigmoid-he"].result.further_verdicts
    assert sum(counts.values()) == 20  # no more than that, however many draws the ensemble has
    expected = {"vanishing": 0, "healthy": 0}
    torch.manual_seed(1)
    for _ in range(20):
        (variant,) = described.variants
        model = build(variant.network)
        x, y = variant.data.draw(10, 1)
        expected[hw.diagnose(model, x, y, torch.nn.functional.mse_loss).verdict.value] += 1
    assert dict(counts) == {name: n for name, n in expected.items() if n}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


def test_a_verdict_that_other_draws_do_not_share_is_said_to_be_one_draws() -> None:
    result = run_study(narrowed("shortcut", "without"), draws=20)
    (variant,) = result.variants
    others = {k: n for k, n in variant.further_verdicts.items() if k != variant.verdict.value}
    assert ("Another draw can be called otherwise" in why(result)) == (sum(others.values()) > 2)
    line = to_text(build_study_document(result), width=WIDE)
    assert all(f"{n} {name.replace('_', ' ')}" in line for name, n in others.items())


def test_drawing_further_networks_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    described = study("init-strategies")
    further_verdicts(described, described.variants[0], seed=9, count=1, advance=lambda _: None)
    assert torch.equal(before, torch.get_rng_state())


def test_the_diagnosis_survives_json(results: dict[str, StudyResult]) -> None:
    for result in results.values():
        again = StudyResult.from_json(result.to_json())
        assert again == result
        assert [v.diagnosis for v in again.variants] == [v.diagnosis for v in result.variants]
        data = json.loads(result.to_json())
        assert {v["verdict"] for v in data["variants"]} <= {verdict.value for verdict in Verdict}


def test_a_page_has_a_callout_and_a_budget_for_every_network(results: dict[str, StudyResult]) -> None:
    for result in results.values():
        document = build_study_document(result, full=True)
        for variant in result.variants:
            words = variant.verdict.value.replace("_", " ")
            title = f"{variant.title}: {words}"
            (callout,) = (b for b in document.blocks if isinstance(b, Callout) and b.title == title)
            assert (callout.tone == "critical") == (variant.verdict is not Verdict.HEALTHY)
            root = variant.diagnosis.root
            assert root is None or root.advice in callout.text
            if len(variant.diagnosis.budget.steps) > 1:
                alone = len(result.variants) == 1  # its budget is in sight; those of several networks are folded up
                title = f"{variant.title}: gradient budget"
                sections = [b for b in document.blocks if isinstance(b, Section) and b.title.startswith(title)]
                assert len(sections) == (0 if alone else 1)
                inside = document.blocks if alone else sections[0].blocks
                (figure,) = (
                    b for b in inside if isinstance(b, Figure) and b.title == f"{variant.title}: the gradient budget"
                )
                drawn = figure.draw("light")
                total = variant.diagnosis.budget.total_decades
                bars = [t for t in drawn.data if t.type == "bar"]
                assert bars
                assert any(abs(float(y) - total) < 1e-6 for t in bars for y in t.y)  # the sum is shown
    page = to_html_page([build_study_document(r, full=True) for r in results.values()], title="Studies")
    assert "Root cause" in page


def test_warnings_of_a_healthy_network_are_told_with_their_place(results: dict[str, StudyResult]) -> None:
    result = results["activation-and-init"]
    relu = result.variant("relu")
    warned = [f for f in relu.findings if f.severity is Severity.WARNING]
    text = to_text(build_study_document(result), width=WIDE)
    for finding in warned:
        assert f"Warning: {finding.code} {finding.defect}" in text
        assert finding.cause in text
