"""A neutral document: what a report says, before it is text, HTML or a picture.

A builder turns a record into a :class:`Document`; :mod:`headwater.reports.text` and :mod:`headwater.reports.html`
show any document. Nothing here knows a record, a terminal or a browser.

Prose (paragraphs, bullets, callouts, captions, summaries) may hold two marks, read after everything in it has been
escaped: `` `code` `` and ``**strong**``. Table cells are shown exactly as they are.

Example:
    >>> table = Table.of(["layer", Column("rms", align="right")], [["fc1", "2.17e-07"], ["fc2", "1.10e-03"]])
    >>> page = Document("Two layers", (Heading("Gradients"), table), summary="`fc1` gets 3.7 decades less.")
    >>> [type(block).__name__ for block in page.blocks]
    ['Heading', 'Table']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Bar",
    "Block",
    "Bullets",
    "Callout",
    "Cell",
    "Code",
    "Column",
    "Document",
    "Figure",
    "Heading",
    "Paragraph",
    "Section",
    "Table",
    "Template",
    "Tone",
]

Tone = Literal["plain", "muted", "good", "warning", "critical"]
Template = Literal["light", "dark"]


@dataclass(frozen=True, slots=True)
class Heading:
    """A title inside a document.

    Attributes:
        text: what it says.
        level: 2 for a part of the document, 3 for a part of that part.
    """

    text: str
    level: Literal[2, 3] = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running prose.

    Attributes:
        text: the prose, with the two marks of the module's docstring.
        tone: ``muted`` for a side note.
    """

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short statements.

    Attributes:
        items: one prose text each.
    """

    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text that keeps its line breaks and its columns: a command, a matrix.

    Attributes:
        text: shown exactly as it is, in a fixed-width face.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Callout:
    """A statement that must not be missed.

    Attributes:
        text: the prose.
        tone: how serious it is.
        title: two or three words, or an empty string.
    """

    text: str
    tone: Tone = "warning"
    title: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """A mark on an axis that all the cells of one column share.

    Attributes:
        low: where the solid part ends, 0 (left end of the axis) to 1 (right end).
        high: where the faint part ends, for a row that stands for a range; None for a single value.
    """

    low: float
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: what it shows, exactly.
        sort: the value that a sortable table orders by; None orders by the text.
        hint: what a pointer that rests on it is told.
        tone: how it is coloured.
        bar: a bar instead of text.
    """

    text: str
    sort: float | None = None
    hint: str = ""
    tone: Tone = "plain"
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        title: its header; a line break splits it over two lines.
        align: ``right`` for numbers.
        hint: what the header means: definition, unit, range.
        priority: columns with the lowest priority are left out first when a terminal is too narrow.
        shrink: whether long entries may be shortened in the middle.
        wrap: whether long entries may continue on a second line.
        min_width: how far a column that wraps may be narrowed.
        axis: for a column of bars: what the left and the right end stand for.
    """

    title: str
    align: Literal["left", "right"] = "left"
    hint: str = ""
    priority: int = 5
    shrink: bool = False
    wrap: bool = False
    min_width: int = 18
    axis: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and columns.

    Attributes:
        columns: the header.
        rows: as many cells each as there are columns.
        title: what the table lists.
        caption: how to read it, in a sentence or two.
        collapsed: whether a page shows it folded up until somebody opens it.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    caption: str = ""
    collapsed: bool = False

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells for {len(self.columns)} columns")

    @property
    def filled(self) -> tuple[int, ...]:
        """Columns that hold something; all of them when there is no row."""
        return tuple(
            i
            for i in range(len(self.columns))
            if not self.rows or any(row[i].text or row[i].bar is not None for row in self.rows)
        )

    @classmethod
    def of(
        cls,
        columns: Iterable[Column | str],
        rows: Iterable[Sequence[Cell | str]],
        *,
        title: str = "",
        caption: str = "",
        collapsed: bool = False,
    ) -> Table:
        """A table from plain strings where that is enough.

        Args:
            columns: a :class:`Column` each, or its title.
            rows: a :class:`Cell` each, or its text.
            title: what the table lists.
            caption: how to read it.
            collapsed: whether a page shows it folded up.

        Returns:
            The table.
        """
        return cls(
            tuple(c if isinstance(c, Column) else Column(c) for c in columns),
            tuple(tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows),
            title,
            caption,
            collapsed,
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, drawn only where it can be shown.

    Attributes:
        draw: returns a ``plotly.graph_objects.Figure`` for a template.
        title: what it shows, for a reader who cannot see it.
        reading: one sentence that reads it.
        text: the lines that stand for it in a terminal.
    """

    draw: Callable[[Template], Any]
    title: str
    reading: str = ""
    text: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Blocks that belong together under a title.

    Attributes:
        title: what they are about.
        blocks: in reading order.
        collapsed: whether a page shows them folded up until somebody opens them.
    """

    title: str
    blocks: tuple[Block, ...]
    collapsed: bool = False


Block = Heading | Paragraph | Bullets | Code | Callout | Table | Figure | Section


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report.

    Attributes:
        title: what it is about.
        blocks: in reading order.
        summary: the answer in a sentence or two: a page begins with it; a terminal, where the last lines are the
            ones on screen, ends with it.
        facts: label and value of what was measured and how (loss, device, batch), shown under the title; a fact
            without a label is its value alone.
        headline: the verdict, where there is one: the first thing that a page and a terminal say.
    """

    title: str
    blocks: tuple[Block, ...] = ()
    summary: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    headline: Callout | None = None
