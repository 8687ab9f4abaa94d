"""What a detector is: any object with a stable code and one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from headwater.records import Finding, Profile

__all__ = ["Detector"]


class Detector(Protocol):
    """Reads a profile (and a forecast, where there is one) and yields findings; it never touches a model."""

    @property
    def code(self) -> str:
        """Stable and unique, such as ``HW101``."""
        ...

    def __call__(self, profile: Profile, forecast: Any | None = None) -> Iterable[Finding]:
        """Look for one defect.

        Args:
            profile: what was measured.
            forecast: what theory predicts for the same model, or None.

        Returns:
            The findings, none for a profile without the defect.
        """
        ...
