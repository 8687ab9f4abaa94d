"""Exceptions of the user's own code, turned into one line that says what failed and where."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from headwater.errors import HeadwaterError, TargetError

__all__ = ["model_failures", "raised_at"]

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_MORE = "HEADWATER_DEBUG=1 shows the whole traceback."


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]


def raised_at(error: BaseException) -> str:
    """Say where an exception came from: the last line of the user's own code, else the last line of all.

    Args:
        error: a caught exception.

    Returns:
        Text such as `` (model.py, line 3)`` with its leading space; empty when there is no traceback.
    """
    frames = _frames(error)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(_PACKAGE)]
    chosen = (own or frames)[-1:]
    return f" ({chosen[0].filename}, line {chosen[0].lineno})" if chosen else ""


@contextlib.contextmanager
def model_failures(hint: str = "") -> Iterator[None]:
    """Turn an exception of the model or its loss into a TargetError.

    headwater's own errors pass, and so does an exception that headwater's own code raised: that is a bug, and its
    traceback is wanted.

    Args:
        hint: what to try, added to the message.

    Yields:
        Nothing.

    Raises:
        TargetError: the model or its loss raised.
    """
    try:
        yield
    except HeadwaterError:
        raise
    except Exception as error:
        # The model's torch functions pass through an observer of ours, whose frame is then the last: it does not count.
        frames = [f for f in _frames(error) if f.name != "__torch_function__"]
        if frames and frames[-1].filename.startswith(_PACKAGE):
            raise
        text = f"the model or its loss raised {type(error).__name__}: {error}{raised_at(error)}"
        raise TargetError("\n".join(part for part in (text, hint, _MORE) if part)) from error
