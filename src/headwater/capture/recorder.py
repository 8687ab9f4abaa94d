"""Hooks: one row for every tensor that a module call, or an activation function, produces."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from headwater.capture._torch_compat import current_sequence_number, functions_unseen
from headwater.capture.names import ROOT, Filter, layer_kind
from headwater.capture.recurrent import RecurrentCall
from headwater.capture.slopes import Elementwise, Slope, SlopeReader, slope_statistics, softmax_saturation
from headwater.capture.tensors import is_measurable, tensors_in
from headwater.records import LayerKind, Statistics
from headwater.stats import between_sample_fraction, position_cosine, summarize

__all__ = ["Call", "Recorder", "Row"]


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        module: the module.
        name: its clean name.
        index: which call of this module, from 0.
        kind: what sort of layer it is.
        parent: the call it happened in.
        begin: sequence number that the next autograd node would have had when it began.
        end: the same when it returned.
    """

    module: nn.Module
    name: str
    index: int
    kind: LayerKind
    parent: Call | None
    begin: int
    end: int = 0
    recurrent: RecurrentCall | None = None
    overwritten_input: Tensor | None = None


@dataclass(eq=False)
class Row:
    """One recorded tensor, until it becomes a LayerProfile."""

    call: Call
    path: str
    kind: LayerKind
    type: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    activation: Statistics
    node: Any = None
    output_number: int = 0
    aliases: list[str] = field(default_factory=list)
    gradient: Statistics | None = None
    requires_grad: bool = False
    slope: Slope | None = None
    saturated_fraction: float | None = None
    between_sample_fraction: float | None = None
    position_cosine: float | None = None
    input_rms_log10: float | None = None
    fingerprint: Tensor | None = None


# Calls of functions that have no module: name to the functions, in-place variants included.
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "relu": (torch.relu, F.relu, Tensor.relu), "relu_": (torch.relu_, F.relu_, Tensor.relu_),
    "sigmoid": (torch.sigmoid, F.sigmoid, Tensor.sigmoid), "sigmoid_": (torch.sigmoid_, Tensor.sigmoid_),
    "tanh": (torch.tanh, F.tanh, Tensor.tanh), "tanh_": (torch.tanh_, Tensor.tanh_),
    "gelu": (F.gelu,), "silu": (F.silu,), "mish": (F.mish,), "leaky_relu": (F.leaky_relu,), "elu": (F.elu,),
    "selu": (F.selu, torch.selu), "celu": (F.celu, torch.celu), "softplus": (F.softplus,), "hardtanh": (F.hardtanh,),
    "relu6": (F.relu6,), "hardswish": (F.hardswish,), "hardsigmoid": (F.hardsigmoid,), "softsign": (F.softsign,),
    "logsigmoid": (F.logsigmoid,),
}  # fmt: skip
_SOFTMAXES = (torch.softmax, F.softmax, Tensor.softmax)
_NAME_OF = {function: name for name, functions in _ACTIVATIONS.items() for function in functions}


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


