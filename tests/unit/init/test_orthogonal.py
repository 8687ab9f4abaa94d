"""Orthogonal and delta-orthogonal initialisation: exact to rounding, in any dtype, and of the right law."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headwater.errors import InputError
from headwater.init import delta_orthogonal_, orthogonal_


def gram_error(q):
    """Largest row sum of |QᵀQ - I| (of QQᵀ when Q is wide), in float64."""
    q = q.detach().double().flatten(1)
    gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    return float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().sum(1).max())


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 5.0))
@settings(max_examples=40, deadline=None)
def test_every_shape_is_orthogonal_in_float32(rows, columns, gain):
    q = orthogonal_(torch.empty(rows, columns), gain)
    # Casting a float64 matrix to float32 leaves 6e-8 per element and 1e-5 in no row of these sizes.
    assert gram_error(q / gain) < 1e-5


def test_a_large_float32_matrix_is_orthogonal_to_1e_5():
    assert gram_error(orthogonal_(torch.empty(700, 500))) < 1e-5
    assert gram_error(orthogonal_(torch.empty(64, 32, 3, 3))) < 1e-5  # read as 64 × 288


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4), (torch.float64, 1e-14)])
def test_any_dtype_is_orthogonal_up_to_its_own_rounding(dtype, most):
    # An element of size 1/√n is rounded by eps/2 of itself (bfloat16 2^-9, float16 2^-12); the errors of the n products
    # in a diagonal entry of QᵀQ add up to 2 · eps/2 / √n at most typically: below `most` for n = 50.
    q = orthogonal_(torch.empty(50, 50, dtype=dtype))
    assert q.dtype is dtype
    gram = q.double().T @ q.double() - torch.eye(50, dtype=torch.float64)
    assert float(gram.abs().max()) < most


def test_a_parameter_is_filled_in_place_and_keeps_its_gradient_flag():
    weight = nn.Linear(5, 7).weight
    assert orthogonal_(weight, 2.0) is weight
    assert weight.requires_grad
    assert torch.linalg.svdvals(weight.detach()).tolist() == pytest.approx([2.0] * 5)


def test_the_law_is_uniform_over_rotations():
    # Haar on O(n): every element has mean 0 and variance 1/n, and the trace has variance 1. QR without the sign
    # correction of R fails this: its diagonal is biased. 3,000 draws of 3 × 3: standard error of a mean 0.58/√3000.
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([orthogonal_(torch.empty(3, 3), generator=g) for _ in range(3000)]).double()
    assert float(draws.mean(0).abs().max()) < 4 * math.sqrt(1 / 3 / 3000)
    assert float((draws.square().mean(0) - 1 / 3).abs().max()) < 0.025
    trace = draws.diagonal(dim1=1, dim2=2).sum(1)
    assert float(trace.var()) == pytest.approx(1.0, abs=0.1)


def test_a_generator_makes_it_repeatable_and_leaves_the_global_state():
    before = torch.get_rng_state()
    first, second = (orthogonal_(torch.empty(4, 4), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_on_meta_the_initialiser_is_a_normal_law_of_the_same_second_moment():
    # A semi-orthogonal 6 × 24 matrix has elements of second moment 1/24; nothing is computed on meta.
    weight = torch.empty(6, 24, device="meta")
    assert orthogonal_(weight) is weight
    assert float(orthogonal_(torch.empty(6, 24)).square().mean()) == pytest.approx(1 / 24)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_delta_orthogonal_convolution_keeps_the_norm_of_every_image(dims):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, 3, padding=1, bias=False)
    delta_orthogonal_(conv.weight, 1.5)
    conv.requires_grad_(False)
    x = torch.randn(2, 4, *[5] * dims)
    assert float(conv(x).norm()) == pytest.approx(1.5 * float(x.norm()), rel=1e-5)
    # and pixel by pixel: the kernel is one tap
    assert torch.allclose(conv(x).norm(dim=1), 1.5 * x.norm(dim=1), rtol=1e-4)


def test_every_group_of_a_delta_orthogonal_convolution_is_orthogonal():
    conv = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)
    delta_orthogonal_(conv.weight, groups=2)
    x = torch.randn(1, 6, 4, 4)
    assert torch.allclose(conv(x).norm(dim=1), x.norm(dim=1), rtol=1e-4)


def test_a_delta_orthogonal_kernel_in_bfloat16_has_one_tap():
    weight = delta_orthogonal_(torch.empty(4, 4, 3, 3, dtype=torch.bfloat16))
    assert weight.abs().sum((0, 1)).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthogonal_(torch.empty(3)), "two or more dimensions"),
        (lambda: orthogonal_(torch.empty(3, 3, dtype=torch.int64)), "floating dtype"),
        (lambda: orthogonal_(nn.Linear(2, 2)), "pass layer.weight"),
        (lambda: delta_orthogonal_(torch.empty(3, 3)), "weight of a convolution"),
        (lambda: delta_orthogonal_(torch.empty(3, 4, 3)), "fewer outputs cannot keep the norm"),
        (lambda: delta_orthogonal_(torch.empty(4, 4, 3), groups=3), "cannot be divided"),
    ],
)
def test_what_cannot_be_orthogonal_is_refused_with_a_reason(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_an_empty_tensor_stays_empty():
    assert orthogonal_(torch.empty(0, 4)).shape == (0, 4)
