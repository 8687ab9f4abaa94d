"""What a continuous integration reads: SARIF and JUnit files of a diagnosis."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.cli.target import is_path

if TYPE_CHECKING:
    from headwater.records import Diagnosis, Severity
    from headwater.reports.sarif import Rule, SourceLocation

__all__ = ["detector_rules", "source_of", "write_junit", "write_sarif"]


def detector_rules() -> list[Rule]:
    """One rule per built-in detector, explained by its own documentation.

    Returns:
        The rules, in the order in which the detectors run.
    """
    from headwater.detectors import DEFAULT_DETECTORS
    from headwater.reports.sarif import Rule

    rules = []
    for detector in DEFAULT_DETECTORS:
        text = inspect.cleandoc(type(detector).__doc__ or "")
        summary = text.partition("\n\n")[0].replace("\n", " ")
        rules.append(Rule(detector.code, type(detector).__name__, summary, text))
    return rules


def source_of(target: str) -> SourceLocation | None:
    """The line that defines what a TARGET names, relative to the current folder.

    Args:
        target: as it was typed; it has been imported.

    Returns:
        The line; None when there is no file, or it lies outside the current folder.
    """
    from headwater.reports.sarif import SourceLocation

    place, _, name = target.rpartition(":")
    file = place if is_path(place) else getattr(sys.modules.get(place), "__file__", None)
    if file is None:
        return None
    path = Path(file).expanduser().resolve()
    if not path.is_relative_to(Path.cwd()):
        return None
    first = re.match(r"\w+", name)
    line = _line_of(path, first.group() if first else "")
    return SourceLocation(path.relative_to(Path.cwd()).as_posix(), line)


def _line_of(path: Path, name: str) -> int:
    """The line of a definition or an assignment at the top of a file; 1 when it comes from elsewhere."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return 1  # a compiled module has no readable source: the file itself is still right
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node.lineno
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return node.lineno
    return 1


def write_sarif(diagnosis: Diagnosis, path: str, target: str) -> None:
    """Write a SARIF 2.1.0 log.

    Args:
        diagnosis: the record.
        path: of the file.
        target: what was diagnosed.
    """
    from headwater.records.json_codec import write_text
    from headwater.reports.sarif import to_sarif

    write_text(to_sarif(diagnosis, detector_rules(), source=source_of(target), target=target) + "\n", path)


def write_junit(diagnosis: Diagnosis, path: str, target: str, fail_on: Severity, seconds: float) -> None:
    """Write a JUnit test suite, one test case per detector.

    Args:
        diagnosis: the record.
        path: of the file.
        target: what was diagnosed.
        fail_on: from which severity on a test case fails.
        seconds: how long the diagnosis took.
    """
    from headwater.records.json_codec import write_text
    from headwater.reports.junit import to_junit

    write_text(to_junit(diagnosis, detector_rules(), fail_on=fail_on, target=target, seconds=seconds), path)
