"""What a remedy may know of a model: the diagnosis, the shapes that pass through every module, the functions it calls."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headwater.capture.guard import untouched
from headwater.capture.names import clean_names, layer_kind
from headwater.records import Diagnosis, Finding, LayerKind

__all__ = ["Call", "Operation", "Patient", "examine"]

_WATCHED = frozenset({
    "sqrt", "sqrt_", "rsqrt", "log", "log2", "log10", "log1p", "sign", "sgn", "round", "floor", "ceil", "trunc", "pow", "__pow__",
    "softmax", "norm", "mul", "__mul__", "heaviside", "acos", "asin",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One module, and what passed through it in one forward.

    Attributes:
        name: its ``named_modules()`` name.
        module: the module.
        kind: what sort of layer it is.
        calls: how often it was called.
        input_shapes: of its first argument, one per call; None where that was no tensor.
        output_shapes: likewise.
        input_std: standard deviation of the first argument of the first call; None when it was no floating tensor.
        feeds_weights: whether a module with weights was called after it.
        constant_units: for an activation: features (channels of a picture) whose output was one value for the whole
            batch; empty for other layers.
    """

    name: str
    module: nn.Module
    kind: LayerKind
    calls: int
    input_shapes: tuple[tuple[int, ...] | None, ...]
    output_shapes: tuple[tuple[int, ...] | None, ...]
    input_std: float | None
    feeds_weights: bool
    constant_units: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of its input where every call and its output agree in it up to the batch; else None."""
        shapes = {s[1:] if s is not None else None for s in (*self.input_shapes, *self.output_shapes)}
        return self.input_shapes[0] if len(shapes) == 1 else None


@dataclass(frozen=True, slots=True)
class Operation:
    """One watched function that a forward called outside any layer of its own.

    Attributes:
        name: of the function, such as ``sqrt``.
        module: name of the innermost module whose forward called it.
        input_std: of its first argument; None when that was no floating tensor.
    """

    name: str
    module: str
    input_std: float | None


@dataclass(frozen=True)
class Patient:
    """A copy of the user's model, its diagnosis, and what one forward showed.

    Attributes:
        model: the copy; remedies only read it.
        diagnosis: of the copy.
        calls: by name, in the order in which the calls were completed.
        operations: in order.
        first_input: the first positional argument of the model; None when that was no tensor.
        output: the model's output when it is a tensor, detached; else None.
        keep_weights: whether the weights must not be drawn anew.
        weights_note: how that was decided.
        seed: of what the code draws.
    """

    model: nn.Module
    diagnosis: Diagnosis
    calls: Mapping[str, Call]
    operations: tuple[Operation, ...]
    first_input: Tensor | None
    output: Tensor | None
    keep_weights: bool = False
    weights_note: str = ""
    seed: int = 0

    @property
    def root(self) -> Finding | None:
        """The finding that gives the verdict."""
        return self.diagnosis.root

    @cached_property
    def profile_names(self) -> dict[str, str]:
        """``named_modules()`` name to the name that the profile uses (wrapper prefixes stripped)."""
        names = clean_names(self.model)
        return {name: names[module][0] for name, module in self.model.named_modules(remove_duplicate=False)}

    @cached_property
    def on_trunk(self) -> frozenset[str]:
        """Names of the modules whose output every path to the loss passes through."""
        rows = {
            alias.split("#")[0] for row in self.diagnosis.profile.trunk_layers for alias in (row.name, *row.aliases)
        }
        return frozenset(name for name, clean in self.profile_names.items() if clean in rows)

    @cached_property
    def residual_parts(self) -> bool:
        """Whether the gradient passes residual sums."""
        return any(point.kind == "residual" for point in self.diagnosis.profile.trunk)

    def found_at(self) -> frozenset[str]:
        """Names of the modules at which the root cause was found."""
        where = set() if self.root is None else {w.split("#")[0] for w in self.root.where}
        return frozenset(name for name, clean in self.profile_names.items() if clean in where)

    def hidden_activations(self) -> list[Call]:
        """Activation modules on the trunk with weights after them: neither a gate nor the output."""
        return [
            call
            for name, call in self.calls.items()
            if call.kind == "activation" and call.feeds_weights and (name in self.on_trunk or not self.on_trunk)
        ]

    def output_activation(self) -> Call | None:
        """The last activation or softmax, when no weights come after it."""
        last = [c for c in self.calls.values() if c.kind in ("activation", "softmax") and not c.feeds_weights]
        return last[-1] if last else None

    def every_name(self, module: nn.Module) -> tuple[str, ...]:
        """All names under which a module is registered."""
        return tuple(name for name, m in self.model.named_modules(remove_duplicate=False) if m is module)

    @property
    def seeded(self) -> str:
        """Two lines of code that open a block in which random numbers come from a seed of their own."""
        devices = sorted({p.device.index or 0 for p in self.model.parameters() if p.device.type == "cuda"})
        return f"with torch.no_grad(), torch.random.fork_rng(devices={devices}):\n    torch.manual_seed({self.seed})\n"

    @property
    def factory(self) -> str:
        """Keyword arguments that put a new layer where the model is; empty for float32 on the CPU."""
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if parameter is None:
            return ""
        device = "" if parameter.device.type == "cpu" else f', device="{parameter.device}"'
        dtype = "" if parameter.dtype is torch.float32 else f", dtype={parameter.dtype}"
        return device + dtype


class _Listener(TorchFunctionMode):
    """Notes the watched functions, and the module whose forward calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.operations: list[Operation] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = re.sub(r"\W", "", getattr(func, "__name__", ""))
        if name in _WATCHED and self.inside:
            self.operations.append(Operation(name, self.inside[-1], _std(args[0]) if args else None))
        return func(*args, **(kwargs or {}))


