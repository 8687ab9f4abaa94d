"""A model, its initialisers and its inputs on the meta device: shapes without values, and what they were."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.recurrent_on_meta import gate_laws
from headwater.theory.forecast import Engine, Known, Law, axes_of_shape

__all__ = [
    "batch_dimension_of",
    "draw_truncated",
    "initialise_late",
    "input_twins",
    "law_of_values",
    "model_on_meta",
    "silent_initialisers_heard",
]


def draw_truncated(tensor: Tensor, mean: float, std: float, a: float, b: float) -> None:
    """Give a meta tensor the mean and variance of N(mean, std²) cut to [a, b]."""
    if std <= 0.0:
        with torch.no_grad():
            tensor.fill_(mean)
        return
    z = torch.linspace(max(-9.0, (a - mean) / std), min(9.0, (b - mean) / std), 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    weight = weight / weight.sum()
    centre = float((weight * z).sum())
    centre = 0.0 if abs(centre) < 1e-9 else centre
    spread = float((weight * (z - centre) ** 2).sum()) ** 0.5
    with torch.no_grad():
        tensor.normal_(mean + std * centre, std * spread)


def _orthogonal(tensor: Tensor, gain: float = 1.0, generator: Any = None) -> Tensor:
    # min(rows, columns) rows of length gain² share rows · columns entries.
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    with torch.no_grad():
        return tensor.normal_(0.0, gain / math.sqrt(max(rows, columns)))


def _sparse(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Any = None) -> Tensor:
    with torch.no_grad():
        return tensor.normal_(0.0, std * math.sqrt(1.0 - sparsity))


def _dirac(tensor: Tensor, groups: int = 1) -> Tensor:
    # A permutation, taken as random entries of the same mean square.
    ones = min(tensor.shape[0], tensor.shape[1] * groups)
    with torch.no_grad():
        return tensor.normal_(0.0, math.sqrt(ones / tensor.numel()))


@contextmanager
def silent_initialisers_heard() -> Iterator[None]:
    """Torch's ``orthogonal_``, ``sparse_`` and ``dirac_`` may do nothing on meta tensors: their law is recorded instead."""
    laws: dict[str, Callable[..., Tensor]] = {"orthogonal_": _orthogonal, "sparse_": _sparse, "dirac_": _dirac}
    originals = {name: getattr(nn.init, name) for name in laws}

    def replacement(name: str) -> Callable[..., Tensor]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            function = laws[name] if tensor.is_meta else originals[name]
            return function(tensor, *args, **kwargs)

        return call

    try:
        for name in laws:
            setattr(nn.init, name, replacement(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def initialise_late(model: nn.Module) -> None:
    """Run the initialisers of a model that skips them under ``torch.device("meta")``, as transformers' models do."""
    method = getattr(model, "initialize_weights", None)
    if callable(method) and callable(getattr(model, "_init_weights", None)):
        method()
        return
    for child in model.children():
        initialise_late(child)


def law_of_values(value: Tensor) -> Law | Known:
    """A parameter's law: a constant, or mean and variance; a mean that sampling explains counts as 0."""
    axes = axes_of_shape(value.shape)
    x = value.detach()
    n = x.numel()
    if not x.is_floating_point() or n == 0:
        return Known(axes, x)
    chunks = x.reshape(-1).split(1 << 22)
    total = math.fsum(float(c.double().sum()) for c in chunks)
    square = math.fsum(float(c.double().square().sum()) for c in chunks) / n
    mean = total / n
    variance = max(0.0, square - mean**2)
    if variance <= 1e-12 * mean**2:
        return Law(axes, mean, 0.0)
    if mean**2 <= 16.0 * variance / n:
        return Law(axes, 0.0, square)
    return Law(axes, mean, variance)


def model_on_meta(model: nn.Module, engine: Engine) -> nn.Module:
    """A twin of a materialised model without values; what they were is told to the engine."""
    memo: dict[int, Any] = {}
    found: list[tuple[Tensor, Law | Known]] = []
    by_gate: dict[int, Law] = {}
    for module in model.modules():
        by_gate |= gate_laws(module, law_of_values)
    for p in model.parameters():
        twin = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        memo[id(p)] = twin
        found.append((twin, by_gate.get(id(p)) or law_of_values(p)))
    for b in model.buffers():
        twin_buffer = torch.empty_like(b, device="meta")
        memo[id(b)] = twin_buffer
        found.append((twin_buffer, Known(axes_of_shape(b.shape), b.detach().cpu())))
    twin_model = copy.deepcopy(model, memo)
    for tensor, thing in found:
        engine.remember(tensor, thing)
    for module in twin_model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not value.is_meta:  # a tensor that is no buffer
                meta = torch.empty_like(value, device="meta")
                engine.remember(meta, Known(axes_of_shape(value.shape), value.detach().cpu()))
                setattr(module, name, meta)
    return twin_model


def input_twins(
    value: Any, engine: Engine, batch_dimension: int, moments: tuple[float, float], always: bool = False
) -> Any:
    """Inputs or targets on the meta device; what they are is told to the engine.

    Args:
        value: a tensor, or a nest of them.
        engine: follows the moments.
        batch_dimension: which dimension of a sequence of vectors counts samples.
        moments: E x and E x² of tensors without values.
        always: whether it is that dimension of every tensor with two dimensions or more (token ids, (T, B)).

    Returns:
        The same nest of meta tensors.
    """
    if isinstance(value, Tensor):
        shape = value.shape
        kinds: list[Any] = ["unknown"] * len(shape)
        sequence = len(shape) >= 2 if always else len(shape) >= 3 and value.is_floating_point()
        dimension = batch_dimension if sequence else 0
        if len(shape) > 0:
            kinds[dimension] = "sample"
        axes = axes_of_shape(shape, kinds)
        twin = torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
        if value.is_meta:
            engine.remember(twin, Law(axes, moments[0], max(0.0, moments[1] - moments[0] ** 2)))
        else:
            engine.remember(twin, Known(axes, value.detach().cpu()))
        return twin
    if isinstance(value, Mapping):
        return type(value)({k: input_twins(v, engine, batch_dimension, moments, always) for k, v in value.items()})  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(input_twins(v, engine, batch_dimension, moments, always) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(input_twins(v, engine, batch_dimension, moments, always) for v in value)
    return value


def batch_dimension_of(model: nn.Module) -> int:
    """1 where every module with a say in it takes sequences first, else 0."""
    firsts = [m.batch_first for m in model.modules() if isinstance(getattr(m, "batch_first", None), bool)]
    return 1 if firsts and not any(firsts) else 0
