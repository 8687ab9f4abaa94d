"""What a sampled step keeps of each layer, and the hooks that bring it."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headwater.capture._torch_compat import is_compiled
from headwater.capture.names import ROOT, Filter, clean_names, layer_kind
from headwater.capture.slopes import Elementwise
from headwater.capture.training.sharding import readable
from headwater.capture.training.units import UnitReading
from headwater.records.profile import LayerKind

if TYPE_CHECKING:
    from headwater.capture.training.layers import LayerWatch

__all__ = ["GradientHook", "Layer", "LayerHook", "Row", "layers_of"]


@dataclass(eq=False, slots=True)
class Layer:
    """One module that carries a hook."""

    module: weakref.ref[nn.Module]
    name: str
    aliases: tuple[str, ...]
    kind: LayerKind
    type: str
    owns_parameters: bool
    leads: bool  # says where the units of the activations after it are
    function: Elementwise | Literal[False] | None = False
    in_place: bool = False


@dataclass(eq=False, slots=True)
class Row:
    """One output of one call."""

    index: int
    call: int
    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    slot: int
    node: Any
    output_number: int
    gradient: int | None = None
    units: UnitReading | None = None

    @property
    def key(self) -> tuple[int, int, str]:
        """Module, call and output."""
        return self.index, self.call, self.path


class LayerHook:
    """On one module; a copy of it does nothing."""

    __slots__ = ("index", "watch")

    def __init__(self, watch: LayerWatch, index: int) -> None:
        self.watch, self.index = weakref.ref(watch), index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hand the output over."""
        if torch.compiler.is_compiling():  # traced as nothing: no graph break, and compiled code carries no hook
            return
        watch = self.watch()
        if watch is not None and watch.open:
            watch.called(self.index, module, args, output)

    def __reduce__(self) -> tuple[Any, ...]:
        # A callable of the standard library that takes anything and does nothing: a saved model loads without headwater.
        return (getattr, (contextlib.nullcontext(), "__exit__"))


class GradientHook:
    """On the output of a layer, for one backward."""

    __slots__ = ("row", "step", "watch")

    def __init__(self, watch: weakref.ref[LayerWatch], row: Row, step: int) -> None:
        self.watch, self.row, self.step = watch, row, step

    def __call__(self, gradient: Tensor) -> None:
        """Hand the gradient over."""
        watch = self.watch()
        if watch is None or watch.step != self.step or not (watch.open or self.row.gradient is None):
            return
        piece = gradient if type(gradient) is Tensor else readable(gradient)
        if piece is not None:
            self.row.gradient = watch.gradients.add(piece)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_SilentTensor, ())


class _SilentTensor:
    """What a copied tensor hook is."""

    def __call__(self, gradient: Tensor) -> None:
        return None


def layers_of(model: nn.Module, keep: Filter) -> tuple[list[Layer], tuple[str, ...]]:
    """The modules whose outputs are looked at.

    Args:
        model: the model.
        keep: filter of modules.

    Returns:
        The modules, and the names of compiled ones, which are not among them and in which no hook fires.
    """
    names = clean_names(model)
    inside: set[int] = set()
    compiled: list[str] = []
    for module, known in names.items():
        if is_compiled(module):
            compiled.append(known[0] or ROOT)
            inside.update(id(m) for m in module.modules())
        layers = [
            Layer(
                weakref.ref(module),
                known[0],
                known[1:],
                layer_kind(module),
                type(module).__name__,
                any(p is not None for p in module._parameters.values()),
                layer_kind(module) in ("convolution", "linear", "embedding", "attention"),
            )
            for module, known in names.items()
            if id(module) not in inside
            and not isinstance(module, torch.jit.ScriptModule)
            and not any(".parametrizations." in f".{name}." for name in known)
            and keep(known[0], module)
        ]
    return layers, tuple(dict.fromkeys(compiled))
