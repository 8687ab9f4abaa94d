"""What a sink is, and how a library that a file needs is imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from headwater.errors import HeadwaterError

__all__ = ["Sink", "library"]


@runtime_checkable
class Sink(Protocol):
    """Where the few scalars of each recorded step go; called from the recorder's own thread.

    A sink may carry two more attributes: ``naming`` (see :data:`~headwater.records.step_scalars.Naming`) and
    ``per_layer`` (see :func:`~headwater.records.step_scalars.summary_scalars`).

    Example:
        >>> class Printed:
        ...     def write(self, scalars, step):
        ...         print(step, scalars)
        ...     def close(self):
        ...         pass
        >>> isinstance(Printed(), Sink)
        True
    """

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Take the scalars of one recorded step.

        Args:
            scalars: tag to value; NaN and infinities are told as they are.
            step: the optimizer step, counted from 0.
        """
        ...

    def close(self) -> None:
        """Write what is still buffered; called once, when watching ends."""
        ...


def library(module: str, package: str, needed_by: str) -> Any:
    """Import a library that is not one of headwater's requirements.

    Args:
        module: what to import, such as ``lightning.pytorch``.
        package: what pip calls it.
        needed_by: for the message, such as ``headwater.integrations.lightning``.

    Returns:
        The module.

    Raises:
        HeadwaterError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A library that is there but lacks a requirement of its own has another name in `error.name`.
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise HeadwaterError(f"{needed_by} needs {package}, which is not installed: pip install {package}") from error
