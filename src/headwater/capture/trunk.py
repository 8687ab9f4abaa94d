"""The trunk: the tensors that every path from the loss to the first parameters passes through."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from headwater.capture._torch_compat import is_recomputing_node, sequence_number
from headwater.capture.graph import AutogradGraph, Node, operation_kind, walk
from headwater.capture.names import ROOT
from headwater.capture.parameters import NamedParameter
from headwater.capture.recorder import Call, Row
from headwater.records import LayerKind, Statistics, TimeProfile, TrunkPoint
from headwater.records.profile import TrunkKind
from headwater.stats import summarize

__all__ = ["Trunk", "find_trunk"]

_SPECIFIC_KINDS: dict[LayerKind, TrunkKind] = {
    "activation": "activation", "normalization": "normalization", "attention": "attention", "recurrent": "recurrent",
    "dropout": "dropout", "pooling": "pooling", "embedding": "embedding", "softmax": "attention",
    "linear": "weights", "convolution": "weights",
}  # fmt: skip


LOOP_STEPS = 8
"""Uses of one weight along the trunk from which on they are read as steps in time (chosen by us)."""


@dataclass
class _Point:
    position: int
    node: Any
    row: Row | None
    gradient: Statistics | None = None


class Trunk:
    """The dominators of one graph and the gradients that arrive at them.

    Args:
        graph: the autograd graph of the loss.
        chain: positions of the dominators, loss first, the first parameters' operation last.
        rows: recorded rows by (node, output number).
        calls: module calls, in the order of their completion.
    """

    def __init__(
        self, graph: AutogradGraph, chain: Sequence[int], rows: Mapping[tuple[Any, int], Row], calls: Sequence[Call]
    ) -> None:
        self.graph = graph
        self.chain = list(chain)
        self._rows = rows
        self._owner = _owners(graph, calls)
        self._handles: list[Any] = []
        self.members = {graph.nodes[i] for i in self.chain}
        self._recomputed: dict[int, list[Row]] = {}
        self._points = [_Point(i, graph.nodes[i], rows.get((graph.nodes[i], 0))) for i in self._accounted()]

    def _accounted(self) -> list[int]:
        """The dominators between which the account is drawn up, loss first.

        A view only renames its input: the gradient statistics are the same on both sides. And how a layer works inside
        (the padding of a circular convolution, the parts of a composite norm) is the layer's affair.
        """
        kept: list[int] = []
        above: int | None = None  # the nearest operation towards the loss that is no view
        for position in self.chain:
            node = self.graph.nodes[position]
            if operation_kind(node.name()) != "reshape" or position == self.chain[-1]:
                owner = self._owner[position]
                inside = (
                    owner is not None
                    and owner.kind in _SPECIFIC_KINDS
                    and above is not None
                    and self._owner[above] is owner
                    and (node, 0) not in self._rows
                )
                if not inside or position == self.chain[-1]:
                    kept.append(position)
                above = position
        return kept

    def watch(self) -> None:
        """Hook the trunk operations whose output no row observes already."""
        for point in self._points:
            if point.row is None or not point.row.requires_grad:

                def arrived(gradients: tuple[Tensor | None, ...], point: _Point = point) -> None:
                    if gradients and gradients[0] is not None:
                        point.gradient = summarize(gradients[0])

                self._handles.append(point.node.register_prehook(arrived))

    def release(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def absorb_recomputed(
        self, rows: Sequence[Row], parameters: Mapping[int, Tensor], roots: Sequence[Sequence[Node]]
    ) -> None:
        """Continue the trunk inside reentrant checkpoints, whose graphs exist only once the backward recomputed them.

        Args:
            rows: every row, in execution order.
            parameters: ``id`` to parameter.
            roots: where the backwards through recomputed graphs began. A checkpoint with several outputs has no single
                root, and nothing inside it is on the trunk.
        """
        inners = [walk(root) for root in roots if len(root) == 1 and root[0] not in self.graph.index]
        for position in self.chain:
            node = self.graph.nodes[position]
            if not is_recomputing_node(node):
                continue
            # Its node is made first; its modules run without a graph before the next node is made.
            begin, end = sequence_number(node), self._next_number(node)
            region = [
                row
                for row in rows
                if row.node is not None
                and row.node not in self.graph.index
                and begin < row.call.begin
                and row.call.end <= end
            ]
            inner = next((g for g in inners if any(row.node in g.index for row in region)), None)
            if inner is None:
                continue
            entries = [i for i, leaf in inner.leaves.items() if id(leaf) not in parameters]
            reached = [i for i in entries if inner.reaching(i)[0]]
            if reached:
                depth = inner.depths()
                chain = inner.dominators(max(reached, key=lambda i: depth[i]))
                self.members |= {inner.nodes[i] for i in chain}
                self._recomputed[position] = [row for row in region if self.on_trunk(row)]

    def _next_number(self, node: Any) -> int:
        number = sequence_number(node)
        return min((n for other in self.graph.nodes if (n := sequence_number(other)) > number), default=number)

    def on_trunk(self, row: Row) -> bool:
        """Whether a row's tensor is one that every path passes through."""
        return row.node is not None and row.node in self.members and row.output_number == 0

    def loops(self, parameters: Sequence[NamedParameter]) -> list[TimeProfile]:
        """Weights used again and again along the trunk: a recurrence written as a loop.

        Args:
            parameters: the parameters looked at.

        Returns:
            The gradient at each use, the first one first, under the name of the module that was called repeatedly or
            of the parameter itself; torch's own recurrent modules and cells are left to their own unrolling.
        """
        at = {point.position: point for point in self._points}
        matrices = [
            p for p in parameters if p.tensor.dim() >= 2 and not isinstance(p.owner, nn.RNNBase | nn.RNNCellBase)
        ]
        consumers = self.graph.parameter_consumers(p.tensor for p in matrices)
        found: dict[str, TimeProfile] = {}
        for parameter in matrices:
            uses = [at[i] for i in sorted(consumers.get(id(parameter.tensor), ()), reverse=True) if i in at]
            if len(uses) < LOOP_STEPS:
                continue
            owner = self._owner[uses[0].position]
            called = owner is not None and owner.module is parameter.owner and owner.kind in _SPECIFIC_KINDS
            name = owner.name if called and owner is not None else parameter.name
            steps = tuple(point.row.gradient if point.row is not None else point.gradient for point in uses)
            note = "one use of the weight is one step"
            found.setdefault(
                name,
                TimeProfile(layer=name, state="hidden", stack=0, reverse=False, steps=steps, exact=True, note=note),
            )
        return list(found.values())

    def functional_operations(self) -> tuple[str, ...]:
        """Trunk operations of the model whose output no row observes."""
        return tuple(
            dict.fromkeys(
                point.node.name()
                for point in self._points
                if point.row is None and self._owner[point.position] is not None
            )
        )

    def points(self, name_of: Mapping[Call, str]) -> tuple[TrunkPoint, ...]:
        """The trunk as records, from the input side to the loss.

        Args:
            name_of: names of calls as rows show them.

        Returns:
            The points.
        """
        ordered = self._points[::-1]
        found: list[TrunkPoint] = []
        for k, point in enumerate(ordered):
            following = ordered[k + 1] if k + 1 < len(ordered) else None
            for row in self._recomputed.get(point.position, ()):
                name = name_of.get(row.call, ROOT)
                kind = _SPECIFIC_KINDS.get(row.kind, "branches")
                found.append(
                    TrunkPoint(
                        order=len(found),
                        operation=row.node.name(),
                        kind=kind,
                        layer=name,
                        next_layer=name,
                        gradient=row.gradient,
                    )
                )
            found.append(
                TrunkPoint(
                    order=len(found),
                    operation=point.node.name(),
                    kind="loss" if following is None else self._kind_between(point, following),
                    layer=self._place(point, name_of),
                    next_layer=None if following is None else self._place(following, name_of),
                    gradient=point.row.gradient if point.row is not None and point.row.gradient else point.gradient,
                )
            )
        return tuple(found)

    def _place(self, point: _Point, name_of: Mapping[Call, str]) -> str | None:
        """Where a tensor was made: the row of a function, else the innermost module call; None for the loss."""
        if point.row is not None and point.row.path.startswith(":"):
            return name_of.get(point.row.call, ROOT) + point.row.path
        owner = self._owner[point.position]
        return None if owner is None else name_of.get(owner, ROOT)

    # ---------------------------------------------------------------- what happens between two points

    def _kind_between(self, below: _Point, above: _Point) -> TrunkKind:
        """What carries the gradient from ``above`` (loss side) down to ``below``."""
        if self._owner[above.position] is None:
            return "loss"
        region = self.graph.between(above.position, below.position)
        edges = [j for j in self.graph.edges[above.position] if j in region]
        own = operation_kind(above.node.name())
        direct = len(edges) == 1 and self._is_direct(edges[0], below.position)
        if direct and own not in ("scale", "residual", "other"):
            return own
        call = self._owner[above.position]
        while call is not None:
            if call.kind in _SPECIFIC_KINDS and self._covers(call, above, below):
                return _SPECIFIC_KINDS[call.kind]
            call = call.parent
        if direct:
            # One operand only: an addition of a constant or a bias passes the gradient on unchanged.
            return "scale" if own == "residual" else own
        if own == "residual" and len(edges) > 1:
            return "residual"
        names = {operation_kind(self.graph.nodes[i].name()) for i in region - {below.position}}
        return "attention" if "attention" in {own, *names} else "branches"

    def _is_direct(self, start: int, below: int) -> bool:
        """Whether only views lie between."""
        while start != below:
            if operation_kind(self.graph.nodes[start].name()) != "reshape" or len(self.graph.edges[start]) != 1:
                return False
            start = self.graph.edges[start][0]
        return True

    @staticmethod
    def _covers(call: Call, above: _Point, below: _Point) -> bool:
        """Whether the call made the upper point and not the lower one."""
        return call.begin <= sequence_number(above.node) < call.end and not (
            call.begin <= sequence_number(below.node) < call.end
        )


