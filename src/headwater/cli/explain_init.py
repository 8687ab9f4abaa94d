"""``headwater explain-init TARGET``: what each weight was initialised with, and what that does to the signal."""

from __future__ import annotations

import click

from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show, write_page
from headwater.cli.target import help_text, load_target

__all__ = ["command"]


@click.command(
    "explain-init",
    cls=JsonCommand,
    short_help="Say what each weight was initialised with, and what that does.",
    help=help_text(
        "Say what each weight was initialised with, and what that does to signal and gradient.",
        """
    For each weight: its standard deviation, fan_in, fan_in times its variance, the initialiser that this corresponds
    to, and how far it is from the value that keeps the signal. Nothing is run, so inputs are not needed.

    \b
    Examples:
      headwater explain-init my_model.py:make_model
      headwater explain-init package.models:Encoder --json init.json

    Exit codes: 0 done, 2 wrong usage or input.
        """,
    ),
)
@click.argument("target")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights that TARGET draws.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page; it needs no network.")
@click.option("--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Width of the table.")
def command(target: str, seed: int, json_path: str | None, html_path: str | None, width: int | None) -> None:
    """Explain the weights of the model that TARGET names."""
    check_writable(json_path, "--json")
    check_writable(html_path, "--html")
    with only_data_on_stdout():
        import torch

        from headwater._explain_init import explain_init

        torch.manual_seed(seed)
        report = explain_init(load_target(target).model)
    if json_path is not None:
        emit_json(report.to_json(), json_path)
    if html_path is not None:
        write_page(report, html_path, title=f"headwater: the weights of {target}")
    if json_path != STDOUT:
        show(report, width=width)
