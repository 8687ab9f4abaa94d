"""The few scalars of a step: values worked out by hand, under every preset's names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from headwater.errors import InputError
from headwater.integrations import SCALAR_NAMES, summary_scalars
from headwater.records import NORM_COLUMNS, STATISTICS_COLUMNS, Block, Statistics, StepRecord, WatchedTensor
from headwater.records.profile import ParameterRole


def parameter(name: str, order: int, shape: tuple[int, ...], role: ParameterRole = "weight") -> WatchedTensor:
    return WatchedTensor(kind="parameter", name=name, order=order, shape=shape, role=role)


FIRST, BIAS, LAST = parameter("0.weight", 0, (4,)), parameter("0.bias", 1, (1,), "bias"), parameter("2.weight", 2, (1,))
TENSORS = (FIRST, BIAS, LAST)


def row(values: Sequence[float]) -> list[float]:
    return [float(x) for x in Statistics.of(values).to_dict().values()]


def gradients(*rows: Sequence[float], phase: str = "pre_clip") -> Block:
    return Block(
        quantity="gradient", phase=phase, tensors=TENSORS, columns=STATISTICS_COLUMNS, rows=[row(r) for r in rows]
    )  # type: ignore[arg-type]


def record(*blocks: Block, **fields: object) -> StepRecord:
    return StepRecord(step=7, time=0.0, elapsed_seconds=0.0, blocks=blocks, **fields)  # type: ignore[arg-type]


# ‖(3, 0, 0, 0)‖² + ‖4‖² + ‖12‖² = 9 + 16 + 144 = 169 = 13²; rms of the first weight is 3/2, of the last 12: 1/8.
WHOLE = gradients([3.0, 0.0, 0.0, 0.0], [4.0], [12.0])


def test_a_full_step_gives_ten_scalars_worked_out_by_hand() -> None:
    update = Block(
        quantity="update", tensors=TENSORS, columns=("update_ratio", "read_fraction"),
        rows=[[0.001, 1.0], [5.0, 1.0], [0.004, 1.0]],
    )  # fmt: skip
    units = Block(
        quantity="units",
        tensors=(WatchedTensor(kind="layer", name="1"), WatchedTensor(kind="layer", name="3")),
        columns=("unit_count", "dead_count", "saturated_fraction", "window_steps"),
        rows=[[10.0, 3.0, math.nan, 1.0], [30.0, 1.0, math.nan, 1.0]],
    )
    step = record(WHOLE, update, units, loss=0.5, learning_rate=0.1, loss_scale=1024.0, clip_coefficient=0.25)
    scalars = summary_scalars(step)
    assert scalars == {
        "train/loss": 0.5,
        "train/learning_rate": 0.1,
        "grad/norm/total": pytest.approx(13.0, rel=1e-14),
        "grad/norm_log10/total": pytest.approx(math.log10(13.0), rel=1e-14),
        "grad/clip_coefficient": 0.25,
        "grad/loss_scale": 1024.0,
        "update/ratio/max": 0.004,  # the bias began at zero: its 5.0 is no sign of trouble
        "grad/nonfinite_tensors": 0.0,
        "act/dead_unit_fraction": 4 / 40,
        "grad/first_last_ratio": pytest.approx(0.125, rel=1e-14),
    }


@pytest.mark.parametrize("naming", SCALAR_NAMES)
def test_every_preset_names_every_scalar_once(naming: str) -> None:
    assert len(set(SCALAR_NAMES[naming].values())) == len(SCALAR_NAMES["headwater"]) == 10  # type: ignore[index]
    scalars = summary_scalars(record(WHOLE), naming)  # type: ignore[arg-type]
    assert scalars[SCALAR_NAMES[naming]["gradient_norm"]] == pytest.approx(13.0)  # type: ignore[index]


def test_the_total_norm_has_the_tag_of_the_tool() -> None:
    assert {naming: names["gradient_norm"] for naming, names in SCALAR_NAMES.items()} == {
        "headwater": "grad/norm/total",
        "wandb": "gradients/total_norm",
        "lightning": "grad_2.0_norm_total",
        "composer": "l2_norm/grad/global",
        "hf": "grad_norm",
    }


def test_what_was_not_observed_has_no_scalar() -> None:
    assert summary_scalars(record()) == {}
    # Without a loss scale that is known, a scaled gradient has no norm, but its ratios hold.
    scaled = summary_scalars(record(gradients([3.0] * 4, [4.0], [12.0], phase="backward"), loss_scale=None))
    assert scaled.keys() == {"grad/clip_coefficient", "grad/nonfinite_tensors", "grad/first_last_ratio"}
    # A gradient seen only after clipping is not what grad/norm/total stands for.
    clipped = summary_scalars(record(gradients([3.0] * 4, [4.0], [12.0], phase="post_clip"), clip_coefficient=None))
    assert clipped.keys() == {"grad/nonfinite_tensors", "grad/first_last_ratio"}


def test_a_scaled_gradient_is_divided_by_a_scale_that_is_known() -> None:
    scaled = gradients([3.0 * 8, 0.0, 0.0, 0.0], [4.0 * 8], [12.0 * 8], phase="backward")
    assert summary_scalars(record(scaled, loss_scale=8.0))["grad/norm/total"] == pytest.approx(13.0)


def test_the_gradient_before_clipping_is_taken_where_both_were_seen() -> None:
    clipped = gradients([0.3, 0.0, 0.0, 0.0], [0.4], [1.2], phase="post_clip")
    assert summary_scalars(record(clipped, WHOLE))["grad/norm/total"] == pytest.approx(13.0)


def test_norms_alone_give_the_same_scalars() -> None:
    norms = Block(
        quantity="gradient", phase="pre_clip", tensors=TENSORS, columns=NORM_COLUMNS,
        rows=[[3.0, 0.0, 0.0], [4.0, 0.0, 0.0], [12.0, 0.0, 0.0]],
    )  # fmt: skip
    assert summary_scalars(record(norms)) == pytest.approx(summary_scalars(record(WHOLE)), rel=1e-14)


def test_a_nan_is_told_not_dropped() -> None:
    scalars = summary_scalars(record(gradients([3.0, math.nan, 0.0, 0.0], [4.0], [12.0])))
    assert math.isnan(scalars["grad/norm/total"])
    assert scalars["grad/nonfinite_tensors"] == 1.0
    assert "grad/norm_log10/total" not in scalars
    assert summary_scalars(record(gradients([3.0] * 4, [math.inf], [12.0])))["grad/norm/total"] == math.inf


def test_a_norm_outside_the_range_of_a_double_keeps_its_logarithm() -> None:
    scalars = summary_scalars(record(gradients([1.5e308] * 4, [0.0], [0.0])))
    assert scalars["grad/norm/total"] == math.inf  # 3e308 is no double
    assert scalars["grad/norm_log10/total"] == pytest.approx(308 + math.log10(3.0), rel=1e-12)
    tiny = summary_scalars(record(gradients([1e-300] * 4, [0.0], [1e-200])))
    assert tiny["grad/norm/total"] == pytest.approx(1e-200)
    assert tiny["grad/first_last_ratio"] == pytest.approx(1e-100)


def test_zero_gradients_give_a_zero_norm_and_no_logarithm() -> None:
    scalars = summary_scalars(record(gradients([0.0] * 4, [0.0], [0.0])))
    assert scalars["grad/norm/total"] == 0.0
    assert "grad/norm_log10/total" not in scalars
    assert "grad/first_last_ratio" not in scalars
    lost = summary_scalars(record(gradients([0.0] * 4, [0.0], [2.0])))
    assert lost["grad/first_last_ratio"] == 0.0  # nothing reaches the first weight


def test_a_tensor_that_was_not_observed_enters_nothing() -> None:
    block = gradients([3.0, 0.0, 0.0, 0.0], [4.0], [12.0])
    rows = [[math.nan] * len(STATISTICS_COLUMNS), *block.rows[1:]]
    partly = Block(quantity="gradient", phase="pre_clip", tensors=TENSORS, columns=STATISTICS_COLUMNS, rows=rows)
    scalars = summary_scalars(record(partly))
    assert scalars["grad/norm/total"] == pytest.approx(math.sqrt(160.0))
    assert "grad/first_last_ratio" not in scalars


def test_groups_come_first_in_the_tag_and_micro_batches_give_none() -> None:
    assert "G/grad/norm/total" in summary_scalars(record(WHOLE, group="G"))
    assert summary_scalars(record(WHOLE, micro=1)) == {}


def test_patterns_add_tags_of_single_tensors() -> None:
    outputs = Block(
        quantity="activation", tensors=(WatchedTensor(kind="layer", name="0"),), columns=STATISTICS_COLUMNS,
        rows=[row([2.0, 2.0])],
    )  # fmt: skip
    scalars = summary_scalars(record(WHOLE, outputs), per_layer=["0*"])
    assert {tag: v for tag, v in scalars.items() if tag.endswith(("0.weight", "0.bias", "/0"))} == {
        "grad/rms/0.weight": pytest.approx(1.5),
        "grad/rms/0.bias": pytest.approx(4.0),
        "act/rms/0": pytest.approx(2.0),
    }
    as_lightning = summary_scalars(record(WHOLE), "lightning", per_layer=["*.weight"])
    assert as_lightning["grad_2.0_norm/0.weight"] == pytest.approx(3.0)
    assert as_lightning["grad_2.0_norm/2.weight"] == pytest.approx(12.0)


def test_an_unknown_naming_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="headwater, wandb, lightning, composer, hf"):
        summary_scalars(record(), "mine")  # type: ignore[arg-type]


def test_a_thousand_parameters_give_at_most_ten_tags() -> None:
    tensors = tuple(parameter(f"{i}.weight", i, (2, 2)) for i in range(1000))
    block = Block(
        quantity="gradient", phase="pre_clip", tensors=tensors, columns=STATISTICS_COLUMNS,
        rows=[row([1.0, 1.0, 1.0, 1.0])] * 1000,
    )  # fmt: skip
    scalars = summary_scalars(record(block, loss=1.0, learning_rate=1.0, loss_scale=2.0))
    assert len(scalars) <= 10
    assert scalars["grad/norm/total"] == pytest.approx(math.sqrt(4000.0))