class _FunctionalActivations(TorchFunctionMode):
    """Sees ``F.relu(x)`` and its kin inside the model, where there is no module to hook."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _NAME_OF.get(function)
        if name is not None:
            # An in-place activation overwrites what its slope is asked at.
            in_place = kwargs.get("inplace", False) or name.endswith("_")
            source = _cloned(args[0]) if in_place and args else args[0] if args else None
            out = function(*args, **kwargs)
            self.recorder.function_called(name, function, (source, *args[1:]), kwargs, out)
            return out
        out = function(*args, **kwargs)
        if function in _SOFTMAXES:
            self.recorder.softmax_called(args, kwargs, out)
        return out


class Recorder:
    """Watches one forward and one backward of a model through hooks, and keeps statistics only.

    Args:
        names: modules with their clean names.
        keep: which (name, module) to look at.
        batch_size: first dimension of the inputs, or None.
    """

    def __init__(self, names: Mapping[nn.Module, tuple[str, ...]], keep: Filter, batch_size: int | None) -> None:
        self.names = names
        self.keep = keep
        self.batch_size = batch_size
        self.phase: Literal["forward", "backward"] = "forward"
        self.calls: list[Call] = []
        self.rows: list[Row] = []
        self.without_tensor: dict[str, str] = {}
        self._stack: list[Call] = []
        self._counts: dict[nn.Module, int] = {}
        self._function_counts: dict[tuple[int, str], int] = {}
        self._by_node: dict[tuple[Any, int], Row] = {}
        self._by_identity: dict[int, tuple[weakref.ref[Tensor], int, Row]] = {}
        self._pending: dict[tuple[nn.Module, str], list[Row]] = {}
        self._handles: list[Any] = []
        self._kinds = {module: layer_kind(module) for module in names}
        self._slopes = SlopeReader()
        self._channels_first = False
        self._has_tokens = any(
            kind in ("embedding", "attention") or isinstance(m, nn.LayerNorm) for m, kind in self._kinds.items()
        )

    # ---------------------------------------------------------------- life

    def functions(self) -> TorchFunctionMode:
        """A context in which activation functions that are no modules are seen too: for the forward."""
        return _FunctionalActivations(self)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on, hooks off, also when the forward raises.

        Yields:
            Nothing.
        """
        try:
            for module, names in self.names.items():
                # A parametrization makes a weight, not an activation; a scripted module takes no Python hook.
                hidden = any(".parametrizations." in f".{name}." for name in names)
                if hidden or isinstance(module, torch.jit.ScriptModule) or not self.keep(names[0], module):
                    continue
                self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))
            yield
        finally:
            self.detach()

    def detach(self) -> None:
        """Remove every hook, those on tensors included."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stack.clear()

    @staticmethod
    def _occupied() -> Any:
        """A context in which functions that headwater calls itself make no rows."""
        return functions_unseen()

    # ---------------------------------------------------------------- module hooks

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        index = self._counts.get(module, 0)
        if self.phase == "forward":
            self._counts[module] = index + 1
        parent = self._stack[-1] if self._stack else None
        call = Call(module, self.names[module][0], index, self._kinds[module], parent, current_sequence_number())
        if self.phase == "forward" and isinstance(module, nn.RNNBase) and torch.is_grad_enabled():
            call.recurrent = RecurrentCall.begin(module, args, kwargs)
        if call.kind == "activation" and getattr(module, "inplace", False) and args and isinstance(args[0], Tensor):
            call.overwritten_input = _cloned(args[0])
        self._stack.append(call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # A forward that raised and was caught inside the model never came here: its call is dropped with it.
        while self._stack and self._stack[-1].module is not module:
            self._stack.pop()
        if not self._stack:
            return
        call = self._stack.pop()
        with torch.no_grad(), self._occupied():
            if self.phase == "backward":
                self._recomputed(call, output)
                return
            call.end = current_sequence_number()
            self.calls.append(call)
            if call.kind in ("convolution", "linear", "embedding", "attention"):
                self._channels_first = call.kind == "convolution"
            tensors = [(path, t) for path, t in tensors_in(output) if is_measurable(t)]
            if not tensors and not module._modules:
                self.without_tensor[call.name or ROOT] = "no floating-point tensor in its output"
            for position, (path, tensor) in enumerate(tensors):
                self._record(call, "" if position == 0 else path, tensor, args)
            if call.recurrent is not None:
                self._watch_recurrent(call.recurrent, output)

    def _record(self, call: Call, path: str, tensor: Tensor, args: tuple[Any, ...]) -> None:
        known = self._known(tensor)
        if known is not None:
            known.aliases += [n for n in self.names[call.module] if n not in known.aliases and n != known.call.name]
            return
        kind = call.kind
        source = next((t for _, t in tensors_in(args) if is_measurable(t)), None)
        same_shape = source is not None and source.shape == tensor.shape
        if kind == "other" and same_shape and self._is_foreign_activation(call.module):
            call.kind = kind = self._kinds[call.module] = "activation"
        row = self._new_row(call, path, kind, type(call.module).__name__, tensor)
        row.aliases += self.names[call.module][1:]
        if call.overwritten_input is not None:
            source, call.overwritten_input = call.overwritten_input, None
        if source is not None:
            row.input_rms_log10 = self._rms_log10(call, source)
        if kind == "activation" and source is not None and same_shape:
            function = Elementwise.of_module(call.module)
            if function is not None:
                row.slope = slope_statistics(
                    self._slopes, function, source, tensor, row.activation, channels_first=self._channels_first
                )
        elif kind == "softmax":
            dimension = getattr(call.module, "dim", -1)
            row.saturated_fraction = softmax_saturation(tensor, -1 if dimension is None else dimension, source)

    def _rms_log10(self, call: Call, source: Tensor) -> float | None:
        """What a weight multiplies; most often another row's tensor, whose statistics are there already."""
        known = self._known(source)
        if known is not None:
            return known.activation.rms_log10
        owns_weight = any(p is not None and p.dim() >= 2 for p in call.module._parameters.values())
        return summarize(source).rms_log10 if owns_weight and is_measurable(source) else None

    def _is_foreign_activation(self, module: nn.Module) -> bool:
        plain = next(module.parameters(), None) is None and next(module.buffers(), None) is None
        foreign = not type(module).__module__.startswith("torch.nn.modules")
        return plain and foreign and self._slopes.is_elementwise(module)

    def _new_row(self, call: Call, path: str, kind: LayerKind, type_name: str, tensor: Tensor) -> Row:
        statistics = summarize(tensor)
        row = Row(call, path, kind, type_name, tuple(tensor.shape), tensor.dtype, statistics)
        row.requires_grad = tensor.requires_grad
        sample_dimension = self._sample_dimension(call, tensor)
        if sample_dimension is not None:
            samples = tensor if sample_dimension == 0 else tensor.transpose(0, sample_dimension)
            row.between_sample_fraction = between_sample_fraction(samples, statistics)
            if self._has_tokens and tensor.dim() == 3 and kind != "convolution":
                row.position_cosine = position_cosine(samples)
        self.rows.append(row)
        if tensor.requires_grad:
            row.node, row.output_number = tensor.grad_fn, tensor.output_nr
            if row.node is not None:
                self._by_node[row.node, row.output_number] = row
            self._watch_gradient(row, tensor)
        else:
            self._by_identity[id(tensor)] = (weakref.ref(tensor), tensor._version, row)
            # Reentrant checkpointing runs the forward without a graph and again, with one, during the backward.
            row.fingerprint = tensor.detach().flatten()[:16].clone()
            self._pending.setdefault((call.module, path), []).append(row)
        return row

    def _known(self, tensor: Tensor) -> Row | None:
        if tensor.requires_grad:
            return None if tensor.grad_fn is None else self._by_node.get((tensor.grad_fn, tensor.output_nr))
        reference, version, row = self._by_identity.get(id(tensor), (None, 0, None))
        return row if reference is not None and reference() is tensor and version == tensor._version else None

    def _sample_dimension(self, call: Call, tensor: Tensor) -> int | None:
        if tensor.dim() < 2 or tensor.is_complex():
            return None
        step: Call | None = call
        while step is not None:
            if getattr(step.module, "batch_first", True) is False and tensor.dim() == 3:
                return 1
            step = step.parent
        return 0 if self.batch_size is None or tensor.shape[0] == self.batch_size else None

    # ---------------------------------------------------------------- functions without a module

    def _functional_row(self, name: str, kind: LayerKind, out: Any) -> Row | None:
        if self.phase != "forward" or not self._stack or not isinstance(out, Tensor) or not is_measurable(out):
            return None
        call = self._stack[-1]
        if call.kind in ("activation", "softmax", "recurrent") or self._known(out) is not None:
            return None
        if call.kind == "other" and self._is_foreign_activation(call.module):
            return None
        number = self._function_counts.get((id(call), name), 0)
        self._function_counts[id(call), name] = number + 1
        return self._new_row(call, f":{name}" + (f"#{number}" if number else ""), kind, name, out)

    def function_called(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """An activation function ran inside the model."""
        with torch.no_grad(), self._occupied():
            row = self._functional_row(name.rstrip("_"), "activation", out)
            if row is not None and args and isinstance(args[0], Tensor):
                activation = Elementwise.of_call(name, function, args, kwargs)
                row.slope = slope_statistics(
                    self._slopes, activation, args[0], out, row.activation, channels_first=self._channels_first
                )

    def softmax_called(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """A softmax ran inside the model."""
        with torch.no_grad(), self._occupied():
            row = self._functional_row("softmax", "softmax", out)
            dimension = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            if row is not None and isinstance(dimension, int):
                scores = args[0] if args and isinstance(args[0], Tensor) else None
                row.saturated_fraction = softmax_saturation(out, dimension, scores)

    # ---------------------------------------------------------------- gradients

    def _watch_gradient(self, row: Row, tensor: Tensor) -> None:
        def arrived(gradient: Tensor) -> None:
            # A loss with a gradient in it (a gradient penalty) sends one back during the forward: not ∂L/∂output.
            if self.phase == "forward":
                return
            statistics = summarize(gradient)
            row.gradient = statistics if row.gradient is None else row.gradient + statistics

        self._handles.append(tensor.register_hook(arrived))

    def _watch_recurrent(self, call: RecurrentCall, output: Any) -> None:
        for position, tensor in call.finish(output):
            if tensor.requires_grad:

                def arrived(gradient: Tensor, position: int = position) -> None:
                    if self.phase == "forward":
                        return
                    call.gradients[position] = gradient.detach()

                self._handles.append(tensor.register_hook(arrived))

    def _recomputed(self, call: Call, output: Any) -> None:
        """A checkpoint runs this module again during the backward: only gradients that are still wanted are hooked."""
        tensors = [(path, t) for path, t in tensors_in(output) if is_measurable(t)]
        for position, (path, tensor) in enumerate(tensors):
            waiting = self._pending.get((call.module, "" if position == 0 else path), [])
            if not tensor.requires_grad or not waiting:
                continue
            print_ = tensor.detach().flatten()[:16]
            # Calls of one module come back block by block, the last block first: the numbers tell which is which.
            row = next(
                (r for r in waiting if r.fingerprint is not None and torch.equal(r.fingerprint, print_)), waiting[-1]
            )
            waiting.remove(row)
            row.requires_grad = True
            row.node, row.output_number = tensor.grad_fn, tensor.output_nr
            self._watch_gradient(row, tensor)
