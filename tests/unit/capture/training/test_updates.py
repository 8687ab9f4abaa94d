from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from headwater.capture.names import make_filter
from headwater.capture.training.inventory import Inventory
from headwater.capture.training.optimizer_state import OptimizerReader
from headwater.capture.training.updates import SAMPLED_FRACTION, ElementSample, WholeTensors, is_sampleable


def moved(sample: ElementSample, tensors: list[Tensor], by: float) -> list[list[float]]:
    sample.snapshot()
    for t in tensors:
        t.mul_(1 + by)
    return sample.ratios().tolist()


@pytest.mark.parametrize("kind", [ElementSample, WholeTensors])
def test_a_tensor_scaled_by_one_plus_c_has_the_ratio_c(kind: type[ElementSample]) -> None:
    tensors = [torch.randn(300, 70), torch.randn(64), torch.randn(3, 5, 7), torch.randn(())]
    for ratio, fraction in moved(kind(tensors), tensors, 0.01):
        assert ratio == pytest.approx(0.01, rel=1e-4)
        assert 0 < fraction <= 1


def test_small_tensors_are_read_whole_and_the_sample_stays_small() -> None:
    tensors = [torch.randn(500, 400), torch.randn(500, 300), torch.randn(60)]
    sample = ElementSample(tensors)
    rows = moved(sample, tensors, 0.1)
    assert rows[2][1] == 1.0
    size = sum(t.nbytes for t in tensors)
    assert sample.held_bytes() < 0.01 * size
    assert rows[0][1] == pytest.approx(sample.width / 200_000)
    assert sample.width * 3 <= size / 4 * SAMPLED_FRACTION


def test_a_random_update_is_estimated_within_the_error_of_its_sample() -> None:
    torch.manual_seed(0)
    w = [torch.randn(1000, 1000)]
    sample = ElementSample(w)  # 4,992 elements: a norm of normal numbers is off by 1/√(2·4992) = 1 %
    sample.snapshot()
    w[0].add_(torch.randn(1000, 1000), alpha=1e-3)
    assert sample.ratios()[0, 0] == pytest.approx(1e-3, rel=0.05)


def test_a_sample_of_a_weight_is_no_single_column() -> None:
    w = torch.zeros(128, 4096)
    w[:, 0] = 1.0  # a stride of 4096 would see nothing else
    sample = ElementSample([w])
    sample.snapshot()
    assert sample._before is not None
    assert float(sample._before.mean()) < 0.05


def test_what_was_zero_and_moved_is_infinite_and_what_stayed_is_zero() -> None:
    tensors = [torch.zeros(8), torch.zeros(8)]
    sample = ElementSample(tensors)
    sample.snapshot()
    tensors[0].add_(1.0)
    assert sample.ratios()[:, 0].tolist() == [math.inf, 0.0]


def test_a_parameter_whose_data_was_replaced_is_read_where_it_lies_now() -> None:
    p = nn.Parameter(torch.ones(8))
    sample = ElementSample([p])
    sample.snapshot()
    p.data = torch.full((8,), 3.0)
    assert sample.ratios()[0, 0] == 2.0


def test_channels_last_and_transposed_weights_can_be_sampled_and_strided_ones_cannot() -> None:
    assert is_sampleable(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    assert is_sampleable(torch.randn(4, 5).t())
    assert not is_sampleable(torch.randn(4, 6)[:, ::2])
    assert not is_sampleable(torch.randn(4, 4, device="meta"))
    assert not is_sampleable(torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2, 0.0])
def test_the_second_moment_is_bias_corrected_and_compared_with_eps(epsilon: float) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), eps=epsilon, betas=(0.9, 0.5))
    inventory = Inventory(model, "", make_filter(None, None))
    reader = OptimizerReader("sampled")
    expected = []
    for i in range(3):
        for p, size in zip(model.parameters(), (1e-3, 1.0), strict=True):
            p.grad = torch.full_like(p, size * (i + 1))
        reader.before(inventory, optimizer, None)
        optimizer.step()
        reader.after(inventory, optimizer)
        pieces = {p.quantity: p for p in reader.pieces(inventory)}
        # v̂ = v / (1 - β₂ᵗ) with β₂ = 0.5, from the optimizer's own v
        v = [optimizer.state[p]["exp_avg_sq"] / (1 - 0.5 ** (i + 1)) for p in model.parameters()]
        expected = [(float(x.mean().sqrt()), epsilon, float((x.sqrt() < epsilon).float().mean())) for x in v]
        assert pieces["second_moment"].table.tolist() == [pytest.approx(row, rel=1e-5) for row in expected]
    assert [row[2] for row in expected] == ([1.0, 0.0] if epsilon == 1e-2 else [0.0, 0.0])


def test_an_optimizer_without_a_second_moment_gives_updates_only() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inventory = Inventory(model, "", make_filter(None, None))
    reader = OptimizerReader("exact")
    for p in model.parameters():
        p.grad = p.detach().clone()
    reader.before(inventory, optimizer, None)
    optimizer.step()
    reader.after(inventory, optimizer)
    (piece,) = reader.pieces(inventory)
    assert piece.quantity == "update"
    assert piece.table.tolist() == [[pytest.approx(0.5), 1.0]] * 2  # w - 0.5 w


def test_nothing_is_read_when_updates_are_off() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    inventory = Inventory(model, "", make_filter(None, None))
    reader = OptimizerReader(None)
    reader.before(inventory, optimizer, None)
    reader.after(inventory, optimizer)
    assert reader.pieces(inventory) == []
    assert reader.held_bytes() == 0
