"""explain_init: what is read off the weights, what follows them, and that the factors are those of real networks."""

import copy
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from headwater._explain_init import explain_init
from headwater.errors import InputError, RecordError
from headwater.records.initialization import InitializationReport


def row(model, name="weight"):
    return explain_init(model).row(name)


# ------------------------------------------------------------------ reading


def test_torch_default_linear_has_a_gain_of_one_over_root_three():
    w = row(nn.Linear(300, 200))
    # 60,000 uniform values: the variance is known to √(0.8/60000) = 0.4 %
    assert w.weight_variance == pytest.approx(1 / 3, rel=0.015)
    assert w.gain == pytest.approx(3**-0.5, rel=0.008)
    assert (w.fan_in, w.fan_out, w.distribution) == (300, 200, "uniform")
    assert w.initializer == "torch default: U(±1/√fan_in)"
    assert w.std == pytest.approx(1 / math.sqrt(900), rel=0.008)
    assert w.kurtosis == pytest.approx(1.8, abs=0.03)


def test_statistics_are_those_of_the_values():
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    w = row(layer)
    # mean 3, deviations -2 -1 0 3: Var = 14/4, fourth moment (16 + 1 + 81)/4
    assert (w.mean, w.std, w.max_abs, w.zero_fraction) == (3.0, math.sqrt(3.5), 6.0, 0.0)
    assert w.kurtosis == pytest.approx(24.5 / 3.5**2)
    assert w.weight_variance == pytest.approx(2 * 3.5)
    assert w.weight_second_moment == pytest.approx(2 * 50 / 4)


def test_convolution_and_embedding_have_their_own_fans():
    conv = row(nn.Conv2d(8, 32, 5))
    assert (conv.fan_in, conv.fan_out) == (200, 800)
    assert conv.initializer == "torch default: U(±1/√fan_in)"
    embedding = row(nn.Embedding(2000, 64, padding_idx=0))
    assert embedding.fan_in == 1
    assert embedding.initializer == "torch default: N(0, 1)"
    assert embedding.forward_factor == pytest.approx(1.0, abs=0.02)
    assert embedding.backward_factor is None


@pytest.mark.parametrize(
    ("init", "initializer", "distribution"),
    [
        (nn.init.xavier_uniform_, "xavier_uniform_()", "uniform"),
        (nn.init.xavier_normal_, "xavier_normal_()", "normal"),
        (lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"), "kaiming_normal_(fan_in, relu)", "normal"),
        (lambda w: nn.init.kaiming_uniform_(w, a=5**0.5), "torch default: U(±1/√fan_in)", "uniform"),
        (lambda w: nn.init.normal_(w, std=0.02), "normal_(std=0.02)", "normal"),
        (nn.init.orthogonal_, "orthogonal_()", "orthogonal"),
        (lambda w: nn.init.orthogonal_(w, gain=1.5), "orthogonal_(gain=1.5)", "orthogonal"),
        (nn.init.zeros_, "zeros_()", "zeros"),
        (nn.init.ones_, "ones_()", "constant"),
        (lambda w: nn.init.constant_(w, 0.25), "constant_(0.25)", "constant"),
        (nn.init.eye_, "eye_()", "identity"),
        (lambda w: nn.init.sparse_(w, sparsity=0.5), "sparse_(sparsity=0.5, std=0.01)", "sparse"),
        (lambda w: nn.init.normal_(w).pow_(3), "no standard initialiser", "unknown"),
        (lambda w: nn.init.normal_(w, std=0.0321), "no standard initialiser", "normal"),
        (lambda w: nn.init.trunc_normal_(w, std=0.05, a=-0.1, b=0.1), "no standard initialiser", "truncated normal"),
        # torch cuts at -2 and 2 whatever the standard deviation: nothing is cut
        (lambda w: nn.init.trunc_normal_(w, std=0.02), "normal_(std=0.02)", "normal"),
    ],
)
def test_initialisers_are_named(init, initializer, distribution):
    torch.manual_seed(5)
    layer = nn.Linear(320, 200)
    with torch.no_grad():
        init(layer.weight)
    w = row(layer)
    assert (w.initializer, w.distribution) == (initializer, distribution)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_low_precision_weights_are_still_recognised(dtype):
    torch.manual_seed(1)
    assert row(nn.Linear(256, 256).to(dtype)).initializer == "torch default: U(±1/√fan_in)"
    layer = nn.Linear(256, 128)
    nn.init.orthogonal_(layer.weight)
    assert row(layer.to(dtype)).distribution == "orthogonal"


def test_square_layers_list_the_initialisers_that_coincide():
    layer = nn.Linear(300, 300)
    nn.init.xavier_normal_(layer.weight)
    w = row(layer)
    assert w.initializer == "xavier_normal_()"
    assert {"kaiming_normal_(fan_in, linear)", "kaiming_normal_(fan_out, linear)"} <= set(w.also)


def test_trained_weights_are_no_standard_initialiser():
    layer = nn.Linear(100, 100)
    with torch.no_grad():
        layer.weight += 0.3 * torch.randn(100, 1) @ torch.randn(1, 100)
    assert row(layer).initializer == "no standard initialiser"


def test_biases_say_whether_they_are_zero():
    report = explain_init(nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 300), nn.Conv2d(3, 8, 3)))
    nn_zero = nn.Linear(4, 4)
    nn.init.zeros_(nn_zero.bias)
    default = report.biases[0]
    assert not default.is_zero
    assert default.initializer == "torch default: U(±1/√fan_in)"
    assert default.std == pytest.approx(1 / math.sqrt(1200), rel=0.1)
    zero = explain_init(nn_zero).biases[0]
    assert (zero.is_zero, zero.initializer, zero.std) == (True, "zeros_()", 0.0)


