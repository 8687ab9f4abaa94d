"""Rows by name, and what to say when there is none."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["find_layer", "find_row", "no_such"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


Row = TypeVar("Row", bound=_Named)


def find_row(rows: Sequence[Row], name: str, what: str) -> Row:
    """The first row with this name, else the first with this alias.

    Args:
        rows: where to look.
        name: a name or an alias.
        what: what the rows are, for the message.

    Returns:
        The row.

    Raises:
        KeyError: there is none; the message suggests near names.
    """
    for row in rows:
        if name == row.name:
            return row
    for row in rows:
        if name in row.aliases:
            return row
    raise KeyError(no_such(what, name, [n for row in rows for n in (row.name, *row.aliases)]))


def find_layer(rows: Sequence[Row], name: str) -> Row:
    """As :func:`find_row`; a reused module that is named without ``#k`` is found at its first call."""
    known = {n for row in rows for n in (row.name, *row.aliases)}
    if name not in known:
        for row in rows:
            if name == row.name.split("#")[0]:
                return row
    return find_row(rows, name, "layer")


def no_such(what: str, name: str, known: Sequence[str]) -> str:
    """The text of a failed look-up.

    Args:
        what: what was looked up, such as ``layer``.
        name: as it was given.
        known: the names there are.

    Returns:
        One sentence with the nearest names, or the first few.
    """
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    listing = near or list(known[:8])
    lead = "did you mean" if near else "there are"
    return f"no {what} named {name!r}" + (
        f"; {lead} {', '.join(map(repr, listing))}" if listing else "; there are none"
    )
