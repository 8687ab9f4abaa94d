"""Checkpointed, compiled and wrapped models give the profile of the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import models
from tests.models import mlp
from tests.unit.capture.twins import assert_same_statistics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import headwater as hw
from headwater.records import Profile


def _assert_equal(found: Profile, wanted: Profile) -> None:
    assert [r.name for r in found.layers] == [r.name for r in wanted.layers]
    assert [(r.name, r.on_trunk) for r in found.layers] == [(r.name, r.on_trunk) for r in wanted.layers]
    for left, right in zip(found.layers, wanted.layers, strict=True):
        assert (left.type, left.kind, left.shape, left.parameters) == (
            right.type,
            right.kind,
            right.shape,
            right.parameters,
        )
        assert_same_statistics(left.activation, right.activation)
        assert_same_statistics(left.gradient, right.gradient)
        assert left.gradient_missing == right.gradient_missing
        assert (left.dead_fraction, left.saturated_fraction) == (right.dead_fraction, right.saturated_fraction)
    assert [p.name for p in found.parameters] == [p.name for p in wanted.parameters]
    for p, q in zip(found.parameters, wanted.parameters, strict=True):
        assert (p.layer, p.state, p.role, p.aliases) == (q.layer, q.state, q.role, q.aliases)
        assert_same_statistics(p.gradient, q.gradient)
    assert found.loss == wanted.loss
    assert found.coverage.observed == wanted.coverage.observed


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_number_and_counts_nothing_twice(use_reentrant: bool, dropout: float) -> None:
    x, y = torch.randn(4, 6), torch.zeros(4, 2)
    plain, checkpointed = models.CheckpointedMlp(None, dropout), models.CheckpointedMlp(use_reentrant, dropout)
    checkpointed.load_state_dict(plain.state_dict())
    _assert_equal(hw.measure(checkpointed, x, y, F.mse_loss), hw.measure(plain, x, y, F.mse_loss))


class _ResidualTokens(nn.Module):
    """Pre-LN blocks with their residual addition inside the checkpoint, and a block that is called twice."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant
        self.embed = nn.Embedding(10, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.mlps = nn.ModuleList(mlp(8, 16, 8, activation=nn.GELU) for _ in range(3))
        self.head = nn.Linear(8, 10)

    def _block(self, h: Tensor, i: int) -> Tensor:
        return h + self.mlps[i](self.norms[i](h))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for i in (0, 1, 2, 1):
            reentrant = self.use_reentrant
            h = self._block(h, i) if reentrant is None else checkpoint(self._block, h, i, use_reentrant=reentrant)
        return self.head(h)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_residual_blocks_and_repeated_calls_change_no_number(use_reentrant: bool) -> None:
    tokens = torch.randint(0, 10, (3, 4))
    plain, checkpointed = _ResidualTokens(None), _ResidualTokens(use_reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    _assert_equal(*(hw.measure(m, tokens, loss_fn=lambda out: out.square().mean()) for m in (checkpointed, plain)))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_sequential_changes_no_number(use_reentrant: bool) -> None:
    class Net(nn.Module):
        def __init__(self, segments: int) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.body = mlp(8, 8, 8, 8, 8, activation=nn.Tanh)
            self.segments = segments

        def forward(self, x: Tensor) -> Any:
            h = self.stem(x)
            if not self.segments:
                for layer in self.body:
                    h = layer(h)
                return h
            return checkpoint_sequential(self.body, self.segments, h, use_reentrant=use_reentrant)

    plain, checkpointed, x = Net(0), Net(2), torch.randn(5, 6)
    checkpointed.load_state_dict(plain.state_dict())
    _assert_equal(*(hw.measure(m, x, loss_fn=lambda out: out.square().sum()) for m in (checkpointed, plain)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_has_the_profile_of_the_plain_one(backend: str) -> None:
    model, x, y = models.ResNet(), torch.randn(4, 3, 6, 6), torch.arange(4)
    wanted = hw.measure(model, x, y, F.cross_entropy)
    compiled = torch.compile(model, backend=backend)
    assert isinstance(compiled, nn.Module)
    _assert_equal(hw.measure(compiled, x, y, F.cross_entropy), wanted)


def test_a_model_compiled_in_place_or_in_part_has_the_profile_of_the_plain_one() -> None:
    model, x, y = models.ResNet(), torch.randn(4, 3, 6, 6), torch.arange(4)
    wanted = hw.measure(model, x, y, F.cross_entropy)
    model.blocks[0].compile(backend="eager")
    model.head = torch.compile(model.head, backend="eager")  # type: ignore[assignment]
    _assert_equal(hw.measure(model, x, y, F.cross_entropy), wanted)


def test_measuring_causes_no_compilation_and_no_recompilation() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    compiled = torch.compile(mlp(4, 6, 2), backend="eager")
    x = torch.randn(3, 4)
    compiled(x)
    before = dict(counters["stats"])
    hw.measure(compiled, x)  # type: ignore[arg-type]
    compiled(x)
    assert dict(counters["stats"]) == before


class _DataParallelLike(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class _Fsdp(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module

    def forward(self, x: Any) -> Any:
        return self._fsdp_wrapped_module(x)


class _CheckpointWrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = module

    def forward(self, x: Any) -> Any:
        return self._checkpoint_wrapped_module(x)


@pytest.mark.parametrize("wrapper", [_DataParallelLike, _Fsdp, _CheckpointWrapper, nn.DataParallel])
def test_wrapper_prefixes_are_stripped(wrapper: Any) -> None:
    model, x = mlp(4, 6, 2), torch.randn(3, 4)
    wanted = hw.measure(model, x)
    _assert_equal(hw.measure(wrapper(model), x), wanted)
    inside = nn.Sequential(model[0], wrapper(nn.Sequential(model[1], model[2])))
    assert [r.name for r in hw.measure(inside, x).layers] == ["0", "1.0", "1.1"]
    assert hw.measure(inside, x).parameter("1.1.weight").layer == "1.1"


def test_a_child_called_module_that_is_no_wrapper_keeps_its_name() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(4, 4)
            self.other = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.module(x))

    assert [r.name for r in hw.measure(Holder(), torch.randn(2, 4)).layers] == ["module", "other"]


def test_torchscript_says_that_it_cannot_be_observed_inside() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), scripted, nn.Linear(4, 2))
    profile = hw.measure(model, torch.randn(3, 4))
    assert profile.parameter("1.weight").state == "finite"  # its gradient is there all the same
    assert "TorchScript" in profile.coverage.modules_unseen["1"]
    assert [r.name for r in profile.layers] == ["0", "2"]
