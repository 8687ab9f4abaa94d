"""The published figures of the five classic studies, against this package's own runs and ensembles."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater._studies.ensemble import draw_ensemble
from headwater._studies.run import StudyRun, run_variants
from headwater.studies import CLASSICS, Study, Variant

FIXTURE = Path(__file__).parent / "fixtures" / "classics_ensemble.json"
SHARED = Path(__file__).parents[1] / ".." / "shared" / "classics.json"
PUBLISHED = [(s, v) for s in CLASSICS.values() for v in s if v.published]
UNSEEDED = [(s, v) for s, v in PUBLISHED if s.published_seed is None]


def name_of(value: object) -> str:
    return value.name if isinstance(value, Study | Variant) else str(value)


@pytest.fixture(scope="module")
def ensemble() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shortcut() -> StudyRun:
    study = replace(CLASSICS["shortcut"], grid=None)
    return run_variants(study, seed=123, draws=10)


def test_every_seeded_figure_is_reproduced(shortcut: StudyRun) -> None:
    for one in shortcut:
        for figure in one.result.figures:
            assert figure.value == pytest.approx(figure.published, rel=1e-5), (one.variant.name, figure.parameter)
            assert figure.agrees is True


def test_the_networks_with_and_without_the_shortcut_come_from_one_stream(shortcut: StudyRun) -> None:
    # The notebook sets the seed once: the second network continues where the first one stopped.
    first, second = (one.model.get_parameter("fc1.weight") for one in shortcut)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("study", "variant"), UNSEEDED, ids=name_of)
def test_every_unseeded_figure_lies_in_the_central_999_permille(
    study: Study, variant: Variant, ensemble: dict[str, Any]
) -> None:
    entry = ensemble["studies"][study.name][variant.name]
    assert entry["parameters"] == list(study.printed_parameters(variant.network))
    for name, published, (low, _, high) in zip(
        entry["parameters"], variant.published, entry["log10_quantiles"], strict=True
    ):
        # what was printed stands for every value that rounds to it, such as 0.0000000000 for those below 5e-11
        smallest, largest = variant.interval(published)
        assert math.log10(largest) >= low, name
        assert smallest <= 0.0 or math.log10(smallest) <= high, name


def test_the_ensemble_is_large_enough_for_its_tails(ensemble: dict[str, Any]) -> None:
    assert ensemble["draws"] >= 1_000
    assert ensemble["levels"] == [0.0005, 0.5, 0.9995]  # central 99.9 %
    assert ensemble["draws"] * 0.0005 >= 10  # draws beyond either end
    assert ensemble["command"].startswith("python benchmarks/classics_ensemble.py")


@pytest.mark.parametrize(("study", "variant"), PUBLISHED, ids=name_of)
def test_the_stored_ensemble_is_the_one_the_engine_draws(
    study: Study, variant: Variant, ensemble: dict[str, Any]
) -> None:
    draws = 20 if variant.network.width == 100 else 200
    fresh = draw_ensemble(
        variant.network, variant.data, loss=study.loss, statistic=study.statistic,
        printed=study.printed_parameters(variant.network), draws=draws, seed=5,
    )  # fmt: skip
    quantiles = ensemble["studies"][study.name][variant.name]["log10_quantiles"]
    low, median, high = (torch.tensor([row[i] for row in quantiles], dtype=torch.float64) for i in range(3))
    # Half of the draws lie below the median: five standard errors of a share, 0.5/√draws each, whatever the law.
    below = (fresh.statistic < median).double().mean(0)
    assert bool(((below - 0.5).abs() <= 5 * 0.5 / math.sqrt(draws)).all())
    # One draw in a thousand lies outside: more than four of 200 would be a 1e-5 event.
    outside = (fresh.statistic < low) | (fresh.statistic > high)
    assert int(outside.sum(0).max()) <= 4


def test_the_published_figures_are_those_of_the_notebooks() -> None:
    if not SHARED.exists():
        pytest.skip("the published figures are in ../shared, which is not here")
    shared = json.loads(SHARED.read_text(encoding="utf-8"))
    for study, variant in PUBLISHED:
        if study.name == "deep-sigmoid":
            assert list(variant.published[10:]) == shared[study.name]["mean_abs_layers_11_to_20"]
            assert set(variant.published[:10]) == {0.0}
            assert variant.published_decimals == shared[study.name]["printed_decimals"]
        else:
            assert list(variant.published) == shared[study.name][variant.name]
    assert CLASSICS["shortcut"].published_seed == shared["shortcut"]["seed"]


def test_nothing_that_is_not_zero_is_shown_as_zero() -> None:
    from headwater._studies import run_study
    from headwater.reports import to_text
    from headwater.reports.study_report import build_study_document

    study = replace(CLASSICS["deep-sigmoid"], extras=())
    result = run_study(study, draws=4)
    assert all(f.value > 0.0 for f in result.variants[0].figures)
    line = next(x for x in to_text(build_study_document(result), width=100).splitlines() if x.startswith("fc1.weight"))
    assert float(line.split()[1]) == pytest.approx(result.variants[0].figures[0].value, rel=0.01)
    assert line.split()[2] == "0.0000000000"  # what the fixed format had printed


def test_too_few_draws_judge_no_published_figure() -> None:
    study = CLASSICS["activation-and-init"]
    few = next(iter(run_variants(replace(study, variants=study.variants[:1]), seed=0, draws=50)))
    assert [f.agrees for f in few.result.figures] == [None] * 4
    assert [f.percentile is not None for f in few.result.figures] == [True] * 4
    enough = next(iter(run_variants(replace(study, variants=study.variants[:1]), seed=0, draws=1000)))
    assert [f.agrees for f in enough.result.figures] == [True] * 4
