"""measure() leaves no trace: {normal, forward raises, backward raises} × every architecture of tests/models.py."""

from __future__ import annotations

import copy
import gc
import io
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from tests import models
from tests.models import CASES, Case
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import headwater as hw

OUTCOMES = ("normal", "forward raises", "backward raises")


class Boom(RuntimeError):
    """What a broken model raises."""


class _ExplodesBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise Boom("in the backward")


def _raise_in_forward(module: nn.Module, args: Any) -> None:
    raise Boom("in the forward")


def _explode_in_backward(module: nn.Module, args: Any, output: Any) -> Any:
    def explode(leaf: Any) -> Any:
        if isinstance(leaf, nn.utils.rnn.PackedSequence):
            return leaf._replace(data=_ExplodesBackwards.apply(leaf.data))
        return _ExplodesBackwards.apply(leaf) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf

    return tree_map(explode, output, is_leaf=lambda x: isinstance(x, nn.utils.rnn.PackedSequence))


def _break(model: nn.Module, middle: str, outcome: str) -> None:
    """A hook of the user's that raises in the middle of the forward or of the backward."""
    if outcome == "forward raises":
        model.get_submodule(middle).register_forward_pre_hook(_raise_in_forward)
    elif outcome == "backward raises":
        model.get_submodule(middle).register_forward_hook(_explode_in_backward)


# -------------------------------------------------------------------- what "exactly as it was" means


