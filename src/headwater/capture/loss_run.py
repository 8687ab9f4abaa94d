"""How the loss of a model is computed from what the user gave."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture.tensors import tensors_in
from headwater.errors import InputError, NothingObservedError
from headwater.records.profile import LossSource

__all__ = ["LossRun", "probe_seed"]

# Mixed into the seed, so that inputs drawn right after torch.manual_seed(0) are not the cotangent itself.
_PROBE_OFFSET = 0x68656164
_PROBE_SEED: ContextVar[int] = ContextVar("headwater_probe_seed", default=0)


@contextlib.contextmanager
def probe_seed(seed: int) -> Iterator[None]:
    """Probe outputs with another cotangent than the usual one: for repeating a diagnosis without a loss.

    Args:
        seed: of the Gaussian cotangent; 0 is the usual one.

    Yields:
        Nothing.
    """
    token = _PROBE_SEED.set(seed)
    try:
        yield
    finally:
        _PROBE_SEED.reset(token)


class LossRun:
    """Computes the loss of a model; remembers where it came from and the shapes that went in and out.

    Args:
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        targets: passed on to ``loss_fn``; None calls ``loss_fn(output)``.
        loss_fn: gives a scalar.
        loss: a function of the model that replaces the three, or None.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        loss_fn: Callable[..., Tensor] | None,
        loss: Callable[[nn.Module], Tensor] | None,
    ) -> None:
        self.inputs, self.targets, self.loss_fn, self.loss = inputs, targets, loss_fn, loss
        self.source: LossSource = "loss" if loss is not None else "loss_fn"
        self.probe_seed = _PROBE_SEED.get()  # once: every run, on the model and on copies, has the same cotangent
        first = next((t for _, t in tensors_in(inputs)), None)
        self.batch_size = first.shape[0] if first is not None and first.dim() > 0 else None
        target = [t for _, t in tensors_in(targets)]
        self.target_shape = tuple(target[0].shape) if len(target) == 1 else None
        self.target_dtype = str(target[0].dtype).removeprefix("torch.") if len(target) == 1 else None
        self.output_shape: tuple[int, ...] | None = None

    def __call__(self, model: nn.Module) -> Tensor:
        """The loss of ``model``; raises ``InputError`` for an output without a floating-point tensor."""
        if self.loss is not None:
            return self.loss(model)
        if self.loss_fn is None and not torch.is_grad_enabled():
            with torch.enable_grad():  # the probe is over the outputs that are differentiable: autograd must be on
                return self(model)
        if isinstance(self.inputs, Mapping):
            output = model(**self.inputs)
        elif isinstance(self.inputs, tuple) and not hasattr(self.inputs, "_fields"):
            output = model(*self.inputs)
        else:
            output = model(self.inputs)
        tensors = [(path, t) for path, t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
        if not tensors:
            raise InputError(
                f"{type(model).__name__} returned {type(output).__name__} without a floating-point tensor: there "
                "is nothing to differentiate; return the tensor, or pass loss=callable(model)"
            )
        self.output_shape = tuple(tensors[0][1].shape)
        if self.loss_fn is not None:
            return self.loss_fn(output) if self.targets is None else self.loss_fn(output, self.targets)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(own, Tensor) and own.numel() == 1:
            self.source = "model"
            return own
        self.source = "probe"
        return _probe([t for _, t in tensors if t.requires_grad], self.probe_seed)


def _probe(outputs: Sequence[Tensor], seed: int) -> Tensor:
    """Σ output · cotangent with a fixed-seed Gaussian cotangent of unit variance: ∂L/∂output is that cotangent."""
    if not outputs:
        raise NothingObservedError(
            "no output depends on a trainable parameter. Is the output detached, or computed under torch.no_grad()?"
        )
    generator = torch.Generator().manual_seed(_PROBE_OFFSET + seed)
    total = torch.zeros((), device=outputs[0].device)
    for output in outputs:
        real = torch.view_as_real(output) if output.is_complex() else output
        # Drawn on the CPU: the same cotangent on every device, and the model's random state is not touched.
        cotangent = torch.randn(real.shape, generator=generator).to(device=real.device, dtype=real.dtype)
        total = total.to(real.device) + (real * cotangent).sum(dtype=torch.promote_types(real.dtype, torch.float32))
    return total
