"""Layer-sequential unit variance: divide every weight by the standard deviation its layer shows on real data."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.guard import untouched
from headwater.capture.names import layer_kind
from headwater.errors import InputError, NothingObservedError
from headwater.init.orthogonal import orthogonal_
from headwater.init.sites import Site, find_sites

__all__ = ["LsuvLayer", "LsuvReport", "lsuv_"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LsuvLayer:
    """One layer before and after.

    Attributes:
        name: of its weight.
        variance_before: variance of its output over all elements, in the model as it was given.
        variance_after: the same with the weights as they are now.
        rescalings: how often the weight was divided.
        reached: whether ``variance_after`` is within the tolerance of the target.
    """

    name: str
    variance_before: float
    variance_after: float
    rescalings: int
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LsuvReport:
    """What :func:`lsuv_` did.

    Attributes:
        layers: in execution order.
        kept: parameter name to the reason why it stays as it was.
    """

    layers: tuple[LsuvLayer, ...]
    kept: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:<{width}}  variance {layer.variance_before:.4g} -> {layer.variance_after:.4g}"
            f" in {layer.rescalings} rescaling(s){'' if layer.reached else '; NOT at the target'}"
            for layer in self.layers
        ]
        return "\n".join(lines)


def lsuv_(
    model: nn.Module,
    inputs: Any,
    *,
    batches: int = 1,
    target_variance: float = 1.0,
    tolerance: float = 0.01,
    max_rescalings: int = 10,
    orthonormal: bool = True,
    only: object = None,
    run: Callable[[nn.Module, Any], Any] | None = None,
    generator: torch.Generator | None = None,
) -> LsuvReport:
    """Give every linear layer and convolution unit output variance on your data, in place, one layer after the other.

    Weights are first drawn orthonormal; then, in execution order, each is divided by the standard deviation of its
    layer's output (all elements together: batch, positions, units) until the variance is within ``tolerance`` of the
    target. Everything happens inside one forward: a layer is scaled as soon as it has been called, and what follows sees
    the scaled output. Only weights change. Biases, buffers (BatchNorm's running statistics), ``.grad``, the modes of all
    modules and every random state are as before; the forward runs in the mode the model is in.

    Args:
        model: with values.
        inputs: a batch: a tensor, a tuple of positional arguments or a mapping of keyword arguments. Or a loader: any
            other iterable of such batches; of a list or tuple that it gives, the first entry is the input.
        batches: how many batches to take from a loader; they are joined into one, so that the variance is over all of
            them and every layer sees them in one forward.
        target_variance: of every layer's output.
        tolerance: relative; where a bias adds to the variance, one division does not reach the target. 0.01 is chosen by
            us (the paper's is 0.1).
        max_rescalings: per layer.
        orthonormal: draw the weights first; False only divides the present ones.
        only: which parameters, as in :func:`critical_`; None for all.
        run: how to call the model: ``run(model, batch)``; None calls it with the batch as above.
        generator: of the orthonormal draws. None seeds one from torch's global random state and the present weights: the
            global state stays as it is, and equal models in equal states get equal weights.

    Returns:
        The variances before and after, and what was left alone.

    Raises:
        InputError: no module, no weights, a bad number, or a batch that is none.
        NothingObservedError: the forward called none of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(30, 60), nn.ReLU(), nn.Linear(60, 60))
        >>> print(lsuv_(model, torch.randn(256, 30)).layers[1].reached)
        True

    References:
        Mishkin & Matas, *All you need is a good init*, ICLR 2016.
    """
    _check(target_variance, tolerance, max_rescalings, batches)
    sites, kept = find_sites(model, only)
    meta = [site.name for site in sites if site.part.is_meta]
    if meta:
        raise InputError(f"{', '.join(meta[:3])} lives on the meta device: lsuv_ needs values and data")
    batch = _batch(inputs, batches, run)
    # Attention applies its matrices without calling a module: no output of one matrix is to be seen.
    hooked: dict[nn.Module, Site] = {}
    for site in sites:
        if layer_kind(site.owner) == "attention":
            kept[site.name] = "inside attention: its output is not seen"
        else:
            hooked[site.owner] = site
    if not hooked:
        raise InputError("there is no linear layer or convolution whose weight could be scaled")
    scaling = _Scaling(hooked, target_variance, tolerance, max_rescalings)
    with torch.no_grad(), untouched(model):
        with scaling.watching():
            run(model, batch) if run is not None else _call(model, batch)
        if not scaling.before:
            raise NothingObservedError(
                f"the forward called none of the {len(hooked)} layers with weights; a compiled model hides its modules: "
                "pass the one that was compiled"
            )
    with torch.no_grad(), untouched(model):
        if orthonormal:
            for module in scaling.before:
                weight = hooked[module].part
                orthogonal_(weight, generator=generator or _own_generator(weight))
        with scaling.scaling():
            run(model, batch) if run is not None else _call(model, batch)
    kept |= {site.name: "the forward did not call its layer" for m, site in hooked.items() if m not in scaling.before}
    return LsuvReport(layers=tuple(scaling.layers), kept=kept)


class _Scaling:
    """Hooks that measure, and hooks that divide, on the first call of every layer."""

    def __init__(self, sites: Mapping[nn.Module, Site], target: float, tolerance: float, most: int) -> None:
        self.sites, self.target, self.tolerance, self.most = sites, target, tolerance, most
        self.before: dict[nn.Module, float] = {}
        self.layers: list[LsuvLayer] = []
        self._done: set[nn.Module] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if module not in self.before:
                self.before[module] = _variance(output, self.sites[module].name)

        handles = [module.register_forward_hook(hook) for module in self.sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def scaling(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._scale, with_kwargs=True) for module in self.sites]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _scale(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module in self._done:  # a reused layer: its first call decides
            return None
        self._done.add(module)
        site = self.sites[module]
        variance, count = _variance(output, site.name), 0
        while not self._reached(variance) and count < self.most and 0.0 < variance < math.inf:
            site.part.mul_(math.sqrt(self.target / variance))
            output = module.forward(*args, **kwargs)
            variance, count = _variance(output, site.name), count + 1
        self.layers.append(
            LsuvLayer(
                name=site.name,
                variance_before=self.before.get(module, math.nan),
                variance_after=variance,
                rescalings=count,
                reached=self._reached(variance),
            )
        )
        return output

    def _reached(self, variance: float) -> bool:
        return abs(variance / self.target - 1.0) <= self.tolerance


def _variance(output: Any, name: str) -> float:
    if not isinstance(output, Tensor) or output.numel() < 2:
        what = f"{output.numel()} element(s)" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"the layer of {name} gave {what}: no variance can be taken; leave it out with only")
    kind = torch.float32 if output.device.type == "mps" else torch.float64
    return float(output.detach().to(kind).var(correction=0))


def _own_generator(weight: Tensor) -> torch.Generator:
    """A generator that differs between states of the global one and between weights, and moves neither."""
    state = zlib.crc32(bytes(torch.get_rng_state().numpy()))
    seed = zlib.crc32(struct.pack("<dd", float(weight.double().sum()), float(weight.double().square().sum())), state)
    made = torch.Generator(device=weight.device)
    made.manual_seed(seed)
    return made


def _check(target_variance: float, tolerance: float, max_rescalings: int, batches: int) -> None:
    for name, value in {"target_variance": target_variance, "tolerance": tolerance}.items():
        if not (isinstance(value, int | float) and 0.0 < value < math.inf):
            raise InputError(f"{name} should be a finite number above 0, got {value!r}")
    for name, count in {"max_rescalings": max_rescalings, "batches": batches}.items():
        if not (isinstance(count, int) and count >= 1):
            raise InputError(f"{name} should be an integer of at least 1, got {count!r}")


def _batch(inputs: Any, batches: int, run: Callable[..., Any] | None) -> Any:
    if isinstance(inputs, Tensor | tuple | Mapping) or (run is not None and not isinstance(inputs, Iterable)):
        if batches != 1:
            raise InputError(f"batches={batches} needs a loader; one batch was given")
        return inputs
    if not isinstance(inputs, Iterable) or isinstance(inputs, str | bytes):
        raise InputError(
            f"inputs should be a tensor, a tuple, a mapping or an iterable of batches, got {type(inputs).__name__}"
        )
    taken = list(islice(inputs, batches))
    if not taken:
        raise InputError("the loader gave no batch")
    if run is None:
        taken = [batch[0] if isinstance(batch, list | tuple) and batch else batch for batch in taken]
    return taken[0] if len(taken) == 1 else _joined(taken)


def _joined(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches) if first.dim() else first
    if isinstance(first, Mapping):
        return {key: _joined([batch[key] for batch in batches]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined([batch[i] for batch in batches]) for i in range(len(first)))
    return first


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple):
        return model(*batch)
    raise InputError(
        f"a batch should be a tensor, a tuple or a mapping, got {type(batch).__name__}; say how to call the model with "
        "run=lambda model, batch: ..."
    )