def test_attention_blocks_are_read_one_by_one():
    report = explain_init(nn.MultiheadAttention(128, 4))
    blocks = [w for w in report.rows if w.parameter == "in_proj_weight"]
    assert [w.name for w in blocks] == [f"in_proj_weight[{b}]" for b in ("query", "key", "value")]
    for w in blocks:
        assert w.shape == (128, 128)
        assert w.initializer == "torch default: xavier_uniform_() of the stacked (3d × d) matrix"
        assert w.weight_variance == pytest.approx(0.5, rel=0.05)  # 128 · 2/(4 · 128)
    assert report.row("in_proj_weight") == blocks[0]
    assert report.row("out_proj.weight").initializer == "torch default: U(±1/√fan_in)"
    separate = explain_init(nn.MultiheadAttention(64, 4, kdim=32, vdim=48))
    assert separate.row("k_proj_weight").initializer == "torch default: xavier_uniform_()"


def test_recurrent_gates_are_read_one_by_one():
    report = explain_init(nn.LSTM(40, 64, num_layers=2, proj_size=16))
    assert report.row("weight_ih_l0[forget]").shape == (64, 40)
    assert report.row("weight_ih_l0[forget]").activation == "sigmoid"
    assert report.row("weight_hh_l1[cell]").activation == "tanh"
    assert report.row("weight_hr_l0").shape == (16, 64)
    assert all(w.initializer == "torch default: U(±1/√hidden_size)" for w in report.rows)
    gru = explain_init(nn.GRUCell(40, 64))
    assert [w.block for w in gru.rows[:3]] == ["reset", "update", "new"]
    rnn = explain_init(nn.RNN(40, 64, nonlinearity="relu")).row("weight_hh_l0")
    assert rnn.activation == "relu"
    assert rnn.backward_factor == pytest.approx(6**-0.5, rel=0.05)


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2: a linear layer whose weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(nf))


def test_transposed_linear_weights_keep_their_fans():
    w = row(Conv1D(nf=300, nx=100))
    assert (w.fan_in, w.fan_out) == (100, 300)
    assert w.initializer == "transformers default: N(0, 0.02)"


def test_tied_weights_are_one_row_with_an_alias():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(100, 32)
            self.head = nn.Linear(32, 100, bias=False)
            self.head.weight = self.embedding.weight

    report = explain_init(Tied())
    assert len(report.rows) == 1
    assert report.rows[0].aliases == ("head.weight",)
    assert report.row("head.weight").name == "embedding.weight"
    assert any("tied with head.weight" in note for note in report.rows[0].notes)


def test_parameters_of_ones_own_are_read_and_say_how():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(50, 80))
            self.position_embedding = nn.Parameter(torch.randn(1, 100, 16) * 0.02)
            self.scale = nn.Parameter(torch.ones(16))
            self.norm = nn.LayerNorm(16)

    report = explain_init(Own())
    assert report.row("w").fan_in == 80
    assert any("swap fan_in and fan_out" in note for note in report.row("w").notes)
    assert report.row("position_embedding").fan_in == 1
    assert report.skipped == {
        "scale": "a vector outside the known layers",
        "norm.weight": "normalisation",
        "norm.bias": "normalisation",
    }


def test_reparametrised_weights_are_skipped_with_a_reason():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    report = explain_init(layer)
    assert report.rows == ()
    assert all("reparametrised" in reason for name, reason in report.skipped.items() if name != "bias")


