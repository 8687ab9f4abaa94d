"""Pictures of prescriptions: the gradient before and after along the layers, and the losses of the trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from headwater.errors import InputError
from headwater.records import Profile, gradient_budget
from headwater.records.remedy import Prescription, Prescriptions
from headwater.reports.document import Template
from headwater.reports.figures import Series, line_figure

__all__ = ["prescription_figure"]

_WHAT = ("gradient", "trial")
_LINES = 4  # repairs drawn beside the unrepaired model; more lines than that cannot be told apart. Chosen by us.


def prescription_figure(record: Prescriptions, *, template: Template = "dark", what: str = "gradient") -> Any:
    """Draw prescriptions.

    Args:
        record: the record.
        template: ``dark`` or ``light``.
        what: ``gradient`` (rms of every weight's gradient before, and after the best repairs) or ``trial`` (the losses).

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        InputError: an option is unknown, or there is nothing to draw.
    """
    if what not in _WHAT:
        raise InputError(f"what is {what!r}; it can be {', '.join(map(repr, _WHAT))}")
    if not record.items:
        raise InputError("there is no prescription to draw: the model is healthy, or nothing could be tried")
    return _gradients(record, template) if what == "gradient" else _losses(record, template)


def _shown(record: Prescriptions) -> Sequence[Prescription]:
    distinct = [p for p in record.items if p.kind == "model"] or list(record.items)
    return distinct[:_LINES]


def _gradients(record: Prescriptions, template: Template) -> Any:
    """One position per weight; a repair that wraps a layer renames its weights, so positions are by order."""
    shown = _shown(record)
    names, before = _weights(record.before)
    series = [Series("before", before, color="gray", dash="dash")]
    for p in shown:
        own_names, values = _weights(p.after)
        kept = [v for n, v in zip(own_names, values, strict=True) if n in names]
        if len(kept) != len(names):  # names changed: the new weights of a normalisation are told by their role already
            kept = (values + [math.nan] * len(names))[: len(names)]
        series.append(Series(p.name, kept))
    best = record.items[0]
    was, now = _decades(record.before), _decades(best.after)
    reading = (
        f"From the loss to the first layer the gradient changes by {was:+.1f} decades before, and by {now:+.1f} after "
        f"{best.name}."
    )
    return line_figure(
        series,
        title="Gradient of every weight, before and after",
        x_title="weight, input side first",
        y_title="rms of ∂L/∂W",
        reading=reading,
        names=names,
        template=template,
    )


def _weights(profile: Profile) -> tuple[list[str], list[float]]:
    rows = [q for q in profile.parameters if q.role in ("weight", "embedding", "recurrent", "attention")]
    return [q.name for q in rows], [math.nan if q.gradient is None else q.gradient.rms for q in rows]


def _decades(profile: Profile) -> float:
    return gradient_budget(profile).total_decades


def _losses(record: Prescriptions, template: Template) -> Any:
    tried = [p for p in _shown(record) if p.trial is not None]
    if not tried or tried[0].trial is None:
        raise InputError("no trial was run: the time was spent before; give it more with budget_seconds")
    first = tried[0].trial
    series = [Series("unrepaired", first.before, color="gray", dash="dash")]
    series += [Series(p.name, p.trial.after) for p in tried if p.trial is not None]
    length = max(len(s.y) for s in series)
    series = [Series(s.name, [*s.y, *[math.nan] * (length - len(s.y))], color=s.color, dash=s.dash) for s in series]
    positive = all(v > 0 for s in series for v in s.y if v is not None and math.isfinite(v))
    return line_figure(
        series,
        title="Loss of the trial",
        x_title=f"steps of {first.optimizer} on the one batch",
        y_title="loss",
        reading="The same batch, the same seed and the same optimizer for every line.",
        x=list(range(length)),
        log=positive,
        template=template,
    )