def _owners(graph: AutogradGraph, calls: Sequence[Call]) -> list[Call | None]:
    """The innermost module call in which each node was made; None for the loss."""
    order = sorted((sequence_number(node), i) for i, node in enumerate(graph.nodes))
    numbers = [number for number, _ in order]
    owner: list[Call | None] = [None] * len(order)
    for outer in sorted(calls, key=lambda c: (c.begin, -c.end)):  # outer calls first: inner ones paint over them
        low, high = bisect.bisect_left(numbers, outer.begin), bisect.bisect_left(numbers, outer.end)
        owner[low:high] = [outer] * (high - low)
    by_position: list[Call | None] = [None] * len(order)
    for (_, i), call in zip(order, owner, strict=True):
        by_position[i] = call
    return by_position


def find_trunk(
    graph: AutogradGraph, rows: Sequence[Row], calls: Sequence[Call], parameters: Mapping[int, Tensor]
) -> Trunk:
    """The trunk of a graph.

    The first parameters are those used deepest below the loss (on the longest path): by a layer, at its output; in
    functional code, at the operation that takes the parameter.

    Args:
        graph: the autograd graph of the loss.
        rows: the recorded rows.
        calls: the module calls.
        parameters: ``id`` to trainable parameter.

    Returns:
        The trunk; without members when no parameter is reached.
    """
    depth = graph.depths()
    by_node = {(row.node, row.output_number): row for row in rows if row.node is not None}
    # A layer may transform its weight before it uses it (weight_norm): its output counts, not that operation.
    layers = [row for row in rows if row.node in graph.index and not row.path.startswith(":")]
    layers = [row for row in layers if row.kind not in ("container", "other")]
    of_layers = {id(p): p for row in layers for p in row.call.module.parameters()}
    candidates = [
        graph.index[row.node]
        for row in layers
        if any(id(p) in parameters for p in row.call.module._parameters.values())
    ]
    functional = [p for i, p in parameters.items() if i not in of_layers]
    candidates += [uses[0] for uses in graph.parameter_consumers(functional).values()]
    candidates += [i for i, node in enumerate(graph.nodes) if is_recomputing_node(node)]
    if not candidates:
        return Trunk(graph, [], by_node, calls)
    target = max(candidates, key=lambda i: depth[i])  # the first of equals: the first executed
    return Trunk(graph, graph.dominators(target), by_node, calls)
