"""Small networks, each with one thing that makes measuring hard, and a table of them with inputs and a loss.

``CASES`` is what a promise about "any PyTorch model" is checked against. Every case is built anew from a fixed seed.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

# -------------------------------------------------------------------- plain networks with a known fault or none


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given widths with an activation between them."""
    layers: list[nn.Module] = []
    for i, (inn, out) in enumerate(itertools.pairwise(widths)):
        layers += ([activation()] if i else []) + [nn.Linear(inn, out)]
    return nn.Sequential(*layers)


def deep_sigmoid_mlp(depth: int = 12, width: int = 32) -> nn.Sequential:
    """Vanishing by construction: each sigmoid multiplies the gradient by at most 1/4."""
    return mlp(8, *[width] * depth, 1, activation=nn.Sigmoid)


def he_relu_mlp(depth: int = 12, width: int = 32) -> nn.Sequential:
    """Healthy: He-initialised weights keep the gradient."""
    net = mlp(8, *[width] * depth, 1)
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            nn.init.zeros_(m.bias)
    return net


def dead_relu_mlp(dead: tuple[int, ...] = (1, 4, 5), width: int = 16) -> nn.Sequential:
    """The named hidden units never fire: their weights are zero and their bias is -1."""
    net = mlp(8, width, 3)
    with torch.no_grad():
        net[0].weight[list(dead)] = 0.0
        net[0].bias[list(dead)] = -1.0
    return net


# -------------------------------------------------------------------- structures


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, += shortcut, ReLU; in place or not."""

    def __init__(self, channels: int, inplace: bool = True) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            out += x
        else:
            out = out + x
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, channels: int = 6, blocks: int = 2, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=inplace)
        )
        self.blocks = nn.Sequential(*[ResidualBlock(channels, inplace) for _ in range(blocks)])
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """A token classifier of torch's own encoder layers."""

    def __init__(self, layers: int = 2, width: int = 16, norm_first: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True, norm_first=norm_first)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


class PackedGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 5, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.head(out.sum(1))


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 6, sparse=True)
        self.bag = nn.EmbeddingBag(30, 6, sparse=True)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).mean(1) + self.bag(tokens))


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 12, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(torch.tanh(self.body(self.embed(tokens))))


class SharedModule(nn.Module):
    """One Linear and one activation, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.act(self.fc(x))
        return self.head(x)


class Stochastic(nn.Module):
    """Every source of randomness a forward can draw from: torch, Python and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.drop2d = nn.Dropout2d(0.3)
        self.rrelu = nn.RReLU()
        self.fc = nn.Linear(4, 8)
        self.alpha = nn.AlphaDropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rrelu(self.drop2d(self.conv(x))).mean((2, 3))
        h = self.alpha(self.fc(h))
        if random.random() < 0.5:
            h = h * (1.0 + np.random.rand())  # noqa: NPY002  (what old code draws from)
        return self.head(F.dropout(h, 0.1, self.training))


class CheckpointedMlp(nn.Module):
    """Three blocks (Linear, Tanh, Dropout), each under activation checkpointing or not."""

    def __init__(self, use_reentrant: bool | None, dropout: float = 0.2) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8)) for _ in range(3)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h) if self.use_reentrant is None else checkpoint(block, h, use_reentrant=self.use_reentrant)
        return self.head(h)


class ComplexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6, dtype=torch.complex64)
        self.second = nn.Linear(6, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * torch.sigmoid(h.abs())).abs()


class Stateful(nn.Module):
    """Writes to itself during the forward: attributes, lists, dicts, buffers, a mode, a replaced buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)
        self.calls = 0
        self.last: Tensor | None = None
        self.history: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(6), persistent=False)
        self.register_buffer("queue", torch.zeros(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc(x))
        self.calls += 1
        self.last = h
        self.fresh = h.detach()  # an attribute that was not there before
        self.history.append(h)
        self.cache["h"] = h
        self.steps += 1
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        with torch.no_grad():
            self.queue[0] = h[0]
        return self.head(h)


class FrozenNormInside(nn.Module):
    """A BatchNorm in evaluation mode inside a model in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.frozen_bn = nn.BatchNorm2d(4)
        self.live_bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.frozen_bn.eval()
        self.frozen_bn.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.live_bn(torch.relu_(self.frozen_bn(self.conv(x)))).mean((2, 3)))


@dataclass
class TwoOutputs:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Structured(nn.Module):
    """Returns its result as a dict, a dataclass, a named tuple, a list with None and integers, or a tuple."""

    def __init__(self, form: str = "dict") -> None:
        super().__init__()
        self.form = form
        self.fc = nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Any:
        h = self.fc(x * scale).tanh()
        y = self.head(h)
        match self.form:
            case "dict":
                return {"logits": y, "hidden": h, "none": None, "index": y.argmax(1)}
            case "dataclass":
                return TwoOutputs(y, (h, h * 2))
            case "namedtuple":
                return Pair(y, h)
            case "list":
                return [None, y, [h, y.argmax(1)]]
            case _:
                return y, h


def logits_of(output: Any) -> Tensor:
    """The logits of whatever ``Structured`` returned."""
    match output:
        case Tensor():
            return output
        case {"logits": logits}:
            return logits
        case TwoOutputs() | Pair():
            return output.logits
        case [None, logits, _]:
            return logits
        case _:
            return output[0]


