"""``headwater compare A B``: the first step and tensor at which two recorded runs part."""

from __future__ import annotations

import click

from headwater.cli import ExitCode
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, show, write_page

__all__ = ["command"]


@click.command(
    "compare",
    cls=JsonCommand,
    short_help="Say at which step and tensor two recorded runs first part, and how they drift apart.",
    help="""Say at which step and tensor two recorded runs first part, and how they drift apart.

    A and B are folders that headwater.watch wrote. Compared is what both recorded: the steps they have in common, and
    tensors of the same name, after the rules of --rename. Of each tensor the rms of value, output, gradient and the
    optimizer's second moment, and the update ratio; of each step loss, gradient norm, learning rate, loss scale and
    clipping. Within a step, differences are ordered as training makes the numbers, so the first line is nearest to the
    cause.

    \b
    Examples:
      headwater compare runs/before runs/after
      headwater compare runs/a runs/b --rtol 1e-3 --html drift.html
      headwater compare runs/old runs/new --rename encoder=backbone.encoder

    Exit codes: 0 the same, 1 they part, 2 wrong usage or no such run, 3 nothing in common.
    """,
)
@click.argument("a")
@click.argument("b")
@click.option(
    "--rtol",
    type=click.FloatRange(min=0.0),
    default=1e-5,
    show_default=True,
    help="Relative difference up to which two numbers are the same.",
)
@click.option(
    "--rename",
    "rules",
    metavar="OLD=NEW",
    multiple=True,
    help="Names of A that start with OLD start with NEW. Either may be empty. Repeatable; the first that fits counts.",
)
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with the drift as a plot; it needs no network.")
@click.option("--width", type=click.IntRange(min=20), metavar="COLUMNS", help="Width of the text.")
@click.option("--all-rows", is_flag=True, help="List every difference that was kept, not the first twelve.")
def command(
    a: str,
    b: str,
    rtol: float,
    rules: tuple[str, ...],
    json_path: str | None,
    html_path: str | None,
    width: int | None,
    all_rows: bool,
) -> None:
    """Compare the runs A and B."""
    renames: dict[str, str] = {}
    for rule in rules:
        old, sign, new = rule.partition("=")
        if not sign or old == new:
            raise click.BadParameter(f"{rule!r} is no rule; write OLD=NEW", param_hint="--rename")
        renames.setdefault(old, new)
    for path, option in ((html_path, "--html"), (json_path, "--json")):
        check_writable(path, option)
    from headwater._compare import compare

    comparison = compare(a, b, rtol=rtol, renames=renames)
    if html_path is not None:
        write_page(comparison, html_path, title=f"headwater: {comparison.name_a} beside {comparison.name_b}")
    if json_path is not None:
        emit_json(comparison.to_json(), json_path)
    if json_path != STDOUT:
        show(comparison, width=width, full=all_rows)
    if not comparison.same:
        click.get_current_context().exit(ExitCode.UNHEALTHY)
