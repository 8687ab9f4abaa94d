"""What is known of one model and its optimizers during training, from one hook to the next."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from headwater.capture.names import Filter
from headwater.capture.training.coverage import coverage_lines, not_seen
from headwater.capture.training.gradients import GradientReading, Marks
from headwater.capture.training.hooks import forget_all
from headwater.capture.training.inventory import Inventory
from headwater.capture.training.layers import LayerWatch
from headwater.capture.training.micro import MicroBatches
from headwater.capture.training.optimizer_state import OptimizerReader
from headwater.capture.training.raw import RawStep
from headwater.capture.training.receiver import Options, Receiver
from headwater.capture.training.schedule import Schedule
from headwater.errors import InputError
from headwater.records.step import RunEvent

__all__ = ["PairState"]


class PairState:
    """Watches nothing yet: the state that the hooks of a :class:`~headwater.capture.training.pair.Pair` share.

    Args:
        group: its name, empty when there is only one.
        model: held weakly.
        optimizers: of this model, held weakly. Several make one row together: a row ends when each has stepped.
        schedule: which steps.
        options: what of them.
        receiver: where it goes.
        keep: filter of modules and parameters.
        scaler: the GradScaler, when it was given; else it is found when it steps.
        began: ``time.perf_counter()`` when watching began.
    """

    def __init__(
        self, group: str, model: nn.Module, optimizers: Sequence[Optimizer], schedule: Schedule, options: Options,
        receiver: Receiver, keep: Filter, scaler: Any = None, began: float = 0.0,
    ) -> None:  # fmt: skip
        self.group, self.schedule, self.options, self.receiver = group, schedule, options, receiver
        self.inventory = Inventory(model, group, keep)
        self.optimizers = [weakref.ref(o) for o in optimizers]
        self._optimizer_ids = [id(o) for o in optimizers]
        self.layers = LayerWatch(model, group, keep) if schedule.activations is not None else None
        if schedule.activations == "recorded" and self.layers is not None and self.layers.compiled:
            where = ", ".join(self.layers.compiled)
            raise InputError(
                f'{where} is compiled, and hooks do not fire in compiled code: activations="recorded" cannot be had. Watch '
                "without activations, or watch the model before it is compiled"
            )
        self._reader = OptimizerReader(options.updates, together=receiver.together)
        # The sample holds on to the parameters between steps: not longer than the model lives.
        self._model = weakref.ref(
            model, functools.partial(forget_all, weakref.ref(self._reader), weakref.ref(self.layers or self._reader))
        )
        self.scaler = scaler
        self.step = 0
        self.recording = self.sampling = False
        self._next_recorded = self._held_by_optimizers = 0
        self._alone = len(optimizers) == 1
        self.own_seconds = 0.0
        self.observed_anything = False
        self.recorded_steps = 0
        self._began = began
        self._handles: list[Any] = []
        self._sentinels: list[Any] = []
        self._held: RawStep | None = None
        self._expected_backwards = 1
        self._first_step = 0
        self._last_recorded = -1
        self._clipped = False
        self._gives_before_step: bool | None = None
        self._micro = MicroBatches(options.tier) if options.micro else None
        self.missing: dict[str, str] = {}
        self._dropped_noticed = self._stepped_in_scaled_step = self._left_a_step_out = False
        self._loss: float | Tensor | None = None
        self._scalars: dict[str, float | Tensor] = {}
        # Of a step that is not recorded, should it be the last one: what was given for it, its rate, whether it was left out.
        self._given: tuple[int, float | Tensor | None, dict[str, float | Tensor]] = (-1, None, {})
        self._rate: float | Tensor | None = None
        self._skipped_step = -1
        self._clear()

    def _clear(self) -> None:
        self._marks: Marks | None = None  # gradient identities and versions after the backward
        self._pre: GradientReading | None = None
        self._post: GradientReading | None = None
        self._in_step = False
        self._closure_calls: list[RawStep] = []
        self._backwards = 0
        self._queued = False  # whether the end of a backward is awaited
        self._stepped: set[int] = set()
        self._left_out: set[int] = set()
        self._parts: list[GradientReading] = []
        self._loss = None
        self._scalars = {}
        self._scale: float | Tensor = 1.0
        self._found_infinity: Tensor | None = None
        self._begun = self._looked = False
        self._row: RawStep | None = None

    # ---------------------------------------------------------------- from the training loop

    def give(self, loss: float | Tensor | None, scalars: dict[str, float | Tensor]) -> None:
        """Numbers from the training loop: of the step in progress, or of the one just taken.

        Which of the two is told by when the first ones came: before any step was taken, or after a backward whose step has
        not been taken yet, they are those of the step in progress; else of the one just taken.

        Args:
            loss: of the step.
            scalars: others.
        """
        if self._gives_before_step is None or self._marks is not None:
            self._gives_before_step = self._marks is not None or self._in_step or self.step == self._first_step
        step = self.step if self._gives_before_step else self.step - 1
        if self._given[0] != step:
            self._given = (step, None, {})
        self._given = (step, loss if loss is not None else self._given[1], {**self._given[2], **scalars})
        if self._gives_before_step:
            self._loss = loss if loss is not None else self._loss
            self._scalars.update(scalars)
        elif self._held is not None:
            self._held.loss = loss if loss is not None else self._held.loss
            self._held.scalars.update(scalars)

    def _tell(self, kind: str, message: str, names: tuple[str, ...] = ()) -> None:
        self.receiver.tell(
            RunEvent(kind=kind, step=self.step, group=self.group, time=time.time(), message=message, names=names)
        )

    # ---------------------------------------------------------------- what is said about it

    def held_bytes(self) -> int:
        """Memory that stays allocated between steps on the devices of the model."""
        return self._reader.held_bytes()

    def not_seen(self) -> list[tuple[str, tuple[str, ...]]]:
        """Sentences and names: what this run cannot show, known before the first step."""
        return not_seen(self.inventory, self.layers, [o for r in self.optimizers if (o := r()) is not None])

    def coverage_lines(self) -> list[str]:
        """What was observed and what was not, with reasons."""
        return coverage_lines(self.inventory, self.layers, self.step, self.recorded_steps, self.missing)

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the step numbers of a saved run.

        Args:
            state: from :meth:`state_dict`.
        """
        self.step = int(state["step"])
