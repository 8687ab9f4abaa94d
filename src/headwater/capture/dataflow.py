"""Which submodule's output goes where inside one module, read from the source of its forward; nothing is run."""

from __future__ import annotations

import ast
import builtins
import fnmatch
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from headwater.theory.elementwise import ACTIVATIONS

__all__ = ["INPUT", "Flow", "Use", "read_flow"]

INPUT = "<input>"
"""The producer that stands for the arguments of ``forward``."""

_DEEPEST_CALL = 4  # methods of the module followed into one another
_SHAPE_ONLY = {
    "view", "reshape", "flatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze", "to", "float", "half",
    "bfloat16", "type", "type_as", "chunk", "split", "unbind", "clone", "expand", "movedim", "swapaxes", "t", "double",
    "unflatten", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
    "interpolate", "pad", "pixel_shuffle",
}  # fmt: skip
_NOT_ELEMENTWISE = {
    "cat", "concat", "stack", "add", "add_", "sub", "mul", "mul_", "div", "matmul", "mm", "bmm", "baddbmm", "einsum",
    "mean", "sum", "linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention", "cross_entropy", "mse_loss",
}  # fmt: skip
_NOT_TENSORS = {"shape", "dtype", "device", "size", "dim", "ndim", "numel", "requires_grad"}
_ACTIVATION_NAMES = {name for name in ACTIVATIONS if name != "linear"}


@dataclass(frozen=True)
class Use:
    """What is done with an output.

    Attributes:
        how: ``child`` (given to a submodule), ``function`` (an elementwise function), ``return`` (handed to the
            caller), ``combined`` (added, multiplied, concatenated, reduced), ``unknown``.
        path: of the submodule, with ``*`` for any index; or the function's name.
        function: the function itself.
        main: for a submodule: whether it is the first argument (masks and sizes come later).
    """

    how: Literal["child", "function", "return", "combined", "unknown"]
    path: str = ""
    function: Any = None
    main: bool = True


@dataclass
class Flow:
    """Uses of the output of each submodule (and of the input) of one module.

    Attributes:
        uses: submodule path (``*`` for any index) or :data:`INPUT` to what is done with it.
    """

    uses: dict[str, set[Use]] = field(default_factory=lambda: defaultdict(set))

    def uses_of(self, path: str) -> set[Use]:
        """What is done with the output of one submodule.

        Args:
            path: relative to the module, with real indices.

        Returns:
            The uses; empty when the source does not show the call.
        """
        found: set[Use] = set()
        for pattern, uses in self.uses.items():
            if pattern == path or fnmatch.fnmatchcase(path, pattern):
                found |= uses
        return found

    def sources_of(self, path: str) -> set[str]:
        """Whose output is given to one submodule.

        Args:
            path: relative to the module.

        Returns:
            Paths (with ``*``) and :data:`INPUT`.
        """
        return {
            producer
            for producer, uses in self.uses.items()
            for use in uses
            if use.how == "child" and use.main and fnmatch.fnmatchcase(path, use.path)
        }


def read_flow(module: nn.Module) -> Flow | None:
    """The flow inside a module.

    Args:
        module: one with children.

    Returns:
        The flow; None when the source of ``forward`` cannot be had.
    """
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        flow, before = Flow(), INPUT
        for name, child in module._modules.items():
            if child is not None:
                flow.uses[before].add(Use("child", name))
                before = name
        flow.uses[before].add(Use("return"))
        return flow
    reader = _Reader(module)
    function = _definition(getattr(type(module), "forward", None))
    if function is None:
        return None
    tree, scope = function
    arguments = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)][1:]
    returned = reader.run(tree, scope, dict.fromkeys(arguments, frozenset({INPUT})), 0)
    reader.use(returned, Use("return"))
    return reader.flow


def _definition(function: Any) -> tuple[ast.FunctionDef, dict[str, Any]] | None:
    try:
        function = inspect.unwrap(function)
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return None  # a builtin, a class typed at a prompt, generated code: there is no source to read
    return (tree, function.__globals__) if isinstance(tree, ast.FunctionDef) else None


_Producers = frozenset[str]
_NOTHING: _Producers = frozenset()


