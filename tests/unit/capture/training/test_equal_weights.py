"""Copies that differ and weights that do not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from headwater.capture.training.equal_weights import checksums, equal_weights, varied


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int8])
def test_equal_tensors_have_equal_checksums_and_one_changed_element_shows(dtype: torch.dtype) -> None:
    a = torch.randn(70_000).mul(40).to(dtype)
    b = a.clone()
    assert checksums([a])[0] == checksums([b])[0]
    b[69_999] += 1
    assert checksums([a])[0] != checksums([b])[0]


def test_two_elements_that_change_places_show() -> None:
    a = torch.arange(8.0)
    b = a[[1, 0, 2, 3, 4, 5, 6, 7]]
    first, second = checksums([a, b])
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert first != second


def test_the_checksum_is_the_same_however_a_tensor_lies_in_memory() -> None:
    a = torch.randn(5, 6)
    across = a.t().contiguous().t()
    assert across.stride() != a.stride()
    assert checksums([a]) == checksums([across])


def test_what_has_no_memory_has_no_checksum() -> None:
    assert checksums([torch.empty(3, device="meta"), torch.ones(2)])[0] is None


def test_copies_of_one_layer_are_found_among_others() -> None:
    layer = nn.Linear(3, 3)
    twin, other = copy.deepcopy(layer), nn.Linear(3, 3)
    named = [("a", layer.weight), ("b", other.weight), ("c", twin.weight)]
    assert equal_weights(named) == [("a", "c")]


def test_layers_of_a_torch_transformer_encoder_start_equal() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    named = [(n, p) for n, p in encoder.named_parameters() if p.dim() == 2]
    assert ("layers.0.linear1.weight", "layers.1.linear1.weight", "layers.2.linear1.weight") in equal_weights(named)


def test_constant_tensors_are_not_reported() -> None:
    named = [("a", torch.zeros(4, 4)), ("b", torch.zeros(4, 4)), ("c", torch.ones(4, 4)), ("d", torch.ones(4, 4))]
    assert equal_weights(named) == []


def test_tensors_that_differ_where_they_were_not_probed_are_not_equal() -> None:
    a = torch.randn(64 * 10)
    b = a.clone()
    b[5] += 1.0  # the probe looks at every tenth element
    assert equal_weights([("a", a), ("b", b)]) == []


def test_a_constant_is_told_from_what_varies() -> None:
    assert varied([torch.ones(5), torch.arange(5.0), torch.empty(0), torch.ones(1)]) == [False, True, False, False]
