"""Where others' tools meet headwater: one framework or logger per file, each imported only when asked for.

Front ends, each around :func:`headwater.watch`::

    headwater.integrations.transformers.GradientMonitor      a TrainerCallback
    headwater.integrations.lightning.GradientMonitor         a Callback
    headwater.integrations.accelerate.watch                  for the objects that Accelerator.prepare returned
    headwater.integrations.ignite.attach                     for an Engine

Sinks, for ``headwater.watch(..., sinks=[…])``::

    headwater.integrations.tensorboard.TensorBoardSink
    headwater.integrations.wandb.WandbSink
    headwater.integrations.mlflow.MlflowSink
"""

from headwater.integrations.sink import Sink
from headwater.records.step_scalars import SCALAR_NAMES, Naming, summary_scalars

__all__ = ["SCALAR_NAMES", "Naming", "Sink", "summary_scalars"]
