"""A diagnosis shown: the answer first, parts that sum to the whole, pictures that hold the record's numbers, no mark-up."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import profiles

from headwater import reports
from headwater.errors import InputError
from headwater.records import (
    Budget,
    BudgetStep,
    Diagnosis,
    Evidence,
    Finding,
    Profile,
    Severity,
    Verdict,
    WeightShare,
    gradient_budget,
)
from headwater.reports.budget_table import budget_parts, budget_sentence, budget_table, hidden_signal, weight_table
from headwater.reports.text import render_text


def finding(code: str = "HW101", severity: Severity = Severity.CRITICAL, **more: object) -> Finding:
    values: dict[str, object] = {
        "defect": "vanishing gradient", "verdict": Verdict.VANISHING, "where": ("0", "1", "2", "3"),
        "evidence": (Evidence("change along the trunk", -16.9, "decades", "limit -3"),),
        "cause": "The gradient falls 0.85 decades per layer.", "advice": "Use another activation.",
    }  # fmt: skip
    return Finding(code=code, severity=severity, **{**values, **more})  # type: ignore[arg-type]


def diagnosis(profile: Profile | None = None, *findings: Finding, verdict: Verdict = Verdict.VANISHING) -> Diagnosis:
    profile = profile or profiles.deep_sigmoid(20)
    return Diagnosis(verdict=verdict, findings=findings, budget=gradient_budget(profile), profile=profile)


def faulty(profile: Profile | None = None) -> Diagnosis:
    return diagnosis(
        profile,
        finding(),
        finding("HW103", symptom_of="HW101", defect="signal collapse", cause="Samples agree."),
        finding("HW104", Severity.WARNING, defect="starved weights", where=("0.weight",)),
        finding("HW302", Severity.INFO, verdict=None, defect="unused parameters", where=("2.weight",)),
    )


def healthy(*findings: Finding) -> Diagnosis:
    return diagnosis(profiles.deep_sigmoid(3, -0.01), *findings, verdict=Verdict.HEALTHY)


# -------------------------------------------------------------------- text


def test_the_first_screen_is_the_answer() -> None:
    lines = str_of(faulty()).splitlines()
    screen = "\n".join(lines[:24])
    assert lines[3] == "✗ vanishing: HW101 vanishing gradient at 0–3"
    assert lines[4] == "  The gradient falls 0.85 decades per layer."
    assert "Evidence: change along the trunk -16.9 decades (limit -3)." in screen
    assert "Try: Use another activation." in screen
    assert lines[-1] == "Verdict: vanishing, root cause HW101 at 0–3 (2 critical findings, 1 warning, 1 remark)."


def str_of(record: Diagnosis, width: int = 100, **more: bool) -> str:
    return reports.to_text(record, width=width, ascii_only=more.pop("ascii_only", False), **more)


def test_symptoms_stand_under_their_root_and_the_others_by_severity() -> None:
    text = str_of(faulty())
    order = [
        text.index(word) for word in ("Explained by HW101", "HW103", "Also found", "HW104", "HW302", "Gradient budget")
    ]
    assert order == sorted(order)


def test_a_healthy_model_is_told_in_one_line() -> None:
    assert "✓ healthy: no finding that matters" in str_of(healthy())
    assert "Verdict: healthy (no findings)." in str_of(healthy())


def test_a_healthy_model_with_a_warning_is_not_told_to_be_spotless() -> None:
    text = str_of(healthy(finding(severity=Severity.WARNING)))
    assert "⚠ healthy, with 1 warning" in text
    assert "⚠ warning: HW101 vanishing gradient at 0–3." in text


def test_every_sign_has_an_ascii_form() -> None:
    text = str_of(faulty(), ascii_only=True)
    text.encode("ascii")
    assert "x vanishing: HW101" in text
    assert "+ healthy" in str_of(healthy(), ascii_only=True)


def test_the_verdict_has_a_colour() -> None:
    text = reports.to_text(faulty(), width=100, color=True, ascii_only=False)
    assert re.search(r"\x1b\[1;31m✗ *\x1b\[0m|\x1b\[1;31m✗ vanishing", text)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("name", ["five", "thousand", "transformer", "recurrent", "troubled"])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    profile = {
        "five": profiles.deep_sigmoid(2), "thousand": profiles.deep_sigmoid(500, -0.01),
        "transformer": profiles.transformer(12), "recurrent": profiles.recurrent(), "troubled": profiles.troubled(),
    }[name]  # fmt: skip
    lines = str_of(faulty(profile), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 120  # a thousand layers fold


def test_undecided_and_unobserved_things_are_said() -> None:
    text = str_of(replace(healthy(), undecided=("no steps on a copy could be taken: it is locked.",)))
    assert "Undecided" in text
    assert "it is locked" in text
    assert "Coverage: observed" in text
    assert "No loss was given" in str_of(
        diagnosis(profiles.deep_sigmoid(2, loss_source="probe"), verdict=Verdict.HEALTHY)
    )


def test_over_time_the_course_of_time_comes_before_the_budget() -> None:
    record = diagnosis(
        profiles.recurrent(), finding(verdict=Verdict.VANISHING_IN_TIME), verdict=Verdict.VANISHING_IN_TIME
    )
    text = str_of(record)
    assert text.index("Gradient over time") < text.index("Gradient budget")
    assert text.count("Gradient over time") == 1


# -------------------------------------------------------------------- the budget


def test_the_budget_of_the_sigmoid_network_is_the_one_worked_out_by_hand() -> None:
    # Per pair: the Sigmoid's output has 10**0.6 times the gradient of its Linear's output, so it takes 0.6 decades; the
    # Linear after it takes the remaining 0.845 - 0.6 = 0.245. The last Linear stands next to the loss with rms 1, its
    # Sigmoid's output has 10**(-0.845 + 0.6). The loss is the last trunk point: no step. 20 pairs: -12.0 and -4.9.
    budget = gradient_budget(profiles.deep_sigmoid(20))
    assert budget.by_kind() == pytest.approx({"activation": -12.0, "weights": -4.9})
    assert "changes by −16.90 decades: activations −12.00, weights −4.90" in budget_sentence(budget)
    table = budget_table(budget)
    assert [cell.text for cell in table.rows[-1]][:5] == ["in all", "40", "−12.00", "−4.90", "−16.90"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["weights", "activation", "residual", "loss", "scale", "pooling"]), st.floats(-9, 9)),
        min_size=1,
        max_size=120,
    ),
    st.one_of(st.none(), st.integers(4, 30)),
)
@settings(max_examples=40, deadline=None)
def test_folded_parts_hold_every_step_once_and_sum_to_the_whole(
    steps: list[tuple[str, float]], rows: int | None
) -> None:
    budget = Budget(tuple(BudgetStep(f"net.{i // 2}.{i % 2}", k, d, d) for i, (k, d) in enumerate(steps)))  # type: ignore[arg-type]
    parts = budget_parts(budget, rows)
    assert [step for part in parts for step in part.steps] == list(budget.steps)
    assert math.fsum(part.decades for part in parts) == pytest.approx(budget.total_decades, abs=1e-9)
    assert all(sum(part.by_kind().values()) == pytest.approx(part.decades, abs=1e-9) for part in parts)
    assert parts[-1].after == pytest.approx(budget.total_decades, abs=1e-9)
    table = budget_table(budget, max_rows=rows)
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_kinds_without_a_column_are_counted_together() -> None:
    kinds = ["weights", "activation", "normalization", "residual", "attention", "scale"]
    steps = [BudgetStep(f"blocks.{b}.{k}", k, -0.1 * (i + 1), 0.0) for b in range(12) for i, k in enumerate(kinds)]  # type: ignore[arg-type]
    table = budget_table(Budget(tuple(steps)))
    titles = [column.title for column in table.columns]
    # Totals over 12 blocks: -1.2, -2.4 … -7.2: the three largest have a column, the others are 1.2 + 2.4 + 3.6 = 7.2.
    assert titles[2:6] == ["scaling", "attention", "residual\nsums", "the\nothers"]
    assert [cell.text for cell in table.rows[-1]][2:7] == ["−7.20", "−6.00", "−4.80", "−7.20", "−25.20"]


def test_a_budget_that_ends_early_says_where() -> None:
    text = budget_sentence(Budget((BudgetStep("loss", "loss", -1.0, -1.0),), cut_at="conv`1"))
    assert "the last tensor before `conv'1`" in text
    assert "exactly zero or not finite" in text
    assert budget_sentence(Budget(())) == "No gradient travels along the trunk."


# -------------------------------------------------------------------- weights


def share(name: str, activation: float, gradient: float) -> WeightShare:
    return WeightShare(name, activation + gradient + 0.5, activation, gradient, 0.5)


def test_weight_gradients_that_hide_a_dying_signal_are_pointed_out() -> None:
    # Activations fall by 0.5 per layer, gradients rise by 0.5: the product stays, the weight gradients look even.
    hidden = [share(f"{i}.weight", -0.5 * i, -4.0 + 0.5 * i) for i in range(9)]
    assert hidden_signal(hidden).startswith("The weight gradients span 0.0 decades only")
    assert "activations change by −4.00 decades" in hidden_signal(hidden)
    assert hidden_signal([share(f"{i}.weight", 0.0, -0.8 * i) for i in range(9)]) == ""  # seen in the weights as well
    assert hidden_signal(hidden[:2]) == ""
    text = str_of(replace(healthy(), budget=Budget(healthy().budget.steps, tuple(hidden))))
    assert "Hidden by the weight gradients" in text
    assert "What makes up each weight's gradient" in text
    assert "What makes up" not in str_of(healthy())


def test_the_weight_table_adds_up_and_shows_no_negative_zero() -> None:
    table = weight_table([share("a.weight", -0.001, -2.0)])
    assert [cell.text for cell in table.rows[0]] == ["a.weight", "−1.50", "0.00", "−2.00", "0.50"]


# -------------------------------------------------------------------- HTML


def test_a_page_has_a_card_per_finding_with_its_evidence_and_two_pictures() -> None:
    page = reports.to_html_page(faulty())
    assert '<aside class="callout headline critical"><strong>vanishing: HW101 vanishing gradient at' in page
    assert page.count('class="plot"') == 2
    for code, severity in (("HW101", "critical"), ("HW104", "warning"), ("HW302", "info")):
        assert re.search(rf"<strong>{code} [a-z ]+, {severity}\.</strong>", page)
    assert "1 finding explained by HW101: HW103 signal collapse</summary>" in page
    assert page.count("change along the trunk") == 4
    assert "http://" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_names_and_causes_are_shown_as_text() -> None:
    evil = "<script>alert(1)</script>"
    record = diagnosis(
        profiles.hostile(),
        finding(where=(evil, "a`b**c**"), defect=evil, cause=f"{evil} `x` **y**", advice=evil,
                evidence=(Evidence(evil, 1.0, evil, evil),)),
        finding("HW9", Severity.WARNING, defect=evil, where=(evil,)),
    )  # fmt: skip
    record = replace(record, undecided=(evil,))
    for text in (reports.to_html_page(record), record._repr_html_()):
        assert evil not in text
        assert "&lt;script&gt;alert(1)" in text


def test_the_fragment_is_small_and_has_no_script() -> None:
    html = faulty()._repr_html_()
    assert len(html) < 40_000
    assert "<script" not in html
    assert "headline critical" in html


# -------------------------------------------------------------------- figures


@pytest.mark.parametrize("template", ["dark", "light"])
@pytest.mark.parametrize(("pairs", "bars"), [(2, 4), (500, 100)])
def test_the_waterfall_starts_at_the_loss_and_ends_at_the_total(pairs: int, bars: int, template: str) -> None:
    record = faulty(profiles.deep_sigmoid(pairs, -0.02))
    figure = record.plot(template=template)
    drawn = sorted(
        (x, base, y)
        for trace in figure.data
        if trace.type == "bar" and trace.name != "in all"
        for x, base, y in zip(trace.x, trace.base, trace.y, strict=True)
    )
    assert len(drawn) <= bars
    assert drawn[0][1] == 0.0
    for (_, base, y), (_, following, _) in itertools.pairwise(drawn):
        assert following == pytest.approx(base + y, abs=1e-9)
    assert drawn[-1][1] + drawn[-1][2] == pytest.approx(-0.02 * pairs, abs=1e-9)
    assert figure.layout.title.text
    assert "no unit" in figure.layout.yaxis.title.text
    assert len(figure.layout.xaxis.ticktext) <= 20
    json.loads(figure.to_json())


def test_the_profile_figure_marks_the_places_of_the_findings() -> None:
    figure = faulty().plot(what="profile")
    marks = {trace.name: list(trace.x) for trace in figure.data if trace.name and trace.name.startswith("HW")}
    # Layers 0-3 are rows 0-3; 0.weight belongs to row 0, 2.weight to row 2.
    assert marks == {
        "HW101 vanishing gradient": [0, 1, 2, 3],
        "HW103 signal collapse": [0, 1, 2, 3],
        "HW104 starved weights": [0],
        "HW302 unused parameters": [2],
    }
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(-0.5, 3.5)]


@pytest.mark.parametrize("what", ["budget", "profile"])
def test_an_option_that_does_not_exist_is_refused(what: str) -> None:
    with pytest.raises(InputError, match="takes no option colour"):
        faulty().plot(what=what, colour="red")
    with pytest.raises(InputError, match="it can be 'budget', 'profile'"):
        faulty().plot(what="time")


def test_without_a_travelling_gradient_there_is_no_waterfall_and_the_report_says_so() -> None:
    record = replace(faulty(), budget=Budget(()))
    with pytest.raises(InputError, match="no budget to draw"):
        record.plot()
    assert "No gradient travels along the trunk." in str_of(record)
    assert reports.to_html_page(record).count('class="plot"') == 1


def test_a_table_of_the_budget_prints_at_any_width() -> None:
    from headwater.reports.document import Document

    document = Document("t", (budget_table(gradient_budget(profiles.deep_sigmoid(20)), start_log10=0.0),))
    for width in (40, 60, 80, 140):
        assert max(map(len, render_text(document, width=width, ascii_only=False).splitlines())) <= width
