"""``headwater report RUN``: what a recorded run shows, as text, a page, JSON, CSV, Markdown or a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headwater.cli import ExitCode
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, show, write_page
from headwater.errors import NothingObservedError

if TYPE_CHECKING:
    from headwater.reports.run_view import RunView

__all__ = ["command"]

FORMATS = ("text", "json", "csv", "md", "html", "png")


@click.command(
    "report",
    cls=JsonCommand,
    short_help="Tell what a recorded run shows: healthy or not, what happened first, where and when.",
    help="""Tell what a recorded run shows: healthy or not, what happened first, where and when.

    RUN is the folder that headwater.watch wrote, or the run file in it; a run that is still being written can be read.
    The page (--html) has a map of layers over steps, the profile along the depth with a slider over the steps, loss,
    gradient norm, learning rate and loss scale, update ratios, findings and events in words, who made a spike, and what
    watching cost. It is one file, works without a network, and stays below 12 MB however long the run.

    \b
    Formats:
      json   the summary of the run (schema headwater.run_summary, whose JSON Schema comes with the package:
             headwater.records.json_schema.shipped_schema)
      csv    one row per recorded step
      md     the whole report as Markdown
      html   the page
      png    the map alone, as a picture (needs the package kaleido)

    \b
    Examples:
      headwater report runs/a
      headwater report runs/a --html report.html
      headwater report runs/a --format md > report.md
      headwater report runs/a --format png --output map.png

    Exit codes: 0 healthy, 1 unhealthy, 2 wrong usage or no such run, 3 nothing observed.
    """,
)
@click.argument("run")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots; it needs no network.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="What to write to --output or to standard output.",
)
@click.option("--output", "output_path", metavar="FILE", help="Where --format goes.  [default: standard output]")
@click.option("--width", type=click.IntRange(min=20), metavar="COLUMNS", help="Width of the text.")
@click.option("--all-rows", is_flag=True, help="Text: list every weight, finding and event.")
def command(
    run: str,
    html_path: str | None,
    json_path: str | None,
    format_name: str,
    output_path: str | None,
    width: int | None,
    all_rows: bool,
) -> None:
    """Show the run that RUN names."""
    if format_name == "png" and output_path is None:
        raise click.UsageError("--format png writes a picture: name a file with --output")
    for path, option in ((html_path, "--html"), (json_path, "--json"), (output_path, "--output")):
        check_writable(path, option)
    if format_name == "png":
        from headwater.cli.pictures import check_png

        check_png(output_path or "", "--output")
    from headwater.reports.run_view import RunView
    from headwater.store import open_run

    view = RunView(open_run(run))
    if not view.summary.recorded_steps:
        raise NothingObservedError(f"run {run}: no step has been recorded yet")
    if html_path is not None:
        write_page(view, html_path, title=f"headwater: run {view.summary.name}")
    if json_path is not None:
        emit_json(view.summary.to_json(), json_path)
    if format_name == "text" and output_path is None:
        if json_path != STDOUT:
            show(view.summary if all_rows else view, width=width, full=all_rows)
    else:
        _write(view, format_name, output_path, width, all_rows)
    if not view.summary.ok:
        click.get_current_context().exit(ExitCode.UNHEALTHY)


def _write(view: RunView, format_name: str, path: str | None, width: int | None, all_rows: bool) -> None:
    from headwater.records.json_codec import write_text

    if format_name == "png":
        from headwater.cli.pictures import write_png
        from headwater.reports import to_figure

        write_png(to_figure(view, template="light"), path or "", "--output")
        return
    text = _text(view, format_name, width, all_rows)
    if path is None:
        click.echo(text, nl=not text.endswith("\n"))
    else:
        write_text(text if text.endswith("\n") else text + "\n", path)


def _text(view: RunView, format_name: str, width: int | None, all_rows: bool) -> str:
    from headwater.reports import to_html_page, to_text

    if format_name == "json":
        return view.summary.to_json()
    if format_name == "csv":
        from headwater.reports.run_rows import run_to_csv

        return run_to_csv(view.run)
    if format_name == "md":
        from headwater.reports.run_markdown import render_markdown
        from headwater.reports.run_report import build_run_document

        return render_markdown(build_run_document(view, full=True))
    if format_name == "html":
        return to_html_page(view, title=f"headwater: run {view.summary.name}")
    record: Any = view.summary if all_rows else view
    return to_text(record, width=width, full=all_rows)
