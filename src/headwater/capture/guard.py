"""Leave no trace: whatever a measurement does to a model, or to the random state, is undone."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["untouched"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _container_copy(value: Any) -> Any:
    """A shallow copy of a plain mutable container, else None."""
    return value.copy() if type(value) in (list, dict, set, deque) else None


def _refill(container: Any, copy: Any) -> None:
    if isinstance(container, dict):
        same = len(container) == len(copy) and all(k in container and container[k] is v for k, v in copy.items())
    elif isinstance(container, set):
        same = container == copy
    else:
        same = len(container) == len(copy) and all(a is b for a, b in zip(container, copy, strict=True))
    if not same:
        container.clear()
        container.extend(copy) if isinstance(container, list | deque) else container.update(copy)


def _attribute_restorer(module: nn.Module) -> Callable[[], None]:
    attributes = dict(module.__dict__)
    # A scripted module has views of C++ lists there, which nothing can add to.
    registries = {name: dict(r) for name in _REGISTRIES if isinstance(r := attributes.get(name), dict)}
    containers = [
        (value, copy)
        for name, value in attributes.items()
        if name not in _REGISTRIES and (copy := _container_copy(value)) is not None
    ]

    def restore() -> None:
        for name in [n for n in module.__dict__ if n not in attributes]:
            del module.__dict__[name]
        for name, value in attributes.items():
            if module.__dict__.get(name, restore) is not value:
                module.__dict__[name] = value
        for name, copy in registries.items():
            _refill(attributes[name], copy)
        for container, copy in containers:
            _refill(container, copy)

    return restore


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout is not torch.strided:  # a sparse adjacency matrix: there is no comparison, so its parts are compared
        a, b = a.to_sparse_coo().coalesce(), b.to_sparse_coo().coalesce()
        return torch.equal(a.indices(), b.indices()) and torch.equal(a.values(), b.values())
    return torch.equal(a, b)


def _buffer_restorer(buffers: list[torch.Tensor]) -> Callable[[], None]:
    kept = [(b, b.detach().clone()) for b in buffers]

    def restore() -> None:
        with torch.no_grad():
            for buffer, copy in kept:
                # Only what changed is written, so that an untouched buffer keeps its version counter.
                if buffer.shape != copy.shape:
                    buffer.data = copy
                elif not _same_values(buffer, copy):
                    # .data of a sparse tensor is an alias whose parts are its own: only the tensor itself is written.
                    (buffer.data if buffer.layout is torch.strided else buffer).copy_(copy)

    return restore


def _random_restorer() -> Callable[[], None]:
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None and hasattr(numpy, "random") else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        random.setstate(python)
        if numpy is not None and legacy is not None:
            numpy.random.set_state(legacy)

    return restore


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore a model and every random state on the way out, also when something raises.

    Restored are: module attributes (``training`` of every submodule included), plain lists, dicts and sets held as
    attributes, the registries of parameters, buffers and modules, the contents of buffers, ``.grad`` (the same
    tensor objects), and the random states of torch (CPU, CUDA, MPS), Python and NumPy. Parameters are not copied:
    a forward that overwrites its own parameters does so with or without headwater.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    modules = list(model.modules())
    gradients = [(p, p.grad) for p in model.parameters()]
    restorers = [
        _random_restorer(),
        _buffer_restorer(list(model.buffers())),
        *(_attribute_restorer(m) for m in modules),
    ]
    try:
        yield
    finally:
        for restore in reversed(restorers):
            restore()
        for parameter, gradient in gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient
