"""The prescription that closes a study comes from ``prescribe`` on its first network that is not healthy."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from headwater._studies import run_study
from headwater._studies.prescription import TRIAL_STEPS, prescribe_for
from headwater._studies.run import run_variants
from headwater.errors import InputError
from headwater.records import Verdict, gradient_budget
from headwater.records.remedy import run_code
from headwater.records.study import StudyResult
from headwater.reports import to_html_page, to_text
from headwater.reports.document import Callout, Figure
from headwater.reports.study_figures import draw_trial
from headwater.reports.study_report import build_study_document
from headwater.studies import CLASSICS, LOSSES, build, study

WIDE = 10_000  # columns: nothing is wrapped


@pytest.fixture(scope="module")
def deep_sigmoid() -> StudyResult:
    return run_study(replace(CLASSICS["deep-sigmoid"], extras=()), draws=2, prescription_seconds=20.0)


def test_the_prescription_of_deep_sigmoid_heals_it(deep_sigmoid: StudyResult) -> None:
    found = deep_sigmoid.prescription
    assert found is not None
    assert (found.variant, found.verdict_before, found.verdict_after) == ("sigmoid", Verdict.VANISHING, Verdict.HEALTHY)
    assert found.healed
    assert found.decades_before == pytest.approx(deep_sigmoid.variants[0].diagnosis.budget.total_decades)
    # twenty sigmoids with torch's own weights lose 0.85 decades each; 2 decades over the whole way are no defect
    assert found.decades_before < -15.0
    assert found.decades_after is not None
    assert abs(found.decades_after) < 2.0
    assert len(found.losses_before) == len(found.losses_after) == TRIAL_STEPS + 1
    assert found.losses_after[-1] < found.losses_before[-1]


def test_its_code_on_the_same_network_gives_the_decades_that_are_told(deep_sigmoid: StudyResult) -> None:
    import headwater as hw

    found = deep_sigmoid.prescription
    assert found is not None
    described = CLASSICS["deep-sigmoid"]
    (variant,) = described
    torch.manual_seed(deep_sigmoid.seed)
    model = build(variant.network)
    x, y = variant.data.draw(variant.network.sizes[0], variant.network.sizes[-1])
    repaired = run_code(found.code, model)["model"]
    diagnosis = hw.diagnose(repaired, x, y, LOSSES[described.loss][0])
    assert diagnosis.verdict is found.verdict_after
    assert gradient_budget(diagnosis.profile).total_decades == pytest.approx(found.decades_after, abs=1e-6)


def test_the_terminal_has_one_item_with_decades_and_losses(deep_sigmoid: StudyResult) -> None:
    found = deep_sigmoid.prescription
    assert found is not None
    assert found.decades_before is not None
    text = to_text(build_study_document(deep_sigmoid), width=WIDE).split("Prescription")[1]
    assert f"healed by {found.remedy}" in text
    assert f"{abs(found.decades_before):.2f}" in text or f"{abs(found.decades_before):.1f}" in text
    assert f"{found.losses_after[-1]:.4g}" in text
    assert f"{found.losses_before[-1]:.4g}" in text


def test_the_page_draws_both_losses_and_shows_the_code(deep_sigmoid: StudyResult) -> None:
    found = deep_sigmoid.prescription
    assert found is not None
    document = build_study_document(deep_sigmoid, full=True)
    (callout,) = (b for b in document.blocks if isinstance(b, Callout) and "healed by" in b.title)
    assert callout.tone in ("good", "warning")
    (figure,) = (b for b in document.blocks if isinstance(b, Figure) and b.title.endswith("loss of the trial"))
    lines = {t.name: list(t.y) for t in figure.draw("light").data if t.name}
    assert lines["unrepaired"] == pytest.approx(list(found.losses_before))
    assert lines[found.remedy] == pytest.approx(list(found.losses_after))
    page = to_html_page([document], title="Study")
    assert found.code.splitlines()[0] in page


def test_a_prescription_survives_strict_json(deep_sigmoid: StudyResult) -> None:
    assert StudyResult.from_json(deep_sigmoid.to_json()) == deep_sigmoid


def test_a_study_without_an_unhealthy_network_says_that_nothing_needs_repair() -> None:
    varied = study("deep-sigmoid").varied(activation="relu", init="kaiming_normal", width=128)
    result = run_study(replace(varied, extras=()), draws=2, prescription_seconds=5.0)
    assert result.prescription is None
    for full in (False, True):
        assert "nothing needs repair" in to_text(build_study_document(result, full=full), width=WIDE)


def test_a_network_that_nothing_heals_is_told_as_such_with_the_best_attempt() -> None:
    described = study("raw-weights")  # matrices without modules: no activation can be swapped, no layer added
    described = replace(described, variants=described.variants[:1], grid=None, extras=())
    result = run_study(described, draws=2, prescription_seconds=5.0)
    found = result.prescription
    assert found is not None
    assert not found.healed
    text = to_text(build_study_document(result), width=WIDE)
    assert "none of" in text
    assert f"the best attempt is {found.remedy}." in text


def test_a_spent_budget_is_told_and_draws_no_curve() -> None:
    described = replace(study("activation-and-init"), extras=(), grid=None)
    described = replace(described, variants=described.variants[:1])
    run = run_variants(described, seed=0, draws=2)
    found = prescribe_for(run, budget_seconds=1e-9)
    assert found is not None
    assert (found.remedy, found.losses_after, found.tried) == ("", (), 0)
    assert math.isnan(found.learning_rate)
    assert any("time was spent" in note for note in found.notes)
    with pytest.raises(InputError, match="no trial"):
        draw_trial(found)
    result = replace(run_study(described, draws=2), prescription=found)
    text = to_text(build_study_document(result), width=WIDE)
    assert "no remedy could be tried" in text
    assert "time was spent" in text
    assert build_study_document(result, full=True).blocks


def test_a_study_without_a_search_says_nothing_of_repairs() -> None:
    result = run_study(replace(CLASSICS["deep-sigmoid"], extras=()), draws=2)
    assert result.prescription is None
    assert "repair" not in to_text(build_study_document(result), width=WIDE)


def test_the_search_leaves_the_random_state_alone_and_tells_its_progress() -> None:
    described = replace(study("raw-weights"), grid=None, extras=())
    run = run_variants(replace(described, variants=described.variants[:1]), seed=0, draws=2)
    before = torch.get_rng_state()
    told: list[tuple[str, int, int]] = []
    prescribe_for(run, budget_seconds=5.0, progress=lambda *step: told.append(step))
    assert torch.equal(before, torch.get_rng_state())
    assert {what for what, _, _ in told} == {"raw-weights: trying repairs"}
    assert all(0 <= done <= total for _, done, total in told)
