"""A run in one paragraph."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headwater.store.reader import Run

__all__ = ["summary_of"]


def summary_of(run: Run) -> str:
    """What was recorded, how it ended, what was found.

    Args:
        run: the run.

    Returns:
        Sentences, without a line break of their own.
    """
    steps, sessions = run.steps, run.sessions
    parameters = sum(tensor.kind == "parameter" for tensor in run.tensors)
    layers = len(run.tensors) - parameters
    span = f", {steps[0]} to {steps[-1]}" if steps else ""
    model = run.metadata.get("model_type")
    parts = [
        f"Run {run.name!r}{f' of {model}' if isinstance(model, str) and model else ''}: "
        f"{_many(len(steps), 'recorded step')}{span}; {_many(parameters, 'parameter')} and {_many(layers, 'layer')}."
    ]
    if len(sessions) > 1:
        parts.append(f"{len(sessions)} sessions.")
    if sessions and sessions[-1].ended is None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(sessions[-1].begun))
        parts.append(f"The last session, begun {when}, is still being written or did not end properly.")
    losses = [row.loss for row in run.recorded_steps() if row.loss is not None]
    if losses:
        parts.append(f"Loss {losses[0]:.4g} to {losses[-1]:.4g}.")
    skipped = sum(row.skipped is not None for row in run.recorded_steps())
    if skipped:
        parts.append(f"{_many(skipped, 'step')} skipped.")
    if gaps := [event.message for event in run.events if event.kind == "gap"]:
        parts.append(f"{_many(len(gaps), 'gap')}: {' '.join(gaps)}")
    findings = run.findings
    parts.append(f"{_many(len(findings), 'finding')}: {findings[0]}" if findings else "No findings.")
    return " ".join(parts)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