def _parametrized() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        nn.ReLU(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        nn.Linear(8, 3),
    )


def _old_norms() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.nn.utils.weight_norm is deprecated, and still used
        first = nn.utils.weight_norm(nn.Linear(6, 8))
    return nn.Sequential(first, nn.ReLU(), nn.utils.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3))


# -------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Case:
    """A model, what it takes, and the loss.

    Attributes:
        name: of the case.
        build: the model, in training mode.
        inputs: a tensor, tuple or mapping.
        loss_fn: of (output, targets).
        targets: of the loss.
        middle: name of a submodule that is called in the middle of the forward.
        modules_are_quiet: False where modules run again during the backward (checkpointing).
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    loss_fn: Callable[[Any, Any], Tensor]
    targets: Callable[[], Any]
    middle: str
    modules_are_quiet: bool = True

    def __str__(self) -> str:
        return self.name

    def make(self) -> tuple[nn.Module, Any, Any]:
        """Model, inputs and targets from a fixed seed."""
        torch.manual_seed(7)
        return self.build(), self.inputs(), self.targets()


def _classes(batch: int, classes: int) -> Callable[[], Tensor]:
    return lambda: torch.arange(batch) % classes


def _cross_entropy(output: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits_of(output), targets)


def _token_loss(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), targets.flatten())


def _tokens(batch: int, length: int, vocabulary: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, vocabulary, (batch, length))


def _compiled(backend: str) -> Callable[[], nn.Module]:
    return lambda: torch.compile(mlp(6, 8, 8, 3), backend=backend)  # type: ignore[return-value]


def _images(batch: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, 3, 6, 6)


def _vectors(batch: int, features: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, features)


CASES: tuple[Case, ...] = (
    Case("mlp", lambda: mlp(6, 8, 8, 3), _vectors(5, 6), _cross_entropy, _classes(5, 3), "2"),
    Case("mlp-float64", lambda: mlp(6, 8, 8, 3).double(), lambda: torch.randn(5, 6).double(), _cross_entropy,
         _classes(5, 3), "2"),
    Case("mlp-bfloat16", lambda: mlp(6, 8, 8, 3).bfloat16(), lambda: torch.randn(5, 6).bfloat16(), _cross_entropy,
         _classes(5, 3), "2"),
    Case("resnet-inplace", ResNet, _images(4), _cross_entropy, _classes(4, 5), "blocks.1.bn1"),
    Case("transformer-post-ln", lambda: Transformer(norm_first=False), _tokens(3, 5, 20), _token_loss,
         _tokens(3, 5, 20), "layers.1.norm1"),
    Case("transformer-pre-ln", Transformer, _tokens(3, 5, 20), _token_loss, _tokens(3, 5, 20), "layers.1.norm1"),
    Case("lstm", Recurrent, _tokens(4, 6, 20), _cross_entropy, _classes(4, 3), "lstm"),
    Case("gru-packed", PackedGRU, lambda: (torch.randn(4, 6, 4), torch.tensor([3, 6, 1, 4])), _cross_entropy,
         _classes(4, 2), "gru"),
    Case("sparse-embedding", SparseEmbedding, _tokens(4, 3, 30), _cross_entropy, _classes(4, 4), "bag"),
    Case("tied", TiedLanguageModel, _tokens(3, 4, 12), _token_loss, _tokens(3, 4, 12), "body"),
    Case("shared-module", SharedModule, _vectors(4, 6), _cross_entropy, _classes(4, 2), "act"),
    Case("parametrized", _parametrized, _vectors(4, 6), _cross_entropy, _classes(4, 3), "2"),
    Case("old-weight-and-spectral-norm", _old_norms, _vectors(4, 6), _cross_entropy, _classes(4, 3), "2"),
    Case("stochastic", Stochastic, _images(4), _cross_entropy, _classes(4, 3), "fc"),
    Case("checkpoint", lambda: CheckpointedMlp(False), _vectors(4, 6), _cross_entropy, _classes(4, 2), "blocks.1.1",
         modules_are_quiet=False),
    Case("checkpoint-reentrant", lambda: CheckpointedMlp(True), _vectors(4, 6), _cross_entropy, _classes(4, 2),
         "blocks.1.1", modules_are_quiet=False),
    Case("complex", ComplexNet, lambda: torch.randn(4, 4, dtype=torch.complex64), _cross_entropy, _classes(4, 3),
         "second"),
    Case("stateful", Stateful, _vectors(4, 5), _cross_entropy, _classes(4, 2), "head"),
    Case("frozen-norm-inside", FrozenNormInside, _images(4), _cross_entropy, _classes(4, 2), "live_bn"),
    Case("dict-output", lambda: Structured("dict"), lambda: {"x": torch.randn(4, 5), "scale": 0.5}, _cross_entropy,
         _classes(4, 3), "head"),
    Case("dataclass-output", lambda: Structured("dataclass"), _vectors(4, 5), _cross_entropy, _classes(4, 3), "head"),
    Case("compiled-eager", _compiled("eager"), _vectors(5, 6), _cross_entropy, _classes(5, 3), "_orig_mod.2"),
    Case("compiled-aot-eager", _compiled("aot_eager"), _vectors(5, 6), _cross_entropy, _classes(5, 3), "_orig_mod.2"),
)  # fmt: skip


def case(name: str) -> Case:
    """The case of this name."""
    return next(c for c in CASES if c.name == name)
