"""Ranks that watch together: they meet or say why not, decide alike, and none waits for ever for another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.distributed import scenarios
from tests.distributed.launch import run

if not torch.distributed.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

pytestmark = pytest.mark.slow

NAMES = (
    "one_rank_only",
    "alone_on_purpose",
    "rank_0_cannot_write",
    "copies_that_differ",
    "equal_layers_and_shards",
    "gradient_on_one_rank_only",
    "different_models",
    "not_finite_on_one_rank",
    "collectives",
    "communication_of_training",
    "same_weights",
    "accumulation",
    "stop_together",
    "throttle_together",
    "only_rank_0_writes",
    "one_rank_ends_early",
)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Any]]:
    return run(2, NAMES, "tests.distributed.behaviours")


def test_attaching_on_one_rank_only_raises_and_says_what_to_do(outcomes: dict[str, list[Any]]) -> None:
    message, seconds, hooks = outcomes["one_rank_only"][0]
    assert "rank 0 of 2 attached a watch, and after 1 s rank 1 had not" in message
    assert "on every rank" in message
    assert "distributed=False" in message
    assert 1.0 <= seconds < 10.0
    assert not any(hooks)


def test_one_rank_may_watch_alone_what_is_not_sharded(outcomes: dict[str, list[Any]]) -> None:
    found = outcomes["alone_on_purpose"]
    assert found[0][0] == [0, 1, 2]
    assert all("sharded" in message for _, message in found)


def test_no_rank_attaches_when_one_cannot(outcomes: dict[str, list[Any]]) -> None:
    (own_kind, own), (kind, other) = outcomes["rank_0_cannot_write"]
    assert own_kind == "OutputError"
    assert kind == "HeadwaterError"
    assert other.startswith("rank 0 could not attach its watch, so no rank does: OutputError")
    assert own in other


def test_copies_that_differ_between_ranks_are_named(outcomes: dict[str, list[Any]]) -> None:
    for found in outcomes["copies_that_differ"]:
        ((message, names),) = found
        assert names == ("2.weight",)
        assert "rank 1" in message


def test_layers_and_shards_that_start_equal_are_named(outcomes: dict[str, list[Any]]) -> None:
    for found in outcomes["equal_layers_and_shards"]:
        assert {names for _, names in found} == {("0.weight", "1.weight"), ("2.weight",)}


def test_a_gradient_that_one_rank_lacks_is_taken_from_the_other_and_said(outcomes: dict[str, list[Any]]) -> None:
    for names, missing, notices, _, recorded in outcomes["gradient_on_one_rank_only"]:
        assert names == ["0.bias", "0.weight", "2.bias", "2.weight"]
        assert missing == {}
        assert recorded == [0, 1]
        assert [n for message, n in notices if "on some ranks only" in message] == [("2.bias",)]


def test_ranks_with_different_models_make_one_record_of_all_of_them(outcomes: dict[str, list[Any]]) -> None:
    for names, missing, gaps, rows in outcomes["different_models"]:
        assert names == ["a.weight", "a.bias", "b.weight", "b.bias"]
        assert missing == {}
        assert gaps == []
        assert rows == 2


def test_the_rank_whose_gradients_are_not_finite_is_named(outcomes: dict[str, list[Any]]) -> None:
    for notices in outcomes["not_finite_on_one_rank"]:
        ((message, names),) = notices
        assert "rank with such a piece is 1" in message
        assert names == ("b.weight", "b.bias")


def test_the_number_of_collectives_does_not_grow_with_the_model(outcomes: dict[str, list[Any]]) -> None:
    for (few, rows), (many, as_many_rows) in outcomes["collectives"]:
        assert rows == as_many_rows == 3
        # header, presence, MAX, SUM, verdict
        assert few == many == 5 * rows


def test_the_training_thread_communicates_no_more_than_without_a_watch(outcomes: dict[str, list[Any]]) -> None:
    for watched, unwatched in outcomes["communication_of_training"]:
        assert sum(unwatched.values()) > 0
        assert watched == unwatched


def test_training_is_bit_identical(outcomes: dict[str, list[Any]]) -> None:
    assert all(all(equal) for equal in outcomes["same_weights"])


def test_accumulated_gradients_are_those_before_the_step(outcomes: dict[str, list[Any]]) -> None:
    # The mean over two halves of a half of the batch, over two ranks, is the mean over the batch.
    model = scenarios.net()
    x, y = scenarios.batch()
    (model(x) - y).square().mean().backward()
    for norms, coefficients, notices in outcomes["accumulation"]:
        assert norms[0] == pytest.approx(
            {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}, rel=1e-6
        )
        assert coefficients == [1.0, 1.0, 1.0]
        assert notices == []


def test_an_alert_stops_every_rank_at_the_same_step(outcomes: dict[str, list[Any]]) -> None:
    for before, warned, after in outcomes["stop_together"]:
        assert before == (3, ["HW999"], True)  # steps 0, 1 and 2 were taken
        assert warned == (6, ["HW999"], False)
        assert after == (4, ["HW999"], True)  # step 3 had to be taken to be judged


def test_every_rank_records_the_steps_that_rank_0_can_afford(outcomes: dict[str, list[Any]]) -> None:
    (first, throttled, gaps), (second, _, other_gaps) = outcomes["throttle_together"]
    assert first == second
    assert len(first) < 70
    assert throttled
    assert gaps == other_gaps == []


def test_only_rank_0_writes_the_run_and_feeds_the_sinks(outcomes: dict[str, list[Any]]) -> None:
    (written, sent, seen), (nothing, not_sent, also_seen) = outcomes["only_rank_0_writes"]
    assert written == sent == [0, 1, 2]
    assert nothing is None
    assert not_sent == []
    assert seen == also_seen == 3


def test_a_rank_that_ends_does_not_keep_the_others_waiting(outcomes: dict[str, list[Any]]) -> None:
    (recorded, gaps, done, seconds), (how, other_seconds) = outcomes["one_rank_ends_early"]
    assert how == "raised"
    assert done == 8
    assert recorded == list(range(8))  # copies: rank 0 goes on alone
    assert any("no longer record together" in message for message, _ in gaps)
    assert seconds < 20.0
    assert other_seconds < 20.0
