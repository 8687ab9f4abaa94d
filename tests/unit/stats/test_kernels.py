"""Compiled statistics: equal to the plain path and to exact arithmetic, for every dtype, range, length and layout."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references.exact_statistics import (
    assert_statistics_agree,
    between_sample_fraction,
    elements,
    exact_statistics,
)
from tests.references.tensors import FLOATS, finite_tensors, tensors

from headwater.records.statistics import Statistics
from headwater.stats import MomentPlan, kernels, moment_table, norm_table, statistics_from_rows, summarize
from headwater.stats.rows_on_host import rows_on_host

any_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)

BEST = kernels.load()
TARGETS = kernels.TARGETS[: kernels.TARGETS.index(BEST.target) + 1] if BEST is not None else ()

# Lengths around the borders of a vector, of a run of lanes and of a chunk (2,048 elements), and of several chunks.
LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 2049, 2064, 4095, 4096, 6151)

if not TARGETS:
    pytest.skip(f"no compiled kernels: {kernels.status().reason}", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def path() -> str:
    """These tests choose for themselves."""
    return "compiled"


@pytest.fixture(params=TARGETS)
def compiled(request: pytest.FixtureRequest) -> kernels.Kernels:
    return kernels.Kernels(kernels.COMPILED, request.param)


def by(compiled: kernels.Kernels, *tensors_: torch.Tensor) -> list[Statistics]:
    entries = [kernels.entry(x) for x in tensors_]
    assert None not in entries
    return statistics_from_rows(compiled.moments([number for entry in entries if entry for number in entry]))


def norms_by(compiled: kernels.Kernels, x: torch.Tensor) -> list[float]:
    entry = kernels.entry(x)
    assert entry is not None
    return compiled.norms(entry)[0].tolist()


def assert_agree(s: Statistics, twin: Statistics, rtol: float = 1e-5) -> None:
    names = ("mean", "mean_abs", "rms", "l2_norm", "std", "kurtosis", "max_abs", "min_abs_nonzero")
    counts = ("count", "zero_count", "nan_count", "inf_count")
    assert_statistics_agree(s, {name: getattr(twin, name) for name in names + counts}, rtol)


@pytest.mark.parametrize("target", TARGETS)
@any_dtype
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bit_pattern_gives_the_exact_statistics(target: str, dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(tensors(dtype))
    compiled, exact = kernels.Kernels(kernels.COMPILED, target), exact_statistics(elements(x))
    (s,) = by(compiled, x)
    assert_statistics_agree(s, exact)
    norm, nan, inf = norms_by(compiled, x)
    assert (nan, inf) == (exact["nan_count"], exact["inf_count"])
    if exact["l2_norm"] < 1.7e308:  # beyond, the last digit may round to infinity
        assert norm == pytest.approx(0.0 if math.isnan(exact["l2_norm"]) else exact["l2_norm"], rel=1e-5, abs=5e-324)


@any_dtype
def test_any_bit_pattern_repeated_over_several_chunks_is_exact(compiled: kernels.Kernels, dtype: torch.dtype) -> None:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        limit = 2 ** (8 * dtype.itemsize - 1) - 1
        x = torch.randint(-limit, limit, (5000,), dtype=integers, generator=generator).view(dtype)
        (s,) = by(compiled, x)
        assert_agree(s, Statistics.of(elements(x)))


@any_dtype
@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_agrees_with_exact_arithmetic(compiled: kernels.Kernels, dtype: torch.dtype, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    # One element more in memory than is read, at an odd offset: neither alignment nor a look beyond the end.
    whole = torch.randn(n + 2, generator=generator).to(dtype)
    whole[0] = whole[-1] = math.nan
    x = whole[1:-1]
    x[n // 2] = 0.0
    x[-1] = -0.0
    (s,) = by(compiled, x)
    assert_statistics_agree(s, exact_statistics(elements(x)))
    assert norms_by(compiled, x) == pytest.approx(
        [math.sqrt(math.fsum(v * v for v in elements(x))), 0.0, 0.0], rel=1e-6
    )


@any_dtype
def test_chunks_of_different_scale_are_merged_without_loss(compiled: kernels.Kernels, dtype: torch.dtype) -> None:
    top = {torch.float16: 1e4, torch.float64: 1e300}.get(dtype, 1e37)
    low = {torch.float16: 1e-7, torch.float64: 5e-324}.get(dtype, 1e-40)
    generator = torch.Generator().manual_seed(0)
    parts = [scale * torch.rand(2048, generator=generator, dtype=torch.float64) for scale in (low, 0.0, 1.0, top, 1e-3)]
    for order in ((0, 1, 2, 3, 4), (3, 2, 1, 0, 4), (1, 0), (1, 1), (2, 3), (4, 0, 1)):
        x = torch.cat([parts[i] for i in order]).to(dtype)
        (s,) = by(compiled, x)
        assert_agree(s, Statistics.of(elements(x)))
        assert norms_by(compiled, x)[0] == pytest.approx(Statistics.of(elements(x)).l2_norm, rel=1e-5, abs=5e-324)


@any_dtype
@pytest.mark.parametrize("value", [0.1, -3.0, 0.0, math.nan, math.inf])
def test_a_constant_of_any_length_has_no_spread(compiled: kernels.Kernels, dtype: torch.dtype, value: float) -> None:
    for n in (1, 33, 2048, 10_000):
        x = torch.full((n,), value, dtype=dtype)
        (s,) = by(compiled, x)
        assert_agree(s, Statistics.of(elements(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_far_below_the_mean_keeps_its_spread(compiled: kernels.Kernels, dtype: torch.dtype) -> None:
    x = (1e6 + 0.2 * torch.randn(50_000, dtype=torch.float64)).to(dtype)
    (s,), twin = by(compiled, x), Statistics.of(x.tolist())
    assert s.std == pytest.approx(twin.std, rel=1e-5)
    assert s.mean == pytest.approx(twin.mean, rel=1e-9)


def test_rounding_errors_of_one_sign_stay_small(compiled: kernels.Kernels) -> None:
    # Adding 0.1 to itself in float32 rounds the same way again and again: naive summation is off by 1e-3 here.
    x = torch.full((2**20,), 0.1)
    (s,) = by(compiled, x)
    stored = float(x[0])
    assert s.mean_abs == pytest.approx(stored, rel=4e-6)  # the bound that moments.c states
    assert s.l2_norm == pytest.approx(stored * 1024, rel=4e-6)


def test_fp64_statistics_equal_the_fsum_twin_to_twelve_digits(compiled: kernels.Kernels) -> None:
    x = torch.randn(30_000, dtype=torch.float64)
    (s,) = by(compiled, x)
    assert_agree(s, Statistics.of(x.tolist()), rtol=1e-12)


def test_nan_payloads_and_both_infinities_are_counted_apart(compiled: kernels.Kernels) -> None:
    # Quiet, signalling and negative NaN, both infinities, the largest finite number.
    bits = [0x7FC00000, 0x7F800001, -0x3FFFFF, 0x7F800000, -0x800000, 0x7F7FFFFF]
    x = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    (s,) = by(compiled, x)
    assert (s.count, s.nan_count, s.inf_count, s.zero_count) == (6, 3, 2, 0)
    assert s.max_abs == s.min_abs_nonzero == torch.finfo(torch.float32).max
    assert norms_by(compiled, x) == [torch.finfo(torch.float32).max, 3.0, 2.0]


def test_every_float16_number_is_widened_exactly(compiled: kernels.Kernels) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    one_by_one = by(compiled, *x.split(1))
    assert [s.scaled_sum for s in one_by_one] == torch.nan_to_num(x.double(), 0.0, 0.0, 0.0).tolist()


@any_dtype
def test_compiled_and_plain_rows_agree(compiled: kernels.Kernels, dtype: torch.dtype) -> None:
    x = torch.randn(30, 700).to(dtype)
    x[3] = 0.0
    x[4] *= 1e4
    x[5, 7] = math.nan
    x[6] += 100.0
    for s, plain in zip(by(compiled, *x), rows_on_host(x), strict=True):
        assert_agree(s, plain)


# -------------------------------------------------------------------- what samples share, slices of zeros


@pytest.mark.parametrize("target", TARGETS)
@any_dtype
@settings(max_examples=60, deadline=None)
@given(data=st.data(), samples=st.integers(2, 5))
def test_any_finite_samples_split_exactly(target: str, dtype: torch.dtype, data: st.DataObject, samples: int) -> None:
    size = samples * data.draw(st.integers(1, 8))
    x = data.draw(finite_tensors(dtype, max_size=size, min_size=size)).reshape(samples, -1)
    expected = between_sample_fraction(x)
    largest = float(x.abs().max())
    if expected is None or (dtype == torch.float64 and not 2.0**-400 <= largest <= 2.0**400):
        return  # zeros; squares out of range are for the plain path
    parts = kernels.Kernels(kernels.COMPILED, target).between_samples(x)
    assert parts is not None
    assert parts[0] / (parts[0] + parts[1]) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@any_dtype
@pytest.mark.parametrize("shape", [(2, 1), (3, 255), (5, 256), (4, 257), (64, 1000), (2, 3, 7, 50)])
def test_features_of_several_tiles_split_exactly(
    compiled: kernels.Kernels, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = (torch.randn(shape) + torch.randn(shape[1:]) * 100).to(dtype)
    parts = compiled.between_samples(x)
    assert parts is not None
    exact, mean = x.double().flatten(1), x.double().flatten(1).mean(0)
    assert parts[0] == pytest.approx(float((exact - mean).square().sum()), rel=1e-10)
    assert parts[1] == pytest.approx(shape[0] * float(mean.square().sum()), rel=1e-10)


@any_dtype
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 300), (4, 3, 600), (2, 700, 3)])
def test_slices_of_zeros_are_counted(compiled: kernels.Kernels, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    g = torch.randn(shape).to(dtype)
    g[::2] = 0.0
    g[:, ::3] = -0.0
    if shape[0] > 1:
        g[0, 0].fill_(math.nan)
    for dim in (0, 1):
        zero = (g == 0).movedim(dim, 0).flatten(1).all(1)
        mask = compiled.nonzero_slices(g, dim)
        assert mask is not None
        assert [not found for found in mask] == zero.tolist()


def test_a_column_that_only_its_last_element_keeps_from_zero_is_found(compiled: kernels.Kernels) -> None:
    g = torch.zeros(100, 300)
    g[99, 299] = torch.tensor(1, dtype=torch.int32).view(torch.float32)  # the smallest subnormal number
    for dim, index in ((0, 99), (1, 299)):
        mask = compiled.nonzero_slices(g, dim)
        assert mask is not None
        assert [i for i, found in enumerate(mask) if found] == [index]


# -------------------------------------------------------------------- which tensors, and how many at once

BASE = torch.randn(6, 8)
TAKEN = {
    "parameter": torch.nn.Parameter(torch.randn(3, 4)),
    "requires grad": torch.randn(3, requires_grad=True),
    "view with an offset": torch.arange(20.0)[7:],
    "transposed": BASE.t(),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "dimensions of size one": torch.randn(1, 5, 1).transpose(0, 1),
    "empty": torch.empty(0, 3),
    "zero-dimensional": torch.tensor(3.0),
    "complex": torch.randn(4, dtype=torch.complex64),
    "real part": torch.view_as_real(torch.randn(4, dtype=torch.complex128)),
}  # fmt: skip
NOT_TAKEN = {
    "every other": BASE[:, ::2],
    "expanded": torch.tensor([2.0, 3.0])[:, None].expand(2, 5),
    "overlapping": torch.arange(6.0).unfold(0, 3, 1),
    "conjugate": torch.randn(4, dtype=torch.complex64).conj(),
    "negated view": torch.randn(4, dtype=torch.complex64).conj().imag,
    "integers": torch.arange(5),
    "sparse": torch.eye(4).to_sparse(),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_dense_tensors_are_read_where_they_lie(name: str) -> None:
    x = TAKEN[name]
    assert kernels.entry(x) == (x.data_ptr(), x.numel() * (2 if x.is_complex() else 1), kernels.entry(x)[2])
    assert_statistics_agree(statistics_from_rows(moment_table([x]))[0], exact_statistics(elements(x)))


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_other_tensors_take_the_plain_path(name: str) -> None:
    x = NOT_TAKEN[name]
    assert kernels.entry(x) is None
    assert_statistics_agree(statistics_from_rows(moment_table([x]))[0], exact_statistics(elements(x)))


class Doubled(torch.Tensor):
    """A subclass whose stored elements are not what it stands for."""


def test_a_subclass_is_not_read_behind_its_back() -> None:
    assert kernels.entry(torch.randn(3).as_subclass(Doubled)) is None


def test_a_batched_tensor_inside_a_function_transform_is_left_to_the_transform() -> None:
    seen: list[object] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(kernels.entry(x))
        return x * 2

    torch.func.vmap(look)(torch.randn(3, 4))
    assert seen == [None]


def test_a_table_keeps_the_order_of_its_tensors_whoever_reads_them() -> None:
    mixed = [x for pair in zip(TAKEN.values(), NOT_TAKEN.values(), strict=False) for x in pair]
    table = moment_table(mixed)
    assert table.shape == (len(mixed), 11)
    assert table.dtype == torch.float64
    norms = norm_table(mixed)
    assert norms.shape == (len(mixed), 3)
    for s, norm, x in zip(statistics_from_rows(table), norms.tolist(), mixed, strict=True):
        exact = exact_statistics(elements(x))
        assert_statistics_agree(s, exact)
        assert norm == pytest.approx([0.0 if math.isnan(exact["l2_norm"]) else exact["l2_norm"], 0, 0], rel=1e-6)


def test_a_plan_reads_the_tensors_of_its_step() -> None:
    first, second = [torch.randn(3, 5), torch.randn(7)], [torch.randn(3, 5), torch.randn(7)]
    plan = MomentPlan(first)
    assert torch.equal(plan.moments(), moment_table(first))
    assert torch.equal(plan.moments(second), moment_table(second))
    assert torch.equal(plan.norms(second), norm_table(second))
    first[0].add_(1.0)
    assert torch.equal(plan.moments(), moment_table(first))


def test_no_tensor_gives_an_empty_table() -> None:
    assert moment_table([]).shape == (0, 11)
    assert norm_table([]).shape == (0, 3)


def test_another_default_device_or_dtype_changes_nothing() -> None:
    x = torch.randn(10)
    expected = moment_table([x])
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            table = moment_table([x])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(table, expected)


# -------------------------------------------------------------------- with and without them


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    kernels.forget()
    yield monkeypatch
    monkeypatch.undo()
    kernels.forget()


def test_the_plain_path_gives_the_same_tables(environment: pytest.MonkeyPatch) -> None:
    mixed = [*TAKEN.values(), *NOT_TAKEN.values(), torch.randn(70_000) * 1e-30, torch.randn(300).double() * 1e300]
    moments, norms = statistics_from_rows(moment_table(mixed)), norm_table(mixed)
    environment.setenv("HEADWATER_KERNELS", "0")
    kernels.forget()
    assert kernels.load() is None
    for s, plain in zip(moments, statistics_from_rows(moment_table(mixed)), strict=True):
        assert_agree(s, plain)
    torch.testing.assert_close(norm_table(mixed), norms, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("target", TARGETS)
def test_an_instruction_set_can_be_asked_for(environment: pytest.MonkeyPatch, target: str) -> None:
    environment.setenv("HEADWATER_KERNELS", target)
    kernels.forget()
    assert str(kernels.status()) == f"compiled statistics ({target})"
    assert summarize(torch.tensor([3.0, -4.0])).l2_norm == 5.0


@pytest.mark.parametrize(
    ("wish", "reason"), [("0", "HEADWATER_KERNELS=0 is set"), ("fast", "is none of 0, 1, baseline, avx2, avx512")]
)
def test_the_status_says_why_the_plain_path_is_in_use(environment: pytest.MonkeyPatch, wish: str, reason: str) -> None:
    environment.setenv("HEADWATER_KERNELS", wish)
    kernels.forget()
    assert not kernels.status().in_use
    assert reason in str(kernels.status())


def test_a_compiled_file_that_is_missing_broken_or_foreign_is_not_used(
    environment: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    for content, reason in ((None, "no C compiler"), (b"not a library", "cannot be used")):
        path = tmp_path / "_moments.so"  # type: ignore[operator]
        if content is not None:
            path.write_bytes(content)
        environment.setattr(kernels, "COMPILED", path)
        kernels.forget()
        assert reason in kernels.status().reason
    environment.undo()
    environment.setattr(kernels, "source_digest", lambda: "0123456789abcdef")
    kernels.forget()
    assert "other sources" in kernels.status().reason
