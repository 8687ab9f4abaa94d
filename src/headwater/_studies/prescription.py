"""The prescription that closes a study: what repairs its first network that is not healthy."""

from __future__ import annotations

import math
import warnings

import torch

from headwater._prescribe import prescribe
from headwater._studies.run import Progress, StudyRun
from headwater.records import Profile, Verdict, gradient_budget
from headwater.records.study import StudyPrescription
from headwater.studies import LOSSES

__all__ = ["BUDGET_SECONDS", "TRIAL_STEPS", "prescribe_for"]

BUDGET_SECONDS = 4.0
"""What the search for a repair may take per study: five of them leave the demonstration below a minute. Chosen by us."""
TRIAL_STEPS = 20
"""Optimizer steps of each trial. Chosen by us."""


def prescribe_for(
    run: StudyRun, *, budget_seconds: float = BUDGET_SECONDS, progress: Progress | None = None
) -> StudyPrescription | None:
    """Prescribe for the first network of a study that is not healthy.

    Args:
        run: the study, run.
        budget_seconds: no repair is begun after that many seconds.
        progress: called with (what, done, total).

    Returns:
        The best prescription; None when every network is healthy.
    """
    sick = next((one for one in run if one.result.verdict is not Verdict.HEALTHY), None)
    if sick is None:
        return None
    _load_optimizer()
    with warnings.catch_warnings():  # a finding tells of the target's size already
        warnings.filterwarnings("ignore", message="Using a target size")
        found = prescribe(
            sick.model,
            sick.inputs,
            sick.targets,
            LOSSES[run.study.loss][0],
            trial_steps=TRIAL_STEPS,
            budget_seconds=budget_seconds,
            keep_weights=False,  # the network was drawn a moment ago
            seed=run.seed,
            progress=_meter(run.study.name, progress),
        )
    best = found.best
    trial = best.trial if best is not None else None
    notes = (*found.notes, *(best.notes if best is not None else ()), *([trial.note] if trial and trial.note else []))
    return StudyPrescription(
        variant=sick.variant.name,
        remedy=best.name if best is not None else "",
        codes=best.codes if best is not None else (),
        changes=best.changes if best is not None else (),
        code=best.code if best is not None else "",
        verdict_before=found.verdict,
        verdict_after=best.verdict_after if best is not None else found.verdict,
        decades_before=_decades(found.before),
        decades_after=_decades(best.after if best is not None else found.before),
        losses_before=trial.before if trial is not None else (),
        losses_after=trial.after if trial is not None else (),
        optimizer=trial.optimizer if trial is not None else "",
        learning_rate=trial.learning_rate if trial is not None else math.nan,
        tried=len(found),
        notes=notes,
        seconds=found.seconds,
        budget_seconds=found.budget_seconds,
    )


def _decades(profile: Profile) -> float | None:
    """Change of the gradient from the loss to the first layer; None where the account has no such end."""
    budget = gradient_budget(profile)
    return budget.total_decades if budget.steps and budget.cut_at is None else None


def _load_optimizer() -> None:
    """The first step of a process loads modules for a second or two, which is no trial's time."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()


def _meter(name: str, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda _, done, total: progress(f"{name}: trying repairs", done, total)
