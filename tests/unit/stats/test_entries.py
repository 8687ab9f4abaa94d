"""Where the compiled statistics read many tensors: asked together, and one by one where they differ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headwater.stats import kernels, moment_table, norm_table

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it was": lambda g: g,
    "transposed": lambda g: g.t().contiguous().t(),
    "every other column": lambda g: torch.stack([g, g], dim=2)[:, :, 0],
    "expanded": lambda g: g[:1].expand(4, 6),
    "float64": lambda g: g.double(),
    "bfloat16": lambda g: g.bfloat16(),
    "complex": lambda g: torch.complex(g, -g),
    "the imaginary part of a conjugate": lambda g: torch.complex(g, g).conj().imag,
    "sparse": lambda g: g.to_sparse(),
    "a parameter": torch.nn.Parameter,
    "empty": lambda g: g[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_gradient_that_lies_otherwise_at_the_next_step_is_read_as_it_is(layout: str, position: int) -> None:
    generator = torch.Generator().manual_seed(position)
    step = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    for now in (step, [LAYOUTS[layout](g) if i == position else g for i, g in enumerate(step)], step):
        # One by one is the plain twin: a list of one tensor knows nothing of the others.
        alone = [[f([g]) for g in now] for f in (moment_table, norm_table)]
        for together, rows in zip((moment_table(now), norm_table(now)), alone, strict=True):
            torch.testing.assert_close(together, torch.cat(rows), rtol=0, atol=0, equal_nan=True)


def test_entries_of_many_are_those_of_each() -> None:
    tensors = [torch.zeros(3, 5), torch.zeros(1), torch.zeros(()), torch.zeros(2, 2)]
    given, others = kernels.entries(tensors)
    assert list(given) == [number for t in tensors for number in kernels.entry(t) or ()]
    assert not others


def test_a_single_lazily_negated_element_is_left_to_the_plain_path() -> None:
    # The imaginary part of the conjugate of 2 + 3i is -3; it is stored as 3 with a mark.
    negated = torch.tensor([2 + 3j]).conj().imag
    assert negated.is_neg()
    assert negated.is_contiguous()
    assert kernels.entries([torch.ones(1), negated])[1] == [1]
    assert moment_table([torch.ones(1), negated])[1, 5] < 0  # scaled_sum
