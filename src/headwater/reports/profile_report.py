"""A profile as a document: facts, the layer table, trunk, time, coverage, and how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headwater.records.profile import Profile, TimeProfile
from headwater.reports.document import (
    Block,
    Callout,
    Document,
    Figure,
    Paragraph,
    Section,
    Template,
)
from headwater.reports.marks import literal
from headwater.reports.notation import (
    decades,
    power,
    scientific,
    shape_text,
    sparkline,
)
from headwater.reports.profile_tables import layer_table, parameter_table
from headwater.reports.readings import most_telling, read_profile, read_time, summarize_time, summarize_trunk

__all__ = ["build_profile_document", "coverage_line", "profile_facts", "time_blocks"]

_MOST_UNOWNED = 30  # parameters without a layer that a terminal lists; chosen by us
_HOW_TO_READ = (
    "The gradient travels from the loss, on the right, to the input, on the left. Rest the pointer on a mark for its "
    "layer and all its numbers; click a name in the legend to hide a series."
)
_LOSS = {
    "loss_fn": "loss_fn(output, targets)",
    "loss": "loss(model)",
    "model": "the output's own loss",
    "probe": "no loss: a unit-variance Gaussian probe on the output, which shows the architecture and not a task",
    "unrecorded": "not recorded: the training loop did not give it",
}


def build_profile_document(profile: Profile, *, full: bool = False) -> Document:
    """Describe a profile.

    Args:
        profile: the record.
        full: list every layer and every parameter; otherwise repeated blocks are folded above 60 layers and
            parameters appear on their layer's row.

    Returns:
        The document.
    """
    blocks: list[Block] = [Callout(text, "warning", "Warning") for text in profile.warnings]
    if profile.layers and full:
        what = f"Gradient and activation along {profile.model_type}"
        blocks.append(Figure(_drawer(profile, "profile"), what, _HOW_TO_READ))
    layers = [layer_table(profile, full)] if profile.layers else []
    ends = [*_trunk_lines(profile), *time_blocks(profile)]
    if full:  # a page shows its pictures first; a terminal its table
        blocks += [*ends, *layers]
        if profile.parameters:
            blocks.append(parameter_table(profile, profile.parameters))
    else:
        blocks += layers
        shown = {row.name for row in profile.layers}
        unowned = [p for p in profile.parameters if p.layer not in shown]
        if unowned:
            blocks.append(parameter_table(profile, unowned[:_MOST_UNOWNED], len(unowned)))
        blocks += ends
    blocks.append(coverage_line(profile))
    if full:
        blocks.append(_method(profile))
    return Document(
        title=f"Gradient profile of {profile.model_type}",
        blocks=tuple(blocks),
        summary=read_profile(profile),
        facts=profile_facts(profile),
    )


def profile_facts(profile: Profile) -> tuple[tuple[str, str], ...]:
    """What was measured and how: loss, device, batch, mode, draws.

    Args:
        profile: the record.

    Returns:
        Label and value of each.
    """
    source = _LOSS[profile.loss_source].split(":")[0]
    facts = [("loss", source if profile.loss_source == "unrecorded" else f"{_number(profile.loss)} from {source}")]
    facts.append(("device", f"{profile.device} {profile.dtype}"))
    if profile.batch_size is not None:
        facts.append(("batch", str(profile.batch_size)))
    facts.append(("mode", "training" if profile.training else "evaluation"))
    facts.append(("draws", str(profile.draws)))
    return tuple(facts)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else scientific(value)


def _drawer(profile: Profile, what: str) -> Callable[[Template], Any]:
    def draw(template: Template) -> Any:
        from headwater.reports.profile_figures import profile_figure

        return profile_figure(profile, template=template, what=what)

    return draw


# -------------------------------------------------------------------- trunk, time, coverage


def _trunk_lines(profile: Profile) -> list[Block]:
    trunk = summarize_trunk(profile)
    if trunk is None:
        return []
    text = f"**Trunk:** `{trunk.last}` → `{trunk.first}`, "
    if math.isfinite(trunk.decades):
        text += f"{decades(trunk.decades)} in total"
        if trunk.decades_per_layer is not None and trunk.weight_layers > 1:
            text += f", {decades(trunk.decades_per_layer)} per weight layer ({trunk.weight_layers} of them)"
    else:
        text += f"exactly zero from `{trunk.lost_at}` on"
    return [Paragraph(text + ".")]


def _time_name(time: TimeProfile, stacked: bool) -> str:
    parts = [time.layer, time.state]
    if stacked and time.state != "input":
        parts.append(f"layer {time.stack}")
    if time.reverse:
        parts.append("reverse")
    return " ".join(parts)


def time_blocks(profile: Profile) -> list[Block]:
    """The gradient over time: a figure, its lines for a terminal, and its notes.

    Args:
        profile: the record.

    Returns:
        The blocks; none without a recurrent layer.
    """
    if not profile.times:
        return []
    lines = []
    stacked = any(time.stack for time in profile.times)
    width = max(len(_time_name(time, stacked)) for time in profile.times)
    for time in profile.times:
        summary = summarize_time(time)
        name = _time_name(time, stacked).ljust(width)
        if summary is None:
            lines.append(f"{name}  no gradient")
            continue
        low, high = ("0 (exact)" if math.isinf(v) else power(v) for v in (summary.first_log10, summary.last_log10))
        change = f"  {decades(summary.decades)}" if math.isfinite(summary.decades) else ""
        lines.append(
            f"{name}  {low} {sparkline(summary.values_log10, 20)} {high}{change}"
            + ("" if time.exact else "  (not exact)")
        )
    steps = max(len(time.steps) for time in profile.times)
    reading = read_time(most_telling(profile.times), labelled=len(profile.times) > 2)
    title = f"Gradient over time: rms of ∂L/∂state, t = 0 to {steps - 1}, log scale"
    blocks: list[Block] = [Figure(_drawer(profile, "time"), title, reading, tuple(lines))]
    notes = dict.fromkeys(f"`{t.layer}`: {t.note}" for t in profile.times if t.note)
    blocks += [Paragraph(note, "muted") for note in notes]
    return blocks


def coverage_line(profile: Profile) -> Block:
    """Say what was observed and what was not, and why.

    Args:
        profile: the record.

    Returns:
        A paragraph.
    """
    coverage = profile.coverage
    text = f"**Coverage:** {literal(str(coverage))}."
    for name, reason in list(coverage.modules_unseen.items())[:5]:
        text += f" `{name}` not seen: {literal(reason)}."
    if len(coverage.modules_unseen) > 5:
        text += f" {len(coverage.modules_unseen) - 5} more modules not seen."
    if coverage.functional:
        shown = ", ".join(dict.fromkeys(coverage.functional))
        text += f" Functional operations on the trunk, whose activations are not observed: {literal(shown)}."
    return Paragraph(text)


def _method(profile: Profile) -> Section:
    value = "" if profile.loss_source == "unrecorded" else f"; value {_number(profile.loss)}"
    lines = [
        f"One forward and one backward in {'training' if profile.training else 'evaluation'} mode. "
        f"Loss: {_LOSS[profile.loss_source]}{value}. "
        f"Output shape {shape_text(profile.output_shape)}, target shape {shape_text(profile.target_shape)}.",
        f"torch {profile.torch_version}, headwater {profile.headwater_version}, {profile.device}, {profile.dtype}, "
        f"seed {profile.seed}. "
        + (
            "Statistics are of the model as it was given."
            if profile.draws == 1
            else f"Statistics are over {profile.draws} draws of the weights."
        ),
        "Gradient rms is √mean((∂L/∂x)²) over all elements of a tensor, in units of the loss per unit of x; activation "
        "rms is √mean(x²). Elements that are NaN or infinite are counted and left out. A dash means that nothing was "
        "observed; `0 (exact)` means that every element is exactly zero.",
    ]
    return Section("How it was measured", tuple(Paragraph(line) for line in lines))
