"""A phase diagram, and the table of activations, as documents."""

from __future__ import annotations

import math

from headwater.records.phase import ActivationTable, PhaseDiagram, PhasePoint
from headwater.reports.document import Block, Cell, Column, Document, Figure, Paragraph, Table
from headwater.reports.phase_figure import phase_figure
from headwater.reports.phase_words import count_layers, read_diagram

__all__ = ["build_activation_document", "build_phase_document"]

_MAP_COLUMNS, _MAP_ROWS = 56, 12  # of the map in a terminal; chosen by us
_LISTED = 7  # points of the critical line in its table; chosen by us


def build_phase_document(diagram: PhaseDiagram, *, full: bool = False) -> Document:
    """Describe a phase diagram.

    Args:
        diagram: the record.
        full: list every layer of the network.

    Returns:
        The document.
    """
    reading = read_diagram(diagram)
    blocks: list[Block] = [
        Figure(
            lambda template: phase_figure(diagram, template=template),
            f"Phase diagram of deep {diagram.activation} networks",
            reading if full else "",
            tuple(_text_map(diagram)),
        )
    ]
    if diagram.network is not None:
        if not diagram.network.matches:
            named = ", ".join(dict.fromkeys(diagram.network.activations)) or "no known activation"
            blocks.append(
                Paragraph(
                    f"**Note:** the layers of {diagram.network.name} are followed by {named}, not by {diagram.activation}; "
                    "the mark shows what their variances would do here.",
                )
            )
        blocks.append(_network_table(diagram, full))
    if diagram.critical:
        blocks.append(_critical_table(diagram))
    if full:
        blocks.append(
            Paragraph(
                "Mean-field theory of wide networks with independent random weights (Poole et al., *NeurIPS* 2016; Schoenholz "
                "et al., *ICLR* 2017). σ_w² = fan_in · Var(W), σ_b² = Var(b), both without a unit. q* is the variance that a "
                "signal of variance 1 settles at, χ = σ_w² E[φ'(√q* z)²] multiplies the squared gradient per layer, "
                "ξ = 1/|ln χ| is the number of layers over which it changes e-fold. Equal layers are assumed, without "
                "normalisation or skip connections.",
                "muted",
            )
        )
    return Document(
        title=f"Phase diagram of deep {diagram.activation} networks",
        blocks=tuple(blocks),
        summary=reading,
        facts=(("headwater", diagram.headwater_version),),
    )


def _text_map(diagram: PhaseDiagram) -> list[str]:
    """Rows of characters, the largest bias variance on top."""
    lines = []
    network = diagram.network
    place: tuple[int, int] | None = None
    columns, rows = diagram.weight_variances, diagram.bias_variances
    if network is not None and network.mean.weight_variance <= columns[-1] and network.mean.bias_variance <= rows[-1]:
        place = (
            round(network.mean.bias_variance / rows[-1] * (_MAP_ROWS - 1)),
            round((network.mean.weight_variance - columns[0]) / (columns[-1] - columns[0]) * (_MAP_COLUMNS - 1)),
        )
    for r in reversed(range(_MAP_ROWS)):
        row = diagram.multipliers[round(r / (_MAP_ROWS - 1) * (len(rows) - 1))]
        chis = [row[round(c / (_MAP_COLUMNS - 1) * (len(columns) - 1))] for c in range(_MAP_COLUMNS)]
        text = "".join("." if chi < 1.0 else "#" for chi in chis)
        if place is not None and place[0] == r:
            text = text[: place[1]] + "O" + text[place[1] + 1 :]
        side = f"{rows[-1]:.3g}" if r == _MAP_ROWS - 1 else "0" if r == 0 else ""
        lines.append(f"{side:>8} |{text}|")
    axis = f"{columns[0]:.3g}".ljust(_MAP_COLUMNS - 8) + f"{columns[-1]:.3g}".rjust(8)
    lines.append(f"{'σ_b²':>8}  {axis}  σ_w²")
    lines.append(" " * 10 + ". vanishes   # explodes" + ("   O your network" if place is not None else ""))
    return lines


def _q(q: float) -> Cell:
    return Cell("grows" if math.isinf(q) else "0" if q < 1e-6 else f"{q:.3g}", sort=min(q, 1e300))


def _scale(point: PhasePoint) -> Cell:
    return Cell(count_layers(point.depth_scale).removesuffix(" layers"), sort=min(point.depth_scale, 1e300))


