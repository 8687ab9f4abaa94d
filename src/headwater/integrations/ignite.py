"""Watch the gradients of an Ignite ``Engine``."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from types import TracebackType
from typing import Any

from headwater.errors import TrainingStopped
from headwater.integrations.front_end import FrontEnd
from headwater.integrations.optimizers import optimizers_in
from headwater.integrations.sink import library
from headwater.records.finding import Finding

__all__ = ["AttachedWatch", "attach"]


def attach(
    engine: Any,
    model: Any,
    optimizer: Any,
    run: str | PathLike[str] | None = None,
    *,
    every: int = 10,
    loss: Callable[[Any], Any] | None = None,
    **options: Any,
) -> AttachedWatch:
    """Watch while an engine runs: rows are optimizer steps, whatever the accumulation.

    The loss is the engine's output where that is one number (``create_supervised_trainer`` gives that), averaged over
    the iterations of a step. An alert that stops calls ``engine.terminate()``.

    Args:
        engine: an ``ignite.engine.Engine`` that trains.
        model: as for :func:`headwater.watch`.
        optimizer: as for :func:`headwater.watch`.
        run: folder of the run file; None writes nothing.
        every: record every that many optimizer steps, besides the first ones and the last.
        loss: takes ``engine.state.output`` and gives the loss, for an engine whose output is something else.
        options: everything else that :func:`headwater.watch` takes, such as ``scaler``.

    Returns:
        What is attached, with ``watch`` (once the engine runs), ``findings`` and ``remove()``. As a context manager it
        removes itself, also after an error: an engine that raises tells nobody (a handler of ``EXCEPTION_RAISED``
        would keep Ignite from raising the error at all).

    Raises:
        HeadwaterError: Ignite is not installed.

    Example:
        ``with attach(engine, model, optimizer, "runs/a"): engine.run(loader, max_epochs=3)``
    """
    return AttachedWatch(engine, model, optimizer, FrontEnd(run, every, options), loss or (lambda output: output))


class AttachedWatch:
    """What :func:`attach` returns.

    Args:
        engine: an ``ignite.engine.Engine``.
        model: what it trains.
        optimizer: what steps.
        front_end: holds the options.
        loss: takes the engine's output.
    """

    def __init__(
        self, engine: Any, model: Any, optimizer: Any, front_end: FrontEnd, loss: Callable[[Any], Any]
    ) -> None:
        self._engine, self._model, self._optimizer = engine, model, optimizer
        self._front_end, self._loss = front_end, loss
        self._stepped = False
        self._hooks: list[Any] = []
        events = library("ignite.engine", "pytorch-ignite", "headwater.integrations.ignite").Events
        self._handles = [
            engine.add_event_handler(event, handler)
            for event, handler in (
                (events.STARTED, self._started),
                (events.ITERATION_COMPLETED, self._iteration_completed),
                (events.COMPLETED | events.TERMINATE | events.INTERRUPT, self._ended),
            )
        ]

    @property
    def watch(self) -> Any:
        """The latest watch; None before the engine runs."""
        return self._front_end.watch

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the alerts found so far."""
        return self._front_end.findings

    def remove(self) -> None:
        """Let the model go, and the engine."""
        self._ended()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> AttachedWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.remove()
        return isinstance(error, TrainingStopped)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; for ``ignite.handlers.Checkpoint``."""
        return self._front_end.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a saved run was.

        Args:
            state: from :meth:`state_dict`.
        """
        self._front_end.load_state_dict(state)

    # ---------------------------------------------------------------- the engine's events

    def _started(self) -> None:
        self._ended()
        optimizers = optimizers_in(self._model, self._optimizer)
        self._front_end.begin(self._model, self._optimizer, stoppable=optimizers)
        if self._front_end.is_on:
            self._hooks = [optimizer.register_step_post_hook(self._note_step) for optimizer in optimizers]

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def _iteration_completed(self, engine: Any) -> None:
        """After the step: the watch takes the loss for the step just done, and in an accumulating iteration waits."""
        if self._front_end.is_on:
            self._front_end.loss.add(self._loss(engine.state.output))
            if self._stepped:
                self._front_end.give_loss(mean=True)
            self._stepped = False
        if self._front_end.should_stop:
            engine.terminate()

    def _ended(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._front_end.end()
