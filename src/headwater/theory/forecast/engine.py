"""Follow the moments of every tensor through the operations that a run dispatches, one rule per operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from headwater.theory.forecast.axes import Axes, NoRuleError, Splits, axes_of_shape
from headwater.theory.forecast.signals import Known, Law, Source, Thing

__all__ = ["AXES", "RULES", "Call", "Engine", "Rule", "rule"]

_LARGEST_KNOWN = 1 << 22  # elements up to which constants are computed beside the run; chosen by us
_DENSE_POSITIONS = 256  # positions up to which statistics are kept per position; chosen by us
_DENSE_PIXELS = 1024  # the same for convolutions, which need no product of three position axes


class Call:
    """One dispatched operation.

    Args:
        engine: knows the tensors.
        name: of the operation, without overload.
        args: its arguments.
        kwargs: its keyword arguments.
        outputs: the tensors it returned.
    """

    def __init__(
        self, engine: Engine, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Sequence[Tensor]
    ) -> None:
        self.engine, self.name, self.args, self.kwargs, self.outputs = engine, name, list(args), kwargs, outputs

    @property
    def samples(self) -> int:
        """B."""
        return self.engine.samples

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output."""
        return tuple(self.outputs[0].shape)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """A non-tensor argument by position or name."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    def thing(self, position: int) -> Thing:
        """What is known of a tensor argument.

        Args:
            position: of the argument.

        Returns:
            The signal, law or values.

        Raises:
            NoRuleError: nothing is known.
        """
        found = self.engine.look_up(self.args[position])
        if found is None or isinstance(found, Source):
            raise NoRuleError("an argument about which nothing is known")
        return found


Layout: TypeAlias = "tuple[int, tuple[int, ...], tuple[int, ...]]"
"""Offset, shape and stride of a view of a memory."""
Result: TypeAlias = "Thing | Sequence[Thing | None] | None"
Rule: TypeAlias = Callable[[Call], Result]
RULES: dict[str, Rule] = {}
AXES: dict[str, Callable[[Call, Axes], tuple[Axes, list[Splits]]]] = {}
"""Operations that only rename dimensions: the new axes, and the splits of atoms that they need."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of the operations it is for.

    Args:
        *names: of aten operations, without overload.

    Returns:
        The decorator.

    Raises:
        ValueError: a name has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


# Their outputs tell nothing about gradients: no rule is missed.
_SILENT = {"detach_", "_local_scalar_dense", "_unsafe_index_put", "is_same_size"}
_VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "detach", "alias",
    "select", "slice",
}  # fmt: skip
_RANDOM = {
    "uniform", "normal", "normal_functional", "trunc_normal", "bernoulli", "rand", "randn", "rand_like", "randn_like",
    "randint", "randint_like", "randperm", "exponential", "log_normal", "native_dropout", "multinomial",
}  # fmt: skip


