"""``headwater demo [NAME …]``: the five classic studies, each with its verdicts and its prescription."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, show

if TYPE_CHECKING:
    from headwater.records.study import StudyResult

__all__ = ["command"]

_DEFAULT_PAGE = "headwater-demo.html"
_HELP = """
Run the five classic studies of vanishing and exploding gradients.

Each prints what its published notebook prints beside the published figures, gives every network its verdict with
place and cause, and answers what the notebook leaves open, from its own measurements. It closes with a prescription:
what repairs the first network that is not healthy, tried on a copy. One HTML page with interactive plots works offline.

\b
The studies:
  deep-sigmoid          gradients vanish in a deep sigmoid network
  shortcut              a residual connection lets the gradient through
  activation-and-init   sigmoid, tiny weights, ReLU
  raw-weights           do gradients explode or vanish when weights are N(0, 1)?
  init-strategies       sigmoid against LeakyReLU, He against Xavier

\b
Examples:
  headwater demo
  headwater demo deep-sigmoid --depth 50 --activation tanh
  headwater demo raw-weights --print-weights
  headwater demo shortcut --json shortcut.json

Exit codes: 0 done, 2 wrong usage.
"""


@click.command(
    "demo",
    cls=JsonCommand,
    short_help="Run the five classic studies of vanishing and exploding gradients.",
    help=_HELP,
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--seed", type=int, help="Of the weights and data.  [default: the study's own, or 0]")
@click.option("--draws", type=click.IntRange(min=2), help="Networks in each ensemble.  [default: 1000]")
@click.option("--depth", type=click.IntRange(min=1), help="How many times the activation is applied.")
@click.option("--width", type=click.IntRange(min=1), help="Units of a hidden layer.")
@click.option("--activation", metavar="NAME", help="Of every network that has one: relu, tanh, gelu ...")
@click.option("--init", metavar="RULE", help="Of every network: xavier_normal, kaiming_normal, normal:0.05 ...")
@click.option("--print-weights", is_flag=True, help="raw-weights: print every weight matrix beside its gradient.")
@click.option("--html", "html_path", metavar="FILE", help=f"Where to write the page.  [default: ./{_DEFAULT_PAGE}]")
@click.option("--no-html", is_flag=True, help="Write no page.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
def command(
    names: tuple[str, ...],
    seed: int | None,
    draws: int | None,
    depth: int | None,
    width: int | None,
    activation: str | None,
    init: str | None,
    print_weights: bool,
    html_path: str | None,
    no_html: bool,
    json_path: str | None,
) -> None:
    """Check every name and option, run, print, write."""
    if no_html and html_path is not None:
        raise click.UsageError("--html and --no-html contradict each other")
    # With data on standard output a page is written only where one was asked for.
    page = None if no_html else html_path or (None if json_path == STDOUT else _DEFAULT_PAGE)
    check_writable(page, "--html")
    check_writable(json_path, "--json")
    from headwater._studies import demo
    from headwater.studies import CLASSICS, study

    chosen = list(dict.fromkeys(names)) or list(CLASSICS)
    for name in chosen:  # every name and option is checked before anything runs
        study(name).varied(depth=depth, width=width, activation=activation, init=init)
    results: list[StudyResult] = []
    with _progress() as advance:
        for name in chosen:
            result = demo(
                name, seed=seed, draws=draws, depth=depth, width=width, activation=activation, init=init,
                progress=advance,
            )  # fmt: skip
            results.append(result)
    if json_path is not None:
        _emit(results, json_path)
    if json_path != STDOUT:
        _print(results, print_weights)
    if page is not None:
        _write_page(results, page)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars on standard error: networks drawn, then repairs tried, per study; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what if ":" in what else f"{what}: drawing networks", total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield advance


def _emit(results: list[StudyResult], destination: str) -> None:
    import json

    if len(results) == 1:
        emit_json(results[0].to_json(), destination)
    else:
        document = {"schema": "headwater.studies", "schema_version": 1, "studies": [r.to_dict() for r in results]}
        emit_json(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1), destination)


def _print(results: list[StudyResult], print_weights: bool) -> None:
    from headwater.reports.study_report import Matrices, build_study_document

    # Alone, a study prints everything its notebook does; among others, its table.
    matrices: Matrices = "both" if print_weights else "gradients" if len(results) == 1 else "none"
    for number, result in enumerate(results):
        if number:
            click.echo()
        show(build_study_document(result, matrices=matrices))


def _write_page(results: list[StudyResult], path: str) -> None:
    from headwater.records.json_codec import write_text
    from headwater.reports import to_html_page
    from headwater.reports.study_report import build_study_document

    documents = [build_study_document(result, full=True) for result in results]
    title = documents[0].title if len(documents) == 1 else "Five classic studies of the gradient, measured"
    if 1 < len(documents) < 5:
        title = "Classic studies of the gradient, measured"
    write_text(to_html_page(documents, title=title), path)
    print(f"\nPlots and answers: {path}", file=sys.stderr)
