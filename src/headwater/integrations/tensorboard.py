"""Scalars of a watched run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from headwater.integrations.sink import library
from headwater.records.step_scalars import Naming

__all__ = ["TensorBoardSink"]


class TensorBoardSink:
    """Write the scalars of each recorded step into a TensorBoard event file.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter`` (or anything with ``add_scalar(tag, value, step)``), which
            stays open when watching ends; or a folder, in which a writer is made and closed.
        naming: whose tag names.
        per_layer: shell patterns of the parameters and layers that get tags of their own.

    Raises:
        HeadwaterError: a folder was given and TensorBoard is not installed.

    Example:
        ``hw.watch(model, optimizer, sinks=[TensorBoardSink("runs/tb")])``
    """

    def __init__(
        self, writer: Any | str | PathLike[str], *, naming: Naming = "headwater", per_layer: Sequence[str] = ()
    ) -> None:
        self.naming = naming
        self.per_layer = tuple(per_layer)
        self._owned = isinstance(writer, str | PathLike)
        if self._owned:
            # torch.utils.tensorboard imports the tensorboard package.
            library("tensorboard", "tensorboard", "a TensorBoardSink for a folder")
            writer = library("torch.utils.tensorboard", "tensorboard", "a TensorBoardSink").SummaryWriter(
                fspath(writer)
            )
        self._writer: Any = writer

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Add the scalars at this step.

        Args:
            scalars: tag to value.
            step: the optimizer step.
        """
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flush a writer that was given; close one that was made here."""
        if self._owned:
            self._writer.close()
        else:
            self._writer.flush()
