"""``headwater check TARGET``: diagnose a model that you name, for people and for continuous integration."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from headwater.cli import ExitCode
from headwater.cli.failures import model_failures
from headwater.cli.input_options import input_options
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show, write_page
from headwater.cli.target import Target, help_text, load_target
from headwater.errors import NothingObservedError
from headwater.records import Diagnosis, Profile, Severity

__all__ = ["command"]


@click.command(
    "check",
    cls=JsonCommand,
    short_help="Diagnose your model: does the gradient reach the first layer, and if not, why?",
    help=help_text(
        "Diagnose your model: does the gradient reach the first layer, and if not, where is it lost, and why?",
        """
    One forward and one backward; where they cannot tell, a few steps on a copy. The model alone is enough for a first
    look: the inputs are then random, and without a loss the output is probed with random numbers, which shows the
    architecture and its initialisation but no task.

    \b
    Examples:
      headwater check my_model.py:make_model
      headwater check my_model.py:ResNet --input-shape 8,3,32,32
      headwater check package.training:model_and_batch --optimizer adam:lr=1e-3 --html report.html
      headwater check my_model.py:make_model --fail-on warning --sarif out.sarif --junit out.xml

    Exit codes: 0 healthy, 1 unhealthy, 2 wrong usage or input, 3 nothing observed. With --profile-only, 0 is measured.
        """,
    ),
)
@click.argument("target")
@input_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights, the inputs and the probe.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Initialise the model so many times afresh; mean and spread.",
)
@click.option("--train/--eval", "training", default=None, help="Switch the mode first.  [default: as TARGET left it]")
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "critical"]),
    help="Exit with 1 from this severity on.  [default: critical]",
)
@click.option(
    "--optimizer", "optimizer_text", metavar="NAME:OPTIONS", help="Judge its updates as well: sgd:lr=0.1, adam:lr=1e-3."
)
@click.option("--profile-only", is_flag=True, help="Measure and show the profile; give no verdict.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots; it needs no network.")
@click.option("--sarif", "sarif_path", metavar="FILE", help="Write the findings as SARIF 2.1.0, for code scanning.")
@click.option("--junit", "junit_path", metavar="FILE", help="Write JUnit XML: one test case per detector.")
@click.option("--csv", "csv_path", metavar="FILE", help="Write one row per layer and parameter.")
@click.option("--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Width of the table.")
@click.option("--all-rows", is_flag=True, help="Show every layer of a long model: fold no repeated blocks.")
def command(
    target: str,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[str, ...],
    batch: int | None,
    vocabulary: int | None,
    seed: int,
    draws: int,
    training: bool | None,
    fail_on: str | None,
    optimizer_text: str | None,
    profile_only: bool,
    json_path: str | None,
    html_path: str | None,
    sarif_path: str | None,
    junit_path: str | None,
    csv_path: str | None,
    width: int | None,
    all_rows: bool,
) -> None:
    """Diagnose the model that TARGET names."""
    if shapes and batch is not None:
        raise click.UsageError("--batch is for inferred shapes; --input-shape already begins with the batch size")
    verdict_options = {
        "--fail-on": fail_on, "--optimizer": optimizer_text, "--sarif": sarif_path, "--junit": junit_path
    }  # fmt: skip
    useless = [name for name, value in verdict_options.items() if value is not None]
    if profile_only and useless:
        raise click.UsageError(f"--profile-only gives no verdict: leave out {', '.join(useless)}")
    for path, option in (
        (json_path, "--json"), (html_path, "--html"), (sarif_path, "--sarif"), (junit_path, "--junit"),
        (csv_path, "--csv"),
    ):  # fmt: skip
        check_writable(path, option)
    with only_data_on_stdout():
        import torch

        torch.manual_seed(seed)
        loaded = load_target(target)
        if training is not None:
            loaded.model.train(training)
        given = loaded.inputs is not None or loaded.loss is not None
        if given and (shapes or dtypes or batch is not None or vocabulary is not None):
            raise click.UsageError("TARGET brings its own inputs: leave out the options that describe inputs")
        started = time.perf_counter()
        request = _Request(None if given else (shapes, dtypes, batch, vocabulary), seed, draws, optimizer_text)
        record = _run(loaded, request, profile_only)
        seconds = time.perf_counter() - started
    profile = record.profile if isinstance(record, Diagnosis) else record
    if profile.coverage.observed == 0:
        raise NothingObservedError(f"nothing was observed: {profile.coverage}")
    if json_path is not None:
        emit_json(record.to_json(), json_path)
    if csv_path is not None:
        profile.to_csv(csv_path)
    if html_path is not None:
        write_page(record, html_path, title=f"headwater: {profile.model_type}")
    limit = Severity(fail_on or "critical")
    if isinstance(record, Diagnosis):
        _write_ci_files(record, target, sarif_path, junit_path, limit, seconds)
    if json_path != STDOUT:
        show(record, width=width, full=all_rows)
    if isinstance(record, Diagnosis) and _fails(record, limit):
        click.get_current_context().exit(ExitCode.UNHEALTHY)


def _fails(diagnosis: Diagnosis, limit: Severity) -> bool:
    worst = diagnosis.worst()
    return not diagnosis.ok or (worst is not None and worst.rank >= limit.rank)


@dataclass(frozen=True, slots=True)
class _Request:
    """What the command line says beside TARGET: how inputs are made up (None: they came with it), and how to measure."""

    inputs: tuple[tuple[tuple[int, ...], ...], tuple[str, ...], int | None, int | None] | None
    seed: int
    draws: int
    optimizer: str | None


def _run(loaded: Target, request: _Request, profile_only: bool) -> Profile | Diagnosis:
    from headwater._diagnose import diagnose
    from headwater._measure import measure
    from headwater.cli.optimizer import make_optimizer

    inputs, hint = loaded.inputs, ""
    if request.inputs is not None:
        from headwater.cli.example_inputs import example_batch

        shapes, dtypes, batch, vocabulary = request.inputs
        example = example_batch(
            loaded.model, shapes=shapes, dtypes=dtypes, batch=batch, vocabulary=vocabulary, seed=request.seed
        )
        inputs = example.inputs
        click.echo(example.description, err=True)
        hint = f"It was given {example.description}. If that does not fit, use --input-shape or return (model, inputs)."
    optimizer = make_optimizer(request.optimizer, loaded.model) if request.optimizer is not None else None
    batch_of = (None, None, None) if loaded.loss is not None else (inputs, loaded.targets, loaded.loss_fn)
    with model_failures(hint):
        if profile_only:
            return measure(loaded.model, *batch_of, loss=loaded.loss, draws=request.draws)
        return diagnose(loaded.model, *batch_of, loss=loaded.loss, draws=request.draws, optimizer=optimizer)


def _write_ci_files(
    diagnosis: Diagnosis, target: str, sarif: str | None, junit: str | None, limit: Severity, seconds: float
) -> None:
    from headwater.cli.ci_files import write_junit, write_sarif

    if sarif is not None:
        write_sarif(diagnosis, sarif, target)
    if junit is not None:
        write_junit(diagnosis, junit, target, limit, seconds)
