"""``headwater check TARGET``: measure where the gradient goes in a model that you name."""

from __future__ import annotations

import click

from headwater.cli.failures import model_failures
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show, write_page
from headwater.cli.target import Target, help_text, load_target
from headwater.errors import NothingObservedError
from headwater.records import Profile

__all__ = ["command"]


class _Shape(click.ParamType[tuple[int, ...]]):
    """``8,3,32,32`` (or with ``x`` between) to a tuple of sizes."""

    name = "shape"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse one shape.

        Args:
            value: the word on the command line.
            param: the option.
            ctx: click's context.

        Returns:
            The sizes, batch dimension first.
        """
        if isinstance(value, tuple):
            return value
        words = value.strip("()[] ").replace("x", ",").split(",")
        try:
            sizes = tuple(int(w) for w in words if w.strip())
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no shape; write the sizes with commas, such as 8,3,32,32", param, ctx)
        return sizes


@click.command(
    "check",
    cls=JsonCommand,
    short_help="Measure where the gradient goes in your model.",
    help=help_text(
        "Measure where the gradient goes in your model: one forward and one backward.",
        """
    The model alone is enough for a first look: the inputs are then random, and without a loss the output is probed
    with random numbers, which shows the architecture and its initialisation but no task.

    \b
    Examples:
      headwater check my_model.py:make_model
      headwater check my_model.py:ResNet --input-shape 8,3,32,32
      headwater check package.training:model_and_batch --json profile.json --html profile.html

    Exit codes: 0 measured, 2 wrong usage or input, 3 nothing observed.
        """,
    ),
)
@click.argument("target")
@click.option(
    "--input-shape",
    "shapes",
    type=_Shape(),
    multiple=True,
    metavar="SHAPE",
    help="Sizes of the inputs, batch first (8,3,32,32); once per positional argument.",
)
@click.option(
    "--input-dtype",
    "dtypes",
    multiple=True,
    metavar="TYPE",
    help="Their type, such as float32 or int64; once per shape.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Batch size when the shape is inferred.  [default: 8]")
@click.option("--vocab", "vocabulary", type=click.IntRange(min=1), metavar="N", help="Token inputs: numbers below N.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights, the inputs and the probe.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Initialise the model so many times afresh; mean and spread.",
)
@click.option("--train/--eval", "training", default=None, help="Switch the mode first.  [default: as TARGET left it]")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots; it needs no network.")
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
    json_path: str | None,
    html_path: str | None,
    csv_path: str | None,
    width: int | None,
    all_rows: bool,
) -> None:
    """Measure the model that TARGET names and show its profile."""
    if shapes and batch is not None:
        raise click.UsageError("--batch is for inferred shapes; --input-shape already begins with the batch size")
    check_writable(json_path, "--json")
    check_writable(html_path, "--html")
    check_writable(csv_path, "--csv")
    with only_data_on_stdout():
        import torch

        torch.manual_seed(seed)
        loaded = load_target(target)
        if training is not None:
            loaded.model.train(training)
        given = loaded.inputs is not None or loaded.loss is not None
        if given and (shapes or dtypes or batch is not None or vocabulary is not None):
            raise click.UsageError("TARGET brings its own inputs: leave out the options that describe inputs")
        profile = _measured(loaded, None if given else (shapes, dtypes, batch, vocabulary), seed, draws)
    if profile.coverage.observed == 0:
        raise NothingObservedError(f"nothing was observed: {profile.coverage}")
    _write(profile, json_path, html_path, csv_path)
    if json_path != STDOUT:
        show(profile, width=width, full=all_rows)


def _measured(
    loaded: Target,
    options: tuple[tuple[tuple[int, ...], ...], tuple[str, ...], int | None, int | None] | None,
    seed: int,
    draws: int,
) -> Profile:
    from headwater._measure import measure

    inputs, hint = loaded.inputs, ""
    if options is not None:
        from headwater.cli.example_inputs import example_batch

        shapes, dtypes, batch, vocabulary = options
        example = example_batch(
            loaded.model, shapes=shapes, dtypes=dtypes, batch=batch, vocabulary=vocabulary, seed=seed
        )
        inputs = example.inputs
        click.echo(example.description, err=True)
        hint = f"It was given {example.description}. If that does not fit, use --input-shape or return (model, inputs)."
    with model_failures(hint):
        if loaded.loss is not None:
            return measure(loaded.model, loss=loaded.loss, draws=draws)
        return measure(loaded.model, inputs, loaded.targets, loaded.loss_fn, draws=draws)


def _write(profile: Profile, json_path: str | None, html_path: str | None, csv_path: str | None) -> None:
    if json_path is not None:
        emit_json(profile.to_json(), json_path)
    if csv_path is not None:
        profile.to_csv(csv_path)
    if html_path is not None:
        write_page(profile, html_path, title=f"headwater: {profile.model_type}")
