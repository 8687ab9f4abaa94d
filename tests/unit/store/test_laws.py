"""What must hold for any numbers: round trips, sums, and the short cuts against the records that define them."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store.synthetic import norm_block, statistics_block, statistics_row, step

from headwater.records import STATISTICS_COLUMNS, Statistics
from headwater.store import RunWriter, open_run
from headwater.store.derived import DERIVED, derived_of
from headwater.store.rows import roots

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.lists(NUMBERS, max_size=6)


@given(VALUES)
def test_derived_numbers_are_those_of_the_record(values: list[float]) -> None:
    expected = Statistics.of(values)
    for name, found in zip(DERIVED, derived_of(statistics_row(values)), strict=True):
        wanted = float(getattr(expected, name))
        assert found == pytest.approx(wanted, rel=1e-12, nan_ok=True), name


@given(st.lists(VALUES, min_size=2, max_size=2))
def test_root_mean_squares_and_their_norm_are_those_of_the_records(values: list[list[float]]) -> None:
    found = roots(statistics_block(values))
    assert found is not None
    parts = [Statistics.of(each) for each in values]
    assert found.rms_log10 == pytest.approx([part.rms_log10 for part in parts], rel=1e-12, nan_ok=True)
    pooled = Statistics.merge(parts)
    norm = found.norm_log10()
    if pooled.nonfinite_count:
        assert norm is not None
        assert math.isnan(norm) if pooled.nan_count else norm == math.inf
    elif not pooled.finite_count:
        assert norm is None
    else:
        # log10 ‖x‖ = log10 rms + ½ log10 n
        wanted = pooled.rms_log10 + 0.5 * math.log10(pooled.finite_count)
        assert norm == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(st.floats(min_value=1e-300, max_value=1e300), st.floats(min_value=1e-300, max_value=1e300))
def test_the_norm_tier_needs_no_square_in_range(first: float, second: float) -> None:
    found = roots(norm_block([[first, 0.0, 0.0], [second, 0.0, 0.0]]))
    assert found is not None
    # hypot neither overflows nor underflows on the way
    assert found.norm_log10() == pytest.approx(math.log10(math.hypot(first, second)), rel=1e-12, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=2, max_size=2))
def test_what_is_read_is_what_was_written_and_adds_up(values: list[list[float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = step(0, statistics_block(values))
        with RunWriter(Path(folder) / "run") as writer:
            writer.write(record)
        with open_run(Path(folder) / "run") as run:
            assert run.record(0) == record
            pooled = run.pooled(["fc1.weight", "fc1.bias"], "gradient", 0)
    expected = Statistics.of([*values[0], *values[1]])
    for name in STATISTICS_COLUMNS[:4]:
        assert getattr(pooled, name) == getattr(expected, name), name
    for name in ("rms_log10", "max_abs", "min_abs_nonzero"):
        assert getattr(pooled, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-9, nan_ok=True), name
