"""What a run says about itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import headwater
from headwater.capture.training.receiver import Options
from headwater.capture.training.schedule import Schedule
from headwater.records.step_profile import RunContext

__all__ = ["context_of", "metadata_of"]


def metadata_of(contexts: Mapping[str, RunContext], schedule: Schedule, options: Options) -> dict[str, Any]:
    """What the run file says about the run.

    Args:
        contexts: of each group.
        schedule: which steps are recorded.
        options: what of them.

    Returns:
        Strict JSON values.
    """
    only = next(iter(contexts.values())) if len(contexts) == 1 else None
    return {
        "model_type": only.model_type if only else ", ".join(c.model_type for c in contexts.values()),
        "torch_version": str(torch.__version__),
        "headwater_version": headwater.__version__,
        "python_version": platform.python_version(),
        "device": next(iter(contexts.values())).device,
        "dtype": next(iter(contexts.values())).dtype,
        "seed": torch.initial_seed(),
        "context": asdict(only) if only else {name: asdict(c) for name, c in contexts.items()},
        "schedule": {
            "every": schedule.every,
            "start": schedule.start,
            "stop": schedule.stop,
            "activations": schedule.activations,
            "max_overhead": schedule.max_overhead,
        },
        "options": asdict(options),
    }


def context_of(model: nn.Module) -> RunContext:
    """What the profiles of a model's steps say about the run.

    Args:
        model: wrapped or not.

    Returns:
        Its type, device, dtype, and the versions in use.
    """
    first = next(model.parameters(), None)
    inner = model
    while type(inner).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        inner = next(inner.children())
    return RunContext(
        model_type=type(inner).__name__,
        torch_version=str(torch.__version__),
        headwater_version=headwater.__version__,
        device="" if first is None else str(first.device),
        dtype="" if first is None else str(first.dtype).removeprefix("torch."),
        seed=torch.initial_seed(),
    )
