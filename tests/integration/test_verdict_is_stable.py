"""The same network gives the same verdict however it is run: compiled, checkpointed, in bfloat16, wrapped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.unit.detectors.planted import FAULTS, HEALTHY, Task
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import headwater as hw

# A handful of faults of every family and of healthy networks; each is built anew from its seed for every form.
NAMES = (
    "deep sigmoid", "weights three times He's", "bias -10", "tanh of large weights", "constant weights",
    "detached branch", "recurrent weights of one half", "he relu", "resnet with zero gamma", "pre-LN transformer",
    "rezero", "lora", "unused head",
)  # fmt: skip
CASES = {c.name: c for c in (*FAULTS, *HEALTHY)}
every_case = pytest.mark.parametrize("name", NAMES)


def _task(name: str) -> Task:
    return CASES[name].make()


def _said(result: hw.Diagnosis) -> list[tuple[Any, ...]]:
    return sorted((f.code, f.defect, f.severity, f.where, f.symptom_of or "") for f in result.findings)


def _with(task: Task, model: nn.Module) -> Task:
    return Task(model, task.inputs, task.targets, task.loss_fn)


class _Wrapper(nn.Module):
    """What DataParallel and DistributedDataParallel look like from outside: ``module.`` before every name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@every_case
def test_wrapped_twice_gives_the_same_verdict_and_names(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)
    wrapped = _with(task, _Wrapper(_Wrapper(task.model))).diagnose()
    assert wrapped.verdict is plain.verdict
    assert _said(wrapped) == _said(plain)


@every_case
def test_data_parallel_gives_the_same_verdict_and_names(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)
    wrapped = _with(task, nn.DataParallel(task.model)).diagnose()  # without a device it calls the module as it is
    assert wrapped.verdict is plain.verdict
    assert _said(wrapped) == _said(plain)


@every_case
def test_compiled_gives_the_same_verdict_and_names(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)
    compiled = torch.compile(task.model, backend="eager")
    assert isinstance(compiled, nn.Module)
    result = _with(task, compiled).diagnose()
    assert result.verdict is plain.verdict
    assert _said(result) == _said(plain)


class _Recomputed(nn.Module):
    """A block under activation checkpointing, as torch's own checkpoint_wrapper holds it."""

    def __init__(self, module: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self._checkpoint_wrapped_module = module
        self.use_reentrant = use_reentrant

    def forward(self, *args: Any) -> Any:
        # A reentrant checkpoint without an input that needs a gradient gives none, as torch documents.
        if self.use_reentrant and not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return self._checkpoint_wrapped_module(*args)
        return checkpoint(self._checkpoint_wrapped_module, *args, use_reentrant=self.use_reentrant)


def _checkpointed(model: nn.Module, use_reentrant: bool) -> nn.Module:
    """The same model; its children, and the members of its lists, run under activation checkpointing."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.ModuleList):
            _checkpointed(child, use_reentrant)
        elif not isinstance(child, nn.RNNBase):  # headwater unrolls those itself
            setattr(model, name, _Recomputed(child, use_reentrant))
    return model


@every_case
def test_checkpointed_gives_the_same_verdict_and_names(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)
    result = _with(task, _checkpointed(task.model, False)).diagnose()
    assert result.verdict is plain.verdict
    assert _said(result) == _said(plain)


@every_case
def test_reentrant_checkpoints_give_the_same_verdict_and_root(name: str) -> None:
    # The output of a reentrant checkpoint is a tensor of its own, one more place on the way: a fall over depth may
    # name one layer more or less at its far end.
    plain = _task(name).diagnose()
    task = _task(name)
    result = _with(task, _checkpointed(task.model, True)).diagnose()
    assert result.verdict is plain.verdict
    assert [s[:3] for s in _said(result)] == [s[:3] for s in _said(plain)]
    for here, there in zip(_said(result), _said(plain), strict=True):
        assert len(set(here[3]) ^ set(there[3])) <= 1


def _half(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


@every_case
def test_bfloat16_gives_the_same_verdict(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)
    half = Task(copy.deepcopy(task.model).bfloat16(), _half(task.inputs), _half(task.targets), task.loss_fn).diagnose()
    assert half.verdict is plain.verdict
    # Numbers have three digits less, so only what decides is compared: the root's code and where it is.
    if plain.root is not None:
        assert half.root is not None
        assert half.root.code == plain.root.code
        assert set(half.root.where) & set(plain.root.where)
    assert not [f for f in half.findings if plain.ok and f.severity is hw.Severity.CRITICAL]


@every_case
def test_autocast_gives_the_same_verdict(name: str) -> None:
    plain = _task(name).diagnose()
    task = _task(name)

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(task.inputs)
        return task.loss_fn(output.float(), task.targets)

    assert hw.diagnose(task.model, loss=loss).verdict is plain.verdict
