"""How an alert that stops reaches a framework: not as an error out of its training loop, but as a step left out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from headwater.errors import TrainingStopped

__all__ = ["StoppableStep"]


class StoppableStep:
    """Lets ``optimizer.step`` return where an alert stops the training; the weights stay as they were.

    :class:`~headwater.errors.TrainingStopped` ends a loop written by hand at once. A framework would take it for a
    crash, so its front end takes it here and asks the framework to stop as it usually does: after this batch.

    The optimizer gets an attribute ``step`` of its own, as schedulers of ``torch.optim.lr_scheduler`` give it one.

    Args:
        optimizer: what the framework calls ``step`` of, a wrapper included.
        stopped: called when the training is stopped.
    """

    def __init__(self, optimizer: Any, stopped: Callable[[], object]) -> None:
        self._optimizer, self._stopped = optimizer, stopped
        self._own = vars(optimizer).get("step")  # a scheduler's; None for the class's
        original = optimizer.step

        # With the attributes by which torch's schedulers know that a step is theirs.
        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            closure = _Seen(kwargs.get("closure", args[0] if args else None))
            if closure.function is not None:
                args, kwargs = (), {**kwargs, "closure": closure}
            try:
                return original(*args, **kwargs)
            except TrainingStopped:
                stopped()
                # Lightning's loop asks the closure for the loss.
                return closure() if closure.function is not None and not closure.called else None

        self._step = step
        optimizer.step = step

    def remove(self) -> None:
        """Put back what was there, unless somebody else has put something on top."""
        if vars(self._optimizer).get("step") is not self._step:
            return
        if self._own is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own


class _Seen:
    """A closure that knows whether it was called."""

    def __init__(self, function: Any) -> None:
        self.function = function if callable(function) else None
        self.called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called = True
        return None if self.function is None else self.function(*args, **kwargs)
