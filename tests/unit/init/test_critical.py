"""critical_: each layer gets the critical variance of what follows it, and everything else is left alone and named."""

import math

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.init import critical_, plan_critical
from headwater.theory import critical_init


def mean_square_gradients(model, x):
    """Mean square of ∂L/∂(output) of every Linear, first layer first, for L = ⟨output, noise⟩."""
    outputs = []
    handles = [
        m.register_forward_hook(lambda m, i, o: (o.retain_grad(), outputs.append(o))[0])
        for m in model.modules()
        if isinstance(m, nn.Linear)
    ]
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    for handle in handles:
        handle.remove()
    return [float(o.grad.square().mean()) for o in outputs]


def stack(activation, depth, width):
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), activation())])


@pytest.mark.parametrize(
    ("activation", "bias_variance"), [(nn.ReLU, 0.0), (nn.Tanh, 0.0), (nn.Tanh, 0.05), (nn.GELU, 0.2), (nn.SiLU, 1.0)]
)
def test_a_deep_stack_keeps_its_gradient(activation, bias_variance):
    logs = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = critical_(stack(activation, 30, 200), bias_variance)
        q = critical_init(activation, bias_variance)[1]
        x = torch.randn(1, 200) * math.sqrt(q if q > 0.0 else 0.01)
        sizes = mean_square_gradients(model, x)
        logs.append(0.5 * math.log10(sizes[0] / sizes[-1]))
    # Over 29 layers of width 200 one draw scatters by √(5·29/200)/(2 ln 10) = 0.18 decades, four by 0.09 around
    # -5·29/200/4/ln 10 = -0.08 (the logarithm of a mean is not the mean of logarithms). torch's own default loses 7 or
    # more decades here.
    assert sum(logs) / 4 == pytest.approx(-0.08, abs=0.35)


def test_every_layer_gets_the_variance_of_the_activation_that_follows():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 300), nn.Tanh(), nn.Conv1d(300, 300, 3), nn.ReLU(), nn.Flatten()
    )
    assert critical_(model) is model
    # fan_in · Var(W): 2 for ReLU, 1 for tanh; the fan_in of the convolution is 300 · 3.
    for index, fan_in, expected in ((0, 300, 2.0), (2, 400, 1.0), (4, 900, 2.0)):
        weight = model[index].weight.detach()
        # 120,000 or more normal values: their variance is known to √(2/120000) = 0.4 %; three of those.
        assert fan_in * float(weight.var()) == pytest.approx(expected, rel=0.013)
        assert float(model[index].bias.detach().abs().max()) == 0.0


def test_a_bias_variance_reaches_the_biases_of_layers_with_an_activation_alone():
    torch.manual_seed(0)
    model = critical_(nn.Sequential(nn.Linear(50, 4000), nn.Tanh(), nn.Linear(4000, 10)), bias_variance=0.05)
    assert float(model[0].bias.detach().var()) == pytest.approx(0.05, rel=0.07)  # 4,000 values: √(2/4000) = 2.2 %
    assert 50 * float(model[0].weight.detach().var()) == pytest.approx(critical_init("tanh", 0.05)[0], rel=0.02)
    assert float(model[2].bias.detach().abs().max()) == 0.0
    assert 4000 * float(model[2].weight.detach().var()) == pytest.approx(1.0, rel=0.03)


def test_a_layer_without_bias_gets_the_critical_point_without_bias():
    plan = plan_critical(nn.Sequential(nn.Linear(9, 9, bias=False), nn.Tanh()), bias_variance=0.05)
    assert [change.weight_variance for change in plan.changes] == [pytest.approx(1.0)]


def test_an_activation_that_runs_away_from_its_critical_point_keeps_the_gradient_at_unit_variance():
    # GELU without a bias: σ_w² = 4 at q = 0, where q' = 4 E[gelu²] > q for every q: the signal explodes.
    (change, _) = plan_critical(nn.Sequential(nn.Linear(9, 9), nn.GELU())).changes
    assert change.weight_variance == pytest.approx(1.4811**2, rel=1e-4)  # the backward gain of GELU
    assert "run away" in change.note


def test_a_critical_point_that_repels_is_taken_and_said():
    # GELU at σ_b² = 0.05: dq'/dq = 1.085 at q = 0.72 (found by a difference quotient); stable at 0.2
    small, large = (plan_critical(nn.Sequential(nn.Linear(9, 9), nn.GELU()), b).changes[0] for b in (0.05, 0.2))
    assert small.weight_variance == pytest.approx(critical_init("gelu", 0.05)[0])
    assert "repels" in small.note
    assert large.note == ""


def test_an_activation_without_a_critical_point_keeps_the_gradient_at_unit_variance():
    model = nn.Sequential(nn.Linear(9, 9), nn.Softplus(), nn.Linear(9, 9))
    change = plan_critical(model).changes[0]
    # E[softplus'²] = E[sigmoid(z)²] by a midpoint sum
    z = (torch.arange(200_000, dtype=torch.float64) + 0.5) * 1e-4 - 10
    slope = float((torch.sigmoid(z) ** 2 * torch.exp(-z * z / 2)).sum() * 1e-4 / math.sqrt(2 * math.pi))
    assert change.weight_variance == pytest.approx(1 / slope, rel=1e-6)
    assert "no critical point" in change.note


