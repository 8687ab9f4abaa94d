"""Findings that another finding explains stand under it."""

from __future__ import annotations

from tests import runs

from headwater.records.finding import Severity
from headwater.reports import to_text
from headwater.reports.document import Callout, Section
from headwater.reports.run_report import build_run_document
from headwater.reports.run_symptoms import explained_by, with_symptoms
from headwater.reports.run_view import RunView

ROOT = runs.finding("HW101", step=4)
EARLY = runs.finding("HW607", Severity.WARNING, 0, symptom_of="HW101", defect="updates below rounding")
LATE = runs.finding("HW604", Severity.WARNING, 8, symptom_of="HW101", defect="stalled layer")
OTHER = runs.finding("HW602", Severity.WARNING, 6, defect="gradient spike")


def test_a_symptom_stands_right_after_its_root_whatever_the_step() -> None:
    told = [(f.code, root and root.code) for f, root in with_symptoms([EARLY, ROOT, OTHER, LATE])]
    assert told == [("HW101", None), ("HW607", "HW101"), ("HW604", "HW101"), ("HW602", None)]


def test_of_several_roots_the_last_one_before_the_symptom_explains_it() -> None:
    again = runs.finding("HW101", step=7)
    assert explained_by([ROOT, again, LATE]) == [None, None, 1]  # LATE began at 8, after 4 and after 7


def test_a_symptom_without_its_root_stands_for_itself() -> None:
    assert with_symptoms([LATE]) == [(LATE, None)]


def test_findings_that_name_each_other_are_told_once() -> None:
    a, b = runs.finding("HW1", symptom_of="HW2"), runs.finding("HW2", symptom_of="HW1")
    assert {f.code for f, _ in with_symptoms([a, b])} == {"HW1", "HW2"}
    assert len(with_symptoms([a, b])) == 2


def test_the_page_folds_symptoms_up_under_the_card_of_their_root() -> None:
    run = runs.vanishing()
    run.findings = (EARLY, ROOT, OTHER, LATE)
    blocks = build_run_document(run, full=True).blocks[1:4]
    assert [type(block) for block in blocks] == [Callout, Section, Callout]
    section = blocks[1]
    assert isinstance(section, Section)
    assert section.title == "2 findings explained by HW101: HW607 updates below rounding, HW604 stalled layer"
    assert section.collapsed


def test_the_terminal_says_what_explains_a_finding() -> None:
    run = runs.vanishing()
    run.findings = (ROOT, LATE)
    shown = " ".join(to_text(RunView(run), width=140).split())
    assert "HW604 stalled layer, explained by HW101" in shown
    assert "1 critical finding, 1 warning (1 explained by another)" in shown


def test_names_in_the_terminal_are_never_cut_in_the_middle() -> None:
    run = runs.vanishing()
    places = (*(f"transformer.h.{i}.attn.c_attn.weight" for i in range(4)), "transformer.wte.weight", "lm_head")
    run.findings = (runs.finding(where=places),)
    shown = to_text(RunView(run), width=100)
    table = shown[shown.index("1 critical finding") :].split("\n\n")[0]
    assert "t.h.0–3.attn.c_attn.weight" in table
    assert "…" not in table
    assert "transformer.wte.weight and 1" in table
