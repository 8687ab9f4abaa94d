"""The ``headwater`` command: one file per subcommand, loaded when it is called.

Exit codes: 0 done or healthy, 1 unhealthy, 2 a usage error or input that cannot be measured, 3 nothing was observed.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from headwater.errors import HeadwaterError, NothingObservedError

__all__ = ["COMMANDS", "ExitCode", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("headwater.cli.demo", "Run the five classic studies of vanishing and exploding gradients."),
    "check": ("headwater.cli.check", "Diagnose your model: does the gradient reach the first layer, and if not, why?"),
    "predict": ("headwater.cli.predict", "Forecast the gradient of every layer before the model runs, at any size."),
    "explain-init": ("headwater.cli.explain_init", "Say what each weight was initialised with, and what that does."),
    "fix": ("headwater.cli.fix", "Find what repairs your model: every repair is tried on a copy and trained."),
    "report": (
        "headwater.cli.report",
        "Tell what a recorded run shows: healthy or not, what happened first, where and when.",
    ),
    "top": (
        "headwater.cli.top",
        "Watch a run in the terminal while it trains: loss, norm, worst layers, findings, speed, cost.",
    ),
    "compare": (
        "headwater.cli.compare",
        "Say at which step and tensor two recorded runs first part, and how they drift apart.",
    ),
    "phase": ("headwater.cli.phase", "Map where deep networks of an activation lose or keep their gradient."),
}
"""Command name to the module whose ``command`` it is, and the line that ``headwater --help`` shows.

The line is repeated here so that ``--help`` imports no command; a test keeps the two equal.
"""


class ExitCode:
    """What the process returns.

    Attributes:
        OK: done; for a diagnosis, healthy.
        UNHEALTHY: the diagnosis found something.
        USAGE: the command line, the target or its input is wrong.
        NOTHING_OBSERVED: no parameter and no layer received a gradient.
        INTERRUPTED: stopped with Ctrl-C (128 + SIGINT, as shells report it).
    """

    OK = 0
    UNHEALTHY = 1
    USAGE = 2
    NOTHING_OBSERVED = 3
    INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that imports a command when it is called, and turns headwater's errors into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name][0]}.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HeadwaterError as error:
            if os.environ.get("HEADWATER_DEBUG", "") not in ("", "0"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(ExitCode.NOTHING_OBSERVED if isinstance(error, NothingObservedError) else ExitCode.USAGE)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(ExitCode.INTERRUPTED)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from headwater import __version__

    click.echo(f"headwater {__version__}, Python {sys.version.split()[0]}")
    ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="""Does the gradient reach the first layer, and if not: where is it lost, and why?

\b
Examples:
  headwater demo                              what vanishing gradients look like
  headwater check my_model.py:make_model      your own network""",
    epilog=(
        "Exit codes: 0 done or healthy, 1 unhealthy, 2 wrong usage or input, 3 nothing observed. "
        "HEADWATER_DEBUG=1 shows the traceback of an error."
    ),
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def main() -> None:
    """Run the command that the words name."""
