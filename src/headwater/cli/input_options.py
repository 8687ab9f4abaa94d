"""The options with which a TARGET that brings no inputs is given some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["input_options"]

F = TypeVar("F", bound=Callable[..., Any])


class _Shape(click.ParamType[tuple[int, ...]]):
    """``8,3,32,32`` (or with ``x`` between) to a tuple of sizes."""

    name = "shape"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse one shape.

        Args:
            value: the word on the command line.
            param: the option.
            ctx: click's context.

        Returns:
            The sizes, batch dimension first.
        """
        if isinstance(value, tuple):
            return value
        words = value.strip("()[] ").replace("x", ",").split(",")
        try:
            sizes = tuple(int(w) for w in words if w.strip())
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no shape; write the sizes with commas, such as 8,3,32,32", param, ctx)
        return sizes


_OPTIONS = (
    click.option(
        "--input-shape",
        "shapes",
        type=_Shape(),
        multiple=True,
        metavar="SHAPE",
        help="Sizes of the inputs, batch first (8,3,32,32); once per positional argument.",
    ),
    click.option(
        "--input-dtype",
        "dtypes",
        multiple=True,
        metavar="TYPE",
        help="Their type, such as float32 or int64; once per shape.",
    ),
    click.option("--batch", type=click.IntRange(min=1), help="Batch size when the shape is inferred.  [default: 8]"),
    click.option(
        "--vocab", "vocabulary", type=click.IntRange(min=1), metavar="N", help="Token inputs: numbers below N."
    ),
)


def input_options(command: F) -> F:
    """Give a command ``shapes``, ``dtypes``, ``batch`` and ``vocabulary``.

    Args:
        command: the function to decorate.

    Returns:
        The function with the four options, shown in this order.
    """
    for option in reversed(_OPTIONS):  # decorators are applied from the last to the first
        command = option(command)
    return command
