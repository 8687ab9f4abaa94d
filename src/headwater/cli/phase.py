"""``headwater phase [ACTIVATION]``: the phase diagram of an activation, or the gains of all of them."""

from __future__ import annotations

import dataclasses
import statistics
from typing import TYPE_CHECKING, Any

import click

from headwater.cli.outputs import STDOUT, JsonCommand, check_writable, emit_json, only_data_on_stdout, show, write_page
from headwater.cli.pictures import check_png, write_png
from headwater.cli.target import load_target
from headwater.errors import InputError, OutputError, TargetError

if TYPE_CHECKING:
    from headwater.records.initialization import InitializationReport, WeightInitialization
    from headwater.records.phase import PhaseDiagram, PhaseNetwork

__all__ = ["command"]


@click.command(
    "phase",
    cls=JsonCommand,
    short_help="Map where deep networks of an activation lose or keep their gradient.",
    help="""Map where deep networks of an activation lose or keep their gradient.

    Over the variance of the weights (times fan_in) and that of the biases: the ordered phase, where gradients vanish
    with depth, the chaotic phase, where they explode, the critical line between them, and over how many layers the
    gradient changes. With --target your own network is a mark in it, and ACTIVATION may be left out.

    ACTIVATION is a name such as tanh, relu, gelu, or a TARGET (package.module:name, file.py:name) that gives an
    activation module. Without ACTIVATION and --target: the gains of every activation beside torch's own.

    \b
    Examples:
      headwater phase tanh
      headwater phase gelu --target my_model.py:make_model --html phase.html
      headwater phase                                the table of gains

    Exit codes: 0 done, 2 wrong usage or input.
    """,
)
@click.argument("activation", required=False)
@click.option(
    "--target", metavar="TARGET", help="Place this network in the diagram (package.module:name or file.py:name)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the weights that TARGET draws.")
@click.option(
    "--weight-max", type=float, metavar="NUMBER", help="Right end of the weight variance.  [default: by the line]"
)
@click.option("--bias-max", type=float, metavar="NUMBER", help="Upper end of the bias variance.  [default: 0.3]")
@click.option("--resolution", type=click.IntRange(2, 500), default=81, show_default=True, help="Columns and rows.")
@click.option("--json", "json_path", metavar="[FILE]", help="Write JSON to FILE (*.json), or to standard output.")
@click.option(
    "--html", "html_path", metavar="FILE", help="Write a page with the interactive diagram; it needs no network."
)
@click.option("--png", "png_path", metavar="FILE", help="Write the diagram as a picture (needs the package kaleido).")
@click.option("--width", type=click.IntRange(min=40), metavar="COLUMNS", help="Width of the tables.")
def command(
    activation: str | None,
    target: str | None,
    seed: int,
    weight_max: float | None,
    bias_max: float | None,
    resolution: int,
    json_path: str | None,
    html_path: str | None,
    png_path: str | None,
    width: int | None,
) -> None:
    """Draw the diagram of one activation, or list the gains of all."""
    for path, option in ((json_path, "--json"), (html_path, "--html"), (png_path, "--png")):
        check_writable(path, option)
    if png_path is not None:
        check_png(png_path, "--png")
    _use_one_thread()
    if activation is None and target is None:
        if png_path is not None:
            raise OutputError("--png draws a diagram, and the table of gains is none; name an ACTIVATION, such as tanh")
        record: Any = _table()
        title = "headwater: gains of activations"
    else:
        record = _diagram(activation, target, seed, weight_max, bias_max, resolution)
        title = f"headwater: phase diagram of {record.activation}"
    if json_path is not None:
        emit_json(record.to_json(), json_path)
    if html_path is not None:
        write_page(record, html_path, title=title)
    if png_path is not None:
        from headwater.reports import to_figure

        write_png(to_figure(record, template="light"), png_path, "--png")
    if json_path != STDOUT:
        show(record, width=width)


def _use_one_thread() -> None:
    """The tensors are small: threads would only wait for each other (three times the work on two busy cores)."""
    import torch

    torch.set_num_threads(1)


def _table() -> Any:
    import torch

    from headwater import __version__
    from headwater.records.phase import ActivationTable
    from headwater.theory.phase import activation_gains

    return ActivationTable(rows=activation_gains(), torch_version=str(torch.__version__), headwater_version=__version__)


def _diagram(
    activation: str | None,
    target: str | None,
    seed: int,
    weight_max: float | None,
    bias_max: float | None,
    resolution: int,
) -> PhaseDiagram:
    report = None
    with only_data_on_stdout():
        from headwater.theory.phase import phase_diagram

        function: Any = activation
        if activation is not None and ":" in activation:
            function = load_target(activation).model
        if target is not None:
            import torch

            from headwater._explain_init import explain_init

            torch.manual_seed(seed)
            report = explain_init(load_target(target).model)
    if report is None:
        return phase_diagram(function, weight_max=weight_max, bias_max=bias_max, resolution=resolution)
    rows = _rows(report, target or "", activation)
    function = function if function is not None else _only_activation(rows, target or "")
    network = _network(rows, target or "", function)
    include = network.mean.weight_variance, network.mean.bias_variance
    diagram = phase_diagram(function, weight_max=weight_max, bias_max=bias_max, resolution=resolution, include=include)
    return dataclasses.replace(diagram, network=network)


def _plain(name: str | None) -> str:
    return (name or "").lower().replace("_", "")


def _rows(report: InitializationReport, target: str, activation: str | None) -> list[WeightInitialization]:
    """Layers that the named activation follows; if there is none, layers that any activation follows."""
    nonlinear = [row for row in report.rows if row.activation not in (None, "linear") and row.block is None]
    nonlinear = [row for row in nonlinear if row.backward_gain is not None or row.forward_gain is not None]
    same = [row for row in nonlinear if _plain(row.activation) == _plain(activation)]
    if not nonlinear:
        raise TargetError(
            f"TARGET {target!r}: no layer is known to be followed by an activation, so the network has no place in the "
            "diagram; headwater explain-init lists what is known of its weights"
        )
    return same or nonlinear


def _only_activation(rows: list[WeightInitialization], target: str) -> str:
    from headwater.theory.elementwise import ACTIVATIONS

    found = {_plain(row.activation) for row in rows}
    known = [name for name in ACTIVATIONS if _plain(name) in found]
    if len(found) != 1 or len(known) != 1:
        raise InputError(
            f"TARGET {target!r} has layers followed by {', '.join(sorted({str(r.activation) for r in rows}))}: say which "
            "activation the diagram is for, as in headwater phase relu --target ..."
        )
    return known[0]


def _network(rows: list[WeightInitialization], target: str, function: Any) -> PhaseNetwork:
    from headwater.records.phase import PhaseNetwork
    from headwater.theory.gaussian import ActivationMoments
    from headwater.theory.phase import critical_point, phase_point

    moments = ActivationMoments(function)
    weight = statistics.fmean(row.weight_variance for row in rows)
    bias = statistics.fmean(row.bias_variance for row in rows)
    return PhaseNetwork(
        name=target.rpartition(":")[2],
        mean=phase_point(moments, weight, bias),
        critical=critical_point(moments, bias),
        layers={row.name: phase_point(moments, row.weight_variance, row.bias_variance) for row in rows},
        activations=tuple(dict.fromkeys(str(row.activation) for row in rows)),
        matches=all(_plain(row.activation) == _plain(moments.activation.name) for row in rows),
    )
