from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwater.capture.training.raw import Piece, RawStep, record_of
from headwater.records import Statistics
from headwater.records.step import NORM_COLUMNS, STATISTICS_COLUMNS, GradientPhase, WatchedTensor
from headwater.stats import moment_table, norm_table

TENSORS = (WatchedTensor(kind="parameter", name="a"), WatchedTensor(kind="parameter", name="b"))


def step(*pieces: Piece, loss_scale: float | torch.Tensor = 1.0, **fields: object) -> RawStep:
    return RawStep(
        group="", step=3, time=1.0, elapsed_seconds=0.5, pieces=list(pieces), loss_scale=loss_scale, **fields
    )  # type: ignore[arg-type]


def piece(phase: GradientPhase, *tensors: torch.Tensor, scaled: bool = False, norms: bool = False) -> Piece:
    table = norm_table(tensors) if norms else moment_table(tensors)
    columns = NORM_COLUMNS if norms else STATISTICS_COLUMNS
    return Piece("gradient", phase, TENSORS[: len(tensors)], columns, table, scaled)


@given(scale=st.one_of(st.sampled_from([2.0**k for k in (-20, -1, 1, 16, 60)]), st.floats(1e-6, 1e6)))
def test_statistics_divided_by_the_loss_scale_are_those_of_the_divided_tensor(scale: float) -> None:
    x = torch.tensor([3.0, -4.0, 0.0, 1e-3, float("nan")], dtype=torch.float64)
    record = record_of(step(piece("pre_clip", x, scaled=True), loss_scale=scale))
    block = record.block("gradient")
    assert block is not None
    (_, found), expected = next(iter(block.statistics())), x / scale
    wanted = Statistics(*[int(v) for v in moment_table([expected])[0, :5]], *moment_table([expected])[0, 5:].tolist())
    assert (found.count, found.zero_count, found.nan_count) == (5, 1, 1)
    for name in ("rms", "mean", "mean_abs", "std", "max_abs", "min_abs_nonzero", "l2_norm"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-9), name


def test_norms_are_divided_too() -> None:
    record = record_of(step(piece("pre_clip", torch.tensor([3.0, 4.0]), scaled=True, norms=True), loss_scale=10.0))
    block = record.block("gradient")
    assert block is not None
    assert block.column("l2_norm") == [pytest.approx(0.5)]


@pytest.mark.parametrize("norms", [False, True])
def test_the_clip_coefficient_is_the_ratio_of_the_norms_of_everything(norms: bool) -> None:
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])  # together: norm 5
    before, after = piece("pre_clip", a, b, norms=norms), piece("post_clip", a / 10, b / 10, norms=norms)
    assert record_of(step(before, after)).clip_coefficient == pytest.approx(0.1)
    assert record_of(step(before)).clip_coefficient == 1.0
    assert record_of(step(after)).clip_coefficient is None  # what was there before the clip was not seen


def test_the_clip_coefficient_survives_norms_outside_a_float() -> None:
    huge = torch.tensor([1e300, 1e300], dtype=torch.float64)
    record = record_of(step(piece("pre_clip", huge * 1e7, huge), piece("post_clip", huge * 1e-3, huge * 1e-10)))
    # Both norms are ruled by the first tensor: 1e307 and 1e297.
    assert record.clip_coefficient == pytest.approx(1e-10)


def test_no_clip_coefficient_is_made_of_gradients_that_are_not_finite() -> None:
    bad = torch.tensor([1.0, math.inf])
    assert record_of(step(piece("pre_clip", bad), piece("post_clip", bad))).clip_coefficient is None


def test_an_infinity_that_the_optimizer_was_told_of_is_a_skipped_step() -> None:
    assert record_of(step(found_infinity=torch.tensor(1.0))).skipped == "amp"
    assert record_of(step(found_infinity=torch.tensor(0.0))).skipped is None


def test_what_comes_after_the_step_is_added_to_what_the_alerts_have_seen() -> None:
    raw = step(piece("pre_clip", torch.ones(2)))
    raw.base = record_of(raw)
    raw.pieces = [Piece("update", None, TENSORS[:1], ("update_ratio", "read_fraction"), torch.tensor([[0.5, 1.0]]))]
    raw.loss = torch.tensor(2.0)
    record = record_of(raw)
    assert [b.quantity for b in record.blocks] == ["gradient", "update"]
    assert record.loss == 2.0