def _std(value: Any) -> float | None:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return None
    return float(value.detach().float().std())


def _constant_units(output: Any) -> tuple[int, ...]:
    if not isinstance(output, Tensor) or output.dim() < 2:
        return ()
    units = output.detach().movedim(1 if output.dim() == 4 else -1, 0).flatten(1)
    return tuple(torch.nonzero(units.amax(1) == units.amin(1)).flatten().tolist())


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def examine(
    model: nn.Module,
    run: Callable[[nn.Module], Any],
    diagnosis: Diagnosis,
    *,
    keep_weights: bool = False,
    weights_note: str = "",
    seed: int = 0,
) -> Patient:
    """Run one forward of a copy and note what passes through it.

    Args:
        model: only copied.
        run: calls a given model, and its loss.
        diagnosis: of the model.
        keep_weights: passed on to the patient.
        weights_note: passed on.
        seed: passed on.

    Returns:
        The patient.
    """
    twin = copy.deepcopy(model)
    originals = dict(model.named_modules())
    seen: dict[str, dict[str, Any]] = {}
    listener = _Listener()
    ends: dict[str, Any] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            listener.inside.append(name)
            first = args[0] if args else next(iter(kwargs.values()), None)
            record = seen.setdefault(name, {"inputs": [], "outputs": [], "std": _std(first)})
            record["inputs"].append(_shape(first))
            if name == "" and isinstance(first, Tensor) and "input" not in ends:
                ends["input"] = first.detach().clone()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            listener.inside.pop()
            record = seen.pop(name)  # to the end: the order of completion
            record["outputs"].append(_shape(output))
            if layer_kind(module) == "activation":
                record["constant"] = _constant_units(output)
            seen[name] = record
            if name == "" and isinstance(output, Tensor) and "output" not in ends:
                ends["output"] = output.detach().clone()

        return hook

    for name, module in twin.named_modules():
        module.register_forward_pre_hook(enter(name), with_kwargs=True)
        module.register_forward_hook(leave(name))
    with untouched(twin), listener:
        run(twin)
    calls: dict[str, Call] = {}
    weights_follow = False
    for name, record in reversed(seen.items()):
        module = originals[name]
        kind = layer_kind(module)
        calls[name] = Call(
            name,
            module,
            kind,
            len(record["outputs"]),
            tuple(record["inputs"]),
            tuple(record["outputs"]),
            record["std"],
            weights_follow,
            record.get("constant", ()),
        )
        weights_follow = weights_follow or kind in ("linear", "convolution", "recurrent", "attention")
    ordered = dict(reversed(calls.items()))
    return Patient(
        model,
        diagnosis,
        ordered,
        tuple(listener.operations),
        ends.get("input"),
        ends.get("output"),
        keep_weights,
        weights_note,
        seed,
    )


def folded(names: Iterable[str]) -> str:
    """A Python list of names for a snippet, broken into lines of at most about 110 characters.

    Args:
        names: the names.

    Returns:
        Source of a list.
    """
    words = [repr(name) for name in names]
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > 100:
            lines.append(line.rstrip())
            line = ""
        line += f"{word}, "
    lines.append(line.rstrip(", "))
    if len(lines) == 1:
        return f"[{lines[0]}]"
    return "[\n    " + "\n    ".join(lines) + ",\n]"
