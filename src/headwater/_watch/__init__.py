"""headwater.watch: gradient health during training, from two lines around the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from headwater._watch.arguments import pairs_of
from headwater._watch.session import Overhead, Watch
from headwater.capture.names import make_filter
from headwater.capture.training.receiver import Options
from headwater.capture.training.schedule import Activations, Schedule
from headwater.detectors.over_time import DEFAULT_ALERTS, Alert
from headwater.errors import InputError
from headwater.records.step import StepRecord

__all__ = ["Overhead", "Watch", "watch"]


def watch(
    model: Any,
    optimizer: Any = None,
    run: str | os.PathLike[str] | None = None,
    *,
    every: int = 10,
    start: int = 0,
    stop: int | None = None,
    activations: Activations = "sampled",
    alerts: Sequence[Alert] | None = None,
    sinks: Sequence[Any] = (),
    max_overhead: float | None = 0.01,
    statistics: Literal["all", "norms"] = "all",
    updates: Literal["sampled", "exact"] | None = "sampled",
    micro: bool = False,
    histograms: bool = False,
    scaler: Any = None,
    include: object = None,
    exclude: object = None,
    on_record: Callable[[StepRecord], object] | None = None,
    enabled: bool = True,
    distributed: bool | None = None,
) -> Watch:
    """Watch the gradients of a training run, one row per recorded optimizer step.

    Used as ``with headwater.watch(model, optimizer, run="runs/a"): ...`` around the training loop, or through ``attach()``
    and ``detach()``; the loop itself stays as it is.

    Args:
        model: the model; or ``{"G": (generator, its optimizer), "D": (…, …)}`` for several; or a list of models.
        optimizer: its optimizer; a list (or the values of a dict) of several that share the model, such as one per parameter
            that steps inside the backward; for a list of models a list as long.
        run: folder of the run file; None writes none.
        every: record every that many optimizer steps; steps 0, 1, 2, 4, 8 and the last one are recorded too.
        start: first step to record.
        stop: first step that is no longer recorded.
        activations: ``sampled``: look at layers on the early steps and every tenth recorded one; ``recorded``: on all of
            them; None: never.
        alerts: see :mod:`headwater.detectors.over_time`; None for the default ones.
        sinks: objects with ``write(scalars, step)`` and ``close()``, see :mod:`headwater.integrations`.
        max_overhead: share of the elapsed time that recording may cost (after a first second); above it ``every`` is
            stretched. None for no limit.
        statistics: ``all`` of them, or ``norms`` (l2 norm, NaN and infinities), which is cheaper.
        updates: ‖Δw‖/‖w‖ of each step from a sample of the elements, exactly, or (None) not at all.
        micro: rows for each micro-batch too.
        histograms: on the steps that ``activations="sampled"`` looks at, also how the elements of each gradient are distributed
            over the powers of two (``run.histogram(name, step)``); in a single process, and an accelerator is waited for.
        scaler: the GradScaler; found by itself when it is torch's.
        include: parameters and layers to watch: glob, compiled regular expression, class, callable of (name, object), or a
            list of these.
        exclude: the same, of those to leave out.
        on_record: called with every record, in the recorder's thread.
        enabled: False for a watch that does nothing; ``HEADWATER_DISABLE=1`` in the environment does the same.
        distributed: under ``torch.distributed`` the ranks record together, and every one of them has to watch; False: this
            process watches its own model alone, which must not be sharded.

    Returns:
        The watch; hooks are put on by ``with`` or ``attach()``.

    Raises:
        InputError: an argument has no meaning, or ``activations="recorded"`` was asked of a compiled model.

    Example:
        >>> import torch, headwater
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> seen = []
        >>> with headwater.watch(model, optimizer, every=2, on_record=seen.append):
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(4, 3)).square().mean().backward()
        ...         optimizer.step()
        >>> [record.step for record in seen]
        [0, 1, 2, 4]
    """
    enabled = enabled and os.environ.get("HEADWATER_DISABLE", "").lower() in ("", "0", "false", "no", "off")
    if statistics not in ("all", "norms"):
        raise InputError(f'statistics should be "all" or "norms", got {statistics!r}')
    if updates not in ("sampled", "exact", None):
        raise InputError(f'updates should be "sampled", "exact" or None, got {updates!r}')
    pairs = pairs_of(model, optimizer)
    schedule = Schedule(every, start, stop, activations, max_overhead)
    return Watch(
        pairs,
        run,
        schedule,
        Options(statistics, updates, micro, histograms),
        DEFAULT_ALERTS if alerts is None else alerts,
        sinks,
        make_filter(include, exclude),
        scaler,
        on_record,
        enabled,
        distributed,
    )
