"""Results made without torch's reference have the shape, layout and dtype that torch gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from headwater.capture.meta_shapes import made_empty

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


X, Y = meta(3, 4, 8), meta(3, 4, 8)
CASES: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.add.Tensor, (X, Y)),
    (aten.mul.Tensor, (X, Y)),
    (aten.div.Tensor, (X, Y)),
    (aten.sub.Tensor, (X, Y)),
    (aten.relu.default, (X,)),
    (aten.gelu.default, (X,)),
    (aten.silu.default, (X,)),
    (aten.threshold_backward.default, (X, Y, 0)),
    (aten.gelu_backward.default, (X, Y)),
    (aten.silu_backward.default, (X, Y)),
    (aten._safe_softmax.default, (X, -1)),
    (aten.addmm.default, (meta(5), meta(6, 8), meta(5, 8).t())),
    (aten.native_layer_norm.default, (X, [8], meta(8), meta(8), 1e-5)),
    (aten.native_layer_norm.default, (X, [4, 8], None, None, 1e-5)),
    (
        aten.native_layer_norm_backward.default,
        (X, Y, [8], meta(3, 4, 1), meta(3, 4, 1), meta(8), meta(8), [True, True, False]),
    ),
]


def looks(result: Any) -> list[Any]:
    results = result if isinstance(result, tuple) else (result,)
    return [None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in results]


@pytest.mark.parametrize(("function", "args"), CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_shortcut_gives_what_torch_gives(function: Any, args: tuple[Any, ...]) -> None:
    made = made_empty(function.overloadpacket.__name__, function._overloadname, args, {})
    assert made is not None
    assert looks(made) == looks(function(*args))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (aten.add.Tensor, (X, meta(8))),  # broadcast
        (aten.add.Tensor, (X, 1.0)),
        (aten.add.Tensor, (X, meta(3, 4, 8, dtype=torch.float64))),  # promotion
        (aten.mul.Tensor, (X.transpose(0, 1), meta(4, 3, 8))),  # another layout
        (aten.addmm.default, (meta(6, 5), meta(6, 8), meta(8, 5))),
        (aten.relu.default, (meta(3, dtype=torch.bfloat16),)),
        (aten.add.Tensor, (torch.ones(3), torch.ones(3))),  # values
    ],
)
def test_what_is_not_plain_is_left_to_torch(function: Any, args: tuple[Any, ...]) -> None:
    assert made_empty(function.overloadpacket.__name__, function._overloadname, args, {}) is None
