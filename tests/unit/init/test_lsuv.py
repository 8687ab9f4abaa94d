"""lsuv_: unit output variance by changing weights alone."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headwater.errors import InputError, NothingObservedError
from headwater.init import lsuv_


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip


def variances(model, x):
    found = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [m.register_forward_hook(lambda m, i, o: found.append(float(o.var(correction=0)))) for m in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def test_every_layer_ends_with_unit_variance_and_the_report_says_so():
    model, x = network().eval(), torch.randn(64, 3, 8, 8)
    before = variances(model, x)
    report = lsuv_(model, x)
    after = variances(model, x)  # in evaluation mode: the same forward again
    assert after == pytest.approx([1.0] * 3, abs=0.011)
    assert [layer.variance_after for layer in report.layers] == pytest.approx(after, rel=1e-5)
    assert [layer.variance_before for layer in report.layers] == pytest.approx(before, rel=1e-5)
    assert [layer.name for layer in report.layers] == ["0.weight", "4.weight", "7.weight"]
    assert all(layer.reached for layer in report.layers)
    assert "0.weight  variance" in str(report)


def test_only_weights_change():
    model, x = network().train(), torch.randn(64, 3, 8, 8)
    model[4].eval()
    loss = model(x).sum()
    loss.backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()
    lsuv_(model, x)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "4.weight", "7.weight"}
    assert not any(m._forward_hooks for m in model.modules())


def test_without_biases_one_division_is_exact():
    model = nn.Sequential(nn.Linear(20, 50, bias=False), nn.Linear(50, 50, bias=False)).double()
    report = lsuv_(model, torch.randn(100, 20).double(), tolerance=1e-10)
    assert [layer.rescalings for layer in report.layers] == [1, 1]
    assert [layer.variance_after for layer in report.layers] == pytest.approx([1.0, 1.0], rel=1e-12)


def test_the_weights_stay_orthonormal_up_to_one_factor():
    model = nn.Sequential(nn.Linear(20, 50))
    lsuv_(model, torch.randn(100, 20))
    values = torch.linalg.svdvals(model[0].weight.detach())
    assert float(values.max() / values.min()) == pytest.approx(1.0, abs=1e-5)


def test_present_weights_can_be_scaled_instead():
    model = nn.Sequential(nn.Linear(20, 50))
    before = model[0].weight.detach().clone()
    lsuv_(model, torch.randn(100, 20), orthonormal=False)
    ratio = model[0].weight.detach() / before
    assert float(ratio.max() - ratio.min()) < 1e-5


def test_a_loader_gives_inputs_and_several_batches_are_one():
    x = torch.randn(60, 20)
    loader = DataLoader(TensorDataset(x, torch.zeros(60)), batch_size=20)
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 5))
    lsuv_(model, loader, batches=3)
    assert variances(model, x) == pytest.approx([1.0, 1.0], abs=0.011)
    lsuv_(model, [{"input": x[:30]}, {"input": x[30:]}], batches=2)
    assert variances(model, x) == pytest.approx([1.0, 1.0], abs=0.011)


def test_the_caller_can_say_how_the_model_is_run():
    model = nn.Sequential(nn.Linear(20, 5))
    lsuv_(model, {"x": torch.randn(30, 20)}, run=lambda m, batch: m(batch["x"]))
    lsuv_(model, (torch.randn(30, 20),))


def test_two_models_drawn_in_turn_get_different_weights_and_a_seed_repeats_them():
    x = torch.randn(30, 20)

    def pair():
        torch.manual_seed(5)
        first, second = nn.Linear(20, 20), nn.Linear(20, 20)
        lsuv_(first, x)
        lsuv_(second, x)
        return first.weight, second.weight

    (a, b), (c, d) = pair(), pair()
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.allclose(a, b)
    layers = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    lsuv_(layers, x)
    assert not torch.allclose(layers[0].weight, layers[1].weight, atol=0.05)


def test_a_layer_that_is_not_reached_and_a_constant_layer_are_reported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    report = lsuv_(Net(), torch.randn(8, 4))
    assert report.kept["unused.weight"] == "the forward did not call its layer"
    # zero inputs: the output is the bias alone, and no scale of the weight makes it vary with unit variance
    report = lsuv_(nn.Linear(4, 4, bias=False), torch.zeros(8, 4))
    assert not report.layers[0].reached
    assert report.layers[0].rescalings == 0


def test_a_failing_forward_changes_nothing():
    class Broken(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("the model's own mistake")

    model = Broken(nn.Linear(4, 4))
    before = model[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="own mistake"):
        lsuv_(model, torch.randn(8, 4))
    assert torch.equal(before, model[0].weight)
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: lsuv_(m, 3), "iterable of batches"),
        (lambda m: lsuv_(m, []), "gave no batch"),
        (lambda m: lsuv_(m, torch.randn(3, 4), batches=2), "needs a loader"),
        (lambda m: lsuv_(m, torch.randn(3, 4), tolerance=0.0), "tolerance"),
        (lambda m: lsuv_(m, torch.randn(3, 4), max_rescalings=0), "max_rescalings"),
        (lambda m: lsuv_(m.to("meta"), torch.randn(3, 4)), "meta device"),
        (lambda m: lsuv_(nn.LayerNorm(4), torch.randn(3, 4)), "no linear layer"),
        (lambda m: lsuv_(m, [3]), "say how to call the model"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(nn.Linear(4, 4))


def test_a_forward_that_calls_no_layer_is_an_error():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.layer.weight

    with pytest.raises(NothingObservedError, match="called none of the 1 layers"):
        lsuv_(Functional(), torch.randn(8, 4))
