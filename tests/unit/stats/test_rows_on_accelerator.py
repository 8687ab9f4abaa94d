"""The way without host looks computes what the host's way does; run here in main memory, and on a GPU if there is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from tests.references.exact_statistics import assert_statistics_agree, elements, exact_statistics
from tests.references.tensors import tensors
from torch.utils._python_dispatch import TorchDispatchMode

from headwater.records.statistics import Statistics
from headwater.stats import (
    between_sample_fraction,
    between_sample_fraction_on_device,
    duplicate_row_count,
    log2_histogram,
    moment_row,
    moment_rows,
    position_cosine,
    position_cosine_on_device,
    statistics_from_rows,
    summarize,
    summarize_many,
    zero_column_count,
    zero_row_count,
)
from headwater.stats.moments import table_on_accelerator
from headwater.stats.rows_on_accelerator import merged, rows_on_accelerator


@pytest.fixture(scope="module", autouse=True)
def path() -> str:
    """No compiled code has a part in this: once is enough."""
    return "accelerator"


double_or_single = pytest.mark.parametrize("double", [True, False], ids=["float64", "float32 alone"])


@double_or_single
@settings(max_examples=200, deadline=None)
@given(x=tensors(torch.float32, min_size=1))
def test_any_float32_row_gives_the_exact_statistics(double: bool, x: torch.Tensor) -> None:
    (s,) = statistics_from_rows(rows_on_accelerator(x[None], double=double))
    assert_statistics_agree(s, exact_statistics(elements(x)))


@settings(max_examples=200, deadline=None)
@given(x=tensors(torch.float64, min_size=1))
def test_any_float64_row_gives_the_exact_statistics(x: torch.Tensor) -> None:
    (s,) = statistics_from_rows(rows_on_accelerator(x[None]))
    assert_statistics_agree(s, exact_statistics(elements(x)))


@double_or_single
def test_each_row_has_its_own_scale(double: bool) -> None:
    x = torch.randn(4, 300) * torch.tensor([1e-40, 1e-20, 1.0, 1e38])[:, None]
    for s, row in zip(statistics_from_rows(rows_on_accelerator(x, double=double)), x, strict=True):
        assert_statistics_agree(s, exact_statistics(row.tolist()))


@settings(max_examples=100, deadline=None)
@given(a=tensors(torch.float64, min_size=1), b=tensors(torch.float64, min_size=1), c=tensors(torch.float64, min_size=1))
def test_rows_merged_on_the_device_equal_the_merged_records(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    rows = torch.cat([rows_on_accelerator(x[None]) for x in (a, b, c)])
    (on_device,) = statistics_from_rows(merged(rows)[None])
    on_host = Statistics.merge(statistics_from_rows(rows))
    assert on_device.to_dict() == pytest.approx(on_host.to_dict(), rel=1e-9, abs=1e-12)


def test_tables_of_rows_are_merged_table_by_table() -> None:
    tables = torch.stack([rows_on_accelerator(torch.randn(3, 40) * scale) for scale in (1.0, 1e-30, 0.0)])
    assert torch.equal(merged(tables), torch.stack([merged(table) for table in tables]))


def test_many_tensors_in_one_table_keep_their_order() -> None:
    # In main memory here: the functions are the same on every device.
    tensors_ = [
        torch.randn(7), torch.randn(400, 500), torch.empty(0), torch.randn(7) * 1e-30, torch.randn(40, 3).t(),
        torch.randn(500, 400) + 5.0, torch.ones(()).expand(7), torch.randn(70_001), torch.randn(7).half(),
        torch.tensor([math.nan] * 7), torch.randn(3, 4, dtype=torch.complex64), torch.eye(5).to_sparse(),
    ]  # fmt: skip
    table = table_on_accelerator(tensors_)
    for s, x in zip(statistics_from_rows(table), tensors_, strict=True):
        exact = Statistics.of(elements(x))
        for name in ("count", "zero_count", "nan_count", "inf_count"):
            assert getattr(s, name) == getattr(exact, name)
        for name in ("mean_abs", "rms", "std", "kurtosis", "max_abs", "min_abs_nonzero"):
            assert getattr(s, name) == pytest.approx(getattr(exact, name), rel=1e-5, abs=1e-12, nan_ok=True)


class _NoHostLook(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_way() -> None:
    x = torch.randn(3, 500)
    with _NoHostLook():
        merged(rows_on_accelerator(x))
        between_sample_fraction_on_device(x)


def test_fraction_on_the_device_equals_the_host_one() -> None:
    equal = torch.ones(8, 1) * torch.randn(1, 600)
    signals = [
        torch.randn(8, 600),
        equal + 1e-6 * torch.randn(8, 600),
        equal.double() + 1e-12 * torch.randn(8, 600).double(),
        1e-30 * torch.randn(8, 5, 7),
        torch.randn(8, 4, dtype=torch.complex64),
    ]
    for x in signals:
        assert float(between_sample_fraction_on_device(x)) == pytest.approx(between_sample_fraction(x), rel=1e-5)
    assert math.isnan(between_sample_fraction_on_device(torch.zeros(3, 4)))
    assert math.isnan(between_sample_fraction_on_device(torch.ones(1, 4)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_gpu_statistics_equal_host_statistics(dtype: torch.dtype) -> None:
    decades = {torch.float16: (-7, 4)}.get(dtype, (-44, 38) if dtype != torch.float64 else (-300, 300))
    for n in (1, 1000, 70_001, 3_000_000):
        x = (10.0 ** (torch.rand(n, dtype=torch.float64) * (decades[1] - decades[0]) + decades[0])).to(dtype)
        if n > 1:
            x[1], x[0] = math.nan, 0.0
        for tensor in (x, x[::2], x[:1000].reshape(-1, 1).t()):
            host, device = summarize(tensor), summarize(tensor.cuda())
            for name in ("count", "zero_count", "nan_count", "inf_count", "max_abs", "min_abs_nonzero"):
                assert getattr(device, name) == pytest.approx(getattr(host, name), rel=0, nan_ok=True)
            for name in ("mean", "mean_abs", "rms", "std", "kurtosis"):
                assert getattr(device, name) == pytest.approx(getattr(host, name), rel=1e-5, nan_ok=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_statistics_of_every_kind_equal_those_of_the_host() -> None:
    layouts = [
        torch.randn(64, 32).t(), torch.randn(64, 32)[:, ::2], torch.tensor(2.0).expand(50, 60), torch.randn(64, 32),
        torch.randn(5, 6, dtype=torch.complex64).conj(), torch.empty(0), torch.tensor([True, False]),
        torch.eye(8).to_sparse(), torch.diag(torch.tensor([1.0, 0.0, 2.0])).to_sparse(1),
    ]  # fmt: skip
    for host, device in zip(summarize_many(layouts), summarize_many([x.cuda() for x in layouts]), strict=True):
        for name in ("count", "zero_count", "mean_abs", "rms", "std", "kurtosis", "max_abs", "min_abs_nonzero"):
            assert getattr(device, name) == pytest.approx(getattr(host, name), rel=1e-5, nan_ok=True)
    x = torch.randn(4, 6, 8)
    assert between_sample_fraction(x.cuda()) == pytest.approx(between_sample_fraction(x), rel=1e-5)
    assert position_cosine(x.cuda()) == pytest.approx(position_cosine(x), abs=1e-6)
    assert log2_histogram(x.cuda()) == log2_histogram(x)
    w = torch.randn(6, 5)
    w[4] = w[1]
    g = w * 2
    g[:, 2] = 0.0
    g[3] = 0.0
    assert duplicate_row_count(w.cuda(), g.cuda()) == 1
    assert zero_row_count(g.cuda()) == zero_column_count(g.cuda()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_statistics_wait_for_nothing() -> None:
    x = torch.randn(4, 300, 50, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        moment_rows(x.view(4, -1))
        moment_row(x)
        moment_row(x[:, ::2])
        between_sample_fraction_on_device(x)
        position_cosine_on_device(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
