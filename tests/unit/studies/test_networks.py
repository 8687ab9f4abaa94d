"""Networks, data and initialisers as data, and the modules built from them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from headwater.errors import StudyError
from headwater.studies import INITIALIZATIONS, Data, Network, build, initialization, study
from headwater.studies.activations import activation_layer, activation_name


def test_a_default_network_draws_what_torch_would_draw() -> None:
    network = Network(inputs=3, width=5, hidden=2, outputs=1)
    torch.manual_seed(7)
    built = build(network)
    torch.manual_seed(7)
    expected = [nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 1)]
    for name, layer in zip(("fc1", "fc2", "out"), expected, strict=True):
        assert torch.equal(built.get_parameter(f"{name}.weight"), layer.weight)
        assert torch.equal(built.get_parameter(f"{name}.bias"), layer.bias)


@pytest.mark.parametrize(
    ("name", "depth", "sizes", "last"),
    [
        ("deep-sigmoid", 20, (*[100] * 21, 1), "out.weight"),
        ("shortcut", 5, (3, 3, 3, 3, 3, 1), "fc5.weight"),
        ("activation-and-init", 4, (64,) * 5, "fc4.weight"),
        ("raw-weights", 10, (*[4] * 10, 1), "w10"),
        ("init-strategies", 5, (10, 10, 10, 10, 10, 1), "fc5.weight"),
    ],
)
def test_the_studies_have_the_published_shapes(name: str, depth: int, sizes: tuple[int, ...], last: str) -> None:
    network = study(name).variants[0].network
    assert network.depth == depth
    assert network.sizes == sizes
    assert network.weight_names[-1] == last
    assert network.with_depth(depth) == network


def test_depth_counts_how_often_the_activation_is_applied() -> None:
    # raw matrices: once on the input, then after every matrix but the last
    assert study("raw-weights").variants[0].network.with_depth(15).sizes == (*[4] * 15, 1)
    with pytest.raises(StudyError, match="leaves no hidden layer; use 2 or more"):
        study("shortcut").variants[0].network.with_depth(1)


def test_the_forward_of_a_stack_is_the_notebooks_loop() -> None:
    network = Network(
        inputs=3, width=3, hidden=1, outputs=1, activation="gelu", activation_on_output=True, shortcut="all"
    )
    model = build(network)
    x = torch.tensor([[1.0, 0.0, -1.0]])
    first, last, gelu = model.get_submodule("fc1"), model.get_submodule("fc2"), nn.GELU()
    hidden = x + gelu(first(x))
    expected = hidden + gelu(last(hidden))  # (1, 3) + (1, 1): the shortcut around 3 → 1 broadcasts
    assert torch.equal(model(x), expected)
    assert model(x).shape == (1, 3)


def test_raw_matrices_apply_the_activation_to_the_input_and_not_to_the_output() -> None:
    network = Network(
        inputs=2, width=2, hidden=1, outputs=1, activation="relu", activation_on_input=True,
        initialization="normal:1", bias=False, raw=True,
    )  # fmt: skip
    model = build(network)
    with torch.no_grad():
        model.get_parameter("w1").copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
        model.get_parameter("w2").copy_(torch.tensor([[-3.0], [5.0]]))
    # relu(−1, 2) = (0, 2); (0, 2) @ w1 = (4, 2), active; (4, 2) @ w2 = −12 + 10 = −2, not clipped
    assert model(torch.tensor([[-1.0, 2.0]])).tolist() == [[-2.0]]


@pytest.mark.parametrize("name", [*INITIALIZATIONS, "normal:0.01"])
def test_every_rule_draws_the_variance_it_states(name: str) -> None:
    rule = initialization(name)
    weight = torch.empty(400, 300)
    rule.weight_(weight, 300, 400, torch.Generator().manual_seed(0))
    # 120,000 elements: the standard error of the std is below 0.3 %
    assert weight.std().item() == pytest.approx(rule.weight_std(300, 400), rel=0.015)
    bound = math.sqrt(3.0) * rule.weight_std(300, 400)
    assert (weight.abs().max().item() <= bound * 1.0001) == (rule.distribution == "uniform")


def test_the_rules_are_the_stated_formulas() -> None:
    assert initialization("xavier_normal").weight_std(10, 30) ** 2 == pytest.approx(2 / 40)
    assert initialization("kaiming_normal").weight_std(10, 30) ** 2 == pytest.approx(2 / 10)
    assert initialization("default").weight_variance(77, 5) == pytest.approx(1 / 3)
    assert initialization("default").bias_variance(100) == pytest.approx(1 / 300)


@pytest.mark.parametrize(
    ("name", "message"),
    [("xavier", "did you mean xavier_normal"), ("normal:-1", "positive number"), ("normal:x", "positive number")],
)
def test_an_unknown_rule_is_refused_with_a_hint(name: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        initialization(name)


def test_any_function_can_be_an_activation() -> None:
    def bump(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-x * x)

    layer = activation_layer(bump)
    assert torch.equal(layer(torch.ones(2)), torch.exp(-torch.ones(2)))
    assert activation_name(bump) == "bump"
    with pytest.raises(StudyError, match="did you mean relu"):
        activation_layer("rellu")
    with pytest.raises(StudyError, match="its input's shape"):
        activation_layer(lambda x: x.sum())


def test_the_data_are_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = Data(samples=500, inputs="integers", targets="integers", target_shape="flat").draw(4, 1, generator)
    assert (x.min(), x.max()) == (-10, 9)
    assert (y.min(), y.max(), y.shape) == (0, 4, (500,))
    assert Data(inputs="linspace").draw(3, 1)[0].tolist() == [[1.0, 0.0, -1.0]]
    z, _ = Data(samples=500, inputs="integers", standardize=True).draw(4, 1, generator, (3,))
    assert z.shape == (3, 500, 4)
    assert torch.allclose(z.mean(1), torch.zeros(3, 4), atol=1e-6)
    assert torch.allclose(z.square().mean(1), torch.ones(3, 4), atol=1e-5)
    with pytest.raises(StudyError, match="more than one sample"):
        Data(samples=1, standardize=True).draw(4, 1)
    # Σ k² over −10 … 9 is (385 + 285) / 20
    assert Data(inputs="integers").input_second_moment(4) == pytest.approx(33.5)


def test_varying_a_study_drops_its_published_figures_and_its_doubles() -> None:
    same = study("activation-and-init").varied()
    assert same is study("activation-and-init")
    tanh = same.varied(activation="tanh")
    assert [v.name for v in tanh] == ["sigmoid", "tiny-linear"]  # (c) with tanh is (a) with tanh; (b) stays itself
    assert [bool(v.published) for v in tanh] == [False, True]
    deep = study("shortcut").varied(depth=12)
    assert deep.published_seed is None
    assert deep.grid is not None
    assert deep.grid.depths == (12,)


def test_an_unknown_study_is_refused_with_a_hint() -> None:
    with pytest.raises(StudyError, match="did you mean deep-sigmoid"):
        study("deep-sigmod")
