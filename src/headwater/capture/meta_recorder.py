"""Rows like those of a measurement, with the moments that an engine knows instead of statistics."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture._torch_compat import functions_unseen
from headwater.capture.meta_prediction import Moments
from headwater.capture.recorder import Call, Recorder, Row
from headwater.capture.tensors import is_measurable, tensors_in
from headwater.records import LayerKind, Statistics
from headwater.theory.forecast import Engine, Known, Law, Signal, Source

__all__ = ["MomentRecorder", "moments_of"]

_LARGEST_SAMPLE = 1 << 22  # elements of known values that moments are taken of; chosen by us
_NO_STATISTICS = Statistics.of([])


class MomentRecorder(Recorder):
    """Rows like those of a measurement, with what the engine knows instead of statistics."""

    def __init__(self, names: Mapping[nn.Module, tuple[str, ...]], batch_size: int | None, engine: Engine) -> None:
        super().__init__(names, lambda name, thing, *owner: True, batch_size)
        self.engine = engine
        self.activations: dict[int, Any] = {}
        self.gradients: dict[int, list[Any]] = {}
        self.inputs: dict[int, Any] = {}

    def _new_row(self, call: Call, path: str, kind: LayerKind, type_name: str, tensor: Tensor) -> Row:
        row = Row(call, path, kind, type_name, tuple(tensor.shape), tensor.dtype, _NO_STATISTICS)
        row.requires_grad = tensor.requires_grad
        self.rows.append(row)
        self.activations[id(row)] = self.engine.look_up(tensor)
        if tensor.requires_grad:
            row.node, row.output_number = tensor.grad_fn, tensor.output_nr
            if row.node is not None:
                self._by_node[row.node, row.output_number] = row
            found = self.gradients.setdefault(id(row), [])

            def arrived(gradient: Tensor | None) -> None:
                if self.phase == "backward" and gradient is not None:
                    found.append(self.engine.look_up(gradient))

            self._handles.append(tensor.register_hook(arrived))
        else:
            self._by_identity[id(tensor)] = (weakref.ref(tensor), tensor._version, row)
        return row

    def _watch_recurrent(self, call: Any, output: Any) -> None:
        pass  # the engine follows the gradient over time

    def _record(self, call: Call, path: str, tensor: Tensor, args: tuple[Any, ...]) -> None:
        known = self._known(tensor)
        if known is not None:
            known.aliases += [n for n in self.names[call.module] if n not in known.aliases and n != known.call.name]
            return
        row = self._new_row(call, path, call.kind, type(call.module).__name__, tensor)
        row.aliases += self.names[call.module][1:]
        # What a weight multiplies, as of a measurement; its moments are asked for when the run is over.
        owns_weight = any(p is not None and p.dim() >= 2 for p in call.module._parameters.values())
        source = next((t for _, t in tensors_in(args) if is_measurable(t)), None)
        if source is not None and owns_weight:
            self.inputs[id(row)] = self.engine.look_up(source)

    def function_called(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """A row for an activation that is called as a function, without a slope: there are no values."""
        with torch.no_grad(), functions_unseen():
            self._functional_row(name.rstrip("_"), "activation", out)

    def softmax_called(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A row for a softmax that is called as a function."""
        with torch.no_grad(), functions_unseen():
            self._functional_row("softmax", "softmax", out)


# -------------------------------------------------------------------- moments out of what is known


def moments_of(thing: Any) -> tuple[Moments | None, str | None]:
    """Mean over draws of log10 rms of a tensor, or why it is unknown.

    E log10 √Q ≈ log10 √E Q - v / (4 ln 10), v the relative variance of the mean square Q: the mean of the logarithm of a
    narrow log-normal law (Hanin, NeurIPS 2018: v = 5 Σ 1/n for ReLU networks).

    Args:
        thing: what the engine knows.

    Returns:
        The moments, or None and the operation that nothing is known after.
    """
    if isinstance(thing, Source):
        return None, thing.operation
    if thing is None:
        return None, "it was not seen"
    if isinstance(thing, Known):
        value = thing.value.detach().reshape(-1)
        value = value[:: max(1, value.numel() // _LARGEST_SAMPLE)].abs().double()
        square = float(value.square().mean()) if value.numel() else 0.0
        return Moments(_half_log10(square), 0.0), None
    if isinstance(thing, Law):
        return Moments(_half_log10(thing.square), 0.0), None
    assert isinstance(thing, Signal)
    if thing.structure is not None:
        return None, None  # attention weights, log-probabilities and losses: what matters of them is not their size
    average, spread = thing.stats.average(), max(0.0, thing.spread)
    if not (math.isfinite(average) and math.isfinite(spread)):
        return None, "moments beyond the range of float64"
    # Layers add to v one by one, as they do to the variance of the logarithm.
    return Moments(_half_log10(average) - spread / (4.0 * math.log(10.0)), spread), None


def _half_log10(square: float) -> float:
    return 0.5 * math.log10(square) if square > 0.0 else -math.inf
