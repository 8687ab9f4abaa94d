"""Layers on a sampled step: what each puts out, the gradient that comes back to it, dead and saturated units."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from headwater.capture._torch_compat import in_backward, is_compiled
from headwater.capture.graph import walk
from headwater.capture.names import ROOT, Filter
from headwater.capture.slopes import Elementwise, SlopeReader
from headwater.capture.tensors import is_measurable, tensors_in
from headwater.capture.training.collector import Collector, joined
from headwater.capture.training.gradients import columns_of
from headwater.capture.training.inventory import Inventory, prefixed
from headwater.capture.training.layer_rows import GradientHook, Layer, LayerHook, Row, layers_of
from headwater.capture.training.raw import Piece
from headwater.capture.training.sharding import local, readable
from headwater.capture.training.units import UnitWindows, read_units
from headwater.records.step import WatchedTensor

__all__ = ["MOST_CALLS", "LayerWatch"]

MOST_CALLS = 16
"""Calls of one module that are looked at in one step; a loop over time makes more (chosen by us)."""


class LayerWatch:
    """Hooks on modules, there only while a step is sampled.

    Only the first backward of a step is looked at (of several micro-batches, the first), and only calls with gradients on:
    an evaluation in between leaves no trace. A module that is run again by activation checkpointing counts once.

    Args:
        model: held weakly.
        group: name of the model/optimizer pair.
        keep: filter of modules.
    """

    def __init__(self, model: nn.Module, group: str, keep: Filter) -> None:
        self.model = weakref.ref(model)
        self.group, self.keep = group, keep
        self.open = False
        self.step = 0
        self.compiled: tuple[str, ...] = ()
        self.silent = False
        self._layers: list[Layer] = []
        self._aliases_only: set[int] = set()
        self._handles: dict[int, Any] = {}
        self._fired: set[int] = set()
        self._slopes = SlopeReader()
        self._windows = UnitWindows()
        self._watched: dict[tuple[int, int, str], WatchedTensor] = {}
        self._trunk: dict[tuple[int, int, str], bool] | None = None
        self._placed = False
        self._first_index: dict[int, int] = {}
        self._list()
        self._unsafe: set[tuple[int, int, str]] = set()
        self._with_units = True
        self._reference = weakref.ref(self)
        self._earlier: list[Row] = []
        self._arrived: list[int | None] = []
        self._order_arrived: list[int] = []
        self._came_back: tuple[WatchedTensor, ...] = ()
        self._tensors: tuple[WatchedTensor, ...] = ()
        self._settled = False
        self._activations = Collector()
        self.gradients = Collector()
        self._clear()

    def _list(self) -> None:
        model = self.model()
        if model is not None:
            self._layers, self.compiled = layers_of(model, self.keep)

    def _clear(self) -> None:
        self._rows: list[Row] = []
        self._same = True  # as far as the rows go, those of the sampled step before
        self._activations.clear()
        self.gradients.clear()
        self._counts: dict[int, int] = {}
        self._known: dict[tuple[Any, int], Row] = {}
        self._order: dict[int, int] = {}
        self._channels_first = False
        self._gave_rows: set[int] = set()

    # ---------------------------------------------------------------- life

    def install(self, *, units: bool = True) -> None:
        """Hang up the hooks for the step to come, where they are not there from the step before.

        Args:
            units: look for dead and saturated units too.
        """
        self._clear()
        self._with_units = units
        self.step += 1
        self.open = True
        if self.silent:
            return
        for index, layer in enumerate(self._layers):
            if index not in self._handles and index not in self._aliases_only:
                module = layer.module()
                if module is not None and not is_compiled(module):
                    self._handles[index] = module.register_forward_hook(LayerHook(self, index))

    def rest(self) -> None:
        """Take the hooks off until the next sampled step.

        Those that have never fired stay: they cost nothing where they are, and a compiler that has traced the model with
        them in place would trace it again without them.
        """
        self.open = False
        self._known.clear()
        if self._handles.keys() <= self._fired:
            self.remove()
            return
        for index in self._fired & self._handles.keys():
            self._handles.pop(index).remove()

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self.open = False
        self._known.clear()

    def forget(self) -> None:
        """The model is gone: let go of what belongs to it."""
        for layer in self._layers:
            layer.function = None
        self._earlier = []
        self._clear()

    # ---------------------------------------------------------------- forward and backward

    def called(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """A module has returned.

        Args:
            index: of the module.
            module: the module.
            args: its positional arguments.
            output: what it returned.
        """
        if index not in self._order:
            self._order[index] = len(self._order)
        if not torch.is_grad_enabled():
            return  # an evaluation, or the first run of a reentrant checkpoint
        call = self._counts.get(index, 0)
        if call and (call >= MOST_CALLS or in_backward()):
            return
        self._counts[index] = call + 1
        layer = self._layers[index]
        if layer.leads:
            self._channels_first = layer.kind == "convolution"
        if isinstance(output, Tensor):
            self._record(index, layer, call, "", output, args)
        else:
            tensors = [(path, t) for path, t in tensors_in(output) if is_measurable(t)]
            for position, (path, tensor) in enumerate(tensors):
                self._record(index, layer, call, "" if position == 0 else path, tensor, args)
        if layer.name == "" and self._trunk is None and not in_backward():
            self._find_trunk(output)

    def _record(self, index: int, layer: Layer, call: int, path: str, tensor: Tensor, args: Any) -> None:
        node, number, dtype = tensor.grad_fn, tensor.output_nr, tensor.dtype
        key = (node if node is not None else id(tensor), number)
        if key in self._known or not (dtype.is_floating_point or dtype.is_complex):
            return
        piece = tensor if type(tensor) is Tensor else readable(tensor)
        if piece is None:
            return
        # Most often the same outputs as last time, in the same order: then the very same rows.
        count, shape = len(self._rows), tensor.shape
        row = self._earlier[count] if count < len(self._earlier) else None
        if row is None or (row.shape, row.dtype, row.index, row.call, row.path) != (shape, dtype, index, call, path):
            row = Row(index, call, path, shape, dtype, 0, node, number)
            self._same = False
        else:
            row.node, row.output_number, row.gradient, row.units = node, number, None, None
        # What a later operation overwrites in place is read at once; which outputs these are, the first step shows.
        at_once = not self._placed or (bool(self._unsafe) and row.key in self._unsafe)
        row.slot = self._activations.add(piece, at_once=at_once)
        self._known[key] = row
        self._gave_rows.add(index)
        self._rows.append(row)
        if not self._with_units or layer.kind not in ("activation", "other"):
            pass
        elif (function := self._function(layer)) is not None:
            row.units = read_units(
                self._slopes,
                function,
                layer.in_place,
                local(args[0]) if args and isinstance(args[0], Tensor) else None,
                piece,
                channels_first=self._channels_first or tensor.dim() == 4,
            )
        if tensor.requires_grad:
            tensor.register_hook(GradientHook(self._reference, row, self.step))

    def _function(self, layer: Layer) -> Elementwise | None:
        """What an activation computes; a module of a foreign class is tried once, torch's own never."""
        if layer.function is not False:
            return layer.function
        layer.function, module = None, layer.module()
        if module is None:
            return None
        if layer.kind == "other":
            plain = next(module.parameters(), None) is None and next(module.buffers(), None) is None
            foreign = not type(module).__module__.startswith("torch.nn.modules")
            if not (plain and foreign and self._slopes.is_elementwise(module)):
                return None
            layer.kind = "activation"
        layer.function = Elementwise.of_module(module)
        layer.in_place = bool(getattr(module, "inplace", False))
        return layer.function

    def _find_trunk(self, output: Any) -> None:
        """Which outputs every path from the model's output to its first parameters passes through."""
        roots = [t for _, t in tensors_in(output) if t.grad_fn is not None]
        if not roots or not self._rows:
            return
        root = next((t for t in roots if t.dim() == 0), roots[0])  # a model that returns its own loss
        graph = walk([root.grad_fn])
        depth = graph.depths()
        inside = [row for row in self._rows if row.node is not None and row.node in graph.index]
        owners = [row for row in inside if self._layers[row.index].owns_parameters]
        specific = [row for row in owners if self._layers[row.index].kind not in ("container", "other")] or owners
        trainable = [row for row in specific if self._is_trainable(row.index)]
        if not trainable:
            return
        target = max((graph.index[row.node] for row in trainable), key=lambda i: depth[i])
        members = {graph.nodes[i] for i in graph.dominators(target)}
        self._trunk = {
            row.key: row.node in members and row.output_number == 0 for row in self._rows if row.node is not None
        }

    def _is_trainable(self, index: int) -> bool:
        module = self._layers[index].module()
        return module is not None and any(p is not None and p.requires_grad for p in module._parameters.values())

    def end_of_backward(self, inventory: Inventory) -> None:
        """The first backward of the step is over: further micro-batches are not looked at.

        Args:
            inventory: the parameters, which learn what layer they belong to.
        """
        if not self.open or not self._rows:
            return
        self.open = False
        self._known.clear()
        lost = self._activations.finish()
        if lost:
            self._unsafe |= {row.key for row in self._rows if row.slot in lost}
        for row in self._rows:
            row.node = None
        if not self._placed:
            self._placed = True
            self._aliases_only = set(self._counts) - self._gave_rows
            self._place(inventory)

    def _place(self, inventory: Inventory) -> None:
        first: dict[str, tuple[str, int]] = {}
        for order, row in enumerate(self._rows):
            layer = self._layers[row.index]
            if row.path == "":
                first.setdefault(layer.name, (self._name(row), order))
        found: dict[str, tuple[str | None, int]] = {}
        for tracked in inventory.tracked:
            name = (tracked.watched.layer or "").removeprefix(f"{self.group}." if self.group else "")
            path = "" if name == ROOT else name
            while path not in first and path:
                path = path.rpartition(".")[0]
            if path in first:
                found[tracked.watched.name] = first[path]
            else:
                found[tracked.watched.name] = (tracked.watched.layer, len(self._rows) + tracked.position)
        inventory.place(found)

    def end_of_step(self) -> bool:
        """The step is over.

        Returns:
            Whether any layer was seen.
        """
        self.open = False
        self._fired |= self._order.keys()
        self._known.clear()
        for row in self._rows:
            row.node = None
        return bool(self._rows)

    # ---------------------------------------------------------------- the blocks of the row

    def _name(self, row: Row) -> str:
        layer = self._layers[row.index]
        many = self._counts.get(row.index, 0) > 1
        return prefixed(self.group, (layer.name or ROOT) + (f"#{row.call}" if many else "") + row.path)

    def _tensor(self, row: Row, order: int) -> WatchedTensor:
        name = self._name(row)
        known = self._watched.get(row.key)
        on_trunk = None if self._trunk is None else self._trunk.get(row.key, False)
        kind = self._layers[row.index].kind
        if known is not None and (known.name, known.shape, known.order, known.on_trunk, known.layer_kind) == (
            name, row.shape, order, on_trunk, kind,
        ):  # fmt: skip
            return known
        layer = self._layers[row.index]
        watched = WatchedTensor(
            kind="layer",
            name=name,
            group=self.group,
            aliases=tuple(prefixed(self.group, alias or ROOT) for alias in layer.aliases),
            shape=tuple(row.shape),
            dtype=str(row.dtype).removeprefix("torch."),
            type=layer.type,
            layer_kind=kind,
            order=order,
            on_trunk=on_trunk,
        )
        self._watched[row.key] = watched
        return watched

    def pieces(self, step: int) -> list[Piece]:
        """What the step showed.

        Args:
            step: the optimizer step.

        Returns:
            Blocks of activations, output gradients and units.
        """
        rows = self._rows
        if not rows:
            return []
        columns = columns_of("all")
        same = self._same and self._settled and len(rows) == len(self._tensors)
        if not same:
            self._tensors = tuple(self._tensor(row, order) for order, row in enumerate(rows))
            self._settled = self._trunk is not None
        tensors = self._tensors
        self._activations.finish()
        self.gradients.finish()
        pieces = [Piece("activation", None, tensors, columns, self._activations.table())]
        arrived = [row.gradient for row in rows]
        if not same or arrived != self._arrived:
            slots = {slot: t for t, slot in zip(tensors, arrived, strict=True) if slot is not None}
            self._arrived, self._order_arrived = arrived, sorted(slots)
            self._came_back = tuple(slots[i] for i in self._order_arrived)
        if self._came_back:
            chosen = None if len(self._order_arrived) == len(self.gradients) else self._order_arrived
            table = self.gradients.table(chosen)
            pieces.append(Piece("output_gradient", None, self._came_back, columns, table, scaled=True))
        units = [(t, row.units) for t, row in zip(tensors, rows, strict=True) if row.units is not None]
        if units:
            masks: list[Tensor] = []
            counts: list[Tensor] = []
            layout: list[tuple[WatchedTensor, int, bool, int]] = []
            for tensor, reading in units:
                layout.append((tensor, len(reading.alive), reading.saturated is not None, reading.elements))
                masks.append(reading.alive)
                if reading.saturated is not None:
                    counts.append(reading.saturated.reshape(1))
            finish = functools.partial(self._windows.rows, step, layout)
            extra = joined(counts) if counts else None
            pieces.append(Piece("units", None, (), (), joined(masks), finish=finish, extra=extra))
        self._rows, self._earlier = [], rows
        return pieces
