"""Equal rows, zero rows, zero columns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import exact_statistics as reference

from headwater.stats import duplicate_row_count, zero_column_count, zero_columns, zero_row_count


def test_random_rows_are_all_different() -> None:
    assert duplicate_row_count(torch.randn(500, 30), torch.randn(500, 30)) == 0


def test_a_group_of_m_equal_rows_counts_m_minus_one() -> None:
    w = torch.randn(10, 6)
    w[7] = w[4] = w[1]
    w[9] = w[0]
    assert duplicate_row_count(w, None) == 3
    assert duplicate_row_count(w, w.clone()) == 3


def test_equal_weights_with_different_gradients_are_not_duplicates() -> None:
    w, g = torch.ones(6, 4), torch.randn(6, 4)
    assert duplicate_row_count(w, None) == 5
    assert duplicate_row_count(w, g) == 0
    g[5] = g[2]
    assert duplicate_row_count(w, g) == 1


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_gradients_may_differ_in_the_order_of_summation_alone(scale: float) -> None:
    w = torch.ones(4, 50)
    g = torch.randn(1, 50).double().expand(4, 50) * scale
    close = g * (1 + 4e-7 * torch.rand(4, 50).double())
    far = g * torch.tensor([1.0, 1.0 + 1e-4, 1.0 - 1e-4, 1.0 + 3e-4]).double()[:, None]
    assert duplicate_row_count(w, close) == 3
    assert duplicate_row_count(w, far) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64], ids=str)
def test_every_dtype_is_compared_bit_by_bit(dtype: torch.dtype) -> None:
    w = torch.randn(8, 3, 2).to(dtype)
    w[5] = w[2]
    w[6] = -w[2]
    assert duplicate_row_count(w, w.clone()) == 1


def test_all_rows_of_a_zero_layer_are_equal() -> None:
    assert duplicate_row_count(torch.zeros(7, 3, 3, 3), torch.zeros(7, 3, 3, 3)) == 6
    assert duplicate_row_count(torch.zeros(7), None) == 6


def test_negative_zero_is_not_zero_and_nan_equals_itself() -> None:
    w = torch.tensor([[0.0, math.nan], [-0.0, math.nan], [0.0, math.nan]])
    assert duplicate_row_count(w, None) == 1


def test_rows_that_differ_only_between_the_sampled_columns_are_told_apart() -> None:
    w = torch.ones(5, 200)
    w[torch.arange(5), torch.arange(5) + 17] = 2.0
    assert duplicate_row_count(w, None) == 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_small_matrix_agrees_with_comparing_all_pairs(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 7))
    entries = st.lists(
        st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.5]), min_size=columns, max_size=columns),
        min_size=rows, max_size=rows,
    )  # fmt: skip
    w = data.draw(entries)
    g = data.draw(st.one_of(st.none(), entries))
    expected = reference.duplicate_row_count(w, g)
    assert duplicate_row_count(torch.tensor(w), None if g is None else torch.tensor(g)) == expected


def test_sparse_gradient_of_an_embedding_is_compared_on_the_candidates() -> None:
    w = torch.randn(1000, 4)
    w[3] = w[9] = w[500]
    g = torch.sparse_coo_tensor(torch.tensor([[9]]), torch.ones(1, 4), (1000, 4), check_invariants=True)
    # Rows 3 and 500 both have a gradient of zero; row 9 has not.
    assert duplicate_row_count(w, g) == 1


@pytest.mark.parametrize("w", [torch.tensor(1.0), torch.ones(1, 4), torch.empty(3, 0)])
def test_nothing_to_compare_counts_nothing(w: torch.Tensor) -> None:
    assert duplicate_row_count(w, None) == 0


def test_large_matrix_is_compared_in_chunks() -> None:
    w = torch.ones(3000, 300)
    w[:1000] = torch.randn(1000, 300)
    g = torch.randn(3000, 300)
    g[2000:] = g[2000]
    # 1000 rows of ones share one gradient: 999 repeat another.
    assert duplicate_row_count(w, g) == 999


def test_zero_rows_and_columns_are_counted() -> None:
    g = torch.randn(5, 4, 3)
    g[1] = g[3] = 0.0
    g[:, 2] = -0.0
    assert zero_row_count(g) == 2
    assert zero_column_count(g) == 1
    g[1, 2, 0] = math.nan
    assert zero_row_count(g) == 1
    assert zero_column_count(g) == 0


def test_rows_of_a_vector_are_its_elements() -> None:
    assert zero_row_count(torch.tensor([0.0, 1.0, 0.0])) == 2
    assert zero_column_count(torch.tensor([0.0, 1.0])) == 0
    assert zero_row_count(torch.tensor(0.0)) == zero_row_count(torch.empty(3, 0)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.int64], ids=str)
def test_zero_rows_of_every_dtype(dtype: torch.dtype) -> None:
    g = torch.tensor([[0, 0], [0, 3]]).to(dtype)
    assert zero_row_count(g) == zero_column_count(g) == 1


def test_rows_that_a_sparse_gradient_does_not_store_are_zero() -> None:
    values = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    g = torch.sparse_coo_tensor(torch.tensor([[1, 4]]), values, (6, 3), check_invariants=True)
    assert zero_row_count(g) == zero_row_count(g.to_dense()) == 5
    assert zero_column_count(g) == zero_column_count(g.to_dense()) == 1
    assert zero_column_count(torch.zeros(4, 2).to_sparse(1)) == 2
    assert zero_row_count(torch.eye(4).to_sparse()) == 0


def test_columns_of_zeros_are_named() -> None:
    g = torch.randn(40, 7)
    g[:, [1, 6]] = 0.0
    g[3, 6] = math.nan
    for x in (
        g,
        g.t().contiguous().t(),
        g.double(),
        g[:, :, None].expand(40, 7, 3),
        g.cfloat(),
        -g.reshape(20, 2, 7).transpose(1, 2),
    ):
        assert zero_columns(x) == [1]
    assert zero_columns(torch.ones(3, 4)) == []
