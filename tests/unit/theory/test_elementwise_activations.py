"""What counts as an activation, and that a user's module is never touched."""

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.theory.elementwise import ACTIVATIONS, derivative, elementwise

X = torch.linspace(-3, 3, 7, dtype=torch.float64)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_every_named_activation_is_elementwise_with_the_slope_of_its_differences(name):
    fn = elementwise(name)
    x = torch.tensor([-2.7, -1.3, -0.2, 0.3, 1.7, 4.1], dtype=torch.float64)  # away from every kink
    h = 1e-6
    assert torch.allclose(fn.slope(x), (fn(x + h) - fn(x - h)) / (2 * h), atol=1e-7)


def test_a_class_an_instance_a_function_and_a_name_are_the_same_activation():
    values = [elementwise(fn)(X) for fn in ("gelu", nn.GELU, nn.GELU(), torch.nn.functional.gelu)]
    assert all(torch.equal(v, values[0]) for v in values)


def test_a_module_stays_in_its_dtype_and_mode_and_its_input_is_not_overwritten():
    module = nn.PReLU(init=0.3).train()
    fn = elementwise(module)
    fn(X), fn.slope(X)
    assert module.weight.dtype == torch.float32
    assert module.weight.grad is None
    assert module.training
    in_place = elementwise(nn.ReLU(inplace=True))
    x = X.clone()
    assert torch.equal(in_place.slope(x), (X > 0).double())
    assert torch.equal(in_place(x), X.clamp_min(0))
    assert torch.equal(x, X)


def test_derivatives_work_where_gradients_are_switched_off():
    with torch.no_grad():
        off = derivative("tanh")(X)
    with torch.inference_mode():
        inference = derivative("tanh")(X.clone())
    assert torch.allclose(off, 1 - torch.tanh(X) ** 2)
    assert torch.allclose(inference.clone(), off)


def test_a_step_has_slope_zero():
    assert torch.equal(derivative(lambda x: (x > 0).double())(X), torch.zeros_like(X))
    assert torch.equal(derivative(torch.sign)(X), torch.zeros_like(X))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (nn.Softmax(dim=-1), "depends on the others"),
        (nn.LayerNorm(13, elementwise_affine=False), "failed|depends on the others"),
        (lambda x: x - x.mean(), "depends on the others"),
        (lambda x: torch.cumsum(x, 0), "depends on the others"),
        (nn.GLU(dim=0), "not elementwise|failed"),
        (lambda x: x.sum(), "not elementwise"),
        (lambda x: nn.functional.dropout(x, 0.5), "random"),
        (lambda x: 1, "should return a tensor"),
        (lambda x: torch.complex(x, x), "complex"),
        (lambda x: torch.sqrt(x), "not finite at x = -"),
        (lambda x: x.undefined(), "failed on a float64 vector"),
        (nn.Linear, "without arguments"),
        ("tahn", "no activation named"),
        (None, "expected an activation"),
        (int, "expected an activation"),
        (nn.PReLU(device="meta"), "meta device"),
    ],
)
def test_what_is_no_activation_is_refused_with_a_reason(fn, message):
    with pytest.raises(InputError, match=message):
        elementwise(fn)
