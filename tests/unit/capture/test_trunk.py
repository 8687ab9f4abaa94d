"""The trunk is the chain of dominators of the autograd graph, and says what carries the gradient along it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from tests import models
from tests.models import mlp
from tests.unit.capture.twins import assert_statistics_of, call
from torch import Tensor, nn
from torch.nn import functional as F

import headwater as hw
from headwater.records import Profile


class ResidualMlp(nn.Module):
    """h ← h + W₂ φ(W₁ h), three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.branches = nn.ModuleList(mlp(8, 16, 8, activation=nn.Tanh) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for branch in self.branches:
            h = h + branch(h)
        return self.head(h)


class UNet(nn.Module):
    """Down, down, up with a concatenated skip: the skip by-passes the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.bottom = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.merge = nn.Conv2d(8, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        skip = self.act(self.inp(x))
        h = self.up(self.act(self.bottom(self.act(self.down(skip)))))
        return self.out(self.act(self.merge(torch.cat([h, skip], 1))))


class TwoTowers(nn.Module):
    """Two inputs, two towers, one head: neither tower lies on every path."""

    def __init__(self) -> None:
        super().__init__()
        self.left = mlp(4, 8, 8)
        self.right = mlp(5, 8)
        self.head = mlp(16, 8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(y)], 1))


class DenseNet(nn.Module):
    """Every layer sees all earlier ones: only the stem and what follows the last concatenation are on the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(3))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, 1))))
        return self.head(torch.cat(features, 1))


def _images() -> Tensor:
    return torch.randn(2, 1, 8, 8)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "plain": (lambda: mlp(4, 8, 8, 2), lambda: torch.randn(3, 4)),
    "residual": (ResidualMlp, lambda: torch.randn(3, 4)),
    "pre-LN transformer": (lambda: models.Transformer(dropout=0.0), lambda: torch.randint(0, 20, (3, 5))),
    "post-LN transformer": (
        lambda: models.Transformer(norm_first=False, dropout=0.0),
        lambda: torch.randint(0, 20, (3, 5)),
    ),
    "resnet": (models.ResNet, lambda: torch.randn(4, 3, 6, 6)),
    "u-net": (UNet, _images),
    "two towers": (TwoTowers, lambda: (torch.randn(3, 4), torch.randn(3, 5))),
    "dense": (DenseNet, lambda: torch.randn(3, 4)),
    "shared": (models.SharedModule, lambda: torch.randn(3, 6)),
}

# By hand: the modules that every path from the loss to the first layer's weight passes through.
ON_TRUNK = {
    "plain": {"0", "1", "2", "3", "4"},
    "residual": {"stem", "head"},
    "pre-LN transformer": {"embed", "layers.0", "layers.1", "norm", "head"},
    "post-LN transformer": {"embed", "layers.0.norm1", "layers.0.norm2", "layers.1.norm1", "layers.1.norm2", "norm", "head"},
    "resnet": {"stem.0", "stem.1", "stem.2", "blocks.0", "blocks.1", "head"},
    "u-net": {"inp", "act#0", "merge", "act#3", "out"},
    "two towers": {"left.0", "left.1", "left.2", "head.0", "head.1", "head.2"},
    "dense": {"stem", "head"},
    "shared": {"fc#0", "act#0", "fc#1", "act#1", "fc#2", "act#2", "head"},
}  # fmt: skip


