"""Scalars of a watched run in MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from headwater.errors import InputError
from headwater.integrations.sink import library
from headwater.records.step_scalars import Naming

__all__ = ["MlflowSink"]

# What MLflow allows in the name of a metric (mlflow.tracking.MlflowClient.log_metric); other signs become "_".
_NOT_ALLOWED = re.compile(r"[^\w./ -]", re.ASCII)


class MlflowSink:
    """Write the scalars of each recorded step into an MLflow run.

    The run is addressed by its id: MLflow's "active run" belongs to one thread, and recording happens in another.

    Args:
        run: what ``mlflow.start_run`` returned, or a run id; None takes the active run.
        naming: whose tag names. Signs that MLflow forbids in a metric's name become ``_``.
        per_layer: shell patterns of the parameters and layers that get tags of their own.

    Raises:
        HeadwaterError: MLflow is not installed.
        InputError: no run was given and none is active.

    Example:
        ``with mlflow.start_run(), hw.watch(model, optimizer, sinks=[MlflowSink()]): ...``
    """

    def __init__(
        self, run: Any | str | None = None, *, naming: Naming = "headwater", per_layer: Sequence[str] = ()
    ) -> None:
        mlflow = library("mlflow", "mlflow-skinny", "an MlflowSink")
        if run is None:
            run = mlflow.active_run()
        if run is None:
            raise InputError("no MLflow run is active: call mlflow.start_run() first, or give the run to MlflowSink")
        self.naming = naming
        self.per_layer = tuple(per_layer)
        self._run_id: str = run if isinstance(run, str) else run.info.run_id
        self._client: Any = mlflow.MlflowClient()
        self._metric: Any = library("mlflow.entities", "mlflow-skinny", "an MlflowSink").Metric

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Log the scalars in one call.

        Args:
            scalars: tag to value.
            step: the optimizer step.
        """
        now = int(time.time() * 1000)  # MLflow counts milliseconds since the epoch
        self._client.log_batch(
            self._run_id,
            metrics=[self._metric(_NOT_ALLOWED.sub("_", tag), value, now, step) for tag, value in scalars.items()],
        )

    def close(self) -> None:
        """Nothing to do: the run belongs to whoever began it."""
