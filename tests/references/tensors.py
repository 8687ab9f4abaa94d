"""Tensors that hypothesis draws: any bit pattern of a dtype, so subnormal, NaN and infinity come up by themselves."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _from_bits(bits: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(bits, dtype=_INTEGERS[dtype.itemsize]).view(dtype)


def tensors(dtype: torch.dtype, max_size: int = 40, min_size: int = 0) -> st.SearchStrategy[torch.Tensor]:
    """1-D tensors of any bit patterns, or of ordinary numbers with some zeros."""
    limit = 2 ** (8 * dtype.itemsize - 1)
    bits = st.lists(st.integers(-limit, limit - 1), min_size=min_size, max_size=max_size)
    ordinary = st.lists(st.one_of(st.just(0.0), st.floats(-10.0, 10.0, width=16)), min_size=min_size, max_size=max_size)
    return st.one_of(
        bits.map(lambda pattern: _from_bits(pattern, dtype)),
        ordinary.map(lambda values: torch.tensor(values).to(dtype)),
    )


def finite_tensors(dtype: torch.dtype, max_size: int = 40, min_size: int = 0) -> st.SearchStrategy[torch.Tensor]:
    """As :func:`tensors`, with 1 in place of what is not finite."""
    return tensors(dtype, max_size, min_size).map(lambda x: torch.where(torch.isfinite(x), x, torch.ones_like(x)))
