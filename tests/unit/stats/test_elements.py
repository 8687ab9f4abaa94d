"""Any layout, stride and dtype: the same elements, and no copy of the tensor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.references.exact_statistics import assert_statistics_agree, elements, exact_statistics
from torch.utils._python_dispatch import TorchDispatchMode

from headwater.errors import InputError
from headwater.records.statistics import Statistics
from headwater.stats import between_sample_fraction, log2_histogram, position_cosine, summarize
from headwater.stats.elements import flat_pieces

BASE = torch.arange(-30, 30, dtype=torch.float32).reshape(3, 4, 5) / 7


def sparse(indices: list[list[int]], values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor(indices), values, size, check_invariants=True)


LAYOUTS = {
    "transposed": BASE.transpose(0, 2),
    "every other": BASE[:, ::2, 1:],
    "flipped copy": BASE.flip(0),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": BASE[:, :1].expand(3, 6, 5),
    "expanded scalar": torch.tensor(1.5).expand(4, 5),
    "overlapping windows": torch.arange(10.0).unfold(0, 4, 1),
    "zero-dimensional": torch.tensor(-3.0),
    "empty": torch.empty(0, 3),
    "sparse": torch.eye(6).to_sparse(),
    "sparse with duplicates": sparse([[0, 0, 2]], torch.tensor([1.0, 2.0, -4.0]), (5,)),
    "sparse rows": sparse([[1, 3]], torch.randn(2, 4), (6, 4)),
    "sparse without elements": torch.zeros(4, 4).to_sparse(),
    "sparse complex": (torch.eye(3) * (1 + 2j)).to_sparse(),
    "complex": torch.randn(3, 4, dtype=torch.complex64),
    "conjugate": torch.randn(3, 4, dtype=torch.complex128).conj(),
    "imaginary part of a conjugate": torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    "bool": torch.tensor([True, False, True]),
    "int64": torch.tensor([2**40, -3, 0]),
    "uint8": torch.arange(200, dtype=torch.uint8),
    "float8": torch.tensor([0.5, -2.0, 0.0]).to(torch.float8_e4m3fn),
    "requires grad": torch.randn(5, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.randn(5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_counts_every_element_once(name: str) -> None:
    x = LAYOUTS[name]
    assert_statistics_agree(summarize(x), exact_statistics(elements(x)))
    assert log2_histogram(x).count == summarize(x).count


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_compressed_sparse_layouts_count_their_implicit_zeros() -> None:
    dense = torch.eye(4)
    for layout in (dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((2, 2))):
        assert_statistics_agree(summarize(layout), exact_statistics(elements(dense)))


def test_nested_tensor_counts_the_elements_of_its_parts() -> None:
    parts = [torch.randn(3, 2), torch.randn(5, 2)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    assert_statistics_agree(summarize(nested), exact_statistics([v for p in parts for v in elements(p)]))


def test_expanded_gradient_costs_one_element() -> None:
    # sum().backward() hands out a scalar that is expanded to the shape of the input.
    x = torch.tensor(0.5).expand(10**6, 10**6)
    s = summarize(x)
    assert s.count == 10**12
    assert s.mean == s.rms == 0.5
    assert s.std == 0.0
    # |x|₂ = 0.5·√1e12
    assert s.l2_norm == 0.5e6


def test_meta_tensor_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"meta tensor of shape \(2, 3\).*materialise"):
        summarize(torch.empty(2, 3, device="meta"))


@pytest.mark.parametrize("limit", [1, 4, 7, 1000])
@pytest.mark.parametrize("name", ["transposed", "every other", "overlapping windows", "empty"])
def test_pieces_hold_the_elements_and_keep_to_the_limit(name: str, limit: int) -> None:
    x = LAYOUTS[name]
    pieces = list(flat_pieces(x, limit))
    assert all(piece.dim() == 1 and 0 < piece.numel() <= limit for piece in pieces)
    assert sorted(v for piece in pieces for v in piece.tolist()) == sorted(elements(x))


class _LargestAllocation(TorchDispatchMode):
    """Notes the largest storage, in bytes, that an operation returns and that none of its inputs has."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, torch.Tensor)
        }
        for out in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return result


LARGE = {
    "float32": lambda: torch.randn(2048, 1024),
    "with NaN and zeros": lambda: torch.randn(2048, 1024).relu().index_fill(0, torch.tensor(3), math.nan),
    "bfloat16": lambda: torch.randn(2048, 1024).bfloat16(),
    "transposed": lambda: torch.randn(1024, 2048).t(),
    "strided": lambda: torch.randn(2048, 2048)[:, ::2],
    "complex conjugate": lambda: torch.randn(1024, 1024, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", LARGE)
def test_temporaries_do_not_grow_with_the_tensor(name: str) -> None:
    x = LARGE[name]()
    with _LargestAllocation() as largest:
        summarize(x)
    # 2**18 elements of 8 bytes at most, for a tensor of 2**21 of them.
    assert largest.bytes <= 2**18 * 8


@pytest.mark.parametrize(
    "x",
    [torch.randn(64, 128, 256), torch.randn(64, 256, 128).transpose(1, 2), torch.randn(64, 128, 256).bfloat16(),
     torch.ones(64, 128, 256) + 1e-6 * torch.randn(64, 128, 256)],
    ids=["float32", "transposed", "bfloat16", "nearly equal samples"],
)  # fmt: skip
def test_signal_statistics_keep_no_copy_either(x: torch.Tensor) -> None:
    with _LargestAllocation() as largest:
        between_sample_fraction(x)
        position_cosine(x)
    assert largest.bytes <= 2**18 * 8


def test_large_strided_tensor_agrees_with_its_copy() -> None:
    x = torch.randn(1500, 1500)[::3, ::2]
    assert summarize(x).rms == pytest.approx(summarize(x.contiguous()).rms, rel=1e-6)
    assert summarize(x).count == 500 * 750
    assert summarize(x) + Statistics.empty() == summarize(x)
