"""What comes right before and right after a layer: activation, normalisation; by containers and source, nothing run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headwater.capture.dataflow import INPUT, Flow, Use, read_flow, submodules
from headwater.capture.names import layer_kind
from headwater.errors import InputError
from headwater.theory.elementwise import Elementwise, elementwise

__all__ = ["Spot", "Surroundings"]

_TRANSPARENT = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d, nn.Fold, nn.Unfold, nn.ChannelShuffle,
)  # fmt: skip
_WEIGHTS = ("linear", "convolution", "embedding", "recurrent", "attention")
_LINEAR = "linear"
_FARTHEST = 64  # hops from a layer to what follows it


@dataclass(frozen=True)
class Spot:
    """What surrounds one layer.

    Attributes:
        activation: name of what follows; ``linear`` when nothing elementwise does; None when it cannot be told.
        function: the activation; None for ``linear`` and unknown.
        normalized_input: a normalisation gives the layer its input.
        normalized_output: a normalisation takes the layer's output, before any activation.
    """

    activation: str | None = None
    function: Elementwise | None = None
    normalized_input: bool = False
    normalized_output: bool = False


@dataclass(frozen=True)
class _Place:
    """Where a module sits: the module whose forward calls it, and the path in there."""

    parent: nn.Module
    path: str


class Surroundings:
    """Answers what surrounds the layers of one model.

    Args:
        model: the root; only read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[nn.Module, _Place] = {}
        self._flows: dict[nn.Module, Flow | None] = {}
        self._functions: dict[object, Elementwise | None] = {}
        self._place(model, model, "")

    def _place(self, module: nn.Module, parent: nn.Module, path: str) -> None:
        for name, child in module._modules.items():
            if child is None or child in self._places:
                continue
            below = f"{path}.{name}" if path else name
            self._places[child] = _Place(parent, below)
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                self._place(child, parent, below)  # a list has no forward: its owner calls what is in it
            else:
                self._place(child, child, "")

    def _flow(self, module: nn.Module) -> Flow | None:
        if module not in self._flows:
            self._flows[module] = read_flow(module)
        return self._flows[module]

    def parent_of(self, module: nn.Module) -> nn.Module | None:
        """The module whose forward calls a layer.

        Args:
            module: the layer.

        Returns:
            Its parent, lists skipped; None for the root.
        """
        place = self._places.get(module)
        return None if place is None else place.parent

    def of(self, module: nn.Module) -> Spot:
        """What surrounds a layer.

        Args:
            module: the layer.

        Returns:
            The spot; all unknown where the source does not show it.
        """
        if module not in self._places:
            return Spot(activation=None)
        following = self._after(module, _FARTHEST)
        before = self._is_normalized(module, _FARTHEST)
        if following is None:
            return Spot(normalized_input=before)
        return Spot(following.activation, following.function, before, following.normalized_output)

    # ------------------------------------------------------------ after

    def _after(self, module: nn.Module, hops: int) -> Spot | None:
        """What the output of ``module`` meets first; None when it cannot be told."""
        if hops == 0:
            return None
        place = self._places.get(module)
        if place is None:
            return Spot(_LINEAR)  # the root's output: the caller's
        flow = self._flow(place.parent)
        uses = set() if flow is None else flow.uses_of(place.path)
        return self._agreed([self._meets(place.parent, use, hops - 1) for use in uses])

    @staticmethod
    def _agreed(spots: list[Spot | None]) -> Spot | None:
        if not spots or any(s is None or s.activation is None for s in spots):
            return None
        known = [s for s in spots if s is not None]
        if len({s.activation for s in known}) > 1:
            return None
        first = known[0]
        return Spot(first.activation, first.function, False, all(s.normalized_output for s in known))

    def _meets(self, parent: nn.Module, use: Use, hops: int) -> Spot | None:
        if use.how == "combined":
            return Spot(_LINEAR)
        if use.how == "return":
            return self._after(parent, hops)
        if use.how == "function":
            return Spot(use.path, self._function(use.function))
        if use.how == "unknown":
            return None
        found = submodules(parent, use.path)
        return self._entering(found[0], hops) if found else None

    def _entering(self, module: nn.Module, hops: int) -> Spot | None:
        """What a tensor that is given to ``module`` meets first."""
        if hops <= 0:
            return None
        kind = layer_kind(module)
        if kind in _WEIGHTS:
            return Spot(_LINEAR)
        if kind in ("dropout", "pooling") or isinstance(module, _TRANSPARENT):
            return self._after(module, hops - 1)
        if kind == "normalization":
            following = self._after(module, hops - 1)
            if following is None:
                return None
            return Spot(following.activation, following.function, False, True)
        if kind == "activation" or (kind == "other" and not any(True for _ in module.parameters())):
            function = self._function(module)
            return Spot(type(module).__name__, function) if function is not None else None
        flow = self._flow(module) if module._modules else None
        if flow is None:
            return None
        return self._agreed([self._meets(module, use, hops - 1) for use in flow.uses_of(INPUT)])

    def _function(self, fn: Any) -> Elementwise | None:
        # Modules of torch without values of their own are what their description says: one stands for all alike.
        key: object = fn
        if isinstance(fn, nn.Module) and type(fn).__module__.startswith("torch.nn.") and not fn.state_dict():
            key = repr(fn)
        if key not in self._functions:
            try:
                with torch.random.fork_rng(devices=[]):  # an unknown leaf may draw random numbers
                    self._functions[key] = elementwise(fn)
            except InputError:
                self._functions[key] = None  # not elementwise, or random: nothing can be said of it
        return self._functions[key]

    # ------------------------------------------------------------ before

    def _is_normalized(self, module: nn.Module, hops: int) -> bool:
        place = self._places.get(module)
        flow = None if place is None or hops == 0 else self._flow(place.parent)
        if place is None or flow is None:
            return False
        sources = flow.sources_of(place.path)
        return bool(sources) and all(self._gives_normalized(place.parent, source, hops - 1) for source in sources)

    def _gives_normalized(self, parent: nn.Module, source: str, hops: int) -> bool:
        if source == INPUT:
            return self._is_normalized(parent, hops)
        found = submodules(parent, source)
        if not found:
            return False
        kind = layer_kind(found[0])
        if kind == "normalization":
            return True
        if kind == "dropout" or isinstance(found[0], nn.Identity | nn.Flatten):
            return self._is_normalized(found[0], hops)
        return False
