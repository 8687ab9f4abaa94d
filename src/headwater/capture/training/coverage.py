"""What a run can show and what it cannot, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer

from headwater.capture.training.inventory import Inventory
from headwater.capture.training.layers import LayerWatch
from headwater.records.finding import fold_names

__all__ = ["ADVICE", "coverage_lines", "not_seen"]

ADVICE = (
    "rows of parameters are complete; for activations train a few steps before torch.compile, or use headwater.measure"
)
"""For who misses the layers of a compiled model."""


def not_seen(
    inventory: Inventory, layers: LayerWatch | None, optimizers: Sequence[Optimizer]
) -> list[tuple[str, tuple[str, ...]]]:
    """What is known before the first step.

    Args:
        inventory: the parameters.
        layers: the layers, or None where they are not looked at.
        optimizers: of the model.

    Returns:
        Sentences, each with the names it is about.
    """
    without, frozen = inventory.without_optimizer(optimizers)
    found: list[tuple[str, tuple[str, ...]]] = []
    if without:
        found.append((f"{_many(len(without), 'trainable parameter')} in no optimizer of this watch", without))
    if frozen:
        found.append((f"{_many(len(frozen), 'frozen parameter')} in an optimizer", frozen))
    if layers is not None and layers.compiled:
        found.append((f"layers inside a compiled module are not seen; {ADVICE}", layers.compiled))
    return found


def coverage_lines(
    inventory: Inventory, layers: LayerWatch | None, steps: int, recorded: int, missing: Mapping[str, str]
) -> list[str]:
    """Observed / trainable, and the names and reasons of the rest.

    Args:
        inventory: the parameters.
        layers: the layers, or None where they are not looked at.
        steps: optimizer steps so far.
        recorded: rows so far.
        missing: name to reason, of the last recorded step.

    Returns:
        Lines of text.
    """
    trainable = [t.watched.name for t in inventory.tracked if t.watched.trainable]
    observed = len(trainable) - len(missing) if recorded else 0
    share = 100.0 * observed / max(1, len(trainable))
    label = f"{inventory.group}: " if inventory.group else ""
    excluded = f", {len(inventory.excluded)} excluded" if inventory.excluded else ""
    lines = [
        f"{label}{_many(steps, 'optimizer step')}, {_many(recorded, 'row')} recorded; gradients of {observed} of "
        f"{_many(len(trainable), 'trainable parameter')} ({share:.3g} %){excluded}"
    ]
    for reason in dict.fromkeys(missing.values()):
        names = [name for name, why in missing.items() if why == reason]
        lines.append(f"  {_REASONS.get(reason, reason)}: {', '.join(fold_names(names))}")
    if layers is not None and layers.compiled:
        lines.append(f"  layers not seen (compiled): {', '.join(layers.compiled)}")
    elif layers is not None and layers.silent:
        lines.append("  no layer was seen: the model was compiled, or is not called as a module")
    return lines


_REASONS = {"none": "no gradient"}


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
