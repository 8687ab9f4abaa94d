"""depth_scaled_residual_: branches are found, and multiplied with 1/√L."""

import math

import pytest
import torch
from torch import nn

from headwater.errors import InputError
from headwater.init import depth_scaled_residual_, plan_depth_scaled_residual


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.Dropout(0.1))

    def forward(self, x):
        return x + self.branch(x)


class BasicBlock(nn.Module):
    """As in ResNets: a normalisation last, the sum in place, a convolution on the shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.downsample = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        identity = x
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return torch.relu(out)


class Loop(nn.Module):
    """One sum for many branches, positions added to tokens, and a method that computes the branch."""

    def __init__(self, width):
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, width), nn.Embedding(9, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x):
        x = self.tokens(x) + self.places(x)
        for layer in self.layers:
            x = torch.add(x, torch.relu(layer(x)))
        return self.finish(x) + x

    def finish(self, x):
        return 0.5 * self.project(x)


def factors(model, blocks=None, **options):
    return {c.name: c.factor for c in plan_depth_scaled_residual(model, blocks, **options).changes}


def test_the_last_layer_of_every_branch_is_divided_by_the_root_of_their_number():
    model = nn.Sequential(*[Block(8) for _ in range(4)])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert depth_scaled_residual_(model) is model
    for name, p in model.named_parameters():
        expected = before[name] * (0.5 if ".branch.2." in name else 1.0)  # 1/√4
        assert torch.equal(p.detach(), expected), name


def test_a_normalisation_at_the_end_is_scaled_instead_of_the_convolution_it_would_undo():
    model = nn.Sequential(BasicBlock(4), BasicBlock(4))
    expected = {f"{i}.bn2.{what}": 1 / math.sqrt(2) for i in (0, 1) for what in ("weight", "bias")}
    assert factors(model) == pytest.approx(expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_transformer_layer_has_two_branches_and_a_decoder_layer_three(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    found = factors(model)
    assert {name.split(".", 2)[2] for name in found} == {
        "self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias",
    }  # fmt: skip
    assert len(found) == 12
    assert list(found.values()) == pytest.approx([1 / math.sqrt(6)] * 12)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, norm_first=norm_first), 1)
    assert {name.removeprefix("layers.0.") for name in factors(decoder) if name.endswith("weight")} == {
        "self_attn.out_proj.weight", "multihead_attn.out_proj.weight", "linear2.weight",
    }  # fmt: skip


def test_loops_methods_and_torch_add_are_followed_and_embeddings_are_no_branch():
    assert {name for name in factors(Loop(4)) if name.endswith("weight")} == {
        "layers.0.weight", "layers.1.weight", "layers.2.weight", "project.weight",
    }  # fmt: skip


def test_a_scaled_residual_network_keeps_its_signal_bounded():
    # Each branch of equal variance: E x² grows by (1 + 1/L)^L < e instead of 2^L. He initialisation: E f² = E x².
    torch.manual_seed(0)
    depth, width = 16, 300
    model = nn.Sequential(*[Block(width) for _ in range(depth)]).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, math.sqrt(1 / width))
                module.bias.zero_()
        for block in model:
            block.branch[0].weight.mul_(math.sqrt(2))
        x = torch.randn(50, width)
        plain = float(model(x).square().mean())
        scaled = float(depth_scaled_residual_(model)(x).square().mean())
    # 50 inputs share the weights; per block the log fluctuates by about √(2/300), over 16 blocks by 0.3 (plain).
    assert math.log2(plain) == pytest.approx(depth, abs=1.5)
    assert scaled == pytest.approx((1 + 1 / depth) ** depth, rel=0.15)


def test_blocks_can_be_named_by_glob_module_or_list():
    model = nn.Sequential(*[Block(4) for _ in range(4)])
    assert set(factors(model, "0")) == {"0.branch.2.weight", "0.branch.2.bias"}
    assert factors(model, ["0.branch", model[1]])["1.branch.2.weight"] == pytest.approx(1 / math.sqrt(2))
    assert len(factors(model, "*")) == 8
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU())  # no residual sum in sight: its last layer
    assert factors(plain, [plain]) == {"0.weight": 1.0, "0.bias": 1.0}


def test_the_scale_can_be_given():
    model = nn.Sequential(Block(4), Block(4))
    assert set(factors(model, scale=0.0).values()) == {0.0}
    depth_scaled_residual_(model, scale=0.0)
    x = torch.randn(3, 4)
    assert torch.equal(model.eval()(x), x)


def test_what_is_frozen_is_kept_and_named():
    model = Block(4)
    model.branch[2].weight.requires_grad_(False)
    assert plan_depth_scaled_residual(model).kept == {"branch.2.weight": "frozen"}


def test_every_block_of_a_model_on_meta_is_found():
    with torch.device("meta"):
        model = nn.Sequential(Block(4), Block(4))
    assert len(factors(depth_scaled_residual_(model))) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: depth_scaled_residual_(nn.Sequential(nn.Linear(2, 2))), "no residual branch was found"),
        (lambda: depth_scaled_residual_(Block(2), "nothing"), "matches no module"),
        (lambda: depth_scaled_residual_(Block(2), nn.Linear(2, 2)), "no part of this model"),
        (lambda: depth_scaled_residual_(Block(2), "branch.1"), "no layer with parameters"),
        (lambda: depth_scaled_residual_(Block(2), scale=-1.0), "scale should be"),
        (lambda: depth_scaled_residual_(torch.ones(2)), "expected an nn.Module"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.integration
def test_the_branches_of_published_architectures_are_found():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, bos_token_id=None, eos_token_id=None)
    models = {
        transformers.GPT2Model(gpt2): {"attn.c_proj", "mlp.c_proj"},
        transformers.LlamaModel(transformers.LlamaConfig(**small, num_key_value_heads=2, vocab_size=40)): {
            "self_attn.o_proj",
            "mlp.down_proj",
        },
        transformers.ViTModel(transformers.ViTConfig(**small)): {"attention.o_proj", "mlp.fc2"},
    }
    for model, ends in models.items():
        found = [name.removesuffix(".weight") for name in factors(model) if name.endswith(".weight")]
        assert len(found) == 4, found
        assert all(any(name.endswith(end) for end in ends) for name in found), found
    # BERT adds in another module than the branch: its modules have to be named
    bert = transformers.BertModel(transformers.BertConfig(**small, vocab_size=40))
    with pytest.raises(InputError, match="no residual branch was found"):
        factors(bert)
    assert len(factors(bert, "encoder.layer.*.output.dense")) == 8
