"""Sharded and replicated training is recorded as the same training in one process is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed import scenarios
from tests.distributed.launch import run

from headwater.records import Statistics

if not torch.distributed.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

pytestmark = pytest.mark.slow

WAYS = {
    1: ("fsdp2", "tensor_parallel"),
    2: ("ddp", "fsdp2", "fsdp2_norms", "fsdp1", "fsdp1_flat", "tensor_parallel", "tensor_parallel_micro"),
    4: ("ddp", "fsdp2", "hybrid", "fsdp1", "tensor_parallel", "two_dimensional"),
}
OTHERS = ("fsdp1", "fsdp1_flat", "tensor_parallel_micro")
NUMBERS = (
    "count", "zero_count", "nan_count", "inf_count", "rms", "mean_abs", "max_abs", "std", "kurtosis", "min_abs_nonzero",
)  # fmt: skip
LAYERS = ("activation", "output_gradient", "units")


@pytest.fixture(scope="module")
def outcomes() -> dict[int, dict[str, list[Any]]]:
    return {world: run(world, ways) for world, ways in WAYS.items()}


def expected(way: str) -> list[dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {
        "fsdp2_norms": {"statistics": "norms"},
        "fsdp1": {"clip": False},
        "tensor_parallel": {"clip": False, "width": 8},
        "two_dimensional": {"clip": False},
    }
    return scenarios.alone(**options.get(way, {}))


def numbers(row: list[float]) -> dict[str, float]:
    if len(row) != 11:
        return {str(i): x for i, x in enumerate(row)}
    statistics = Statistics(*map(int, row[:5]), *row[5:])
    return {name: float(getattr(statistics, name)) for name in NUMBERS}


CASES = [(world, way) for world, ways in WAYS.items() for way in ways if way not in OTHERS]


@pytest.mark.parametrize(("world", "way"), CASES)
def test_every_rank_has_the_rows_of_the_single_process(
    outcomes: dict[int, dict[str, list[Any]]], world: int, way: str
) -> None:
    reference = expected(way)
    for found in outcomes[world][way]:
        assert [r["step"] for r in found] == [r["step"] for r in reference] == [0, 1, 2]
        for record, single in zip(found, reference, strict=True):
            assert record["missing"] == single["missing"] == {"unused": "none"}
            assert record["shapes"] == single["shapes"]
            assert record["clip_coefficient"] == pytest.approx(single["clip_coefficient"], rel=1e-9)
            wanted = {key: rows for key, rows in single["blocks"].items() if key[0] not in LAYERS}
            assert {key for key in record["blocks"] if key[0] not in LAYERS} == set(wanted)
            for key, rows in wanted.items():
                assert list(record["blocks"][key]) == list(rows)
                for name, row in rows.items():
                    assert numbers(record["blocks"][key][name]) == pytest.approx(numbers(row), rel=1e-5, nan_ok=True), (
                        key,
                        name,
                    )


@pytest.mark.parametrize(("world", "way"), [(2, "ddp"), (2, "fsdp2"), (4, "fsdp2"), (4, "hybrid")])
def test_the_loss_is_the_mean_over_the_ranks(outcomes: dict[int, dict[str, list[Any]]], world: int, way: str) -> None:
    losses = [r["loss"] for r in expected(way)]
    for found in outcomes[world][way]:
        assert [r["loss"] for r in found] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize(("world", "way"), [(2, "ddp"), (4, "fsdp2")])
def test_activations_are_those_of_the_whole_batch(
    outcomes: dict[int, dict[str, list[Any]]], world: int, way: str
) -> None:
    single = expected(way)[0]["blocks"]["activation", None]
    for found in outcomes[world][way]:
        rows = found[0]["blocks"]["activation", None]
        for name in ("first", "norm", "second", "head"):
            assert numbers(rows[name]) == pytest.approx(numbers(single[name]), rel=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_fsdp1_shows_each_parameter_of_its_flat_one(outcomes: dict[int, dict[str, list[Any]]], world: int) -> None:
    # FSDP1 itself gives a parameter without a gradient zeros: they lie in the gradient of the flat parameter.
    reference = expected("fsdp1")
    for found in outcomes[world]["fsdp1"]:
        for record, single in zip(found, reference, strict=True):
            assert record["missing"] == {}
            assert record["shapes"] == {**single["shapes"], "unused": (4,)}
            rows, wanted = (r["blocks"]["gradient", "pre_clip"] for r in (record, single))
            assert numbers(rows["unused"])["zero_count"] == 4
            for name, row in wanted.items():
                assert numbers(rows[name]) == pytest.approx(numbers(row), rel=1e-5)


def test_micro_batches_under_tensor_parallelism_show_what_is_no_partial_sum(
    outcomes: dict[int, dict[str, list[Any]]],
) -> None:
    every = ["first.bias", "first.weight", "head.bias", "head.weight", "norm.bias", "norm.weight", "second.bias"]
    every.append("second.weight")
    for found in outcomes[2]["tensor_parallel_micro"]:
        assert [micro for micro, _ in found] == [0, 1, None]
        assert found[2][1] == every
        for micro, names in found[:2]:
            assert set(names) <= set(every), micro
            assert "second.weight" in names


def test_a_flat_parameter_without_the_original_ones_is_named_as_not_observed(
    outcomes: dict[int, dict[str, list[Any]]],
) -> None:
    for error, events in outcomes[2]["fsdp1_flat"]:
        assert "no parameter of the watched model had a gradient" in error
        assert any(kind == "not_observed" and "use_orig_params=True" in message for kind, message, _ in events)
