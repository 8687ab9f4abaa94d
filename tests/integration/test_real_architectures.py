"""``headwater check`` on architectures that we did not write: from a configuration, random weights, no download."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headwater.cli import main

pytestmark = pytest.mark.integration

pytest.importorskip("transformers")

SOURCE = """
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
    ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification,
)

def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=64))

def bert():
    return BertModel(_bert())

def bert_classifier():
    return BertForSequenceClassification(_bert())

def _bert():
    return BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100,
        max_position_embeddings=64, num_labels=3,
    )

def llama():
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=100, max_position_embeddings=64,
    ))

def vit():
    return ViTForImageClassification(ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3,
    ))

def resnet():
    return ResNetForImageClassification(ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic", num_labels=3,
    ))

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 3)

    def forward(self, tokens):
        output, _ = self.lstm(self.embed(tokens))
        return self.head(output.mean(1))

def lstm():
    return Classifier(), torch.randint(50, (4, 12)), torch.randint(3, (4,)), nn.functional.cross_entropy

def digits():
    from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:64], dtype=torch.float32) / 16, torch.tensor(labels[:64])
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), x, y, nn.functional.cross_entropy
"""

# name: (loss source, the first layer in execution order, a pattern for a part of the trunk, parameters that the loss
# cannot reach). The names are transformers' own.
EXPECTED = {
    "gpt2": ("model", "transformer.wte", "transformer.h.1", []),
    # The pooler makes a second output; the probe covers every output, so its gradient is there too.
    "bert": ("probe", "embeddings.word_embeddings", "encoder.layer.1", []),
    "bert_classifier": ("model", "bert.embeddings.word_embeddings", "bert.encoder.layer.1", []),
    "llama": ("model", "model.embed_tokens", "model.layers.1", []),
    "vit": ("model", "vit.embeddings", r"vit\.(encoder\.layer|layers)\.1", []),  # before and since transformers 5
    "resnet": ("model", "resnet.embedder", "resnet.encoder.stages.3", []),
    "lstm": ("loss_fn", "embed", "lstm", []),
    "digits": ("loss_fn", "0", "2", []),
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("architectures") / "hw_architectures.py"
    path.write_text(SOURCE)
    return path


def _profile(target: Path, name: str, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["check", f"{target}:{name}", "--profile-only", "--json", *words])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("name", EXPECTED)
def test_check_measures_every_parameter_of_a_real_architecture(target: Path, name: str) -> None:
    source, first, on_trunk, missing = EXPECTED[name]
    profile = _profile(target, name)
    assert profile["loss_source"] == source
    assert sorted(profile["coverage"]["missing"]) == missing
    assert profile["coverage"]["observed"] == profile["coverage"]["trainable"] > 0
    assert profile["layers"][0]["name"].startswith(first)
    assert any(row["on_trunk"] and re.match(on_trunk, row["name"]) for row in profile["layers"])
    for row in profile["parameters"]:
        assert row["gradient"]["nan_count"] == row["gradient"]["inf_count"] == 0


@pytest.mark.parametrize("name", ["gpt2", "resnet", "lstm"])
def test_the_table_and_the_page_show_a_real_architecture(target: Path, name: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["check", f"{target}:{name}", "--width", "100", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert "trainable parameters (100 %)" in " ".join(result.stdout.split())
    assert page.stat().st_size > 100_000


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_explain_init_reads_a_real_architecture(target: Path, name: str) -> None:
    result = CliRunner().invoke(main, ["explain-init", f"{target}:{name}", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


def test_the_tied_weight_of_gpt2_is_counted_once(target: Path) -> None:
    profile = _profile(target, "gpt2")
    names = [row["name"] for row in profile["parameters"]]
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    (tied,) = [row for row in profile["parameters"] if row["name"] == "transformer.wte.weight"]
    assert tied["aliases"] == ["lm_head.weight"]


def test_the_gradient_over_time_of_the_lstm_covers_both_directions_and_layers(target: Path) -> None:
    times = _profile(target, "lstm")["times"]
    hidden = {(t["stack"], t["reverse"]) for t in times if t["state"] == "hidden"}
    assert hidden == {(0, False), (0, True), (1, False), (1, True)}
    assert all(len(t["steps"]) == 12 and t["exact"] for t in times)


def test_the_batch_and_the_vocabulary_of_a_language_model_can_be_chosen(target: Path) -> None:
    assert _profile(target, "gpt2", "--batch", "2", "--vocab", "10")["batch_size"] == 2
    assert _profile(target, "gpt2", "--input-shape", "3,7")["batch_size"] == 3