def test_values_that_are_not_finite_are_said_to_be():
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    w = row(layer)
    assert math.isnan(w.std)
    assert "holds NaN or infinity" in w.notes
    assert w.backward_factor is None


# ------------------------------------------------------------------ what follows


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 16)
        self.act = torch.tanh
        self.second = nn.Linear(16, 16)
        self.gate = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.third = nn.Linear(16, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.unknown = nn.Linear(16, 4)
        self.last = nn.Linear(4, 2)

    def block(self, x, scale=None):
        x = self.second(x)
        return F.dropout(F.gelu(x), 0.1) * torch.sigmoid(self.gate(x))

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        x = self.act(self.first(x))
        x = x + self.block(x)
        x = F.silu(self.third(self.norm2(x)))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.last(mystery(self.unknown(x)))


def mystery(x):
    return x.cos()


def test_what_follows_is_read_from_the_source_of_forward():
    report = explain_init(Functional())
    following = {w.layer: w.activation for w in report.rows}
    assert following == {
        "conv": "relu", "first": "tanh", "second": None, "gate": "sigmoid", "third": "silu", "layers.0": "relu",
        "layers.1": "relu", "layers.2": "relu", "unknown": None, "last": "linear",
    }  # fmt: skip
    # The output of `second` goes through GELU and into a layer: two things at once, so no single answer.
    conv = report.row("conv.weight")
    assert conv.backward_weight_variance is None
    assert any("a normalisation follows" in note for note in conv.notes)
    assert report.row("third.weight").signal == "normalized input"
    assert report.row("layers.1.weight").signal == "repeated layer"


def test_sequentials_lists_and_nesting_are_followed():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)),
        nn.Identity(),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
        nn.Softmax(dim=-1),
        nn.Linear(8, 8),
    )
    report = explain_init(model)
    assert [w.activation for w in report.rows] == ["Tanh", "linear", None, "linear"]
    assert report.rows[2].signal is None
    assert report.rows[1].backward_weight_variance is None


def test_an_encoder_layer_of_torch_is_followed_through_its_helper_methods():
    report = explain_init(nn.TransformerEncoderLayer(32, 2, 64, activation="gelu", norm_first=True))
    assert report.row("linear1.weight").activation == "gelu"
    assert report.row("linear1.weight").signal == "normalized input"
    assert report.row("linear2.weight").activation == "linear"
    assert report.row("self_attn.in_proj_weight[value]").activation == "linear"
    assert report.row("self_attn.in_proj_weight[query]").activation is None


def test_no_property_is_run_and_no_forward():
    class Touchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        @property
        def activation(self):
            raise AssertionError("a property was run")

        def forward(self, x):
            if x is None:
                raise AssertionError("forward was run")
            return self.activation(self.fc(x))

    assert row(Touchy(), "fc.weight").activation is None


# ------------------------------------------------------------------ factors


def measured_factor(layer, activation, x):
    """RMS of ∂L/∂input over ∂L/∂output for the layer with its activation, Gaussian cotangent."""
    x = x.requires_grad_()
    y = activation(layer(x))
    cotangent = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, cotangent)
    return float(grad.square().mean().sqrt() / cotangent.square().mean().sqrt())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(400, 100), (20, 400)),
        (nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular"), (2, 16, 32, 32)),
        (nn.Conv2d(16, 32, 4, stride=2, padding=1, padding_mode="circular"), (2, 16, 32, 32)),
        (nn.Conv2d(16, 32, 3, groups=4, padding=1, padding_mode="circular"), (2, 16, 32, 32)),
        (nn.Conv1d(16, 32, 5, padding=2, padding_mode="circular"), (2, 16, 200)),
        (nn.ConvTranspose2d(32, 16, 4, stride=2, groups=2), (2, 32, 24, 24)),
    ],
)
def test_the_backward_factor_is_that_of_the_real_layer(layer, shape):
    nn.init.zeros_(layer.bias)
    w = explain_init(nn.Sequential(layer, nn.ReLU())).rows[0]
    # Thousands of weights and gradients: a few per cent; the borders of the transposed convolution lose a little more.
    assert w.backward_factor == pytest.approx(measured_factor(layer, torch.relu, torch.randn(shape)), rel=0.08)


@pytest.mark.parametrize("shape", [(2, 32, 24, 24)])
def test_the_forward_factor_of_a_strided_transposed_convolution_counts_the_taps_that_meet(shape):
    layer = nn.ConvTranspose2d(32, 64, 4, stride=2, bias=False)
    w = explain_init(nn.Sequential(layer, nn.Identity())).rows[0]
    with torch.no_grad():
        y = layer(torch.randn(shape))[..., 4:-4, 4:-4]
    assert w.forward_factor == pytest.approx(float(y.square().mean().sqrt()), rel=0.05)
    assert any("torch.nn.init takes fan_in" in note for note in w.notes)