class _Reader:
    """Walks the statements of one ``forward`` and notes who uses whose output."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.flow = Flow()

    def use(self, producers: _Producers, use: Use) -> None:
        for producer in producers:
            self.flow.uses[producer].add(use)

    def run(self, tree: ast.FunctionDef, scope: dict[str, Any], names: dict[str, _Producers], depth: int) -> _Producers:
        frame = _Frame(self, tree.args.args[0].arg if tree.args.args else "self", scope, names, depth)
        frame.block(tree.body)
        return frame.returned

    def method(self, name: str) -> Callable[..., Any] | None:
        found = inspect.getattr_static(type(self.module), name, None)
        return found if inspect.isfunction(found) else None

    def attribute(self, name: str) -> Any:
        """An attribute of the module, without running a property of it."""
        held = inspect.getattr_static(self.module, name, None)
        return None if isinstance(held, property) else held

    def has_modules(self, path: str) -> bool:
        return bool(submodules(self.module, path))


def submodules(module: nn.Module, path: str) -> list[nn.Module]:
    """The submodules a path with ``*`` stands for.

    Args:
        module: where the path starts.
        path: names joined by dots; ``*`` is any child.

    Returns:
        The modules, in registration order.
    """
    found = [module]
    for part in path.split("."):
        following: list[nn.Module] = []
        for m in found:
            named = m._modules.values() if part == "*" else [m._modules.get(part)]
            following += [child for child in named if child is not None]
        found = following
    return found


class _Frame:
    """One function body: its variables and what it returns."""

    def __init__(
        self, reader: _Reader, me: str, scope: dict[str, Any], names: dict[str, _Producers], depth: int
    ) -> None:
        self.reader, self.me, self.scope, self.names, self.depth = reader, me, scope, names, depth
        self.modules: dict[str, str] = {}  # loop variable -> path of the submodules it runs over
        self.returned: _Producers = _NOTHING

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
            self.reader.use(self.value(s.value) | self.value(s.target), Use("combined"))
            self.bind(s.target, _NOTHING)
        elif isinstance(s, ast.Return) and s.value is not None:
            self.returned |= self.value(s.value)
        elif isinstance(s, ast.Expr):
            self.value(s.value)
        elif isinstance(s, ast.If):
            before = dict(self.names)
            self.block(s.body)
            after, self.names = self.names, before
            self.block(s.orelse)
            for name, producers in after.items():
                self.names[name] = self.names.get(name, _NOTHING) | producers
        elif isinstance(s, ast.For):
            self.loop_over(s.target, s.iter)
            for _ in range(2):  # twice: what one round leaves, the next one takes
                before = dict(self.names)
                self.block(s.body)
                for name, producers in before.items():
                    self.names[name] = self.names.get(name, _NOTHING) | producers
        elif isinstance(s, ast.While | ast.With | ast.Try):
            self.block(s.body)
            for handler in getattr(s, "handlers", []):
                self.block(handler.body)
            self.block([*getattr(s, "orelse", []), *getattr(s, "finalbody", [])])

    def bind(self, target: ast.expr, producers: _Producers) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = producers
            self.modules.pop(target.id, None)
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self.bind(element, producers)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, producers)

    def loop_over(self, target: ast.expr, iterable: ast.expr) -> None:
        pairs: list[tuple[ast.expr, ast.expr]] = [(target, iterable)]
        if isinstance(iterable, ast.Call) and isinstance(iterable.func, ast.Name) and iterable.args:
            elements = target.elts if isinstance(target, ast.Tuple) else [target]
            if iterable.func.id == "enumerate" and len(elements) == 2:
                return self.loop_over(elements[1], iterable.args[0])
            if iterable.func.id == "zip" and len(elements) == len(iterable.args):
                pairs = list(zip(elements, iterable.args, strict=True))
            elif iterable.func.id == "reversed":
                pairs = [(target, iterable.args[0])]
        for variable, source in pairs:
            if isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Slice):
                source = source.value  # self.layers[:n]
            if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr == "values":
                source = source.func.value
            path = self.path(source)
            if path is not None and isinstance(variable, ast.Name) and self.reader.has_modules(f"{path}.*"):
                self.modules[variable.id] = f"{path}.*"
            else:
                self.bind(variable, self.value(source))
        return None

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
            if base is None:
                return None
            index = node.slice.value if isinstance(node.slice, ast.Constant) else None
            if isinstance(index, str) or (isinstance(index, int) and index >= 0):
                return f"{base}.{index}"
            return f"{base}.*"
        return None

    def value(self, node: ast.expr | None) -> _Producers:
        """Whose outputs an expression may be, untouched; uses inside it are noted."""
        if node is None:
            return _NOTHING
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _NOTHING)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Attribute):
            return _NOTHING if node.attr in _NOT_TENSORS else self.value(node.value)
        if isinstance(node, ast.Subscript | ast.Starred | ast.Await):
            return self.value(node.value)
        if isinstance(node, ast.NamedExpr):
            producers = self.value(node.value)
            self.bind(node.target, producers)
            return producers
        if isinstance(node, ast.Tuple | ast.List):
            return self.union(node.elts)
        if isinstance(node, ast.Dict):
            return self.union([v for v in node.values if v is not None])
        if isinstance(node, ast.IfExp):
            return self.union([node.body, node.orelse])
        if isinstance(node, ast.BoolOp):
            return self.union(node.values)
        if isinstance(node, ast.BinOp):
            self.reader.use(self.union([node.left, node.right]), Use("combined"))
            return _NOTHING
        if isinstance(node, ast.UnaryOp):
            self.reader.use(self.value(node.operand), Use("combined"))
        return _NOTHING

    def union(self, nodes: list[ast.expr]) -> _Producers:
        found = _NOTHING
        for node in nodes:
            found |= self.value(node)
        return found

    def call(self, node: ast.Call) -> _Producers:
        arguments = [*node.args, *(k.value for k in node.keywords)]
        path = self.path(node.func)
        if path is not None and self.reader.has_modules(path):
            for position, argument in enumerate(arguments):
                self.reader.use(self.value(argument), Use("child", path, None, position == 0))
            return frozenset({path})
        if path is not None and "." not in path:
            method = self.reader.method(path)
            if method is not None:
                return self.inline(method, node)
            return self.apply(path, self.reader.attribute(path), arguments)
        if isinstance(node.func, ast.Attribute):
            held = self.static(node.func)
            if held is None:  # a method of a tensor
                return self.apply(node.func.attr, None, [node.func.value, *arguments], of_tensor=True)
            return self.apply(node.func.attr, held, arguments)
        if isinstance(node.func, ast.Name):
            name = node.func.id
            return self.apply(name, self.scope.get(name, getattr(builtins, name, None)), arguments)
        return self.apply("", None, arguments)

    def static(self, node: ast.expr) -> Any:
        """The object that ``F.relu`` or ``torch.nn.functional.relu`` names in the function's own module."""
        if isinstance(node, ast.Name):
            return None if node.id in self.names else self.scope.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.static(node.value)
            return getattr(base, node.attr, None) if inspect.ismodule(base) else None
        return None

    def apply(self, name: str, function: Any, arguments: list[ast.expr], *, of_tensor: bool = False) -> _Producers:
        home = str(getattr(function, "__module__", "") or "")
        name = getattr(function, "__name__", name) if function is not None else name
        from_torch = of_tensor or home.startswith("torch") or home == "" or home == "builtins"
        plain = name.removesuffix("_") if name.endswith("_") else name
        if from_torch and name in _SHAPE_ONLY:
            return self.value(arguments[0]) if arguments else _NOTHING
        producers = self.union(arguments)
        if inspect.isclass(function) and not issubclass(function, nn.Module):
            return producers  # a tuple, a dict, an output record: it carries the tensors on
        if from_torch and plain in _ACTIVATION_NAMES:
            self.reader.use(producers, Use("function", plain, ACTIVATIONS[plain]))
        elif from_torch and plain in _NOT_ELEMENTWISE:
            self.reader.use(producers, Use("combined"))
        elif not any(word in name.lower() for word in ("loss", "criterion")):  # a loss reads the output as it is
            self.reader.use(producers, Use("unknown", name))
        return _NOTHING

    def inline(self, method: Callable[..., Any], node: ast.Call) -> _Producers:
        definition = _definition(method) if self.depth < _DEEPEST_CALL else None
        if definition is None:
            self.reader.use(self.union([*node.args, *(k.value for k in node.keywords)]), Use("unknown"))
            return _NOTHING
        tree, scope = definition
        parameters = [a.arg for a in (*tree.args.posonlyargs, *tree.args.args)][1:]
        names: dict[str, _Producers] = {p: self.value(a) for p, a in zip(parameters, node.args, strict=False)}
        names.update({k.arg: self.value(k.value) for k in node.keywords if k.arg is not None})
        return self.reader.run(tree, scope, names, self.depth + 1)
