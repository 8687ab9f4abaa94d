"""The report on initial weights shows the record's numbers and what they mean for the gradient."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from headwater import reports
from headwater.errors import InputError
from headwater.records.initialization import BiasInitialization, InitializationReport, WeightInitialization


def weight(name: str, **changes: Any) -> WeightInitialization:
    """torch's default Linear(100, 100) before a Sigmoid: σ_w² = 1/3, and 20 would keep the gradient."""
    defaults: dict[str, Any] = {
        "name": name, "parameter": name, "layer": name.rpartition(".")[0], "layer_type": "Linear", "shape": (100, 100),
        "fan_in": 100, "fan_out": 100, "mean": 0.0, "std": 0.0577, "max_abs": 0.1,
        "zero_fraction": 0.0, "kurtosis": 1.8,
        "weight_variance": 1 / 3, "weight_second_moment": 1 / 3, "distribution": "uniform",
        "initializer": "torch default: U(±1/√fan_in)", "activation": "sigmoid", "signal": "repeated layer",
        "preactivation_variance": 0.1, "forward_weight_variance": 1 / 3, "backward_weight_variance": 20.0,
        "forward_factor": 1.0, "backward_factor": math.sqrt(1 / 60),
    }  # fmt: skip
    return WeightInitialization(**{**defaults, **changes})


def report(rows: list[WeightInitialization], **changes: Any) -> InitializationReport:
    bias = BiasInitialization(
        name="0.bias",
        layer="0",
        layer_type="Linear",
        shape=(100,),
        mean=0.0,
        std=0.0,
        is_zero=True,
        initializer="zeros",
    )
    defaults: dict[str, Any] = {
        "biases": (bias,), "skipped": {"1.weight": "normalisation", "1.bias": "normalisation"}, "model_type": "Net",
        "torch_version": "2.13.0", "headwater_version": "0.1.0",
    }  # fmt: skip
    return InitializationReport(rows=tuple(rows), **{**defaults, **changes})


def test_the_table_shows_variance_targets_and_change_in_decades() -> None:
    text = reports.to_text(report([weight("0.weight"), weight("2.weight")]), width=140)
    line = next(line for line in text.splitlines() if line.startswith("0.weight"))
    # √((1/3) / 20) = √(1/60) = 0.129, log10 = -0.889; the forward factor 1 is no change at all.
    assert line.split()[:9] == ["0.weight", "Linear", "100", "0.0577", "0.333", "0.333", "20", "0", "−0.89"]
    assert "torch default: U(±1/√fan_in)" in line


def test_the_sentence_counts_initialisers_and_names_the_furthest_layer() -> None:
    rows = [weight(f"{i}.weight") for i in range(4)] + [
        weight("9.weight", initializer="normal_(std=1)", backward_factor=10.0)
    ]
    summary = reports.document_of(report(rows)).summary
    assert summary.startswith("4 of 5 weights: torch default: U(±1/√fan_in).")
    assert "The median layer multiplies the rms of the gradient by 0.129 (−0.889 decades)." in summary
    assert "The furthest from keeping it is `9.weight`: +1 decades." in summary


def test_what_the_weights_cannot_decide_is_a_dash_with_its_reason() -> None:
    unknown = weight(
        "lstm.weight_ih_l0[forget]", signal=None, preactivation_variance=None, forward_weight_variance=None,
        backward_weight_variance=None, forward_factor=None, backward_factor=None, notes=("one of several gates",),
    )  # fmt: skip
    text = reports.to_text(report([unknown]), width=140)
    assert " - " in next(line for line in text.splitlines() if line.startswith("lstm"))
    assert "one of several gates" in text


def test_weights_that_let_nothing_through_are_minus_infinity_decades() -> None:
    text = reports.to_text(report([weight("0.weight", weight_variance=0.0, backward_factor=0.0)]), width=140)
    assert "−inf" in text
    assert "lets no gradient through" in text


def test_biases_and_skipped_parameters_are_told() -> None:
    text = reports.to_text(report([weight("0.weight")]), width=140)
    assert "Biases: 1 zero, of 1." in text
    assert "Not explained: normalisation: 2." in text


def test_many_equal_layers_fold() -> None:
    text = reports.to_text(report([weight(f"layers.{i}.weight") for i in range(200)]), width=140)
    assert len(text.splitlines()) < 80
    assert "layers.1-3" in text  # 198 between the open ends, in 58 rows: three or four each
    full = reports.document_of(report([weight(f"layers.{i}.weight") for i in range(200)]), full=True)
    assert max(len(block.rows) for block in full.blocks if hasattr(block, "rows")) == 200


def test_the_figure_puts_the_measured_variance_beside_the_ones_that_keep() -> None:
    figure = reports.to_figure(report([weight("0.weight"), weight("2.weight")]))
    assert [t.name for t in figure.data] == ["measured", "keeps the signal", "keeps the gradient"]
    assert list(figure.data[2].y) == [20.0, 20.0]
    assert figure.layout.yaxis.type == "log"
    assert "no unit" in figure.layout.yaxis.title.text
    assert figure.layout.title.text == "Initial weight variance of Net"


def test_a_model_without_weights_has_a_report_and_no_figure() -> None:
    empty = report([], biases=(), skipped={})
    assert "no weights to explain" in reports.to_text(empty)
    with pytest.raises(InputError, match="no weights to draw"):
        reports.to_figure(empty)


def test_the_page_escapes_names() -> None:
    hostile = dataclasses.replace(weight("<script>alert(1)</script>"), notes=("<b>note</b>",))
    page = reports.to_html_page(report([hostile]))
    assert "<script>alert(1)" not in page
    assert "&lt;b&gt;note&lt;/b&gt;" in page
