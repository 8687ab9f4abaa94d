"""``--optimizer adam:lr=1e-3``: the optimizer that a command line describes."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

__all__ = ["make_optimizer"]

# The base class; one that needs a closure, and one that takes sparse gradients alone.
_LEFT_OUT = ("Optimizer", "LBFGS", "SparseAdam")


def make_optimizer(text: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``name:option=value,…`` describes over a model's trainable parameters.

    Args:
        text: name of a class in ``torch.optim`` in any case, then its options as Python literals:
            ``sgd:lr=0.1,momentum=0.9``.
        model: whose parameters it gets.

    Returns:
        The optimizer.

    Raises:
        click.UsageError: the class, an option or a value is unknown.
    """
    import torch

    name, _, options = text.partition(":")
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key not in _LEFT_OUT
    }
    if name.lower() not in classes:
        raise click.UsageError(f"--optimizer {text}: torch.optim has no {name!r}; it has {', '.join(sorted(classes))}")
    settings: dict[str, Any] = {}
    for word in options.split(",") if options else []:
        key, separator, value = word.partition("=")
        try:
            settings[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            separator = ""
        if not separator:
            raise click.UsageError(
                f"--optimizer {text}: {word!r} is no option; write name:option=value, such as sgd:lr=0.1"
            )
    try:
        optimizer: torch.optim.Optimizer = classes[name.lower()](
            [p for p in model.parameters() if p.requires_grad], **settings
        )
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"--optimizer {text}: {error}") from error
    return optimizer
