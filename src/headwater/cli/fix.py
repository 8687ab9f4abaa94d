"""``headwater fix TARGET``: repairs that are tried on a copy before they are recommended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headwater.cli import ExitCode
from headwater.cli.failures import model_failures
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show
from headwater.cli.target import help_text, load_target
from headwater.errors import OutputError

if TYPE_CHECKING:
    from headwater.records.remedy import Prescriptions

__all__ = ["command"]


@click.command(
    "fix",
    cls=JsonCommand,
    short_help="Find what repairs your model: every repair is tried on a copy and trained.",
    help=help_text(
        "Find what repairs your model: every repair is tried on a copy, measured again and trained for a few steps.",
        """
    What heals the gradient and lowers the loss most is recommended, with the code to paste. Your model and your files stay
    as they are; --apply-to writes the code to a file of its own.

    \b
    Examples:
      headwater fix my_model.py:make_model
      headwater fix package.training:model_and_batch --optimizer sgd:lr=0.1 --html repair.html
      headwater fix my_model.py:make_model --apply-to repair.py

    Exit codes: 0 healthy or healed, 1 nothing heals it, 2 wrong usage or input, 3 nothing observed.
        """,
    ),
)
@click.argument("target")
@click.option("--steps", type=click.IntRange(min=1), default=50, show_default=True, help="Steps of each trial.")
@click.option(
    "--budget", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True, help="Seconds for all."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights, the inputs and the trials.")
@click.option(
    "--keep-weights/--new-weights",
    "keep_weights",
    default=None,
    help="Never draw weights anew, or allow it.  [default: allow it where they look freshly initialised]",
)
@click.option("--train/--eval", "training", default=None, help="Switch the mode first.  [default: as TARGET left it]")
@click.option(
    "--optimizer", "optimizer_text", metavar="NAME:OPTIONS", help="Of the trials: sgd:lr=0.1.  [default: adam]"
)
@click.option("--apply-to", "code_path", metavar="FILE", help="Write the code of the best repair to FILE.")
@click.option("--force", is_flag=True, help="Overwrite the file of --apply-to.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots; it needs no network.")
@click.option("--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Width of the table.")
def command(
    target: str,
    steps: int,
    budget: float,
    seed: int,
    keep_weights: bool | None,
    training: bool | None,
    optimizer_text: str | None,
    code_path: str | None,
    force: bool,
    json_path: str | None,
    html_path: str | None,
    width: int | None,
) -> None:
    """Find what repairs the model that TARGET names."""
    for path, option in ((json_path, "--json"), (html_path, "--html"), (code_path, "--apply-to")):
        check_writable(path, option)
    if code_path is not None and Path(code_path).exists() and not force:
        raise OutputError(f"--apply-to {code_path}: the file exists; name another, or overwrite it with --force")
    if force and code_path is None:
        raise click.UsageError("--force is for --apply-to, which was not given")
    with only_data_on_stdout():
        record = _run(target, steps, budget, seed, keep_weights, training, optimizer_text)
    if code_path is not None:
        _write_code(record, code_path, target)
    if json_path is not None:
        emit_json(record.to_json(), json_path)
    from headwater.reports.prescription_report import build_prescription_document

    if html_path is not None:
        from headwater.records.json_codec import write_text
        from headwater.reports import to_html_page

        document = build_prescription_document(record, full=True)
        write_text(to_html_page(document, title=f"headwater: {document.title}"), html_path)
    if json_path != STDOUT:
        show(build_prescription_document(record), width=width)
    if record.verdict.value != "healthy" and not record.healed:
        click.get_current_context().exit(ExitCode.UNHEALTHY)


def _run(
    target: str,
    steps: int,
    budget: float,
    seed: int,
    keep_weights: bool | None,
    training: bool | None,
    optimizer_text: str | None,
) -> Prescriptions:
    import torch

    from headwater._prescribe import prescribe
    from headwater.cli.optimizer import make_optimizer

    torch.manual_seed(seed)
    loaded = load_target(target)
    if training is not None:
        loaded.model.train(training)
    inputs, hint = loaded.inputs, ""
    if inputs is None and loaded.loss is None:
        from headwater.cli.example_inputs import example_batch

        example = example_batch(loaded.model, shapes=(), dtypes=(), batch=None, vocabulary=None, seed=seed)
        inputs = example.inputs
        click.echo(example.description, err=True)
        hint = f"It was given {example.description}. If that does not fit, return (model, inputs) from TARGET."
    optimizer = make_optimizer(optimizer_text, loaded.model) if optimizer_text is not None else None
    batch: tuple[Any, Any, Any] = (None, None, None)
    if loaded.loss is None:
        batch = (inputs, loaded.targets, loaded.loss_fn)
    with model_failures(hint), _progress() as advance:
        return prescribe(
            loaded.model,
            *batch,
            loss=loaded.loss,
            optimizer=optimizer,
            trial_steps=steps,
            budget_seconds=budget,
            keep_weights=keep_weights,
            seed=seed,
            progress=advance,
        )


def _write_code(record: Prescriptions, path: str, target: str) -> None:
    from headwater.records.json_codec import write_text

    best = record.best
    if best is None or not best.healed:
        click.echo(f"{path} was not written: there is no repair to write.", err=True)
        return
    lines = [
        f"# {best.name}: what headwater recommends for {target}.",
        "# It changes `model`; run it before the optimizer.",
    ]
    lines += [f"#   {change}" for change in best.changes]
    write_text("\n".join(lines) + "\n\n" + best.code, path)
    click.echo(f"The code is in {path}.", err=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("trying repairs", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"trying {what}", completed=done, total=total)

        yield advance
