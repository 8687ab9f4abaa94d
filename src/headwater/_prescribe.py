"""The fourth verb: repairs that are proven on a copy before they are recommended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwater._diagnose import diagnose
from headwater._explain_init import explain_init
from headwater._repair_search import Progress, Search, ranked
from headwater.errors import InputError
from headwater.records.initialization import BiasInitialization
from headwater.records.remedy import Prescriptions
from headwater.remedies import DEFAULT_REMEDIES, Remedy
from headwater.remedies.trial import OptimizerRecipe, fit_random_targets

__all__ = ["prescribe"]

_FEW = 16  # elements from which on a standard deviation is known well enough to compare; chosen by us
_TRAINED_SHARE = 0.25  # share of weights and biases that no initialiser draws, from which on a model counts as trained


def prescribe(
    model: nn.Module,
    inputs: Any = None,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    trial_steps: int = 50,
    remedies: Sequence[Remedy] = DEFAULT_REMEDIES,
    budget_seconds: float = 60.0,
    keep_weights: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Prescriptions:
    """Find what repairs the gradient flow of a model: every repair is tried on a copy, measured and trained for a few steps.

    The model is diagnosed; the remedies that fit the root cause are applied, each to a copy; the copy is diagnosed again
    and trained on the same batch, beside an unrepaired copy. Where no single remedy heals, pairs are tried. Your model is
    not touched until you call ``apply``.

    Args:
        model: any module that can be copied.
        inputs: as for ``measure``.
        targets: as for ``measure``.
        loss_fn: as for ``measure``.
        loss: as for ``measure``.
        optimizer: the trial uses its class and the options of its first group; without one, Adam with lr 1e-3.
        trial_steps: optimizer steps of the trial, on the one batch.
        remedies: what to try; any objects with a ``code`` and a call (:class:`headwater.remedies.Remedy`).
        budget_seconds: no repair is begun after that many seconds.
        keep_weights: True leaves out remedies that draw weights anew; None does so when the weights do not look freshly
            initialised.
        seed: of the weights that are drawn and of the trial.
        progress: called with (what, done, total).

    Returns:
        The prescriptions, best first: healed before not, then the lower loss after the trial, then the smaller change.
        Empty for a healthy model.

    Raises:
        InputError: two remedies share a code, a wrong argument, a model that cannot be copied; what ``measure`` raises.

    Example:
        >>> import torch, headwater as hw
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(8) for m in (torch.nn.Linear(16, 16), torch.nn.Sigmoid())]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 2))
        >>> x, y = torch.randn(32, 16), torch.arange(32) % 2
        >>> rx = prescribe(model, x, y, torch.nn.functional.cross_entropy, trial_steps=10)
        >>> rx.verdict.value, rx.best.verdict_after.value
        ('vanishing', 'healthy')
    """
    _check(remedies, trial_steps, budget_seconds, optimizer)
    started = time.perf_counter()
    arguments = (inputs, targets, loss_fn, loss)
    diagnosis = diagnose(model, inputs, targets, loss_fn, loss=loss)
    if diagnosis.ok:
        return Prescriptions(
            items=(),
            verdict=diagnosis.verdict,
            before=diagnosis.profile,
            notes=("The model is healthy: there is nothing to prescribe.",),
            seconds=time.perf_counter() - started,
            budget_seconds=float(budget_seconds),
        )
    probed = diagnosis.profile.loss_source == "probe"
    keep, why = _weights_to_keep(model, keep_weights)
    search = Search(
        model=model,
        arguments=arguments,
        task=(inputs, None, fit_random_targets, None) if probed else arguments,
        diagnosis=diagnosis,
        recipe=OptimizerRecipe.like(optimizer, model),
        steps=trial_steps,
        seed=seed,
        keep=keep,
        why=why,
        deadline=started + budget_seconds,
        budget=float(budget_seconds),
        progress=progress or _silent,
    )
    search.run(remedies)
    notes = list(search.notes)
    if probed:
        notes.append(
            "No loss was given: the trial fits random targets, which shows whether the model trains, but no task."
        )
    items = ranked([attempt.prescription for attempt in search.attempts])
    if items and not items[0].healed:
        notes.append(f"Nothing that was tried heals it; the best attempt is {items[0].name}.")
    elif items and not items[0].proven:
        notes.append("What heals the gradient did not lower the loss of the trial below that of the unrepaired model.")
    elif not items:
        notes.append("No remedy could be tried: see the reasons.")
    return Prescriptions(
        items=items,
        verdict=diagnosis.verdict,
        cause=diagnosis.root.cause if diagnosis.root is not None else "",
        before=diagnosis.profile,
        not_tried=tuple(search.not_tried),
        keep_weights=keep,
        weights_note=why,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
        budget_seconds=float(budget_seconds),
    )


def _check(remedies: Sequence[Remedy], steps: int, budget: float, optimizer: object) -> None:
    codes = [r.code for r in remedies]
    twice = sorted({c for c in codes if codes.count(c) > 1})
    if twice:
        raise InputError(f"two remedies share the code {', '.join(twice)}: give each its own")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"trial_steps should be a positive integer, got {steps!r}")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise InputError(f"budget_seconds should be a number above 0, got {budget!r}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer should be a torch.optim.Optimizer, got {type(optimizer).__name__}")


def _silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""


def _weights_to_keep(model: nn.Module, asked: bool | None) -> tuple[bool, str]:
    """Whether the weights may not be drawn anew, and how that was decided."""
    if asked is not None:
        return asked, f"keep_weights={asked} was asked for"
    report = explain_init(model)
    weights = [row.name for row in report.rows if row.distribution == "unknown"]
    odd = [row for row in report.biases if row.initializer == "no standard initialiser"]
    biases = [] if _of_one_law(odd) else [row.name for row in odd]
    total = len(report.rows) + len(report.biases)
    strange = len(weights) + len(biases)
    if total and strange / total > _TRAINED_SHARE:
        return True, (
            f"{strange} of {total} weights and biases have values that no initialiser draws, so the model seems to be trained; "
            "keep_weights=False draws them anew nevertheless"
        )
    return False, f"{total - strange} of {total} weights and biases look freshly initialised"


def _of_one_law(biases: Sequence[BiasInitialization]) -> bool:
    """Whether biases of several layers look drawn from one centred law: training moves each layer's by its own amount."""
    large = [b for b in biases if math.prod(b.shape) >= _FEW]
    if len(large) < 2 or not all(math.isfinite(b.std) and b.std > 0.0 for b in large):
        return False
    centred = all(abs(b.mean) < 4.0 * b.std / math.sqrt(math.prod(b.shape)) for b in large)
    alike = max(b.std for b in large) < 2.0 * min(b.std for b in large)
    return centred and alike
