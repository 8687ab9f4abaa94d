"""Find x + f(x) in the source of a model's modules, and the last module of every f; nothing is run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from headwater.capture.dataflow import submodules
from headwater.capture.names import layer_kind

__all__ = ["Branch", "find_residual_branches", "last_layer"]

_DEEPEST_CALL = 4  # methods of a module followed into one another
_ADDING = {"add", "add_", "__add__"}
_NOT_TENSORS = {"shape", "dtype", "device", "size", "dim", "ndim", "numel", "requires_grad"}


@dataclass(frozen=True, eq=False)
class Branch:
    """One f of x + f(x).

    Attributes:
        parent: the module whose forward adds.
        ends: modules that may be the last of f: several where the source takes one of many (``self.layers[i]``).
    """

    parent: nn.Module
    ends: tuple[nn.Module, ...]


@dataclass(frozen=True, eq=False)
class _Value:
    """A value inside one forward: the submodule that gave it (None for anything else), and what it was made from."""

    path: str | None = None
    parents: frozenset[_Value] = frozenset()


_Values = frozenset[_Value]
_NOTHING: _Values = frozenset()


def find_residual_branches(model: nn.Module) -> list[Branch]:
    """Every residual branch of a model.

    A sum a + b in a forward (or in a method of the same module that it calls) is residual when b was computed from a:
    b is then the branch. A branch ends in the module whose output is the last on the way to the sum: followed through
    dropout, activations and reshapes, and into containers down to their last layer with parameters of their own.

    Args:
        model: only read.

    Returns:
        The branches in registration order of the modules that add; empty when the source does not show one.
    """
    branches: list[Branch] = []
    seen: set[nn.Module] = set()
    for module in model.modules():
        if not module._modules or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            continue
        reader = _Reader(module)
        reader.read()
        for skip, computed in reader.branches:
            # The way back ends where the branch leaves the trunk.
            trunk = {*skip, *(a for value in skip for a in _ancestors(value))}
            ends = tuple(dict.fromkeys(end for value in computed for end in _ends(module, value, set(trunk))))
            if any(layer_kind(end) == "embedding" for end in ends):
                continue  # positions that are added to tokens
            if ends and not seen.issuperset(ends):
                seen.update(ends)
                branches.append(Branch(module, ends))
    return branches


def _ends(module: nn.Module, value: _Value, visited: set[_Value]) -> Iterator[nn.Module]:
    """The last modules with parameters on the way to a value."""
    if value in visited:
        return
    visited.add(value)
    found = [] if value.path is None else submodules(module, value.path)
    inside = [end for child in found if (end := last_layer(child)) is not None]
    if inside:
        yield from inside
        return
    for parent in value.parents:
        yield from _ends(module, parent, visited)


def last_layer(module: nn.Module) -> nn.Module | None:
    """The layer with parameters that a module's output comes from last.

    Args:
        module: a layer or a container.

    Returns:
        The module itself when it holds parameters and no submodule, else the last such module that the source of its
        forward shows; None when there is none.
    """
    if isinstance(module, nn.MultiheadAttention):
        return module.out_proj
    if not module._modules:
        return module if any(p is not None for p in module._parameters.values()) else None
    if isinstance(module, nn.Sequential):
        return next((end for child in reversed(list(module.children())) if (end := last_layer(child))), None)
    reader = _Reader(module)
    returned = reader.read()
    ends = [end for value in returned for end in _ends(module, value, set())]
    return ends[0] if ends else None


class _Reader:
    """Runs the statements of one ``forward`` over :class:`_Value` objects."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.branches: list[tuple[_Values, _Values]] = []
        self.names: dict[str, _Values] = {}
        self.modules: dict[str, str] = {}
        self.returned: _Values = _NOTHING
        self.me = "self"
        self.depth = 0

    def read(self) -> _Values:
        tree = _definition(getattr(type(self.module), "forward", None))
        if tree is None:
            return _NOTHING
        arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs]
        return self.body(tree, {a.arg: frozenset({_Value()}) for a in arguments[1:]})

    def body(self, tree: ast.FunctionDef, names: dict[str, _Values]) -> _Values:
        outside = self.names, self.modules, self.returned, self.me
        self.names, self.modules, self.returned = names, {}, _NOTHING
        self.me = tree.args.args[0].arg if tree.args.args else "self"
        self.block(tree.body)
        returned = self.returned
        self.names, self.modules, self.returned, self.me = outside
        return returned

    # ------------------------------------------------------------ statements

    def block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, s: ast.stmt) -> None:
        if isinstance(s, ast.Assign):
            value = self.value(s.value)
            for target in s.targets:
                self.bind(target, value)
        elif isinstance(s, ast.AnnAssign) and s.value is not None:
            self.bind(s.target, self.value(s.value))
        elif isinstance(s, ast.AugAssign):
            left, right = self.value(s.target), self.value(s.value)
            self.bind(s.target, self.sum(left, right) if isinstance(s.op, ast.Add) else _made_from(left | right))
        elif isinstance(s, ast.Return) and s.value is not None:
            # Of several results the first is the output; what comes after it are states and attention weights.
            first = s.value.elts[0] if isinstance(s.value, ast.Tuple) and s.value.elts else s.value
            self.returned |= self.value(first)
        elif isinstance(s, ast.Expr):
            self.value(s.value)
        elif isinstance(s, ast.If):
            before = dict(self.names)
            self.block(s.body)
            after, self.names = self.names, before
            self.block(s.orelse)
            for name, values in after.items():
                self.names[name] = self.names.get(name, _NOTHING) | values
        elif isinstance(s, ast.For):
            self.loop(s)
        elif isinstance(s, ast.While | ast.With | ast.Try):
            self.block(s.body)
            self.block([*getattr(s, "orelse", []), *getattr(s, "finalbody", [])])

    def loop(self, s: ast.For) -> None:
        source = s.iter
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.args:
            variables = s.target.elts if isinstance(s.target, ast.Tuple) else [s.target]
            if source.func.id == "enumerate" and len(variables) == 2:
                self.loop_variable(variables[1], source.args[0])
            elif source.func.id == "zip" and len(variables) == len(source.args):
                for variable, each in zip(variables, source.args, strict=True):
                    self.loop_variable(variable, each)
        else:
            self.loop_variable(s.target, source)
        self.block(s.body)

    def loop_variable(self, target: ast.expr, source: ast.expr) -> None:
        path = self.path(source)
        if path is not None and isinstance(target, ast.Name) and submodules(self.module, f"{path}.*"):
            self.modules[target.id] = f"{path}.*"
        else:
            self.bind(target, self.value(source))

    def bind(self, target: ast.expr, values: _Values) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = values
            self.modules.pop(target.id, None)
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self.bind(element, values)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, values)

    # ------------------------------------------------------------ expressions

    def path(self, node: ast.expr) -> str | None:
        """``self.a.b[i]`` as ``a.b.*``; None when it does not start at the module."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.me:
                return node.attr
            base = self.path(node.value)
            return None if base is None else f"{base}.{node.attr}"
        if isinstance(node, ast.Subscript):
            base = self.path(node.value)
            index = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if base is None or isinstance(node.slice, ast.Slice):
                return base
            return (
                f"{base}.{index}" if isinstance(index, str) or (isinstance(index, int) and index >= 0) else f"{base}.*"
            )
        return None

    def value(self, node: ast.expr | None) -> _Values:
        """The values that an expression may be; sums inside it are noted."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _NOTHING)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BinOp):
            left, right = self.value(node.left), self.value(node.right)
            return self.sum(left, right) if isinstance(node.op, ast.Add) else _made_from(left | right)
        if isinstance(node, ast.Attribute | ast.Subscript | ast.Starred | ast.Await):
            shape = isinstance(node, ast.Attribute) and node.attr in _NOT_TENSORS
            return _NOTHING if shape else self.value(node.value)
        if isinstance(node, ast.IfExp):
            return self.value(node.body) | self.value(node.orelse)
        if isinstance(node, ast.NamedExpr):
            values = self.value(node.value)
            self.bind(node.target, values)
            return values
        if isinstance(node, ast.Tuple | ast.List | ast.BoolOp):
            parts = node.values if isinstance(node, ast.BoolOp) else node.elts
            return frozenset().union(*(self.value(part) for part in parts))
        if isinstance(node, ast.UnaryOp):
            return _made_from(self.value(node.operand))
        return _NOTHING

    def call(self, node: ast.Call) -> _Values:
        arguments = [*node.args, *(k.value for k in node.keywords)]
        path = self.path(node.func)
        if path is not None and submodules(self.module, path):
            return frozenset({_Value(path, self.union(arguments))})
        if path is not None and "." not in path:
            tree = _definition(inspect.getattr_static(type(self.module), path, None))
            if tree is not None and self.depth < _DEEPEST_CALL:
                parameters = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)][1:]
                names = {p: self.value(a) for p, a in zip(parameters, node.args, strict=False)}
                names |= {k.arg: self.value(k.value) for k in node.keywords if k.arg is not None}
                self.depth += 1
                returned = self.body(tree, names)
                self.depth -= 1
                return returned
        if isinstance(node.func, ast.Attribute) and node.func.attr in _ADDING:
            operands = arguments if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" else []
            operands = operands or [node.func.value, *arguments]
            if len(operands) >= 2:
                return self.sum(self.value(operands[0]), self.value(operands[1]))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _NOT_TENSORS:
            return _NOTHING
        of = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        return _made_from(self.union([*of, *arguments]))

    def union(self, nodes: list[ast.expr]) -> _Values:
        return frozenset().union(*(self.value(node) for node in nodes))

    def sum(self, left: _Values, right: _Values) -> _Values:
        for skip, branch in ((left, right), (right, left)):
            # One of the values on the skip's side is what the branch was computed from.
            computed = frozenset(value for value in branch if skip & _ancestors(value))
            if computed and not skip & branch:
                self.branches.append((skip, computed))
                break
        return _made_from(left | right)


def _made_from(values: _Values) -> _Values:
    return frozenset({_Value(None, values)}) if values else _NOTHING


def _ancestors(value: _Value) -> set[_Value]:
    found: set[_Value] = set()
    waiting = list(value.parents)
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting.extend(parent.parents)
    return found


def _definition(function: object) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None  # a builtin, a class typed at a prompt, generated code: there is no source to read
    return tree if isinstance(tree, ast.FunctionDef) else None
