"""``headwater predict TARGET``: the gradient profile of a model before it runs, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from headwater.cli.failures import model_failures
from headwater.cli.input_options import input_options
from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show, write_page
from headwater.cli.target import Target, help_text, open_target
from headwater.errors import NothingObservedError, TargetError

if TYPE_CHECKING:
    from torch import nn

    from headwater.records import Comparison, Forecast

__all__ = ["command"]


@click.command(
    "predict",
    cls=JsonCommand,
    short_help="Forecast the gradient of every layer before the model runs, at any size.",
    help=help_text(
        "Forecast the gradient of every layer before the model runs, at any size.",
        """
    The theory of wide networks, from the architecture and its initialisers. A TARGET that gives a model alone is called on
    the meta device, where parameters take no memory; one that brings its inputs, or that cannot be called there, is
    called as usual and its initial law is read off the values. --compare also measures the model and shows both.

    \b
    Examples:
      headwater predict my_model.py:make_model
      headwater predict my_model.py:ResNet --input-shape 8,3,32,32 --html forecast.html
      headwater predict my_model.py:make_model --compare --draws 20

    Exit codes: 0 done, 2 wrong usage or input, 3 nothing could be forecast.
        """,
    ),
)
@click.argument("target")
@input_options
@click.option("--compare", is_flag=True, help="Measure the model as well, and hold the forecast against it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights, the inputs and the probe.")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    help="With --compare: initialise the model so many times afresh.  [default: 1]",
)
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option("--html", "html_path", metavar="FILE", help="Write a page with plots; it needs no network.")
@click.option("--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Width of the table.")
@click.option("--all-rows", is_flag=True, help="Show every layer of a long model: fold no repeated blocks.")
def command(
    target: str,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[str, ...],
    batch: int | None,
    vocabulary: int | None,
    compare: bool,
    seed: int,
    draws: int | None,
    json_path: str | None,
    html_path: str | None,
    width: int | None,
    all_rows: bool,
) -> None:
    """Forecast the model that TARGET names."""
    if shapes and batch is not None:
        raise click.UsageError("--batch is for inferred shapes; --input-shape already begins with the batch size")
    if draws is not None and not compare:
        raise click.UsageError("--draws is for the measurement: add --compare")
    for path, option in ((json_path, "--json"), (html_path, "--html")):
        check_writable(path, option)
    inputs = {"shapes": shapes, "dtypes": dtypes, "batch": batch, "vocabulary": vocabulary}
    with only_data_on_stdout():
        forecast, comparison = _forecast(target, inputs, seed, (draws or 1) if compare else None)
    if _knows_nothing(forecast):
        raise NothingObservedError(f"nothing could be forecast: {forecast.coverage}")
    records = [forecast] if comparison is None else [forecast, comparison]
    if json_path is not None:
        emit_json(_json(forecast, comparison), json_path)
    if html_path is not None:
        write_page(records, html_path, title=f"headwater: forecast of {forecast.model_type}")
    if json_path != STDOUT:
        for number, record in enumerate(records):
            if number:
                click.echo()
            show(record, width=width, full=all_rows)


def _knows_nothing(forecast: Forecast) -> bool:
    """No parameter, and no layer that owns one, has a forecast; the output's own gradient is the loss's, and always known."""
    known = [row.gradient_rms_log10 for row in forecast.parameters]
    known += [row.gradient_rms_log10 for row in forecast.layers if row.parameters]
    return all(value is None for value in known)


def _json(forecast: Forecast, comparison: Comparison | None) -> str:
    if comparison is None:
        return forecast.to_json()
    from headwater.records.json_codec import write_document

    return write_document({"forecast": forecast.to_dict(), "comparison": comparison.to_dict()}, None)


class _NeedsValuesError(Exception):
    """TARGET gives more than a model on the meta device."""


def _forecast(
    spec: str, options: Mapping[str, Any], seed: int, draws: int | None
) -> tuple[Forecast, Comparison | None]:
    """The forecast of TARGET, and its comparison with a measurement over so many draws."""
    import torch

    from headwater._measure import measure

    make = open_target(spec)
    torch.manual_seed(seed)
    if draws is None:
        forecast = _without_values(make, spec, lambda model: _example(model, options, seed))
        if forecast is not None:
            return forecast, None
    real = make()
    if real.loss is not None:
        raise TargetError(
            f"TARGET {spec!r} gives a loss(model): a forecast needs inputs, and perhaps targets and a loss_fn"
        )
    if real.inputs is None:
        inputs, hint = _example(real.model, options, seed)
    elif any(value is not None and value != () for value in options.values()):
        raise click.UsageError("TARGET brings its own inputs: leave out the options that describe inputs")
    else:
        inputs, hint = real.inputs, ""
    batch = (inputs, real.targets, real.loss_fn)
    alone = draws is not None and real.inputs is None  # else its laws on the meta device were tried above
    forecast = _without_values(make, spec, lambda model: (inputs, hint)) if alone else None
    with model_failures(hint):
        if forecast is None:
            from headwater._predict import predict

            forecast = predict(real.model, *batch)
        if draws is None:
            return forecast, None
        profile = measure(real.model, *batch, draws=draws, make=_redraw(make, real.model) if draws > 1 else None)
        return forecast, forecast.compare(profile)


def _redraw(make: Callable[[], Target], model: nn.Module) -> Callable[[], nn.Module] | None:
    """TARGET itself as the source of fresh models; None when it gives the same weights again (a ready object, a seed)."""
    import torch

    again = make().model
    pairs = list(zip(model.parameters(), again.parameters(), strict=False))
    same = all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    return None if again is model or same else lambda: make().model


def _without_values(
    make: Callable[[], Target], spec: str, inputs_of: Callable[[nn.Module], tuple[Any, str]]
) -> Forecast | None:
    """The forecast from the factory's own laws, made once, on the meta device.

    Args:
        make: calls TARGET.
        spec: TARGET.
        inputs_of: inputs for the model, and what to say when they do not fit.

    Returns:
        The forecast, or None when TARGET is to be called as usual: it cannot be called on the meta device (said on
        standard error), or it brings its inputs, or gives a model with values.
    """
    from headwater._predict import predict

    hint = ""

    def model() -> nn.Module:
        try:
            found = make()
        except TargetError as error:
            reason = str(error).splitlines()[0].removeprefix(f"TARGET {spec!r}: ")
            click.echo(f"called with values, as it cannot be called on the meta device: {reason}", err=True)
            raise _NeedsValuesError from error
        parameters = list(found.model.parameters())
        alone = found.inputs is None and found.loss is None
        if not (alone and parameters and all(p.is_meta for p in parameters)):
            raise _NeedsValuesError
        return found.model

    def inputs(made: nn.Module) -> Any:
        nonlocal hint
        found, hint = inputs_of(made)
        return found

    try:
        return predict(model, inputs)
    except _NeedsValuesError:
        return None
    except Exception:
        with model_failures(hint):  # the hint is known only now
            raise


def _example(model: nn.Module, options: Mapping[str, Any], seed: int) -> tuple[Any, str]:
    """Random inputs and what to say when they do not fit; on the meta device numbers without values, but real tokens."""
    import torch
    from torch import nn

    from headwater.cli.example_inputs import example_batch

    example = example_batch(model, **options, seed=seed)
    click.echo(example.description, err=True)
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    tokens = options["vocabulary"] or (tables[0] if tables else 2)
    generator = torch.Generator().manual_seed(seed)

    def with_values(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta or tensor.is_floating_point() or tensor.is_complex():
            return tensor
        return torch.randint(tokens, tuple(tensor.shape), generator=generator).to(tensor.dtype)

    hint = f"It was given {example.description}. If that does not fit, use --input-shape or return (model, inputs)."
    if isinstance(example.inputs, Mapping):
        return {key: with_values(tensor) for key, tensor in example.inputs.items()}, hint
    return tuple(with_values(tensor) for tensor in example.inputs), hint