def _measured(name: str) -> tuple[nn.Module, Any, Profile]:
    build, inputs = ARCHITECTURES[name]
    model, x = build(), inputs()
    return model, x, hw.measure(model, x, loss_fn=lambda out: out.square().sum())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_on_the_trunk_are_those_every_path_passes_through(name: str) -> None:
    _, _, profile = _measured(name)
    found = {n for row in profile.layers if row.on_trunk for n in (row.name, *row.aliases)}
    off = {n for row in profile.layers if not row.on_trunk for n in (row.name, *row.aliases)}
    # Rows of activation functions that are no modules carry a colon; here only modules are compared.
    wanted = ON_TRUNK[name]
    assert wanted <= found, sorted(wanted - found)
    modules = {type(m) for m in (nn.Linear(1, 1), nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1))}
    assert not wanted & off
    extra = {n for n in found - wanted if n != "(model)" and ":" not in n}
    by_type = {row.name: row.type for row in profile.layers}
    assert not {n for n in extra if by_type.get(n) in {m.__name__ for m in modules}}, extra


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_trunk_equals_the_immediate_dominators_of_networkx(name: str) -> None:
    model, x, profile = _measured(name)
    outputs: list[tuple[str, Tensor]] = []
    calls: dict[str, int] = {}

    def keep(label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                outputs.append((f"{label}#{calls.get(label, 0)}", output))
            calls[label] = calls.get(label, 0) + 1

        return hook

    handles = [m.register_forward_hook(keep(n or "(model)")) for n, m in model.named_modules()]
    loss = call(model, x).square().sum()
    for handle in handles:
        handle.remove()

    graph = nx.DiGraph()
    stack, seen = [loss.grad_fn], {loss.grad_fn}
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions:
            if following is not None:
                graph.add_edge(node, following)
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    parents = nx.immediate_dominators(graph, loss.grad_fn)
    first = next(row for row in profile.layers if row.parameters)  # of the trunk's lower end
    deepest = max(
        (p for p in profile.layers if p.on_trunk and p.parameters),
        key=lambda row: -row.order,
        default=first,
    )
    target_name = deepest.name if "#" in deepest.name else f"{deepest.name}#0"
    target = next(t for n, t in outputs if n == target_name).grad_fn
    dominators = {target}
    while target != loss.grad_fn:
        target = parents[target]
        dominators.add(target)
    for label, tensor in outputs:
        plain = label if label.split("#")[0] + "#1" in {n for n, _ in outputs} else label.split("#")[0]
        try:
            row = profile.layer(plain)
        except KeyError:
            continue
        if isinstance(model, models.ResNet) and ("relu" in label or "bn2" in label or label.startswith("stem")):
            continue  # in-place: the tensor kept here has moved on to a later node
        assert row.on_trunk == (tensor.grad_fn in dominators), label


# -------------------------------------------------------------------- points


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_chain_of_points_has_no_gap(name: str) -> None:
    _, _, profile = _measured(name)
    points = profile.trunk
    assert [p.order for p in points] == list(range(len(points)))
    assert all(p.gradient is not None for p in points)
    for below, above in itertools.pairwise(points):
        assert below.next_layer == above.layer
    # Telescoping: the decades of the steps add up to those from one end to the other.
    steps = [b.gradient.rms_log10 - a.gradient.rms_log10 for a, b in itertools.pairwise(points)]
    assert math.fsum(steps) == pytest.approx(points[-1].gradient.rms_log10 - points[0].gradient.rms_log10, abs=1e-9)
    assert points[-1].kind == "loss"
    assert points[0].layer == next(row for row in profile.layers if row.on_trunk).name


def test_the_first_point_is_the_output_of_the_first_parameters_and_the_last_is_the_loss_side() -> None:
    model, x = mlp(4, 8, 2, activation=nn.Sigmoid), torch.randn(3, 4)
    profile = hw.measure(model, x, torch.zeros(3, 2), F.mse_loss)
    assert profile.trunk[0].layer == "0"
    assert profile.trunk[0].gradient == profile.layer("0").gradient
    out = model(x)
    out.retain_grad()
    F.mse_loss(out, torch.zeros(3, 2)).backward()
    last = [p for p in profile.trunk if p.layer == "2"][-1]
    assert_statistics_of(last.gradient, out.grad)


def _kinds(profile: Profile) -> list[tuple[str | None, str]]:
    return [(p.layer, p.kind) for p in profile.trunk]


def test_kinds_of_a_plain_network_alternate_between_weights_and_activations() -> None:
    profile = hw.measure(mlp(4, 8, 8, 2, activation=nn.Tanh), torch.randn(3, 4), torch.zeros(3, 2), F.mse_loss)
    # The kind is that of the operation towards the loss: out of layer 0 the gradient comes through layer 1, a tanh.
    of_layers = [(name, kind) for name, kind in _kinds(profile) if name is not None]
    assert of_layers == [("0", "activation"), ("1", "weights"), ("2", "activation"), ("3", "weights"), ("4", "loss")]


def test_kinds_of_a_residual_network_are_residual_along_the_stream() -> None:
    profile = _measured("residual")[2]
    kinds = [p.kind for p in profile.trunk if p.kind != "loss"]
    assert kinds == ["residual", "residual", "residual", "weights"]


def test_kinds_of_a_normalised_network_name_the_normalisation() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
    )
    profile = hw.measure(model, torch.randn(6, 4))
    kinds = {name: kind for name, kind in _kinds(profile) if name is not None}
    assert kinds["0"] == "normalization"
    assert kinds["1"] == "activation"
    assert kinds["2"] == "weights"
    assert kinds["3"] == "normalization"
    assert kinds["4"] == "weights"


def test_kinds_of_attention_pooling_and_dropout_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens)
            h = self.attention(h, h, h, need_weights=False)[0]
            return self.fc(self.drop(h)).mean(1)

    profile = hw.measure(Net(), torch.randint(0, 10, (3, 5)), loss_fn=lambda out: out.square().sum())
    kinds = _kinds(profile)
    # How attention works inside is its own affair: one step.
    assert ("embed", "attention") in kinds
    assert ("attention", "dropout") in kinds
    assert ("drop", "weights") in kinds
    assert ("fc", "pooling") in kinds


def test_kinds_of_a_pre_norm_transformer_are_residual() -> None:
    profile = _measured("pre-LN transformer")[2]
    kinds = [p.kind for p in profile.trunk]
    assert kinds.count("residual") == 4  # two layers, each attention and MLP
    assert "normalization" in kinds
    assert kinds[-1] == "loss"


def test_functional_code_on_the_trunk_is_listed_in_the_coverage() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).cumsum(1) * 3.0)

    profile = hw.measure(Net(), torch.randn(3, 4))
    assert any("Cumsum" in name for name in profile.coverage.functional)
    assert not any("Addmm" in name for name in profile.coverage.functional)
    point = next(p for p in profile.trunk if "Cumsum" in p.operation)
    assert point.gradient is not None


def test_the_gradient_of_a_functional_trunk_point_is_right() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).cumsum(1))

    model, x = Net(), torch.randn(3, 4)
    profile = hw.measure(model, x, loss_fn=lambda out: out.square().sum())
    middle = model.a(x).cumsum(1)
    middle.retain_grad()
    model.b(middle).square().sum().backward()
    point = next(p for p in profile.trunk if "Cumsum" in p.operation)
    assert_statistics_of(point.gradient, middle.grad)


def test_a_frozen_stem_is_no_part_of_the_trunk() -> None:
    model = mlp(4, 8, 8, 2)
    model[0].requires_grad_(False)
    profile = hw.measure(model, torch.randn(3, 4))
    assert [row.on_trunk for row in profile.layers] == [False, False, True, True, True]
    assert profile.trunk[0].layer == "2"


def test_the_sum_of_the_trunk_points_survives_a_thousand_layers() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(1000)])
    profile = hw.measure(model.double(), torch.randn(2, 4).double())
    assert len(profile.trunk_layers) == 1000
    assert len([p for p in profile.trunk if p.layer is not None]) == 1000
