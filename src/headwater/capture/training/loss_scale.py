"""GradScaler: which one, its scale, and the steps that it skips without telling the optimizer."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from headwater.capture._torch_compat import scale_tensor

__all__ = ["ScaledSteps", "current_scale"]


class _Listener(Protocol):
    def scaled_step_begins(self, scaler: Any, optimizer: Optimizer) -> None: ...
    def scaled_step_ends(self, scaler: Any, optimizer: Optimizer) -> None: ...


class ScaledSteps:
    """Tells listeners of every ``GradScaler.step(optimizer)``, before and after.

    A scaler that finds an infinity does not call the optimizer, so that no optimizer hook fires; its own ``step`` is the
    only place where a skipped step can be seen. While someone listens, ``torch.amp.GradScaler.step`` is a function that
    calls the original and tells; with the last listener the original is put back.
    """

    _lock = threading.Lock()
    _listeners: ClassVar[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
    _original: Callable[..., Any] | None = None
    _replacement: Callable[..., Any] | None = None

    @classmethod
    def listen(cls, optimizer: Optimizer, listener: _Listener) -> None:
        """Begin to tell a listener of the scaled steps of an optimizer.

        Args:
            optimizer: as it is given to ``scaler.step``.
            listener: held weakly.
        """
        with cls._lock:
            cls._listeners[id(optimizer)] = listener
            if cls._replacement is None:
                cls._original = torch.amp.GradScaler.step
                cls._replacement = _telling(cls._original)
                torch.amp.GradScaler.step = cls._replacement  # type: ignore[method-assign]

    @classmethod
    def forget(cls, optimizer: Optimizer | None, optimizer_id: int) -> None:
        """Stop telling; puts the original method back after the last one.

        Args:
            optimizer: the optimizer, or None when it is gone.
            optimizer_id: its ``id``.
        """
        with cls._lock:
            cls._listeners.pop(optimizer_id, None)
            if cls._listeners or cls._replacement is None or cls._original is None:
                return
            # Somebody else replaced it in the meantime: theirs calls ours, which tells nobody any more.
            if torch.amp.GradScaler.step is cls._replacement:
                torch.amp.GradScaler.step = cls._original  # type: ignore[method-assign]
                cls._replacement = None

    @classmethod
    def listener(cls, optimizer: Any) -> _Listener | None:
        """Who listens to an optimizer, or to the one inside a wrapper such as Accelerate's."""
        found: _Listener | None = cls._listeners.get(id(optimizer))
        if found is None and (inner := getattr(optimizer, "optimizer", None)) is not None:
            found = cls._listeners.get(id(inner))
        return found


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        listener = ScaledSteps.listener(optimizer)
        if listener is None:
            return original(self, optimizer, *args, **kwargs)
        listener.scaled_step_begins(self, optimizer)
        result = original(self, optimizer, *args, **kwargs)
        listener.scaled_step_ends(self, optimizer)
        return result

    return step


def current_scale(scaler: Any) -> float | Tensor:
    """The loss scale now, without waiting for a device.

    Args:
        scaler: a GradScaler.

    Returns:
        A 0-dimensional copy on the device of the scale (the scaler changes its own in place), or a float where the
        scaler keeps one.
    """
    if not scaler.is_enabled():
        return 1.0
    tensor = scale_tensor(scaler)
    if tensor is not None:
        return tensor.detach().clone() if tensor.device.type != "cpu" else float(tensor)
    return float(scaler.get_scale())