def test_a_normalised_input_is_evaluated_one_step_on():
    model = nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 9), nn.Tanh())
    change = next(c for c in plan_critical(model).changes if c.name == "1.weight")
    w = change.weight_variance
    # q = σ_w²: σ_w² E[tanh'(√σ_w² z)²] = 1
    z = (torch.arange(200_000, dtype=torch.float64) + 0.5) * 1e-4 - 10
    slope = (1 - torch.tanh(math.sqrt(w) * z) ** 2) ** 2
    mean = float((slope * torch.exp(-z * z / 2)).sum() * 1e-4 / math.sqrt(2 * math.pi))
    assert w * mean == pytest.approx(1.0, rel=1e-6)
    assert w > 1.5


def test_a_sigmoid_at_the_end_is_taken_for_the_output():
    model = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 1), nn.Sigmoid())
    changes = {c.name: c for c in plan_critical(model).changes}
    assert changes["2.weight"].weight_variance == 1.0
    assert "output layer" in changes["2.weight"].note
    # in the middle it is a hidden layer: the critical point is far out
    inside = plan_critical(nn.Sequential(nn.Linear(9, 9), nn.Sigmoid(), nn.Linear(9, 9)))
    assert inside.changes[0].weight_variance == pytest.approx(103.0, abs=0.1)


def test_attention_sets_value_and_output_and_keeps_query_and_key():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 64)
    attention = layer.self_attn
    before = attention.in_proj_weight.detach().clone()
    critical_(layer)
    after = attention.in_proj_weight.detach()
    assert torch.equal(after[:128], before[:128])
    # 4,096 values: √(2/4096) = 2.2 %
    assert 64 * float(after[128:].var()) == pytest.approx(1.0, rel=0.07)
    assert 64 * float(attention.out_proj.weight.detach().var()) == pytest.approx(1.0, rel=0.07)


def test_what_is_left_alone_is_named_and_unchanged():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 8),
            "norm": nn.LayerNorm(8),
            "lstm": nn.LSTM(8, 8),
            "frozen": nn.Linear(8, 8).requires_grad_(False),
            "slope": nn.PReLU(),
            "weighted": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        }
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plan = plan_critical(model)
    critical_(model)
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p), name
    assert {change.name for change in plan.changes} == set()
    assert plan.kept["embedding.weight"].startswith("look-up")
    assert plan.kept["norm.weight"].startswith("normalisation")
    assert plan.kept["lstm.weight_hh_l0"].startswith("recurrent")
    assert plan.kept["frozen.weight"] == "frozen"
    assert plan.kept["slope.weight"] == "slope of an activation"
    assert plan.kept["weighted.parametrizations.weight.original0"].startswith("reparametrised")
    assert set(plan.kept) == set(before)


def test_a_tied_weight_is_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    plan = plan_critical(Tied())
    assert plan.kept["embedding.weight"] == "shared with head.weight"
    assert plan.kept["head.bias"] == "its weight is kept as well"


def test_only_selects_by_name_class_or_function():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for only in ("0.*", ["0.weight", "0.bias"], lambda name, thing: name.startswith("0.")):
        assert [c.name for c in plan_critical(model, only=only).changes] == ["0.weight", "0.bias"]
    assert [c.name for c in plan_critical(model, only="*.weight").changes] == ["0.weight", "2.weight"]
    assert len(plan_critical(model, only=nn.Linear).changes) == 4
    with pytest.raises(InputError, match="matches no parameter"):
        plan_critical(model, only="nothing.*")


def test_the_plan_changes_nothing_and_the_call_does_what_the_plan_says():
    torch.manual_seed(0)
    model = stack(nn.Tanh, 2, 100)
    before = [p.detach().clone() for p in model.parameters()]
    plan = plan_critical(model)
    assert all(torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))
    critical_(model)
    for name, p in model.named_parameters():
        change = next(c for c in plan.changes if c.name == name)
        assert float(p.detach().std(correction=0)) == pytest.approx(change.std, rel=0.04, abs=1e-12)


def test_a_model_on_meta_can_be_planned_and_initialised():
    with torch.device("meta"):
        model = stack(nn.ReLU, 2, 100)
    assert plan_critical(model).changes[0].std == pytest.approx(math.sqrt(2 / 100))
    assert all(p.is_meta for p in critical_(model).parameters())


def test_half_precision_weights_are_drawn_in_their_own_dtype():
    model = critical_(stack(nn.ReLU, 1, 200).to(torch.bfloat16))
    assert model[0].weight.dtype is torch.bfloat16
    assert 200 * float(model[0].weight.detach().float().var()) == pytest.approx(2.0, rel=0.03)


def test_a_model_that_is_one_layer_is_a_linear_map():
    assert plan_critical(nn.Linear(9, 4)).changes[0].weight_variance == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_(torch.randn(3)), "expected an nn.Module"),
        (lambda: critical_(nn.ReLU()), "no parameters"),
        (lambda: critical_(nn.LazyLinear(3)), "lazy module"),
        (lambda: critical_(nn.Linear(2, 2), -1.0), "not negative"),
        (lambda: critical_(nn.Linear(2, 2), "none"), "should be a number"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
