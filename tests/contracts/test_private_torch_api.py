"""Private torch API is used in one file, where a new torch version is looked at first."""

from __future__ import annotations

import ast
from pathlib import Path

import headwater

PACKAGE = Path(headwater.__file__).parent
COMPAT = PACKAGE / "capture" / "_torch_compat.py"


def private_torch_names(tree: ast.AST) -> list[str]:
    """``torch._x``, ``torch.nn._y`` and ``from torch._z import …``, each with its line."""
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            head, *parts = name.split(".")
            if head == "torch" and any(p.startswith("_") and not p.startswith("__") for p in parts):
                found.append(f"line {node.lineno}: {name}")
    return found


def test_private_torch_api_is_used_in_one_file_only() -> None:
    uses = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != COMPAT and (names := private_torch_names(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert uses == {}


def test_the_search_finds_each_way_to_write_it() -> None:
    lines = (
        "import torch._dynamo",
        "from torch._C import x",
        "from torch import _foreach_norm",
        "torch.nn._y",
        "torch.__version__",
    )
    found = [bool(private_torch_names(ast.parse(line))) for line in lines]
    assert found == [True, True, True, True, False]
