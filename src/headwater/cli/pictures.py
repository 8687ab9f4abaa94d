"""Figures as PNG files: drawn by kaleido with an installed browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from headwater.errors import OutputError

__all__ = ["check_png", "write_png"]


def check_png(path: str, option: str) -> None:
    """Fail now rather than after the work.

    Args:
        path: where a picture is to be written.
        option: that named it, for the message.

    Raises:
        OutputError: the package kaleido is not installed.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise OutputError(
            f"{option} {path}: drawing a picture needs the package kaleido and a Chrome or Chromium browser; install it "
            "with pip install 'headwater[png]', or write an interactive page with --html"
        )


def write_png(figure: Any, path: str, option: str) -> None:
    """Write a figure as a PNG file, 1,000 pixels wide at twice the resolution.

    Args:
        figure: a ``plotly.graph_objects.Figure`` with a height.
        path: where.
        option: that named it, for the message.

    Raises:
        OutputError: kaleido could not draw it.
    """
    try:
        figure.write_image(Path(path), format="png", width=1000, height=figure.layout.height, scale=2)
    except Exception as error:  # kaleido raises its own kinds, for a browser that is missing or does not start
        raise OutputError(
            f"{option} {path}: kaleido could not draw the picture ({type(error).__name__}: {' '.join(str(error).split())}); "
            "it needs a Chrome or Chromium browser, which BROWSER_PATH may name. --html needs neither"
        ) from error
