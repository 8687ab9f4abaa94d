from __future__ import annotations

import torch

from headwater.capture.training.collector import HELD_TENSORS, Collector
from headwater.stats import moment_table


def test_the_rows_are_those_of_one_call_in_the_order_of_arrival() -> None:
    tensors = [torch.randn(i + 1) for i in range(2 * HELD_TENSORS + 3)]
    collector = Collector()
    assert [collector.add(t, at_once=i % 5 == 0) for i, t in enumerate(tensors)] == list(range(len(tensors)))
    assert collector.finish() == set()
    assert torch.equal(collector.table(), moment_table(tensors))
    assert torch.equal(collector.table([4, 2]), moment_table([tensors[4], tensors[2]]))


def test_few_tensors_are_held_at_a_time() -> None:
    collector = Collector()
    for _ in range(100):
        collector.add(torch.randn(10))
        assert len(collector._held) < HELD_TENSORS
    collector.add(torch.zeros(2**20))
    assert not collector._held


def test_a_tensor_that_is_overwritten_before_it_is_read_is_lost_and_named() -> None:
    a, b = torch.ones(3), torch.ones(3)
    collector = Collector()
    collector.add(a)
    collector.add(b)
    a.add_(1)
    assert collector.finish() == {0}
    assert bool(collector.table()[0].isnan().all())
    assert collector.table()[1, 0] == 3


def test_a_tensor_read_at_once_is_right_and_named_when_it_is_overwritten_soon_after() -> None:
    a = torch.ones(3)
    collector = Collector()
    collector.add(a, at_once=True)
    a.add_(1)
    collector.add(torch.ones(1), at_once=True)
    assert collector.finish() == {0}
    assert torch.equal(collector.table()[:1], moment_table([torch.ones(3)]))