def _bits(tensor: Tensor | None) -> Any:
    """The value of a tensor, bit for bit, NaN included."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.is_sparse:
        return ("sparse", _bits(tensor._indices()), _bits(tensor._values()))
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return str(tensor.dtype), tuple(tensor.shape), real.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _hooks_of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(
        tuple(id(f) for f in (getattr(tensor, name, None) or {}).values())
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )


def _shallow(value: Any) -> Any:
    """Identity of an attribute, and of what a plain container among the attributes holds."""
    if type(value) in (list, tuple, set):
        return id(value), [id(v) for v in value]
    if isinstance(value, dict):
        return id(value), [(k, id(v)) for k, v in value.items()]
    if isinstance(value, int | float | str | bool | None.__class__):
        return value
    return id(value)


def _tensor_state(tensor: Tensor) -> dict[str, Any]:
    gradient = tensor.grad if tensor.is_leaf else None
    return {
        "identity": id(tensor),
        "value": _bits(tensor),
        "requires_grad": tensor.requires_grad,
        "leaf": tensor.is_leaf,
        "grad identity": None if gradient is None else id(gradient),
        "grad value": _bits(gradient),
        "hooks": _hooks_of_tensor(tensor),
    }


def _snapshot(model: nn.Module, *others: Any) -> dict[str, Any]:
    legacy = np.random.get_state()  # noqa: NPY002  (the state that old code draws from)
    state: dict[str, Any] = {
        "torch random state": _bits(torch.get_rng_state()),
        "python random state": random.getstate(),
        "numpy random state": (legacy[0], legacy[1].tobytes(), *legacy[2:]),
        "grad mode": torch.is_grad_enabled(),
        "torch function mode": torch.overrides._len_torch_function_stack(),
        "default dtype": torch.get_default_dtype(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "warning filters": list(warnings.filters),
        "global hooks": [
            len(getattr(torch.nn.modules.module, name))
            for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
        ],
    }
    for name, module in model.named_modules(remove_duplicate=False):
        where = name or "(model)"
        state[f"{where}.training"] = module.training
        state[f"{where}.__dict__ keys"] = list(module.__dict__)
        for key, value in module.__dict__.items():
            state[f"{where}.{key}"] = _shallow(value)
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                state[f"{where}.{key} as a tensor"] = _tensor_state(tensor)
    for i, leaf in enumerate(leaf for leaf in tree_leaves(others) if isinstance(leaf, Tensor)):
        state[f"input {i}"] = _tensor_state(leaf)
    return state


def _assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert not changed, f"changed: {sorted(changed)}"


def _give_gradients(model: nn.Module) -> None:
    """Every second parameter has a gradient already, as between two micro-batches; the others have None."""
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.25) if i % 2 == 0 and parameter.requires_grad else None


@contextmanager
def _outcome(outcome: str) -> Iterator[None]:
    with nullcontext() if outcome == "normal" else pytest.raises(Boom):
        yield


def _check(model: nn.Module, inputs: Any, targets: Any, loss_fn: Callable[..., Tensor], outcome: str) -> None:
    _give_gradients(model)
    before = _snapshot(model, inputs, targets)
    with _outcome(outcome):
        hw.measure(model, inputs, targets, loss_fn)
    _assert_same(before, _snapshot(model, inputs, targets))


# -------------------------------------------------------------------- the matrix


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_behind(case: Case, outcome: str) -> None:
    model, inputs, targets = case.make()
    _break(model, case.middle, outcome)
    _check(model, inputs, targets, case.loss_fn, outcome)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_behind_in_evaluation_mode(case: Case) -> None:
    model, inputs, targets = case.make()
    _check(model.eval(), inputs, targets, case.loss_fn, "normal")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_behind_with_a_probe_or_a_loss_of_the_model(case: Case) -> None:
    model, inputs, targets = case.make()
    _give_gradients(model)
    before = _snapshot(model, inputs, targets)
    hw.measure(model, inputs)
    hw.measure(model, loss=lambda m: case.loss_fn(_call(m, inputs), targets))
    _assert_same(before, _snapshot(model, inputs, targets))


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_loss_are_bit_identical_with_and_without_measuring(case: Case) -> None:
    model, inputs, targets = case.make()
    seen: list[Any] = []

    def loss_fn(output: Any, wanted: Any) -> Tensor:
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        leaves += [t for t in vars(output).values() if isinstance(t, Tensor)] if hasattr(output, "__dict__") else []
        seen.append([_bits(leaf) for leaf in leaves])
        return case.loss_fn(output, wanted)

    profile = hw.measure(model, inputs, targets, loss_fn)
    loss = loss_fn(_call(model, inputs), targets)
    assert seen[0] == seen[1]
    assert profile.loss == float(loss.detach())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_measuring_twice_gives_identical_profiles(case: Case) -> None:
    model, inputs, targets = case.make()
    first = hw.measure(model, inputs, targets, case.loss_fn)
    assert hw.measure(model, inputs, targets, case.loss_fn).to_json() == first.to_json()


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_model_is_freed_after_measuring(case: Case, outcome: str) -> None:
    gc.freeze()  # what existed before is not searched again: the collection below takes milliseconds
    model, inputs, targets = case.make()
    _break(model, case.middle, outcome)
    profile = None
    try:
        profile = hw.measure(model, inputs, targets, case.loss_fn)
    except Boom:
        assert outcome != "normal"
    alive = weakref.ref(getattr(model, "_orig_mod", model))
    weights = [weakref.ref(p) for p in model.parameters()]
    del model
    if case.name.startswith("compiled"):
        torch.compiler.reset()
    gc.collect()
    gc.unfreeze()
    assert alive() is None
    if (case.name, outcome) != ("sparse-embedding", "backward raises"):  # torch itself leaks one weight there
        assert all(w() is None for w in weights)
    assert (profile is not None) == (outcome == "normal")  # the profile itself is still held: it keeps nothing alive


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith("compiled")], ids=str)
def test_model_can_be_copied_and_saved_afterwards(case: Case) -> None:
    model, inputs, targets = case.make()
    hw.measure(model, inputs, targets, case.loss_fn)
    if case.name != "old-weight-and-spectral-norm":  # torch cannot deepcopy the plain tensor its old weight_norm leaves
        copy.deepcopy(model)
    if case.name != "parametrized":  # torch refuses to pickle a parametrized module, measured or not
        torch.save(model, io.BytesIO())
    model.load_state_dict(model.state_dict())


# -------------------------------------------------------------------- one promise at a time


def test_users_hooks_fire_as_often_as_in_one_forward_and_one_backward() -> None:
    model = models.mlp(4, 6, 2)
    fired: list[str] = []
    model[0].register_forward_pre_hook(lambda *_: fired.append("forward pre"))
    model[0].register_forward_hook(lambda *_: fired.append("forward"))
    model[2].register_full_backward_hook(lambda *_: fired.append("backward"))
    model[1].register_forward_hook(lambda m, a, out: out.register_hook(lambda g: fired.append("tensor")) and None)
    hw.measure(model, torch.randn(3, 4), torch.zeros(3, 2), nn.functional.mse_loss)
    assert sorted(fired) == ["backward", "forward", "forward pre", "tensor"]


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_an_optimizer_inside_the_backward_does_not_step(use_reentrant: bool | None) -> None:
    model = models.CheckpointedMlp(use_reentrant)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, o=optimizer: o.step())
    x, y = torch.randn(4, 6), torch.zeros(4, 2)
    before = _snapshot(model)
    profile = hw.measure(model, x, y, nn.functional.mse_loss)
    _assert_same(before, _snapshot(model))
    assert profile.coverage.observed == len(list(model.parameters()))
    nn.functional.mse_loss(model(x), y).backward()
    assert before != _snapshot(model)  # the hooks are back: an ordinary backward trains


@pytest.mark.parametrize("name", ["resnet-inplace", "transformer-pre-ln", "lstm", "stochastic", "parametrized"])
def test_training_with_a_measurement_before_each_step_is_bit_identical(name: str) -> None:
    case = models.case(name)

    def train(*, measured: bool) -> tuple[list[float], Any]:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        model, inputs, targets = case.make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            if measured:
                hw.measure(model, inputs, targets, case.loss_fn)
            optimizer.zero_grad()
            loss = case.loss_fn(_call(model, inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses, [_bits(t) for t in model.state_dict().values()]

    assert train(measured=True) == train(measured=False)


def test_inputs_that_require_a_gradient_get_none() -> None:
    model, x = models.mlp(4, 6, 2), torch.randn(3, 4, requires_grad=True)
    hw.measure(model, x, torch.zeros(3, 2), nn.functional.mse_loss)
    assert x.grad is None
    assert not x._backward_hooks


def test_a_learnable_loss_is_left_untouched_too() -> None:
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, targets: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output * self.temperature, targets)

    for use_reentrant in (None, True):
        model, criterion = models.CheckpointedMlp(use_reentrant), Criterion()
        criterion.temperature.grad = torch.tensor(3.0)
        hw.measure(model, torch.randn(4, 6), torch.tensor([0, 1, 0, 1]), criterion)
        assert criterion.temperature.grad.item() == 3.0


def test_a_user_gradient_tensor_shared_with_another_holder_keeps_its_value() -> None:
    model = models.CheckpointedMlp(True)
    parameter = next(model.parameters())
    parameter.grad = held = torch.ones_like(parameter)
    hw.measure(model, torch.randn(4, 6), torch.zeros(4, 2), nn.functional.mse_loss)
    assert parameter.grad is held
    assert torch.equal(held, torch.ones_like(held))


def test_untouched_buffers_keep_their_version_counter() -> None:
    # A graph that the user made before and has yet to send backward must still accept its saved buffers.
    model = models.ResNet().eval()
    x = torch.randn(2, 3, 6, 6)
    loss = model(x).sum()
    hw.measure(model, x)
    loss.backward()


def test_a_graph_the_user_holds_survives_a_measurement_in_training_mode() -> None:
    # BatchNorm's running statistics are written by every training forward, so a second forward between the user's
    # forward and backward is ordinary; a measurement may not be worse than that.
    model = models.ResNet(inplace=False)
    x = torch.randn(2, 3, 6, 6)
    loss = model(x).sum()
    hw.measure(model, x)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_left_behind_when_the_loss_function_raises() -> None:
    def loss_fn(output: Tensor, targets: Tensor) -> Tensor:
        raise Boom("in the loss")

    model, inputs, targets = models.case("resnet-inplace").make()
    _check(model, inputs, targets, loss_fn, "loss raises")


def test_nothing_is_left_behind_by_a_draw_of_several() -> None:
    model = models.mlp(4, 6, 2)
    _give_gradients(model)
    x = torch.randn(3, 4)
    before = _snapshot(model, x)
    hw.measure(model, x, draws=3)
    _assert_same(before, _snapshot(model, x))


def test_nothing_is_left_behind_by_a_keyboard_interrupt() -> None:
    model, x = models.mlp(4, 6, 2), torch.randn(3, 4)

    def interrupted(output: Tensor) -> Tensor:
        raise KeyboardInterrupt

    before = _snapshot(model, x)
    with pytest.raises(KeyboardInterrupt):
        hw.measure(model, x, None, interrupted)
    _assert_same(before, _snapshot(model, x))


# -------------------------------------------------------------------- models that we did not write


def _transformers_models() -> dict[str, Callable[[Any], tuple[nn.Module, Any]]]:
    def gpt2(hf: Any) -> tuple[nn.Module, Any]:
        config = hf.GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=40, n_positions=16)
        tokens = torch.randint(0, 40, (2, 6))
        return hf.GPT2LMHeadModel(config), {"input_ids": tokens, "labels": tokens}

    def resnet(hf: Any) -> tuple[nn.Module, Any]:
        config = hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
        )
        return hf.ResNetForImageClassification(config), {
            "pixel_values": torch.randn(2, 3, 16, 16),
            "labels": torch.tensor([0, 2]),
        }

    return {"gpt2": gpt2, "resnet": resnet}


@pytest.mark.integration
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize(("name", "middle"), [("gpt2", "transformer.h.1.ln_1"), ("resnet", "classifier.0")])
def test_nothing_is_left_behind_in_transformers_models(name: str, middle: str, outcome: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, inputs = _transformers_models()[name](transformers)
    _break(model.train(), middle, outcome)
    _give_gradients(model)
    before = _snapshot(model, inputs)
    with _outcome(outcome):
        profile = hw.measure(model, inputs)
        assert profile.loss_source == "model"
        with torch.random.fork_rng(devices=[]):
            assert profile.loss == model(**inputs).loss.item()
    if outcome == "normal" and name == "resnet":
        return  # the direct call above moved the running statistics
    _assert_same(before, _snapshot(model, inputs))
