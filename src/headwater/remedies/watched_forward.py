"""Code that runs the forward of single modules under a mode which replaces some torch functions."""

from __future__ import annotations

from collections.abc import Iterable

from headwater.remedies.patient import folded

__all__ = ["forward_under"]


def forward_under(mode: str, names: Iterable[str]) -> str:
    """Code that makes each named module run its forward under a mode.

    The module gets a subclass of its own class whose forward enters the mode: parameters keep their names, and
    ``isinstance`` still holds.

    Args:
        mode: name of the mode's class, defined before.
        names: ``named_modules()`` names; the empty one is the model.

    Returns:
        Python, to follow the definition of the mode.
    """
    return (
        f"def under_{mode.lower()}(cls):\n"
        f'    """A subclass of cls whose forward runs under {mode}."""\n\n'
        "    def forward(self, *args, **kwargs):\n"
        f"        with {mode}():\n"
        "            return cls.forward(self, *args, **kwargs)\n\n"
        '    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})\n\n\n'
        f"for name in {folded(names)}:\n"
        "    module = model.get_submodule(name)\n"
        f"    module.__class__ = under_{mode.lower()}(type(module))\n"
    )