class Engine:
    """Holds what is known of every tensor of a run.

    Args:
        key: identity of a tensor's memory and layout: equal for the tensor that autograd saved and gives back.
        samples: B.
    """

    def __init__(self, key: Callable[[Tensor], tuple[Hashable, Layout]], samples: int = 1) -> None:
        self.key = key
        self.samples = samples
        self.unruled: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self._things: dict[Hashable, dict[Layout, Thing | Source]] = {}
        self._alive: list[Tensor] = []
        self.notes: dict[Hashable, Any] = {}

    # ---------------------------------------------------------------- tensors

    def look_up(self, tensor: Any) -> Thing | Source | None:
        """What is known of a tensor; None when it was never seen."""
        if not isinstance(tensor, Tensor):
            return None
        if not tensor.is_meta:
            return Known(axes_of_shape(tensor.shape), tensor)
        memory, layout = self.key(tensor)
        views = self._things.get(memory, {})
        if layout not in views:
            # A view made out of sight: of independent elements every view has the same law.
            laws = [(math.prod(place[1]), place, t) for place, t in views.items() if isinstance(t, Law)]
            if not laws:
                return None
            _, whole, law = max(laws, key=lambda entry: entry[0])
            if law.pieces and (shares := _shares(whole, layout)) is not None:
                return Law(axes_of_shape(tensor.shape), *law.part(*shares))
            pieces = law.pieces if math.prod(whole[1]) == tensor.numel() and tensor.is_contiguous() else ()
            return Law(axes_of_shape(tensor.shape), law.mean, law.variance, pieces)
        return views[layout]

    def remember(self, tensor: Tensor, thing: Thing | Source, *, overwrite: bool = False) -> None:
        """Attach what is known to a tensor.

        Args:
            tensor: on the meta device.
            thing: what is known.
            overwrite: the memory was written to: other views of it are forgotten.
        """
        memory, layout = self.key(tensor)
        known = self._things.setdefault(memory, {})
        if not known:
            self._alive.append(tensor)  # its memory is not handed out again while it is remembered
        if overwrite and known:
            for place in [p for p in known if p != layout and _overlap(p, layout)]:
                held = known.pop(place)
                shares = _shares(place, layout)
                if not isinstance(held, Law) or math.prod(place[1]) <= math.prod(layout[1]):
                    continue
                # Part of a memory of independent elements was overwritten: a padding row, the bias of one gate.
                if isinstance(thing, Law) and shares is not None:
                    start, stop = shares
                    new = [*held.parts(0.0, start), (stop - start, thing.mean, thing.variance), *held.parts(stop, 1.0)]
                    known[place] = Law.of_pieces(held.axes, new)
                elif isinstance(thing, Law):
                    share = tensor.numel() / math.prod(place[1])
                    both = Law.of_pieces(
                        (), [(1.0 - share, held.mean, held.variance), (share, thing.mean, thing.variance)]
                    )
                    known[place] = Law(held.axes, both.mean, both.variance)
                else:
                    known[place] = Source("a write into part of a tensor")
        known[layout] = thing

    def dense(self, positions: int, pixels: bool = False) -> bool:
        """Whether that many positions get statistics of their own."""
        return positions <= (_DENSE_PIXELS if pixels else _DENSE_POSITIONS)

    # ---------------------------------------------------------------- operations

    def apply(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, function: Any) -> None:
        """Find what one operation makes of what is known.

        Args:
            name: of the operation, without overload.
            args: its arguments.
            kwargs: its keyword arguments.
            result: what it returned on the meta device.
            function: calls the operation again, for constants.
        """
        outputs = [t for t in _tensors(result) if isinstance(t, Tensor)]
        if not outputs or name in _SILENT:
            return
        in_place = name.endswith("_") and not name.endswith("__")
        bare = name.rstrip("_") if in_place else name
        inputs = [self.look_up(t) for t in _tensors((args, tuple(kwargs.values()))) if isinstance(t, Tensor)]
        constant = function is not None and bare not in _RANDOM and all(isinstance(t, Known) for t in inputs)
        if constant and self._computed(bare, args, kwargs, outputs, function, in_place):
            return
        lost = next((t for t in inputs if isinstance(t, Source)), None)
        found: Sequence[Thing | Source | None]
        try:
            if bare not in RULES:
                raise NoRuleError(lost.operation if lost else "")
            answer = RULES[bare](Call(self, bare, args, kwargs, outputs))
            found = list(answer) if isinstance(answer, list | tuple) else [answer]  # type: ignore[list-item]
        except NoRuleError as error:
            if lost is None and any(t is not None for t in inputs):
                self.unruled[bare] = self.unruled.get(bare, 0) + 1
                self.reasons.setdefault(bare, str(error) or "no rule")
            found = [lost or Source(bare)] * len(outputs)
        except Exception as error:  # a mistake in one rule leaves what is behind it unknown, and is named
            self.unruled[bare] = self.unruled.get(bare, 0) + 1
            self.reasons.setdefault(bare, f"the rule failed: {type(error).__name__}: {error}")
            found = [lost or Source(bare)] * len(outputs)
        for tensor, thing in zip(outputs, found, strict=False):
            if thing is not None:
                self.remember(tensor, thing, overwrite=in_place)

    def _computed(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: Sequence[Tensor],
        function: Any,
        in_place: bool,
    ) -> bool:
        """Compute an operation on known values for real, when it is small."""
        if sum(t.numel() for t in outputs) > _LARGEST_KNOWN and name not in _VIEWS:
            return False  # a view of known values takes no memory

        def real(value: Any) -> Any:
            if isinstance(value, Tensor):
                known = self.look_up(value)
                assert isinstance(known, Known)
                return known.value.detach()
            if isinstance(value, list | tuple):
                return type(value)(real(v) for v in value)
            if isinstance(value, torch.device):
                return torch.device("cpu")
            return value

        arguments = [real(a) for a in args]
        if in_place and isinstance(arguments[0], Tensor):
            arguments[0] = arguments[0].clone()
        answer = function(*arguments, **{k: real(v) for k, v in kwargs.items()})
        values = [t for t in _tensors(answer) if isinstance(t, Tensor)]
        given = [k for t in _tensors((args,)) if isinstance(t, Tensor) and isinstance(k := self.look_up(t), Known)]
        for tensor, value in zip(outputs, values, strict=True):
            if name in AXES and given and name != "copy":
                call = Call(self, name, args, kwargs, outputs)
                try:
                    axes = AXES[name](call, given[0].axes)[0]
                except NoRuleError:
                    axes = axes_of_shape(value.shape)
            else:
                axes = _inherited(value, given)
            self.remember(tensor, Known(axes, value), overwrite=in_place)
        return True


def _overlap(first: Layout, second: Layout) -> bool:
    """Whether two views (offset, shape, stride) of one memory may share an element."""
    (a, shape, stride), (b, other, other_stride) = first, second
    if shape != other or stride != other_stride:
        end = a + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        other_end = b + sum((n - 1) * s for n, s in zip(other, other_stride, strict=True))
        return a <= other_end and b <= end
    # Chunks of one tensor: apart when one coordinate of the offset is a whole view away.
    gap = abs(a - b)
    for n, s in sorted(zip(shape, stride, strict=True), key=lambda pair: -pair[1]):
        if s > 0:
            if gap // s >= n:
                return False
            gap %= s
    return gap == 0


def _shares(whole: Layout, part: Layout) -> tuple[float, float] | None:
    """Where a contiguous view lies in a contiguous memory, as shares of it."""
    (a, shape, stride), (b, other, other_stride) = whole, part
    if not (_contiguous(shape, stride) and _contiguous(other, other_stride)):
        return None
    total = math.prod(shape)
    start, stop = (b - a) / total, (b - a + math.prod(other)) / total
    return (start, stop) if start >= 0.0 and stop <= 1.0 else None


def _contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for n, s in zip(reversed(shape), reversed(stride), strict=True):
        if n != 1 and s != expected:
            return False
        expected *= n
    return True


def _inherited(value: Tensor, given: Sequence[Known]) -> Axes:
    """Dimensions keep their atoms while the shape stays."""
    for known in given:
        if tuple(known.value.shape) == tuple(value.shape):
            return known.axes
    return axes_of_shape(value.shape)


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _tensors(v)]
    return []
