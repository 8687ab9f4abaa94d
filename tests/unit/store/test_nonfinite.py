"""Where a run had elements that were not finite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.unit.store.synthetic import norm_block, statistics_block, step

from headwater.records.run_matrix import rms_matrix
from headwater.records.run_summary import summarize_run
from headwater.store import RunWriter, open_run

NAN, INF = math.nan, math.inf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with RunWriter(tmp_path / "a") as writer:
        writer.write(step(0, statistics_block([[3.0, 4.0], [1.0]])))
        writer.write(step(1, statistics_block([[3.0, NAN, INF], [1.0]])))
        writer.write(step(2, statistics_block([[3.0, 4.0], [INF]])))
        writer.write(step(3, norm_block([[5.0, 0.0, 1.0], [1.0, 0.0, 0.0]])))
        # What the optimizer used counts: the clipped gradient is finite.
        writer.write(
            step(4, statistics_block([[INF, 4.0], [1.0]]), statistics_block([[3.0, 4.0], [1.0]], phase="post_clip"))
        )
    return tmp_path / "a"


def test_steps_and_elements_are_listed_by_tensor(folder: Path) -> None:
    run = open_run(folder)
    assert run.nonfinite("gradient") == {"fc1.weight": ((1, 1, 1), (3, 0, 1)), "fc1.bias": ((2, 0, 1),)}
    assert run.nonfinite("gradient", phase="pre_clip")["fc1.weight"][-1] == (4, 0, 1)
    assert run.nonfinite("activation") == {}


def test_the_matrix_has_the_rms_of_all_elements(folder: Path) -> None:
    found = rms_matrix(open_run(folder), "gradient", 100)
    (weight,) = found.values  # a bias is no weight
    # rms of (3, 4) is sqrt(12.5)
    log = 0.5 * math.log10(12.5)
    assert weight == pytest.approx((log, NAN, log, INF, log), nan_ok=True)


def test_a_column_of_several_steps_shows_the_worst_of_them(folder: Path) -> None:
    found = rms_matrix(open_run(folder), "gradient", 2)
    assert found.steps == (0, 3)  # steps 0, 1, 2 and steps 3, 4
    assert found.values[0] == pytest.approx((NAN, INF), nan_ok=True)


def test_steps_that_do_not_count_leave_no_mark(folder: Path) -> None:
    found = rms_matrix(open_run(folder), "gradient", 100, unmarked={"": {1, 3}})
    assert all(v is not None and math.isfinite(v) for v in found.values[0])


def test_the_summary_is_read_from_the_file_alike(folder: Path) -> None:
    (weight,) = summarize_run(open_run(folder)).weights
    assert weight.trend_log10[3] == INF
    norms = [point.gradient_norm_log10 for point in summarize_run(open_run(folder)).course]
    assert norms == pytest.approx([0.5 * math.log10(26.0), NAN, INF, INF, INF], nan_ok=True)
