"""The parameters that a run watches: found once, looked at again at every recorded step."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from headwater.capture._torch_compat import is_compiled
from headwater.capture.names import ROOT, Filter, clean_names, parameter_role, weight_fans
from headwater.capture.parameters import list_parameters
from headwater.capture.training.equal_weights import checksums, equal_weights, varied
from headwater.capture.training.sharding import (
    Held,
    PartialSums,
    flat_shapes,
    has_shards,
    holding,
    local,
    reads_through,
    sentinels,
)
from headwater.errors import InputError
from headwater.records.step import WatchedTensor

__all__ = ["Changes", "Inventory", "Tracked", "prefixed"]

_GRAD, _REQUIRES_GRAD = attrgetter("grad"), attrgetter("requires_grad")


def prefixed(group: str, name: str) -> str:
    """A name as a run with several models shows it."""
    return f"{group}.{name}" if group else name


@dataclass(slots=True)
class Tracked:
    """One watched parameter.

    Attributes:
        owner: the module that registers it; weak, so that watching keeps no model alive.
        attribute: its name there.
        watched: its record.
        position: in the inventory.
    """

    owner: weakref.ref[nn.Module]
    attribute: str
    watched: WatchedTensor
    position: int

    def tensor(self) -> Tensor | None:
        """The parameter as it is now; None when it is gone."""
        owner = self.owner()
        if owner is None:
            return None
        found = owner._parameters.get(self.attribute)
        return found


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the parameters since they were last looked at: names.

    Attributes:
        frozen: no longer require a gradient.
        unfrozen: require one now.
        added: were not there before.
    """

    frozen: tuple[str, ...] = ()
    unfrozen: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


