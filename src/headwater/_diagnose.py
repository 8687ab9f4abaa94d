"""The second verb: a scale-free verdict with cause, place and a gradient budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwater._measure import profile_of
from headwater.capture import CopyError, LossRun, look_again
from headwater.detectors import DEFAULT_DETECTORS, Detector, diagnosis_of
from headwater.errors import InputError
from headwater.records import Diagnosis, Forecast, Profile

__all__ = ["diagnose"]


def diagnose(
    model: nn.Module | Profile,
    inputs: Any = None,
    targets: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    loss: Callable[[nn.Module], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    forecast: Forecast | None = None,
    detectors: Sequence[Detector] = DEFAULT_DETECTORS,
    draws: int = 1,
    steps: int = 3,
    include: object = None,
    exclude: object = None,
) -> Diagnosis:
    """Say whether the gradient reaches the first layer, and if not, where it is lost and why.

    One forward and one backward, as :func:`headwater.measure` (inputs that hold NaN are not refused: what they do is the
    verdict). Where one cannot tell (exact zeros, copies of one unit,
    units that are off), a few steps are taken on a copy with the same batch, and what is still so decides. The verdict
    does not depend on the scale of the loss.

    Args:
        model: the model; or a saved :class:`headwater.Profile`, and then nothing but ``detectors`` and ``forecast``.
        inputs: as for ``measure``.
        targets: as for ``measure``.
        loss_fn: as for ``measure``.
        loss: as for ``measure``.
        optimizer: the optimizer the model is trained with: its steps are the ones taken on the copy, and the size of its
            updates is looked at.
        forecast: from :func:`headwater.predict` of the same model: findings over depth then say what theory predicts, and
            whether the fault is in the initialisers or came later. No verdict depends on it.
        detectors: which detectors to run.
        draws: as for ``measure``.
        steps: how many steps on the copy.
        include: as for ``measure``.
        exclude: as for ``measure``.

    Returns:
        The diagnosis.

    Raises:
        InputError: a saved profile together with a model's arguments; two detectors with one code; what ``measure`` raises.

    Example:
        >>> import torch, headwater as hw
        >>> _ = torch.manual_seed(0)
        >>> layers = [m for _ in range(12) for m in (torch.nn.Linear(32, 32), torch.nn.Sigmoid())]
        >>> d = hw.diagnose(torch.nn.Sequential(*layers), torch.randn(16, 32))
        >>> d.verdict.value, d.ok
        ('vanishing', False)
    """
    if isinstance(model, Profile):
        if any(argument is not None for argument in (inputs, targets, loss_fn, loss, optimizer)):
            raise InputError("a saved profile is diagnosed as it is: pass it alone, or pass the model instead")
        return diagnosis_of(model, detectors, forecast)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(f"optimizer should be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps should be a positive integer, got {steps!r}")
    profile = profile_of(model, inputs, targets, loss_fn, loss=loss, draws=draws, include=include, exclude=exclude)
    undecided: list[str] = []
    suspects = _suspects(profile)
    if optimizer is not None or suspects or _may_change(profile):
        run = LossRun(inputs, targets, loss_fn, loss)
        try:
            look = look_again(
                model, run, optimizer=optimizer, steps=steps, suspects=suspects, batch_size=profile.batch_size
            )
        except CopyError as error:
            undecided.append(f"no steps on a copy could be taken: {error}; exact zeros and copies may be transient.")
        else:
            profile = profile.replace(second_look=look)
    return diagnosis_of(profile, detectors, forecast, undecided)


def _suspects(profile: Profile) -> tuple[str, ...]:
    """Parameters without a gradient of a module that ran: does the loss depend on them nevertheless?"""
    ran = {row.name for row in profile.layers}
    return tuple(
        q.name for q in profile.parameters if q.state == "exact_zero" or (q.state == "none" and q.layer in ran)
    )


def _may_change(profile: Profile) -> bool:
    """Whether a second look could change what one backward shows: copies of units, and units that are off."""
    copies = any(q.duplicate_units and q.shape and q.duplicate_units >= q.shape[0] / 2 for q in profile.parameters)
    return copies or any((row.dead_fraction or 0.0) > 0.5 for row in profile.layers)