def _network_table(diagram: PhaseDiagram, full: bool) -> Table:
    network = diagram.network
    rows: list[tuple[str, PhasePoint]] = []
    if network is not None:
        rows = [(f"{network.name} (mean)", network.mean)]
        if full or len(network.layers) <= 12:
            rows += list(network.layers.items())
    return Table.of(
        [
            Column("layer", shrink=True),
            Column("σ_w²", "right", "fan_in · Var(W)"),
            Column("σ_b²", "right", "Var(b)"),
            Column("q*", "right", "pre-activation variance that settles when this layer is repeated"),
            Column("χ", "right", "factor on the squared gradient per layer"),
            Column("ξ\n(layers)", "right", "layers over which the squared gradient changes e-fold"),
            Column("phase"),
        ],
        [
            (
                name,
                Cell(f"{p.weight_variance:.3g}", sort=p.weight_variance),
                Cell(f"{p.bias_variance:.3g}", sort=p.bias_variance),
                _q(p.preactivation_variance),
                Cell(f"{p.multiplier:.3g}", sort=p.multiplier),
                _scale(p),
                Cell(p.phase, tone="good" if p.phase == "critical" else "warning"),
            )
            for name, p in rows
        ],
        title="Where the network lies",
    )


def _critical_table(diagram: PhaseDiagram) -> Table:
    top = diagram.bias_variances[-1]
    wanted = [top * i / (_LISTED - 1) for i in range(_LISTED)]
    near = [min(diagram.critical, key=lambda p: abs(p.bias_variance - b)) for b in wanted]
    chosen = list(dict.fromkeys(near))
    return Table.of(
        [
            Column("σ_b²", "right", "Var(b)"),
            Column("σ_w²", "right", "fan_in · Var(W) on the border between the phases"),
            Column("q*", "right", "pre-activation variance there"),
            Column("", wrap=True),
        ],
        [
            (
                Cell(f"{p.bias_variance:.3g}", sort=p.bias_variance),
                Cell(f"{p.weight_variance:.4g}", sort=p.weight_variance),
                _q(p.preactivation_variance),
                "χ jumps over 1: no σ_w² keeps the gradient" if p.jumps else "",
            )
            for p in chosen
        ],
        title="The critical line",
    )


def build_activation_document(table: ActivationTable, *, full: bool = False) -> Document:
    """List the gains of every activation.

    Args:
        table: the record.
        full: explain the columns.

    Returns:
        The document.
    """
    rows: list[tuple[Cell | str, ...]] = [
        (
            row.name,
            *(Cell(f"{value:.4f}", sort=value) for value in (row.backward, row.forward, row.std)),
            Cell("-", tone="muted") if row.torch is None else Cell(f"{row.torch:.4f}", sort=row.torch),
            Cell("-", tone="muted")
            if row.critical_weight_variance is None
            else Cell(f"{row.critical_weight_variance:.4g}", sort=row.critical_weight_variance),
        )
        for row in table.rows
    ]
    listed = Table.of(
        [
            Column("activation"),
            Column("backward", "right", "1/√E[φ'(z)²]: keeps the gradient"),
            Column("forward", "right", "1/√E[φ(z)²]: keeps the second moment of the signal"),
            Column("std", "right", "1/√Var[φ(z)]: keeps the variance of the signal"),
            Column("calculate_gain", "right", "torch.nn.init.calculate_gain; - where it raises"),
            Column("critical σ_w²", "right", "fan_in · Var(W) that keeps the gradient of a deep stack without biases"),
        ],
        rows,
        caption="Gains at unit pre-activation variance: weights of standard deviation gain/√fan keep the named quantity.",
    )
    blocks: list[Block] = [listed]
    if full:
        blocks.append(
            Paragraph(
                "A dash under critical σ_w²: without a bias there is no value that a deep stack stays at; the signal dies "
                "out or grows whatever the weights (`headwater phase NAME` shows it with biases).",
                "muted",
            )
        )
    return Document(
        title="Gains of torch's activations",
        blocks=tuple(blocks),
        summary=f"{sum(row.torch is None for row in table.rows)} of {len(table.rows)} activations have no value in "
        "`torch.nn.init.calculate_gain`.",
        facts=(("torch", table.torch_version), ("headwater", table.headwater_version)),
    )
