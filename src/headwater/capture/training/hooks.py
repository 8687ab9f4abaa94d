"""Hooks that hold nothing alive, and that do nothing in a copy of what they hang on."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

__all__ = ["Hook", "Inert", "ParameterHook", "forget_all"]


class Hook:
    """A hook on an optimizer or a parameter: a weak reference to an object and the name of its method.

    A copy of it (``copy.deepcopy`` and ``pickle`` of what it hangs on) does nothing.
    """

    __slots__ = ("method", "owner")

    def __init__(self, owner: Any, method: str) -> None:
        self.owner, self.method = weakref.ref(owner), method

    def __call__(self, *args: Any) -> Any:
        """Call the method, if the object is still there.

        Args:
            *args: of the hook.

        Returns:
            What the method does.
        """
        owner = self.owner()
        return None if owner is None else getattr(owner, self.method)(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Inert, ())


class ParameterHook:
    """On a parameter, for the gradient of each backward by itself."""

    __slots__ = ("owner", "position")
    __torch_unserializable__ = True  # torch: not to be warned about when the parameter is sent to another process

    def __init__(self, owner: Any, position: int) -> None:
        self.owner, self.position = weakref.ref(owner), position

    def __call__(self, gradient: Tensor) -> None:
        """Hand the gradient over."""
        owner = self.owner()
        if owner is not None:
            owner.arrived(self.position, gradient)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Inert, ())


def forget_all(*references: weakref.ref[Any]) -> None:
    """Call ``forget`` of everything that is still there; for the callback of a weak reference to a model.

    Args:
        *references: to the objects; the last is the one to the model, which is gone.
    """
    for reference in references[:-1]:
        found = reference()
        if found is not None:
            found.forget()


class Inert:
    """What a copied hook is: nothing."""

    def __call__(self, *args: Any) -> None:
        """Nothing."""
        return None