def test_the_deep_sigmoid_study_loses_085_decades_per_layer():
    layers = [m for _ in range(4) for m in (nn.Linear(100, 100), nn.Sigmoid())]
    report = explain_init(nn.Sequential(*layers, nn.Linear(100, 1)))
    for w in report.rows[:4]:
        # √((1/3) E[σ'²]) at the fixed point q = 0.088: 0.1413; 10,000 weights know σ_w² to 0.9 %
        assert w.backward_factor == pytest.approx(0.1413, rel=0.03)
        assert w.backward_decades == pytest.approx(-0.85, abs=0.015)
        assert w.preactivation_variance == pytest.approx(0.088, rel=0.05)
    assert report.rows[4].backward_weight_variance == pytest.approx(100.0)  # one output feeds 100 inputs back


def test_he_weights_before_relu_keep_signal_and_gradient():
    layer = nn.Linear(500, 500)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    w = explain_init(nn.Sequential(layer, nn.ReLU())).rows[0]
    assert w.forward_weight_variance == pytest.approx(2.0)
    assert w.backward_weight_variance == pytest.approx(2.0)
    assert w.backward_gain == pytest.approx(math.sqrt(2))
    assert w.forward_factor == pytest.approx(1.0, abs=0.01)
    assert w.backward_decades == pytest.approx(0.0, abs=0.005)


def test_a_flat_activation_passes_no_gradient():
    class Step(nn.Module):
        def forward(self, x):
            return torch.sign(x)

    w = explain_init(nn.Sequential(nn.Linear(16, 16), Step())).rows[0]
    assert w.backward_factor == 0.0
    assert w.backward_weight_variance is None
    assert w.backward_decades == -math.inf


# ------------------------------------------------------------------ contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_model_and_the_random_state_are_left_as_they_were(dtype):
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(), nn.BatchNorm1d(8), nn.Dropout(), nn.LSTM(8, 8)).to(dtype).train()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    explain_init(model)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_report_round_trips_through_strict_json(tmp_path):
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    report = explain_init(nn.Sequential(nn.Linear(300, 20), nn.ReLU(), layer, nn.MultiheadAttention(8, 2)))
    text = report.to_json(tmp_path / "init.json")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name} in JSON"))
    again = InitializationReport.from_json(tmp_path / "init.json")
    assert again.to_dict() == report.to_dict()
    assert again.rows[0] == report.rows[0]
    with pytest.raises(RecordError, match=r"not a headwater\.initialization file"):
        InitializationReport.from_json('{"schema": "headwater.profile"}')


def test_the_table_has_the_same_columns_in_every_row(tmp_path):
    report = explain_init(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.ReLU()))
    table = report.table()
    assert len(table) == 2
    assert table[0].keys() == table[1].keys()
    assert report.to_csv().splitlines()[0].startswith("shape,name,layer")


def test_an_unknown_weight_suggests_near_names():
    with pytest.raises(KeyError, match=r"did you mean 'encoder\.weight'"):
        explain_init(nn.ModuleDict({"encoder": nn.Linear(2, 2)})).row("encodr.weight")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "has no parameters"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
        (nn.LazyLinear(3), "run one forward first"),
        (torch.zeros(2, 2), "needs an nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_explained_is_refused_with_a_reason(model, message):
    with pytest.raises(InputError, match=message):
        explain_init(model)


@pytest.mark.integration
def test_gpt2_and_llama_are_explained():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=3, n_embd=96, n_head=2, vocab_size=300, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    report = explain_init(transformers.GPT2LMHeadModel(config))
    fc = report.row("transformer.h.1.mlp.c_fc.weight")
    assert (fc.fan_in, fc.fan_out, fc.activation, fc.signal) == (96, 384, "NewGELUActivation", "normalized input")
    assert fc.initializer == "transformers default: N(0, 0.02)"
    projection = report.row("transformer.h.1.mlp.c_proj.weight")
    assert projection.initializer.startswith("normal_(std=0.02/√(2·3))")
    assert projection.activation == "linear"
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2, vocab_size=200
    )
    llama = explain_init(transformers.LlamaForCausalLM(config))
    assert llama.row("model.layers.0.mlp.gate_proj.weight").activation == "SiLUActivation"
    assert llama.row("model.layers.1.mlp.up_proj.weight").activation == "linear"
    assert llama.row("lm_head.weight").activation == "linear"
