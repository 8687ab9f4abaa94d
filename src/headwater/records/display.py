"""A record shows itself: the one upward edge, to the report room, taken when a person asks to see something."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Displayed"]


class Displayed:
    """Mixin: ``str()``, notebook HTML and ``plot()`` of a record, rendered by :mod:`headwater.reports`.

    The report room needs rich, plotly and jinja2; it is imported on first use, so records stay light.
    """

    __slots__ = ()

    @staticmethod
    def _reports() -> ModuleType:
        from headwater import reports

        return reports

    def __str__(self) -> str:
        text: str = self._reports().to_text(self)
        return text

    def _repr_html_(self) -> str:
        html: str = self._reports().to_html_fragment(self)
        return html

    def plot(self, **options: Any) -> Any:
        """Draw the record.

        Args:
            **options: ``template="dark"`` or ``"light"``, and what the figure for this record takes.

        Returns:
            A ``plotly.graph_objects.Figure``; nothing is shown until you call its ``show()``.
        """
        return self._reports().to_figure(self, **options)
