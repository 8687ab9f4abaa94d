"""``headwater top RUN``: a run in the terminal while another process trains."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import click

from headwater.cli.outputs import PIPE_WIDTH, STDOUT, JsonCommand, check_writable, emit_json, show
from headwater.errors import NothingObservedError

if TYPE_CHECKING:
    from rich.console import Console

    from headwater.records.run import RunSource

__all__ = ["command"]

_PATIENCE = 4.0  # a frame that takes long to read is drawn the less often: at most a fifth of one core. Chosen by us.


@click.command(
    "top",
    cls=JsonCommand,
    short_help="Watch a run in the terminal while it trains: loss, norm, worst layers, findings, speed, cost.",
    help="""Watch a run in the terminal while it trains: loss, norm, worst layers, findings, speed, cost.

    RUN is the folder that headwater.watch writes. It is read, never changed, from this process; the training does not
    notice. The view ends when the run does, and with Ctrl-C. Where the output is no terminal, one frame is
    printed.

    \b
    Examples:
      headwater top runs/a
      headwater top runs/a --interval 5
      headwater top runs/a --once               one frame, then leave

    Exit codes: 0 done, 2 wrong usage or no such run, 3 nothing observed (with --once and --json).
    """,
)
@click.argument("run")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame and leave.")
@click.option(
    "--json", "json_path", metavar="[FILE]", help="Write the summary as JSON to FILE (*.json) or stdout, and leave."
)
@click.option("--width", type=click.IntRange(min=20), metavar="COLUMNS", help="Width of the frame.")
def command(run: str, interval: float, once: bool, json_path: str | None, width: int | None) -> None:
    """Show the run that RUN names until it ends."""
    check_writable(json_path, "--json")
    from headwater.store import open_run

    source = open_run(run)
    if (once or json_path is not None) and not source.steps:
        raise NothingObservedError(f"run {run}: no step has been recorded yet")
    if json_path is not None:
        from headwater.records.run_summary import summarize_run

        emit_json(summarize_run(source).to_json(), json_path)
        if json_path == STDOUT or not once:
            return
    from rich.console import Console

    console = Console(width=width)
    if once or not console.is_terminal:
        from headwater.reports.run_live import build_live_document

        show(build_live_document(source, now=time.time(), width=_columns(console, width)), width=width)
        return
    _follow(source, interval, console)


def _columns(console: Console, width: int | None) -> int:
    return console.width if console.is_terminal or width is not None else PIPE_WIDTH


def _follow(source: RunSource, interval: float, console: Console) -> None:
    """Draw frame after frame until the run ends or somebody presses Ctrl-C."""
    from rich.live import Live

    from headwater.records.run_summary import is_finished
    from headwater.reports import to_rich
    from headwater.reports.run_live import build_live_document

    # A flag, not KeyboardInterrupt: an exception may come in the middle of a frame, and be lost there.
    left = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: left.set())
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while not left.is_set():
                began = time.monotonic()
                ended = is_finished(source.events)  # asked first: the last frame then has the last step
                frame = build_live_document(source, now=time.time(), width=console.width, height=console.height)
                live.update(to_rich(frame), refresh=True)
                if ended:
                    break
                left.wait(max(interval, _PATIENCE * (time.monotonic() - began)))
    finally:
        signal.signal(signal.SIGINT, before)
    if not left.is_set():
        click.echo("The run has ended.", err=True)
