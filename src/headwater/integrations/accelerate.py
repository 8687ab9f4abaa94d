"""Watch the gradients of a loop written with Hugging Face Accelerate."""

from __future__ import annotations

from os import PathLike
from types import TracebackType
from typing import Any

from headwater.errors import TrainingStopped
from headwater.integrations.front_end import FrontEnd
from headwater.integrations.optimizers import bare_optimizer
from headwater.records.finding import Finding

__all__ = ["AcceleratedWatch", "watch"]


def watch(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    run: str | PathLike[str] | None = None,
    *,
    every: int = 10,
    **options: Any,
) -> AcceleratedWatch:
    """Watch what ``accelerator.prepare`` returned: rows are optimizer steps, whatever the accumulation.

    The loss is what ``accelerator.backward`` is given, divided by ``gradient_accumulation_steps`` as it does. An alert
    that stops also calls ``accelerator.set_trigger()``, so that ``accelerator.check_trigger()`` tells every process.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        model: prepared or not.
        optimizer: prepared or not.
        run: folder of the run file; None writes nothing.
        every: record every that many optimizer steps, besides the first ones and the last.
        options: everything else that :func:`headwater.watch` takes.

    Returns:
        A context manager, also with ``attach()`` and ``detach()``; it can be given to
        ``accelerator.register_for_checkpointing``.

    Example:
        ``with watch(accelerator, model, optimizer, "runs/a"): ...``
    """
    return AcceleratedWatch(accelerator, model, optimizer, FrontEnd(run, every, options))


class AcceleratedWatch:
    """What :func:`watch` returns.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        model: prepared or not.
        optimizer: prepared or not.
        front_end: holds the options.
    """

    def __init__(self, accelerator: Any, model: Any, optimizer: Any, front_end: FrontEnd) -> None:
        self._accelerator, self._front_end = accelerator, front_end
        self._model, self._optimizer = accelerator.unwrap_model(model), bare_optimizer(optimizer)

    @property
    def watch(self) -> Any:
        """The latest watch; None before the first :meth:`attach`."""
        return self._front_end.watch

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found so far."""
        return self._front_end.findings

    @property
    def should_stop(self) -> bool:
        """Whether an alert asked to stop."""
        return self._front_end.should_stop

    def record(self, **scalars: Any) -> None:
        """Further numbers of the step, as the watch's ``record`` takes them."""
        if self._front_end.is_on:
            self._front_end.watch.record(**scalars)

    def attach(self) -> AcceleratedWatch:
        """Begin to watch.

        Returns:
            This object.
        """
        self.detach()
        self._front_end.begin(self._model, self._optimizer, scaler=self._accelerator.scaler)
        if self._front_end.is_on:
            # On this one object, until detach(): the only place that sees every loss before the step it belongs to.
            self._accelerator.backward = _TellingBackward(self._accelerator, self._front_end)
        return self

    def detach(self) -> None:
        """Let the model and the accelerator go, and write what is buffered."""
        if isinstance(vars(self._accelerator).get("backward"), _TellingBackward):
            del self._accelerator.backward
        self._front_end.end()

    def __enter__(self) -> AcceleratedWatch:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.detach()
        if isinstance(error, TrainingStopped):
            self._accelerator.set_trigger()
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return self._front_end.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run was.

        Args:
            state: from :meth:`state_dict`.
        """
        self._front_end.load_state_dict(state)


class _TellingBackward:
    """``accelerator.backward`` that notes the loss before and tells it after."""

    def __init__(self, accelerator: Any, front_end: FrontEnd) -> None:
        self._accelerator, self._front_end = accelerator, front_end
        self._original = accelerator.backward

    def __call__(self, loss: Any, **kwargs: Any) -> None:
        self._front_end.loss.add(loss.detach() / self._accelerator.gradient_accumulation_steps)
        self._original(loss, **kwargs)
        if self._accelerator.sync_gradients:
            self._front_end.give_loss()
        if self._front_end.should_stop:
            self._accelerator.set_trigger()
