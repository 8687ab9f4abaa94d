"""Where a command writes: files checked before the measurement, data on stdout and everything else on stderr."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from headwater.errors import OutputError

__all__ = ["STDOUT", "JsonCommand", "check_writable", "emit_json", "only_data_on_stdout", "show", "write_page"]

STDOUT = "-"
# Columns when the output is no terminal, as headwater.reports.to_text takes them. Chosen by us.
PIPE_WIDTH = 100


class JsonCommand(click.Command):
    """A command whose ``--json`` may stand alone (stdout) or name a file.

    ``--json`` takes the next word only when that word is ``-`` or ends in ``.json``, so that ``check --json TARGET``
    means what it says; ``--json=FILE`` takes any name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Attach its value to ``--json``, then parse as click does.

        Args:
            ctx: click's context.
            args: the words of the command line.

        Returns:
            The words that are left over.
        """
        words = list(args)
        end = words.index("--") if "--" in words else len(words)
        for i in reversed(range(end)):
            if words[i] == "--json":
                following = words[i + 1] if i + 1 < end else ""
                takes_it = following == STDOUT or following.endswith(".json")
                words[i : i + 1 + takes_it] = [f"--json={following if takes_it else STDOUT}"]
        return super().parse_args(ctx, words)


def check_writable(path: str | Path | None, option: str) -> None:
    """Fail now rather than after the measurement.

    Args:
        path: where a file is to be written; None and ``-`` (stdout) always pass.
        option: the option that named it, for the message.

    Raises:
        OutputError: no file can be written there.
    """
    if path is None or str(path) == STDOUT:
        return
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{option} {path}: this is a folder; name a file in it, such as {target / 'profile'}")
    if target.exists() and not target.is_file():
        # Files are replaced by a rename, which would put a file in the place of the device.
        raise OutputError(f"{option} {path}: this is no ordinary file; name one, or use --json for standard output")
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"{option} {path}: the folder {folder} does not exist; create it, or name another")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{option} {path}: cannot write in {folder} ({error.strerror or error}); choose another place"
        ) from error


def emit_json(text: str, destination: str) -> None:
    """Write JSON text to stdout or to a file.

    Args:
        text: the document.
        destination: ``-`` for stdout, else a path.
    """
    from headwater.records.json_codec import write_text

    if destination == STDOUT:
        click.echo(text)
    else:
        write_text(text + "\n", destination)


@contextlib.contextmanager
def only_data_on_stdout() -> Iterator[None]:
    """Send what the user's own code prints to stderr, so that stdout carries the report alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def show(record: object, *, width: int | None = None, full: bool = False) -> None:
    """Print a record on stdout.

    Args:
        record: what :func:`headwater.reports.to_rich` shows.
        width: columns; None takes the terminal's, or 100 where there is none.
        full: fold no repeated blocks.
    """
    from rich.console import Console

    from headwater.reports import to_rich

    console = Console(width=width)
    if width is None and not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(to_rich(record, full=full))


def write_page(record: object, path: str, *, title: str) -> None:
    """Write a record as one HTML file.

    Args:
        record: what :func:`headwater.reports.to_html_page` shows.
        path: where.
        title: of the page.
    """
    from headwater.records.json_codec import write_text
    from headwater.reports import to_html_page

    write_text(to_html_page(record, title=title), path)
