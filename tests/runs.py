"""Runs made of formulas: a source of a run whose every number a reader can work out, for tests of what reads runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headwater.records import (
    STATISTICS_COLUMNS,
    Block,
    Evidence,
    Finding,
    GradientPhase,
    Profile,
    Quantity,
    RecordedStep,
    RunContext,
    RunEvent,
    Severity,
    StatisticMatrix,
    Statistics,
    StepRecord,
    Verdict,
    WatchedTensor,
    profile_of_step,
)

START = 1_700_000_000.0  # seconds since the epoch: 2023-11-14
SECONDS_PER_STEP = 0.05
HOSTILE = "<script>alert(1)</script>"

Formula = Callable[[WatchedTensor, int], float | None]
"""A tensor and a step to one number; None where nothing was observed."""


def weight(name: str, order: int, *, shape: tuple[int, ...] = (4, 4), group: str = "") -> WatchedTensor:
    return WatchedTensor(
        kind="parameter", name=name, group=group, shape=shape, dtype="float32", type="Linear", role="weight",
        layer=name.rpartition(".")[0], order=order,
    )  # fmt: skip


def bias(name: str, order: int) -> WatchedTensor:
    return WatchedTensor(
        kind="parameter", name=name, shape=(4,), dtype="float32", type="Linear", role="bias",
        layer=name.rpartition(".")[0], order=order,
    )  # fmt: skip


def layer(name: str, order: int, *, group: str = "") -> WatchedTensor:
    return WatchedTensor(
        kind="layer", name=name, group=group, shape=(8, 4), dtype="float32", type="Linear", layer_kind="linear",
        order=order, on_trunk=True,
    )  # fmt: skip


@dataclass
class FormulaRun:
    """A :class:`~headwater.records.run.RunSource` that computes what it is asked.

    ``formulas`` gives the rms of a quantity (or its one number) at a step; a missing quantity was never observed.
    """

    tensors: tuple[WatchedTensor, ...]
    steps: tuple[int, ...]
    formulas: Mapping[str, Formula]
    findings: tuple[Finding, ...] = ()
    events: tuple[RunEvent, ...] = ()
    name: str = "example"
    groups: tuple[str, ...] = ("",)
    loss: Callable[[int], float | None] = lambda step: 1.0 / (1 + step)
    learning_rate: Callable[[int], float | None] = lambda step: 0.1
    clip: Callable[[int], float | None] = lambda step: 1.0
    loss_scale: Callable[[int], float | None] = lambda step: 1.0
    skipped: Callable[[int], str | None] = lambda step: None
    layers_at: Callable[[int], bool] = lambda step: True
    metadata: Mapping[str, Any] = field(
        default_factory=lambda: {
            "model_type": "Net", "torch_version": "2.13.0", "headwater_version": "0.1.0", "device": "cpu",
            "overhead": {"seconds": 0.25, "bytes": 40_000, "share": 0.005},
        }
    )  # fmt: skip

    # ------------------------------------------------------------ one number

    def number(self, quantity: str, tensor: WatchedTensor, step: int) -> float | None:
        formula = self.formulas.get(quantity)
        wanted = "layer" if quantity in ("activation", "output_gradient", "units") else "parameter"
        if formula is None or tensor.kind != wanted or (wanted == "layer" and not self.layers_at(step)):
            return None
        return formula(tensor, step)

    def _norm_log10(self, step: int, group: str) -> float | None:
        squares = [
            math.prod(t.shape) * v * v
            for t in self.tensors
            if t.group == group and (v := self.number("gradient", t, step)) is not None
        ]
        return 0.5 * math.log10(sum(squares)) if squares and sum(squares) > 0 else None

    # ------------------------------------------------------------ the protocol

    def recorded_steps(self, group: str | None = None) -> tuple[RecordedStep, ...]:
        return tuple(
            RecordedStep(
                group=name, step=step, time=START + SECONDS_PER_STEP * step, elapsed_seconds=SECONDS_PER_STEP * step,
                skipped=self.skipped(step), loss=self.loss(step), learning_rate=self.learning_rate(step),
                loss_scale=self.loss_scale(step), clip_coefficient=self.clip(step), activations=self.layers_at(step),
                gradient_norm_log10=self._norm_log10(step, name),
            )
            for step in self.steps
            for name in (self.groups if group is None else (group,))
        )  # fmt: skip

    def record(self, step: int, group: str = "") -> StepRecord:
        blocks = []
        for quantity in ("value", "gradient", "activation", "output_gradient"):
            found = [
                (t, v) for t in self.tensors if t.group == group and (v := self.number(quantity, t, step)) is not None
            ]
            if found:
                rows = [_row(v, math.prod(t.shape)) for t, v in found]
                phase = "pre_clip" if quantity == "gradient" else None
                tensors = tuple(t for t, _ in found)
                blocks.append(
                    Block(quantity=quantity, phase=phase, tensors=tensors, columns=STATISTICS_COLUMNS, rows=rows)
                )
        updates = [
            (t, v) for t in self.tensors if t.group == group and (v := self.number("update", t, step)) is not None
        ]
        if updates:
            blocks.append(
                Block(
                    quantity="update", tensors=tuple(t for t, _ in updates), rows=[[v, 1.0] for _, v in updates],
                    columns=("update_ratio", "read_fraction"),
                )
            )  # fmt: skip
        return StepRecord(
            group=group, step=step, time=START + SECONDS_PER_STEP * step, elapsed_seconds=SECONDS_PER_STEP * step,
            loss=self.loss(step), learning_rate=self.learning_rate(step), activations=self.layers_at(step),
            loss_scale=self.loss_scale(step), clip_coefficient=self.clip(step),
            blocks=tuple(blocks), skipped=self.skipped(step),
        )  # fmt: skip

    def profile(self, step: int, group: str = "") -> Profile:
        if step not in self.steps:
            raise KeyError(f"step {step} was not recorded")
        return profile_of_step(self.record(step, group), RunContext(model_type=self.metadata["model_type"]))

    def series(
        self, tensor: str, statistic: str, *, phase: GradientPhase | None = None
    ) -> tuple[tuple[int, float], ...]:
        quantity, _, name = statistic.partition(".")
        found = [t for t in self.tensors if t.name == tensor]
        return tuple(
            (step, _as(v, name, t))
            for t in found
            for step in self.steps
            if (v := self.number(quantity, t, step)) is not None
        )

    def matrix(
        self,
        quantity: Quantity,
        statistic: str,
        *,
        kind: str | None = None,
        tensors: Sequence[str] | None = None,
        max_columns: int = 600,
    ) -> StatisticMatrix:
        wanted = "layer" if quantity in ("activation", "output_gradient", "units") else "parameter"
        names = None if tensors is None else set(tensors)
        rows = [t for t in self.tensors if t.kind == (kind or wanted) and (names is None or t.name in names)]
        stride = max(1, math.ceil(len(self.steps) / max_columns))
        columns = [self.steps[i : i + stride] for i in range(0, len(self.steps), stride)]
        if quantity not in self.formulas:
            rows, columns = [], []
        return StatisticMatrix(
            tensors=tuple(rows),
            steps=tuple(column[0] for column in columns),
            values=tuple(tuple(self._middle(quantity, statistic, t, column) for column in columns) for t in rows),
            stride=stride,
        )

    def _middle(self, quantity: str, statistic: str, tensor: WatchedTensor, steps: Sequence[int]) -> float | None:
        middle = len(steps) // 2
        # The middle step of the column, else the first one at which something was observed.
        for step in (steps[middle], *steps):
            value = self.number(quantity, tensor, step)
            if value is not None:
                return _as(value, statistic, tensor)
        return None

    def nonfinite(self, quantity: Quantity) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
        found = {
            t.name: tuple(
                (step, 1, 0)
                for step in self.steps
                if (v := self.number(quantity, t, step)) is not None and math.isnan(v)
            )
            for t in self.tensors
        }
        return {name: steps for name, steps in found.items() if steps}

    def top_contributors(self, step: int, group: str = "") -> tuple[tuple[str, float], ...]:
        squares = {
            t.name: math.prod(t.shape) * v * v
            for t in self.tensors
            if t.group == group and (v := self.number("gradient", t, step)) is not None
        }
        total = sum(squares.values())
        return tuple(sorted(((n, s / total) for n, s in squares.items()), key=lambda p: -p[1])) if total else ()


def write_run(path: Path, run: FormulaRun) -> Path:
    """The same run as a run file."""
    from headwater.store import RunWriter

    with RunWriter(path, run.metadata) as writer:
        for step in run.steps:
            for group in run.groups:
                writer.write(run.record(step, group))
        for event in run.events:
            writer.write_event(event)
        for one in run.findings:
            writer.write_finding(one, "")
    return path


def _row(value: float, count: int) -> list[float]:
    """Statistics of ``count`` elements ±value (one NaN among them when the value is NaN)."""
    if math.isnan(value):
        return [float(x) for x in Statistics.of([math.nan, 1.0]).to_dict().values()]
    count += count % 2
    s = Statistics.of([value, -value])
    stored = s.to_dict()
    for name in ("count", "zero_count", "scaled_sum_abs", "scaled_sum_squared_deviations", "scaled_sum_fourth_powers"):
        stored[name] *= count // 2
    return [float(x) for x in stored.values()]


def _as(value: float, statistic: str, tensor: WatchedTensor) -> float:
    if statistic == "rms_log10":
        return math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan
    if statistic in ("nan_count", "inf_count"):
        return float(math.isnan(value)) if statistic == "nan_count" else 0.0
    return value * math.sqrt(math.prod(tensor.shape)) if statistic == "l2_norm" else value


# -------------------------------------------------------------------- examples


def finding(code: str = "HW101", severity: Severity = Severity.CRITICAL, step: int | None = 4, **more: Any) -> Finding:
    settings: dict[str, Any] = {
        "defect": "vanishing gradient", "verdict": Verdict.VANISHING, "where": ("layers.0",),
        "evidence": (Evidence("gradient at the first layer", 1e-9, "", "over 1e-6"),),
        "cause": "The gradient loses 0.8 decades per layer.", "advice": "Use ReLU and He initialisation.",
    }  # fmt: skip
    return Finding(code=code, severity=severity, step=step, **{**settings, **more})


def schedule(last: int, every: int = 10) -> tuple[int, ...]:
    """0, 1, 2, 4, 8, then every ``every``, and the last step."""
    return tuple(sorted({s for s in (0, 1, 2, 4, 8, last) if s <= last} | set(range(0, last + 1, every))))


def stack(depth: int, prefix: str = "layers.{}") -> tuple[WatchedTensor, ...]:
    """``depth`` Linear layers: each its output, its weight and its bias, in execution order."""
    found: list[WatchedTensor] = []
    for i in range(depth):
        name = prefix.format(i)
        found += [layer(name, i), weight(f"{name}.weight", 2 * i), bias(f"{name}.bias", 2 * i + 1)]
    return tuple(found)


def healthy(depth: int = 5, last: int = 200) -> FormulaRun:
    """Every layer gets a gradient of rms 1e-3 that shrinks by half a decade over the run; updates are 1e-3."""
    return FormulaRun(
        tensors=stack(depth),
        steps=schedule(last),
        formulas={
            "gradient": lambda t, s: 1e-3 * 10 ** (-0.5 * s / max(last, 1)),
            "value": lambda t, s: 0.1,
            "update": lambda t, s: 1e-3 * (1 + 0.1 * (t.order % 3)),
            "activation": lambda t, s: 0.5 + 0.01 * t.order,
            "output_gradient": lambda t, s: 1e-4 * 10 ** (-0.5 * s / max(last, 1)),
        },
        layers_at=lambda s: s % 20 == 0,
        events=(RunEvent(kind="attached", step=0, time=START, message="Watching began."),),
    )


def vanishing(depth: int = 5, last: int = 200, decades_per_layer: float = 0.8) -> FormulaRun:
    """The gradient of layer i is 10^(-decades_per_layer · (depth - 1 - i)) · 1e-2, at every step alike."""
    run = healthy(depth, last)

    def gradient(tensor: WatchedTensor, step: int) -> float:
        i = tensor.order // 2 if tensor.kind == "parameter" else tensor.order
        return 1e-2 * 10 ** (-min(decades_per_layer * (depth - 1 - i), 12.0))

    run.formulas = {**run.formulas, "gradient": gradient, "output_gradient": gradient}
    run.findings = (finding(),)
    run.name = "vanishing"
    return run


def spiking(depth: int = 6, last: int = 200, at: int = 100, which: int = 3) -> FormulaRun:
    """Healthy but for one step at which the gradient of one weight is 300 times its usual size; loss scale changes."""
    run = healthy(depth, last)
    usual = run.formulas["gradient"]

    def gradient(tensor: WatchedTensor, step: int) -> float | None:
        value = usual(tensor, step)
        return value * 300 if value and step == at and tensor.order == 2 * which else value

    run.formulas = {**run.formulas, "gradient": gradient}
    run.findings = (
        finding(
            "HW703", Severity.WARNING, at, defect="gradient spike", verdict=None, where=(f"layers.{which}.weight",),
            cause="The norm of the gradient is 120 times its median.", advice="Look at the batch.", evidence=(),
        ),
    )  # fmt: skip
    run.loss_scale = lambda s: 65536.0 if s < 50 else 32768.0
    run.clip = lambda s: 0.01 if s == at else 1.0
    run.skipped = lambda s: "amp" if s == 50 else None
    run.events = (
        *run.events,
        RunEvent(kind="skipped", step=50, time=START + 2.5, message="The loss scaler found an infinity."),
        RunEvent(kind="loss_scale", step=50, time=START + 2.5, message="The loss scale fell to 32768."),
        RunEvent(kind="detached", step=last, time=START + last * SECONDS_PER_STEP, message="Watching ended."),
    )
    run.name = "spiking"
    return run


def two_models() -> FormulaRun:
    """A generator of four layers and a discriminator of three; a spike in the generator's third layer at step 100."""
    run = spiking(at=100, which=2)
    run.tensors = tuple(
        dataclasses.replace(t, group=group, name=f"{group}.{t.name}", layer=t.layer and f"{group}.{t.layer}")
        for group, depth in (("G", 4), ("D", 3))
        for t in stack(depth)
    )
    usual = run.formulas["gradient"]

    def gradient(tensor: WatchedTensor, step: int) -> float | None:
        # spiking() knows a layer by its order, which both models use: only the generator's may spike.
        return usual(tensor, step if tensor.group == "G" or step != 100 else 99)

    run.formulas = {**run.formulas, "gradient": gradient}
    run.groups = ("G", "D")
    run.findings = tuple(dataclasses.replace(f, where=("G.layers.2.weight",)) for f in run.findings)
    run.name = "two models"
    return run


def hostile() -> FormulaRun:
    """Names that are markup for a page, a plot, a terminal, and a Markdown table."""
    names = (HOSTILE, "[bold red]x[/]", "a|b`c`**d**", "line\nbreak", "\x1b[31mred", "<b>bold</b>&amp;", "%{y}", "é中")
    run = healthy(len(names))
    tensors: list[WatchedTensor] = []
    for i, name in enumerate(names):
        tensors += [layer(name, i), weight(f"{name}.weight", 2 * i)]
    run.tensors = tuple(tensors)
    run.findings = (
        finding(where=(HOSTILE, "[bold red]x[/]"), cause=f"At {HOSTILE} [bold red]x[/].", advice=f"Rename {HOSTILE}."),
        finding("HW703", Severity.WARNING, 20, defect=f"spike {HOSTILE}", where=(HOSTILE,)),
    )
    run.events = (RunEvent(kind="notice", step=2, time=START, message=f"{HOSTILE} [bold red]x[/]", names=names),)
    run.name = HOSTILE
    run.metadata = {**run.metadata, "model_type": HOSTILE}
    return run


def nothing() -> FormulaRun:
    """A run that was opened before its first step was recorded."""
    return FormulaRun(tensors=(), steps=(), formulas={}, name="empty")
