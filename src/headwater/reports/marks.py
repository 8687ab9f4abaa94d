"""The two marks that prose may hold: `` `code` `` and ``**strong**``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

__all__ = ["Mark", "literal", "split_marks"]

Mark = Literal["plain", "code", "strong"]
_MARK = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*")


def split_marks(text: str) -> Iterator[tuple[Mark, str]]:
    """Cut prose into marked and unmarked pieces.

    Args:
        text: prose.

    Yields:
        The kind of a piece and its text, marks taken off.

    Example:
        >>> list(split_marks("at `fc1`, **never** zero"))
        [('plain', 'at '), ('code', 'fc1'), ('plain', ', '), ('strong', 'never'), ('plain', ' zero')]
    """
    end = 0
    for found in _MARK.finditer(text):
        if found.start() > end:
            yield "plain", text[end : found.start()]
        yield ("code", found.group(1)) if found.group(1) is not None else ("strong", found.group(2))
        end = found.end()
    if end < len(text):
        yield "plain", text[end:]


def literal(text: str) -> str:
    """Keep names and reasons from being read as marks.

    Args:
        text: words that are not prose of ours, such as a layer's name.

    Returns:
        The text without either mark.

    Example:
        >>> literal("a`b`**c**")
        "a'b'* *c* *"
    """
    return text.replace("`", "'").replace("**", "* *")
