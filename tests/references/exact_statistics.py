"""Slow, obvious twins of the statistics: exact rational arithmetic, one element at a time."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch

STATISTICS = ("mean", "mean_abs", "rms", "l2_norm", "std", "kurtosis", "max_abs", "min_abs_nonzero")
COUNTS = ("count", "zero_count", "nan_count", "inf_count")


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _sqrt(value: Fraction) -> float:
    """Square root of a rational of any size: it is brought near 1 first."""
    if value == 0:
        return 0.0
    half = (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    root = math.sqrt(float(value / Fraction(4) ** half))
    try:
        return math.ldexp(root, half)
    except OverflowError:
        return math.inf


def elements(tensor: torch.Tensor) -> list[float]:
    """Every element as a Python float: exact for each dtype used here."""
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.double().reshape(-1).tolist()


def exact_statistics(values: Iterable[float]) -> dict[str, float]:
    """Every statistic of ``values`` by its definition, rounded once at the end."""
    values = list(values)
    xs = [Fraction(v) for v in values if math.isfinite(v)]
    n = len(xs)
    out: dict[str, float] = {
        "count": len(values),
        "zero_count": sum(x == 0 for x in xs),
        "nan_count": sum(math.isnan(v) for v in values),
        "inf_count": sum(math.isinf(v) for v in values),
    }
    if not n:
        return out | dict.fromkeys(STATISTICS, math.nan)
    mean = sum(xs) / n
    squares = sum(x * x for x in xs)
    nonzero = [abs(x) for x in xs if x]
    return out | {
        "mean": _float(mean),
        "mean_abs": _float(sum(map(abs, xs)) / n),
        "rms": _sqrt(squares / n),
        "l2_norm": _sqrt(squares),
        "std": _sqrt(sum((x - mean) ** 2 for x in xs) / n),
        "kurtosis": _float(sum(x**4 for x in xs) * n / squares**2) if squares else math.nan,
        "max_abs": _float(max(map(abs, xs))),
        "min_abs_nonzero": _float(min(nonzero)) if nonzero else math.nan,
    }


def assert_statistics_agree(actual: object, expected: dict[str, float], rtol: float = 1e-5) -> None:
    """Counts agree exactly, extremes too, the rest to ``rtol``.

    A mean is compared on the scale of mean |x|, since it may cancel. A spread below the last digit of the elements
    (which a float32 sum can produce only by cancellation) is compared on the scale of 1e-10 rms.
    """
    for name in COUNTS:
        assert getattr(actual, name) == expected[name], name
    scale = {"mean": rtol * expected["mean_abs"], "std": 1e-10 * expected["rms"]}
    for name in STATISTICS:
        got, want = getattr(actual, name), expected[name]
        if all(value >= (1.0 - rtol) * sys.float_info.max for value in (got, want)):
            continue  # infinite or not: the last digit may round beyond the largest double
        if math.isnan(want) or math.isinf(want):
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, got, want)
            continue
        exact = name in ("max_abs", "min_abs_nonzero")
        # Where the statistic itself is below the normal range of a double, its last bit is 5e-324.
        tolerance = 0.0 if exact else rtol * abs(want) + scale.get(name, 0.0) + 5e-324
        assert abs(got - want) <= tolerance, (name, got, want)


def between_sample_fraction(x: torch.Tensor) -> float | None:
    """Population variance over samples, per feature, over the second moment: by rational arithmetic."""
    samples = [[Fraction(v) for v in elements(sample)] for sample in x if torch.isfinite(sample).all()]
    count = len(samples)
    if count < 2 or not any(any(s) for s in samples):
        return None
    variance = Fraction(0)
    for feature in zip(*samples, strict=True):
        mean = sum(feature) / count
        variance += sum((v - mean) ** 2 for v in feature) / count
    second_moment = sum(v * v for s in samples for v in s) / count
    return float(variance / second_moment)


def position_cosine(x: torch.Tensor) -> float | None:
    """Mean cosine over all ordered pairs of different positions of the same sample."""
    cosines: list[float] = []
    for sample in x.double():
        vectors = [v.tolist() for v in sample if torch.isfinite(v).all() and bool((v != 0).any())]
        for a, b in itertools.permutations(vectors, 2):
            big_a, big_b = max(map(abs, a)), max(map(abs, b))
            a_, b_ = [v / big_a for v in a], [v / big_b for v in b]
            cosines.append(math.fsum(p * q for p, q in zip(a_, b_, strict=True)) / math.hypot(*a_) / math.hypot(*b_))
    return math.fsum(cosines) / len(cosines) if cosines else None


def duplicate_row_count(weight: Sequence[Sequence[float]], gradient: Sequence[Sequence[float]] | None) -> int:
    """Rows that equal an earlier row in the weight, and to 1e-6 in the gradient: all pairs compared."""
    count = 0
    for i, row in enumerate(weight):
        for j in range(i):
            same = all(
                a == b and math.copysign(1.0, a) == math.copysign(1.0, b) for a, b in zip(row, weight[j], strict=True)
            )
            if same and gradient is not None:
                largest = max(map(abs, [*gradient[i], *gradient[j]]))
                same = all(abs(a - b) <= 1e-6 * largest for a, b in zip(gradient[i], gradient[j], strict=True))
            if same:
                count += 1
                break
    return count
