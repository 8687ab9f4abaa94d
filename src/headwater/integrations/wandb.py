"""Scalars of a watched run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headwater.errors import InputError
from headwater.integrations.sink import library
from headwater.records.step_scalars import Naming

__all__ = ["STEP_METRIC", "WandbSink"]

STEP_METRIC = "headwater/step"
"""The x axis of the charts: the optimizer step."""


class WandbSink:
    """Write the scalars of each recorded step into a Weights & Biases run.

    They come with an x axis of their own, ``headwater/step``, as the transformers and Lightning loggers do it: W&B
    drops what is logged with a ``step=`` that lies in the past, and recording runs a little behind training.

    Args:
        run: what ``wandb.init`` returned; None takes the active run. Offline runs (``mode="offline"``) work the same.
        naming: whose tag names.
        per_layer: shell patterns of the parameters and layers that get tags of their own.
        commit: whether each recorded step is a row of its own. Every row counts W&B's own step up by one; say False in
            a loop that passes ``step=`` to ``run.log`` itself: the scalars then join its next row (only the latest
            ones, where it logs less often than headwater records).

    Raises:
        HeadwaterError: no run was given and W&B is not installed.
        InputError: no run was given and none is active.

    Example:
        ``hw.watch(model, optimizer, sinks=[WandbSink(wandb.init(project="mine", mode="offline"))])``
    """

    def __init__(
        self,
        run: Any | None = None,
        *,
        naming: Naming = "headwater",
        per_layer: Sequence[str] = (),
        commit: bool = True,
    ) -> None:
        if run is None:
            run = library("wandb", "wandb", "a WandbSink").run
        if run is None:
            raise InputError("no W&B run is active: call wandb.init() first, or give the run to WandbSink")
        self.naming = naming
        self.per_layer = tuple(per_layer)
        self._commit = commit
        self._run: Any = run
        self._axis_known: set[str] = set()
        run.define_metric(STEP_METRIC, hidden=True)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Log the scalars, with the optimizer step as their x axis.

        Args:
            scalars: tag to value.
            step: the optimizer step.
        """
        for tag in scalars.keys() - self._axis_known:
            self._run.define_metric(tag, step_metric=STEP_METRIC)
            self._axis_known.add(tag)
        self._run.log({**scalars, STEP_METRIC: step}, commit=self._commit)

    def close(self) -> None:
        """Nothing to do: the run belongs to whoever began it."""
