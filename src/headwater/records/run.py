"""What a recorded run offers to whoever reads it: the reports, the comparison, the live view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headwater.records.finding import Finding
from headwater.records.profile import Profile
from headwater.records.step import GradientPhase, Quantity, RunEvent, WatchedTensor

__all__ = ["RecordedStep", "RunSource", "StatisticMatrix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    """The row of one recorded step, without its tensors (fields as in :class:`~headwater.records.step.StepRecord`).

    Attributes:
        group: name of the model/optimizer pair.
        step: the optimizer step.
        micro: which micro-batch; None for the step as a whole.
        time: wall clock, seconds since the epoch.
        elapsed_seconds: since watching began.
        skipped: why the step did not take place, else None.
        loss: when given.
        learning_rate: of the optimizer's first group.
        loss_scale: that the gradients were multiplied by.
        clip_coefficient: ‖post-clip‖ / ‖pre-clip‖.
        activations: whether layers were looked at.
        gradient_norm_log10: log10 of the l2 norm of the whole gradient before clipping: -inf when it is zero, NaN when an
            element of it is NaN, inf when one is infinite (and none NaN), None when not observed.
    """

    group: str = ""
    step: int
    micro: int | None = None
    time: float
    elapsed_seconds: float
    skipped: str | None = None
    loss: float | None = None
    learning_rate: float | None = None
    loss_scale: float | None = 1.0
    clip_coefficient: float | None = 1.0
    activations: bool = False
    gradient_norm_log10: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticMatrix:
    """One statistic of many tensors over many steps, for a heatmap.

    Attributes:
        tensors: the rows.
        steps: first optimizer step of each column.
        values: one list per tensor, one entry per column: the statistic (over the steps of a column the median; None
            where it was not observed).
        stride: how many recorded steps a column stands for; 1 when nothing was left out.
    """

    tensors: tuple[WatchedTensor, ...]
    steps: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]
    stride: int = 1


class RunSource(Protocol):
    """A run, however it is stored. ``headwater.open_run`` returns one."""

    @property
    def name(self) -> str:
        """What the run is called: the last part of its path."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Versions, model class, options, schedule, host, when it began, the cost so far (``overhead``)."""
        ...

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the model/optimizer pairs; ``("",)`` when there is only one."""
        ...

    @property
    def tensors(self) -> tuple[WatchedTensor, ...]:
        """Everything that was watched, layers and parameters, in execution order."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded optimizer steps, ascending, each once."""
        ...

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found, in the order of the steps; ``finding.step`` says when it began."""
        ...

    @property
    def events(self) -> tuple[RunEvent, ...]:
        """What happened, in order."""
        ...

    def recorded_steps(self, group: str | None = None) -> tuple[RecordedStep, ...]:
        """The rows of the recorded steps, without micro-batches."""
        ...

    def profile(self, step: int, group: str = "") -> Profile:
        """The gradient profile of one recorded step; KeyError that names the nearest ones."""
        ...

    def series(
        self, tensor: str, statistic: str, *, phase: GradientPhase | None = None
    ) -> tuple[tuple[int, float], ...]:
        """(step, value) of one statistic of one tensor, such as ``("fc1.weight", "gradient.rms")``."""
        ...

    def matrix(
        self,
        quantity: Quantity,
        statistic: str,
        *,
        kind: str | None = None,
        tensors: Sequence[str] | None = None,
        max_columns: int = 600,
    ) -> StatisticMatrix:
        """One statistic of many tensors over all recorded steps, downsampled to at most ``max_columns`` columns."""
        ...

    def nonfinite(self, quantity: Quantity) -> Mapping[str, tuple[tuple[int, int, int], ...]]:
        """By tensor: (step, NaN elements, infinite elements) of every recorded step with any, ascending.

        Statistics are over finite elements; this says where that is not all of them.
        """
        ...

    def top_contributors(self, step: int, group: str = "") -> tuple[tuple[str, float], ...]:
        """(parameter, share of the squared norm of the whole gradient) at a recorded step; the shares sum to 1."""
        ...
