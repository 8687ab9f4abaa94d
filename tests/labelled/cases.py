"""The project's own labelled networks: faulty ones, their repaired twins, and healthy controls.

Importing this module fills the registry. It has the shape that a scoring program expects: ``CASES[name]()`` builds the
faulty case (or the control), ``CASES[name](fixed=True)`` its repaired twin, ``ALSO_OK[name]`` holds other labels an
honest expert could give, and ``all_cases()`` yields ``(name, fixed, builder)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:  # so that a program outside the test suite can load this file by its path
    sys.path.insert(0, _ROOT)

_HERE = Path(__file__).parent
FAMILIES = sorted(
    p.stem for p in _HERE.glob("*.py") if p.stem not in {"cases", "kit", "evidence"} and not p.stem.startswith("test_")
)
for _family in FAMILIES:
    import_module(f"tests.labelled.{_family}")

from tests.labelled.kit import ENTRIES, Case  # noqa: E402  (the path must be set first)

CASES = {name: entry.build for name, entry in ENTRIES.items()}
FIXABLE = {name for name, entry in ENTRIES.items() if entry.fixable}
ALSO_OK = {name: set(entry.also) for name, entry in ENTRIES.items() if entry.also}
KNOWN_GAPS = {name: entry.known_gap for name, entry in ENTRIES.items() if entry.known_gap}


def build(name: str, fixed: bool = False) -> Case:
    return ENTRIES[name].build(fixed)


def all_cases() -> Iterator[tuple[str, bool, Callable[[], Case]]]:
    """Every case and every repaired twin, as (name, fixed, builder)."""
    for name in ENTRIES:
        yield name, False, partial(build, name)
        if name in FIXABLE:
            yield name, True, partial(build, name, True)
