"""Answers are composed from measurements: other networks give other sentences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from headwater._studies import demo, run_study
from headwater._studies.underflow import flushes_subnormals
from headwater._studies.words import decades, factor, hides_its_signal, moves, percent, power, rate, signed
from headwater.cli.demo import command
from headwater.errors import HeadwaterError, RecordError, StudyError
from headwater.records.study import StudyResult, Trend
from headwater.reports import to_html_page, to_text
from headwater.reports.study_figures import study_figure
from headwater.reports.study_report import build_study_document
from headwater.studies import CLASSICS, study


def trend(value: float, half: float = 0.01, quantity: str = "∂L/∂h") -> Trend:
    return Trend(
        quantity=quantity, decades_per_layer=value, low=value - half, high=value + half, single_low=value - 1,
        single_high=value + 1, draws=1000, layers=10,
    )  # fmt: skip


def answers(result: StudyResult) -> dict[str, str]:
    return {a.question: a.text for a in result.answers}


@pytest.fixture(scope="module")
def results() -> dict[str, StudyResult]:
    return {name: run_study(replace(s, grid=None), draws=30) for name, s in CLASSICS.items() if name != "deep-sigmoid"}


# ------------------------------------------------------------------------------------------------------- words


def test_numbers_are_written_so_that_nothing_becomes_zero() -> None:
    assert (decades(-0.8519), signed(-0.8519, 3), signed(0.004), signed(62.14)) == ("0.85", "−0.852", "0.00", "+62.1")
    assert (power(-17.96), power(4.4), power(-0.0001), power(-400.0)) == ("1.1e−18", "2.5e+04", "1.0e+00", "1.0e−400")
    assert (factor(-0.852), factor(-18.0)) == ("× 0.141", "× 1.0e−18")
    assert (percent(0.0), percent(0.0004), percent(0.9999), percent(1.0)) == ("0 %", "0.04 %", "> 99.9 %", "100 %")


def test_a_trend_is_named_by_its_interval() -> None:
    assert moves(trend(-0.5)) == "falls"
    assert moves(trend(0.5)) == "grows"
    assert moves(trend(0.5, half=0.6)) == "stays level"  # the interval holds 0
    assert moves(trend(0.02, half=0.001)) == "stays level"  # certain, and too small to matter
    assert rate(trend(-0.5)) == "falls 0.500 decades per layer (95 % interval −0.510 to −0.490 over 1,000 networks)"
    assert hides_its_signal(trend(-0.02), trend(-0.4))
    assert not hides_its_signal(trend(-0.2), trend(-0.4))
    assert not hides_its_signal(trend(0.0), trend(0.0))


# ------------------------------------------------------------------------------------------------------ answers


def test_relu_hides_its_falling_signal_and_sigmoid_does_not(results: dict[str, StudyResult]) -> None:
    result = results["activation-and-init"]
    text = answers(result)["Do flat weight gradients mean that the gradient gets through?"]
    assert text.startswith("No. (c) ReLU")
    assert "sigmoid" not in text
    relu = result.variant("relu")
    weight, hidden = relu.trend("∂L/∂W"), relu.trend("∂L/∂h")
    assert weight is not None
    assert hidden is not None
    assert abs(weight.decades_per_layer) < 0.05
    assert hidden.decades_per_layer == pytest.approx(-0.37, abs=0.03)
    assert any("level weight gradients" in c.title for c in result.charts)


def test_the_same_question_is_answered_otherwise_for_networks_that_keep_the_gradient() -> None:
    described = study("activation-and-init").varied(init="kaiming_normal")
    relu = run_study(replace(described, variants=described.variants[2:]), draws=30)  # He and ReLU: nothing is lost
    assert answers(relu)["Do flat weight gradients mean that the gradient gets through?"] == (
        "In these networks the weight gradients show what ∂L/∂h does: nothing cancels."
    )
    linear = run_study(replace(described, variants=described.variants[1:2]), draws=30)  # √2 per layer: it grows
    text = answers(linear)["Can weights alone make a gradient vanish, without any activation?"]
    assert text.startswith("Not here.")
    assert "grows 0.1" in text


def test_the_exercise_is_answered_with_the_measured_rates(results: dict[str, StudyResult]) -> None:
    result = results["init-strategies"]
    text = answers(result)
    assert len(text) == 5  # what is wrong, and the exercise's four
    for variant in result.variants:
        found = variant.trend("∂L/∂h")
        assert found is not None
        assert (
            f"{variant.title} {signed(found.decades_per_layer)}"
            in text["What is the pattern, and where is vanishing evident?"]
        )
    assert "gain of 4.72" in text["Why does sigmoid cause it?"]  # 1/√E[σ'(z)²]
    assert {t.title.split(",")[0].split(" (")[0] for t in result.tables} == {
        "Variance rules", "The gain that preserves the gradient",
    }  # fmt: skip


def test_weights_and_biases_are_drawn_apart(results: dict[str, StudyResult]) -> None:
    charts = results["init-strategies"].charts
    assert [c.title for c in charts[:2]] == [
        "L2 norm of the gradient of the weights, layer by layer", "L2 norm of the gradient of the biases, layer by layer",
    ]  # fmt: skip
    first = results["init-strategies"].variants[0]
    assert charts[0].series[0].y == tuple(f.value for f in first.figures[::2])
    assert charts[1].series[0].y == tuple(f.value for f in first.figures[1::2])
    assert charts[0].series[1].dashed
    assert charts[0].series[1].y == tuple(f.published for f in first.figures[::2])


def test_every_observation_has_a_statistic_an_interval_and_an_outcome(results: dict[str, StudyResult]) -> None:
    observations = {o.claim: o for o in results["raw-weights"].observations}
    assert observations["sigmoid, integer features: gradients vanish"].outcome == "holds"
    assert observations["ReLU, integer features: many exact zeros"].outcome == "holds"
    assert observations["tanh, integer features: no exact zeros"].outcome == "holds"
    signs = observations["ReLU, integer features: no relation between a weight below 0 and a zero gradient"]
    assert signs.outcome == "does not hold"  # a negative weight is more often on its way into an inactive unit
    assert 0.0 < signs.low < signs.value < signs.high
    assert all(o.low <= o.value <= o.high for o in observations.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deep-sigmoid", {"depth": 3, "width": 4, "activation": "relu"}),
        ("deep-sigmoid", {"depth": 1, "width": 4}),
        ("deep-sigmoid", {"depth": 60, "width": 4}),
        ("activation-and-init", {"depth": 2, "width": 3, "activation": torch.sin}),
        ("raw-weights", {"depth": 3, "width": 2, "activation": "gelu", "init": "normal:0.5"}),
        ("raw-weights", {"depth": 12, "width": 3, "activation": "relu"}),
        ("init-strategies", {"depth": 2, "init": "xavier_uniform"}),
        ("init-strategies", {"depth": 8, "width": 4, "activation": "elu"}),
        ("shortcut", {"depth": 3, "width": 8, "activation": "tanh", "init": "kaiming_normal"}),
    ],
)
def test_every_study_can_be_varied(name: str, options: dict[str, object]) -> None:
    result = demo(name, draws=5, **options)  # type: ignore[arg-type]
    assert set(result.varied) == set(options)
    assert all(f.published is None for v in result.variants for f in v.figures if v.initialization != "normal:0.01")
    assert StudyResult.from_json(result.to_json()) == result
    for full in (False, True):
        text = to_text(build_study_document(result, full=full, matrices="both"))
        assert result.title in " ".join(text.split())


def test_a_gradient_that_does_not_fall_has_no_underflow_depth() -> None:
    result = demo("deep-sigmoid", draws=20, depth=8, width=50, activation="relu", init="kaiming_normal")
    assert result.tables == ()
    assert "does not fall" in answers(result)["At what depth would they really become zero?"]


@pytest.mark.parametrize("width", [8, 30, 100])
def test_the_underflow_depth_is_where_the_first_gradient_becomes_zero(width: int) -> None:
    # Products of 8 × 8 matrices keep subnormal bf16 numbers everywhere; those of 100 × 100 depend on the processor.
    result = demo("deep-sigmoid", draws=30, width=width)
    rows = {row[0]: row for row in result.tables[0].rows}
    # 16-bit floats end 31 decades before 32-bit ones: at 0.85 decades per layer, some 40 layers earlier
    for row in rows.values():
        predicted, tried = row[4], row[5]
        assert isinstance(predicted, int)
        assert isinstance(tried, int)
        assert abs(predicted - tried) <= (4 if width == 8 else 2)  # 8 units wander by chance
    assert int(rows["fp32"][4] or 0) - int(rows["fp16"][4] or 0) > 35
    flushed = flushes_subnormals(torch.bfloat16, width)
    assert (rows["bf16"][3], rows["bf16"][4] == rows["bf16"][2]) == ("flushed" if flushed else "kept", flushed)
    assert ("flush subnormal bf16" in result.tables[0].reading) == flushed


def test_formats_other_than_bf16_keep_their_subnormal_numbers() -> None:
    # 2⁻¹²⁸ and 2⁻¹⁶ are powers of two: times 1 they must come back as they are
    assert not flushes_subnormals(torch.float32, 100)
    assert not flushes_subnormals(torch.float16, 100)
    assert not flushes_subnormals(torch.float64, 100)


def test_the_gain_of_the_shortcut_is_over_the_same_weights(results: dict[str, StudyResult]) -> None:
    table = next(t for t in results["shortcut"].tables if t.title.startswith("What the shortcut gains"))
    # seed 123: log10(0.61789608 / 2.0174125e-4) = 3.4861
    assert table.rows[0][1] == pytest.approx(3.4861, abs=1e-4)
    assert table.rows[0][0] == "fc1.weight"
    low, mean, high = (float(table.rows[0][i] or 0) for i in (3, 2, 4))
    assert 2.5 < low < mean < high < 4.5


# ------------------------------------------------------------------------------------------ records and reports


def test_a_result_survives_json_and_a_foreign_file_is_refused(results: dict[str, StudyResult]) -> None:
    for result in results.values():
        assert StudyResult.from_json(result.to_json()) == result
        json.loads(result.to_json(), parse_constant=lambda text: pytest.fail(f"bare {text}"))
    with pytest.raises(RecordError, match=r"not a headwater\.study file"):
        StudyResult.from_dict({"schema": "headwater.profile", "schema_version": 1})
    with pytest.raises(KeyError, match="it has without, with"):
        results["shortcut"].variant("sometimes")


def test_every_figure_has_a_title_axis_titles_hover_and_markers_on_a_dark_template(
    results: dict[str, StudyResult],
) -> None:
    for result in results.values():
        for number in range(len(result.charts)):
            figure = study_figure(result, chart=number)
            assert figure.layout.title.text.startswith(result.name)
            assert figure.layout.xaxis.title.text
            assert figure.layout.yaxis.title.text
            assert figure.layout.template.layout.paper_bgcolor == "#12161c"
            lines = [t for t in figure.data if t.fill is None]
            assert lines
            assert all("markers" in t.mode and t.text is not None for t in lines)
    with pytest.raises(HeadwaterError, match="has no chart 99"):
        study_figure(results["shortcut"], chart=99)


def test_matrices_show_weights_beside_gradients_and_mark_zeros(results: dict[str, StudyResult]) -> None:
    document = build_study_document(results["raw-weights"], matrices="both")
    text = to_text(document, width=100)
    relu = next(m for m in results["raw-weights"].matrices if m.variant == "relu" and any(any(r) for r in m.reasons))
    assert f"{relu.weight[0][0]:.4f}" in text
    assert "∂L/∂w10" in text
    assert any(mark in text for mark in ("0c", "0r", "0p", "0d"))
    alone = to_text(build_study_document(results["raw-weights"], matrices="gradients"), width=100)
    assert f"{relu.weight[0][0]:.4f}" not in alone


# ------------------------------------------------------------------------------------------------- command line


def test_the_command_writes_one_offline_page_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["activation-and-init", "--draws", "5"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "fc4.weight" in done.stdout
    page = (tmp_path / "headwater-demo.html").read_text(encoding="utf-8")
    assert "Do flat weight gradients mean" in page
    assert "<script src" not in page


def test_json_goes_alone_to_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["activation-and-init", "init-strategies", "--draws", "3", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["schema"] == "headwater.studies"
    assert [s["name"] for s in document["studies"]] == ["activation-and-init", "init-strategies"]
    assert list(tmp_path.iterdir()) == []  # no page that nobody asked for
    done = CliRunner().invoke(
        command, ["raw-weights", "--draws", "3", "--json=a.json", "--no-html"], catch_exceptions=False
    )
    assert StudyResult.from_json(tmp_path / "a.json").name == "raw-weights"
    assert "∂L/∂w10" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deep-sigmod"], "did you mean deep-sigmoid"),
        (["shortcut", "--activation", "rellu"], "did you mean relu"),
        (["shortcut", "--init", "glorot"], "unknown initialisation"),
        (["shortcut", "--depth", "1"], "no hidden layer"),
        (["shortcut", "--html", "nowhere/page.html"], "does not exist"),
    ],
)
def test_a_wrong_option_fails_before_anything_runs(arguments: list[str], message: str) -> None:
    with pytest.raises(HeadwaterError, match=message):
        CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_the_page_of_several_studies_names_each(results: dict[str, StudyResult]) -> None:
    page = to_html_page([build_study_document(r, full=True) for r in results.values()], title="Studies")
    for name in results:
        assert f"{name}: {study(name).title}" in page.replace("&#39;", "'")
    assert len(page) < 7_000_000


def test_an_unknown_study_is_a_study_error() -> None:
    with pytest.raises(StudyError, match="choose from deep-sigmoid"):
        demo("zzz")