class Inventory:
    """Every parameter of one model that the filters let through, each storage once.

    Args:
        model: the model.
        group: name of the model/optimizer pair, empty when there is one only.
        keep: which ones, see :func:`headwater.capture.names.make_filter`.
    """

    def __init__(self, model: nn.Module, group: str, keep: Filter) -> None:
        self.model = weakref.ref(model)
        self.group = group
        self.keep = keep
        self.tracked: list[Tracked] = []
        self.excluded: dict[str, str] = {}
        self.compiled = False
        self._all: tuple[WatchedTensor, ...] = ()
        self._registered = -1
        self._sources: list[tuple[weakref.ref[nn.Module], str]] = []
        self._found: list[Tensor | None] | None = None
        self._trainable: list[bool] = []
        self._leaves: list[int] = []
        self._everywhere: list[int] = []
        self._layer_of: Mapping[str, tuple[str | None, int]] = {}
        self.sharded = False
        self._unreadable: dict[int, str] = {}
        self._partial = PartialSums()
        self.list_again()

    # ---------------------------------------------------------------- finding

    def list_again(self) -> Changes:
        """Walk through the model again: modules may have been added.

        Returns:
            What is new.
        """
        model = self.model()
        if model is None:
            return Changes()
        self._found = None
        names = clean_names(model)
        known = {t.watched.name: t for t in self.tracked}
        found: list[Tracked] = []
        self.excluded = {}
        self.sharded = has_shards(model)
        shapes = flat_shapes(model) if self.sharded else {}
        for parameter in list_parameters(names):
            owner = names[parameter.owner][0]
            name = prefixed(self.group, parameter.name)
            if not self.keep(parameter.name, parameter.tensor, owner, parameter.owner):
                self.excluded[name] = "excluded"
                continue
            tensor = parameter.tensor
            if is_lazy(tensor):
                raise InputError(f"{name} has no shape yet: run the lazy model once before watching it")
            shape = shapes[id(tensor)][0] if id(tensor) in shapes else tuple(tensor.shape)
            fans = weight_fans(parameter.owner, shape) if len(shape) >= 2 else None
            watched = WatchedTensor(
                kind="parameter",
                name=name,
                group=self.group,
                aliases=tuple(prefixed(self.group, alias) for alias in parameter.aliases),
                shape=shape,
                dtype=str(tensor.dtype).removeprefix("torch."),
                type=type(parameter.owner).__name__,
                role=parameter_role(parameter.owner, parameter.attribute, len(shape)),
                layer=prefixed(self.group, _layer_name(owner)),
                order=len(found),
                fan_in=fans[0] if fans else None,
                fan_out=fans[1] if fans else None,
                trainable=tensor.requires_grad,
            )
            found.append(Tracked(weakref.ref(parameter.owner), parameter.attribute, watched, len(found)))
        self.compiled = any(is_compiled(module) for module in names)
        self._registered = _registered(model)
        self.tracked = found
        self._sources = [(t.owner, t.attribute) for t in found]
        self._everywhere = list(range(len(found)))
        self._unreadable = (
            {i: h.holding.reason for i, h in enumerate(self.held()) if h.holding.reason} if self.sharded else {}
        )
        self._place()
        added = tuple(t.watched.name for t in found if t.watched.name not in known)
        return Changes(added=added if known else ())

    def look_again(self, *, for_new: bool = True) -> Changes:
        """See which parameters have been frozen or unfrozen, and walk through the model only if something was added.

        Args:
            for_new: look for new modules and parameters at all: one call per module.

        Returns:
            What changed.
        """
        changes = Changes()
        model = self.model()
        if for_new and model is not None and _registered(model) != self._registered:
            changes = self.list_again()
        try:
            if list(map(_REQUIRES_GRAD, self.tensors())) == self._trainable:
                return changes
        except AttributeError:
            pass  # a parameter is gone
        frozen: list[str] = []
        unfrozen: list[str] = []
        for tracked, tensor in zip(self.tracked, self.tensors(), strict=True):
            if tensor is not None and tensor.requires_grad != tracked.watched.trainable:
                (unfrozen if tensor.requires_grad else frozen).append(tracked.watched.name)
                tracked.watched = replace(tracked.watched, trainable=tensor.requires_grad)
        if not frozen and not unfrozen:
            return changes
        self._list_records()
        return Changes(tuple(frozen), tuple(unfrozen), changes.added)

    def place(self, layer_of: Mapping[str, tuple[str | None, int]]) -> None:
        """Take over which layer owns each parameter, and when it was first used.

        Args:
            layer_of: parameter name to (layer name, position in execution order).
        """
        self._layer_of = layer_of
        self._place()

    def _place(self) -> None:
        for tracked in self.tracked:
            known = self._layer_of.get(tracked.watched.name)
            if known is not None and known != (tracked.watched.layer, tracked.watched.order):
                tracked.watched = replace(tracked.watched, layer=known[0], order=known[1])
        self._list_records()

    def _list_records(self) -> None:
        self._all = tuple(t.watched for t in self.tracked)
        self._trainable = [watched.trainable for watched in self._all]

    # ---------------------------------------------------------------- reading

    def tensors(self) -> list[Tensor | None]:
        """The parameters as they are now, in the order of ``tracked``."""
        if self._found is not None:
            return self._found
        return [
            None if (owner := reference()) is None else owner._parameters.get(attribute)
            for reference, attribute in self._sources
        ]

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While nothing but headwater runs: the parameters are looked up once, unless some are added."""
        self._found = self.tensors()
        try:
            yield
        finally:
            self._found = None

    def gradients(self) -> tuple[list[int], list[Tensor]]:
        """Positions and gradients of the parameters that have one."""
        tensors = self.tensors()
        identities = list(map(id, tensors))
        plain = identities == self._leaves
        if not plain and all(p is not None and p.is_leaf for p in tensors):
            plain, self._leaves = True, identities
        found: list[Tensor | None] = list(map(_GRAD, tensors)) if plain else list(map(gradient_of, tensors))
        if self.sharded:
            return self._local_gradients(found)
        present = [g for g in found if g is not None]
        if len(present) == len(found):
            return self._everywhere, present
        return [i for i, g in enumerate(found) if g is not None], present

    def _local_gradients(self, found: Sequence[Tensor | None]) -> tuple[list[int], list[Tensor]]:
        """This process's pieces of them, where they can be read."""
        positions: list[int] = []
        pieces: list[Tensor] = []
        for position, (parameter, gradient) in enumerate(zip(self.tensors(), found, strict=True)):
            if parameter is None or gradient is None or position in self._unreadable:
                continue
            piece = self._partial.local(position, parameter, gradient)
            if position not in self._partial.unread:
                positions.append(position)
                pieces.append(piece)
        return positions, pieces

    def knows(self, gradient: Tensor, marks: Sequence[tuple[int, int]]) -> bool:
        """Whether a gradient that something was just added to is one of those of before.

        Args:
            gradient: this process's piece.
            marks: identities and versions of those of before.

        Returns:
            False where it is another tensor, or was written to in between.
        """
        if self.sharded:  # DTensor: adding to it leaves the version as it was
            return any(identity == id(gradient) for identity, _ in marks)
        return (id(gradient), gradient._version - 1) in marks

    def complete(self, positions: Sequence[int], gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The gradients as they are to be read: partial sums over ranks added up.

        Args:
            positions: of the parameters.
            gradients: from :meth:`gradients`.

        Returns:
            As many.
        """
        return self._partial.resolved(positions, gradients) if self.sharded else gradients

    def local_tensors(self) -> list[Tensor | None]:
        """The parameters, or this process's pieces of them; None for what cannot be read."""
        if not self.sharded:
            return self.tensors()
        return [
            None if p is None or i in self._unreadable or not reads_through(p) else local(p)
            for i, p in enumerate(self.tensors())
        ]

    def reason(self, position: int) -> str:
        """Why there is no gradient of a parameter to read."""
        return self._unreadable.get(position) or self._partial.unread.get(position) or "none"

    def sentinels(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        """Leaves at which a hook hears of a backward.

        Args:
            trainable: parameters that require a gradient.

        Returns:
            The same, or what stands for them.
        """
        model = self.model()
        return list(trainable) if model is None or not self.sharded else sentinels(model, trainable)

    def held(self, *, compared: bool = False) -> list[Held]:
        """Which piece of each parameter this process holds.

        Args:
            compared: with checksums.

        Returns:
            In the order of ``tracked``.
        """
        model, tensors = self.model(), self.tensors()
        flat = flat_shapes(model) if model is not None and self.sharded else {}
        holdings = [holding(p, flat[id(p)][1] if id(p) in flat else None) for p in tensors if p is not None]
        watched = [t.watched for t, p in zip(self.tracked, tensors, strict=True) if p is not None]
        if not compared:
            return [Held(t, h) for t, h in zip(watched, holdings, strict=True)]
        pieces = [local(p).detach() for p in tensors if p is not None]
        sums, varying = checksums(pieces), varied(pieces)
        return [Held(*each) for each in zip(watched, holdings, sums, varying, strict=True)]

    def equal_weights(self) -> list[tuple[str, ...]]:
        """Groups of weights that start with the same numbers, as far as this process holds them."""
        roles = ("weight", "embedding", "recurrent", "attention")
        return equal_weights(
            [
                (t.watched.name, p.detach())
                for t, p in zip(self.tracked, self.local_tensors(), strict=True)
                if p is not None and t.watched.role in roles
            ]
        )

    def watched(self, positions: Sequence[int]) -> tuple[WatchedTensor, ...]:
        """The records of some of the parameters; the same object for all of them, as long as nothing changes."""
        if len(positions) == len(self._all):
            return self._all
        return tuple(self._all[i] for i in positions)

    def without_optimizer(self, optimizers: Sequence[Optimizer]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Trainable parameters that no optimizer holds, and frozen ones that one does.

        Args:
            optimizers: of this model.

        Returns:
            Names of the first, names of the second.
        """
        held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        pairs = [(t.watched.name, p) for t in self.tracked if (p := t.tensor()) is not None]
        return (
            tuple(name for name, p in pairs if p.requires_grad and id(p) not in held),
            tuple(name for name, p in pairs if not p.requires_grad and id(p) in held),
        )


def _layer_name(owner: str) -> str:
    """The module that a parametrized weight (weight_norm) is for; the model itself for its own parameters."""
    owner = owner.split(".parametrizations.")[0]
    return owner or ROOT


def _registered(model: nn.Module) -> int:
    """A number that changes when modules or parameters are added or removed; cheap."""
    count = 0
    for module in model.modules():
        count += 1 + len(module._parameters)
    return count


def gradient_of(parameter: Tensor | None) -> Tensor | None:
    """``.grad`` of a leaf without the warning that others give."""
    if parameter is None or not parameter.is_leaf:
        return None
    gradient = parameter.grad
    return gradient if gradient is None or isinstance(gradient, torch.Tensor) else None
