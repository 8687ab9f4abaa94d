"""A document as text, with rich: whatever the width of the terminal, no line is broken where it should not be."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from headwater.reports.document import (
    Bar,
    Block,
    Bullets,
    Callout,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    Tone,
)
from headwater.reports.marks import literal, split_marks
from headwater.reports.notation import ASCII, elide, shorten_names

__all__ = ["RichDocument", "draw_bar", "render_text"]

_STYLES: dict[Tone, str] = {
    "plain": "",
    "muted": "dim",
    "good": "green",
    "warning": "yellow",
    "critical": "bold red",
}
_WIDEST = 140  # longer lines are hard to follow with the eye; chosen by us
_NARROWEST = 60
_NAME = 8  # columns of this priority and above name their row: others are left out before they are shortened much
_BLOCKS = " ▏▎▍▌▋▊▉█"


class RichDocument:
    """A document that prints itself on a rich console.

    Args:
        document: what to print.
        ascii_only: draw with ASCII characters alone; None asks the console's encoding.
    """

    def __init__(self, document: Document, *, ascii_only: bool | None = None) -> None:
        self.document = document
        self.ascii_only = ascii_only

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = self.ascii_only if self.ascii_only is not None else not _can_show_blocks(options.encoding)
        writer = _Writer(max(20, options.max_width), ascii_only)
        yield from writer.document(self.document)


def render_text(
    document: Document, *, width: int | None = None, color: bool = False, ascii_only: bool | None = None
) -> str:
    """Print a document into a string.

    Args:
        document: what to print.
        width: characters per line; None takes the terminal's (60 to 140), or 100 where there is none.
        color: add ANSI colours.
        ascii_only: draw with ASCII characters alone; None asks the encoding of standard output.

    Returns:
        The lines, without a line break at the end.
    """
    if width is None:
        columns = shutil.get_terminal_size((100, 24)).columns
        width = max(_NARROWEST, min(_WIDEST, columns))
    if ascii_only is None:
        ascii_only = not _can_show_blocks(getattr(sys.stdout, "encoding", None))
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=color, color_system="standard" if color else None, legacy_windows=False
    )
    console.print(RichDocument(document, ascii_only=ascii_only))
    lines = stream.getvalue().split("\n")
    return "\n".join(lines if color else [line.rstrip() for line in lines]).rstrip("\n")


def _can_show_blocks(encoding: str | None) -> bool:
    try:
        "".join(map(chr, ASCII)).encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def draw_bar(bar: Bar, width: int, *, ascii_only: bool = False) -> str:
    """A bar in eighths of a character.

    Args:
        bar: where it ends.
        width: characters of the whole axis.
        ascii_only: whole characters ``#`` and ``.`` instead.

    Returns:
        At most ``width`` characters; something is always visible.

    Example:
        >>> draw_bar(Bar(0.5), 8), draw_bar(Bar(0.25, 0.75), 8), draw_bar(Bar(0.5), 8, ascii_only=True)
        ('████', '██░░░░', '####')
    """
    if ascii_only:
        solid = max(1, round(bar.low * width))
        return "#" * solid + "." * max(0, round((bar.high or 0.0) * width) - solid)
    eighths = max(1, round(bar.low * width * 8))
    if bar.high is not None:
        solid = max(1, round(bar.low * width))
        return "█" * solid + "░" * max(0, round(bar.high * width) - solid)
    return "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


class _Writer:
    """Turns blocks into lines of one width."""

    def __init__(self, width: int, ascii_only: bool) -> None:
        self.width = width
        self.ascii_only = ascii_only

    def clean(self, text: str) -> str:
        """Make control characters visible; in ASCII mode, everything that is not ASCII too."""
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        if self.ascii_only:
            text = text.translate(ASCII).encode("ascii", "backslashreplace").decode()
        return text

    def elide(self, text: str, width: int) -> str:
        size = width
        while cell_len(short := elide(text, size)) > width and size > 1:
            size -= 1
        return short.translate(ASCII) if self.ascii_only else short

    def document(self, document: Document) -> Iterator[Text]:
        yield from self.prose(literal(document.title), style="bold")
        facts = [f"{label} {value}".strip() for label, value in document.facts]
        if facts:
            yield from self.joined(facts)
        if document.headline is not None:
            yield from self.headline(document.headline)
        # The end is what is on screen when a long report has been printed: warnings and the answer come last.
        for block in document.blocks:
            if not isinstance(block, Callout):
                yield from self.block(block)
        for block in document.blocks:
            if isinstance(block, Callout):
                yield from self.block(block)
        if document.summary:
            yield Text()
            yield from self.prose(document.summary)

    def headline(self, callout: Callout) -> Iterator[Text]:
        yield Text()
        mark = {"good": "✓", "critical": "✗"}.get(callout.tone, "⚠")
        yield from self.prose(callout.title, f"{mark} ", _STYLES[callout.tone])
        if callout.text:
            yield from self.prose(callout.text, "  ")

    def line(self, text: str, style: str = "") -> Text:
        return Text(self.clean(text), style=style, no_wrap=True, overflow="crop", end="\n")

    def joined(self, parts: Sequence[str]) -> Iterator[Text]:
        """Parts with dots between, a new line only between parts."""
        current = ""
        for part in parts:
            if current and len(current) + 3 + len(part) > self.width:
                yield self.line(current, "dim")
                current = part
            else:
                current = f"{current} · {part}" if current else part
        yield from (self.line(line, "dim") for line in textwrap.wrap(current, self.width, break_on_hyphens=False))

    def prose(self, text: str, indent: str = "", style: str = "") -> Iterator[Text]:
        yield self._indented(text, indent, style)

    def _marked(self, text: str, style: str = "") -> Text:
        line = Text(style=style, overflow="fold")
        for mark, piece in split_marks(text):
            line.append(self.clean(piece), {"plain": "", "code": "cyan", "strong": "bold"}[mark])
        return line

    def _indented(self, text: str, indent: str, style: str) -> Text:
        console = Console(width=self.width, file=io.StringIO(), legacy_windows=False)
        lines = self._marked(text, style).wrap(console, max(10, self.width - cell_len(indent)), overflow="fold")
        result = Text(style=style)
        for number, line in enumerate(lines):
            result.append(("\n" + " " * cell_len(indent)) if number else self.clean(indent))
            line.rstrip()
            result.append_text(line)
        return result

    def block(self, block: Block) -> Iterator[Text]:
        if isinstance(block, Figure) and not block.text and not block.reading:
            return
        yield Text()
        if isinstance(block, Heading):
            yield self.line(block.text, "bold underline" if block.level == 2 else "bold")
        elif isinstance(block, Paragraph):
            yield from self.prose(block.text, style=_STYLES[block.tone])
        elif isinstance(block, Bullets):
            for item in block.items:
                yield from self.prose(item, "• ")
        elif isinstance(block, Code):
            for line in block.text.splitlines():
                yield self.line("  " + line)
        elif isinstance(block, Callout):
            title = f"{block.title}: " if block.title else ""
            yield from self.prose(f"{title}{block.text}", "⚠ " if block.tone != "good" else "✓ ", _STYLES[block.tone])
        elif isinstance(block, Table):
            yield from self.table(block)
        elif isinstance(block, Figure):
            yield from self.figure(block)
        else:
            yield from self.section(block)

    def section(self, section: Section) -> Iterator[Text]:
        yield self.line(section.title, "bold underline")
        for block in section.blocks:
            yield from self.block(block)

    def figure(self, figure: Figure) -> Iterator[Text]:
        if figure.text:
            yield self.line(figure.title, "bold")
            for line in figure.text:
                yield Text(self.clean(line), overflow="fold")
        if figure.reading:
            yield from self.prose(figure.reading)

    # ------------------------------------------------------------------ tables

    def table(self, table: Table) -> Iterator[Text]:
        rows = [[self.clean(cell.text) for cell in row] for row in table.rows]
        heads = [[self.clean(part) for part in column.title.split("\n")] for column in table.columns]
        filled = table.filled
        natural = {i: max([cell_len(t) for t in heads[i]] + [cell_len(row[i]) for row in rows]) for i in filled}
        shown, widths = _fit(table.columns, filled, natural, self.width)
        if table.title:
            yield self.line(table.title, "bold")
        gap = "  " if sum(widths.values()) + 2 * (len(shown) - 1) <= self.width else " "
        names = [i for i in shown if table.columns[i].shrink and table.columns[i].priority >= _NAME]
        shortened = any(cell_len(row[i]) > widths[i] for row in rows for i in names)
        for i in names:
            for row, text in zip(rows, shorten_names([row[i] for row in rows], widths[i]), strict=True):
                row[i] = text
        yield from self._header(table, heads, shown, widths, gap)
        for source, row in zip(table.rows, rows, strict=True):
            yield from self._row(table, source, row, shown, widths, gap)
        hidden = [" ".join(heads[i]) for i in filled if i not in shown]
        caption = table.caption
        if shortened:
            caption += " Names are shortened from the left."
        if hidden:
            caption += f" Not shown at this width: {', '.join(hidden)}."
        if caption:
            yield from self.prose(caption.strip(), style="dim")

    def _header(
        self, table: Table, heads: list[list[str]], shown: list[int], widths: dict[int, int], gap: str
    ) -> Iterator[Text]:
        heads = [list(head) for head in heads]
        for i in shown:
            axis = table.columns[i].axis
            if axis is not None:
                heads[i].append(self.clean(axis[0] + axis[1].rjust(widths[i] - len(axis[0]))))
        depth = max(len(heads[i]) for i in shown)
        for level in range(depth):
            parts = []
            for i in shown:
                offset = level - (depth - len(heads[i]))
                parts.append(self._pad(heads[i][offset] if offset >= 0 else "", widths[i], table.columns[i]))
            yield Text(gap.join(parts).rstrip(), style="bold", no_wrap=True, overflow="crop")
        rule = "-" if self.ascii_only else "─"
        yield Text(gap.join(rule * widths[i] for i in shown), style="dim", no_wrap=True, overflow="crop")

    def _row(
        self,
        table: Table,
        source: Sequence[Cell],
        row: Sequence[str],
        shown: list[int],
        widths: dict[int, int],
        gap: str,
    ) -> Iterator[Text]:
        wrapped = {
            i: textwrap.wrap(row[i], widths[i], break_on_hyphens=False)
            if table.columns[i].wrap
            else [self.elide(row[i], widths[i])]
            for i in shown
        }
        for level in range(max([len(lines) for lines in wrapped.values()], default=1) or 1):
            line = Text(no_wrap=True, overflow="crop")
            for position, i in enumerate(shown):
                bar = source[i].bar
                text = wrapped[i][level] if level < len(wrapped[i]) else ""
                style = _STYLES[source[i].tone]
                if bar is not None:
                    text = draw_bar(bar, widths[i], ascii_only=self.ascii_only) if level == 0 else ""
                    style = "cyan"
                line.append(gap if position else "")
                line.append(self._pad(text, widths[i], table.columns[i]), style)
            line.rstrip()
            yield line

    @staticmethod
    def _pad(text: str, width: int, column: Column) -> str:
        space = " " * max(0, width - cell_len(text))
        return space + text if column.align == "right" else text + space


def _fit(
    columns: Sequence[Column], filled: Sequence[int], natural: dict[int, int], width: int
) -> tuple[list[int], dict[int, int]]:
    """Choose the columns that fit into ``width`` and their widths: the least important go first."""
    shown = list(filled)
    wanted = dict(natural)
    floor = dict(natural)
    for i in shown:
        column = columns[i]
        if column.axis is not None:
            floor[i] = max(natural[i], len("".join(column.axis)) + 1)
            wanted[i] = max(floor[i], 24)
        elif column.wrap:
            floor[i] = min(natural[i], column.min_width)
        elif column.shrink:
            floor[i] = min(natural[i], 28 if column.priority >= _NAME else 10)
    while len(shown) > 1 and sum(floor[i] for i in shown) + len(shown) - 1 > width:
        shown.remove(min(shown, key=lambda i: (columns[i].priority, -i)))
    widths = {i: floor[i] for i in shown}
    gaps = len(shown) - 1
    spare = width - sum(widths.values()) - gaps
    if spare >= gaps:  # two spaces between columns where there is room
        spare -= gaps
    # What is left goes to names first, then to notes, then to bars.
    for i in sorted(shown, key=lambda i: (columns[i].axis is not None, columns[i].wrap, i)):
        extra = max(0, min(spare, wanted[i] - widths[i]))
        widths[i] += extra
        spare -= extra
    if spare < 0:  # a single column wider than the terminal
        widths[shown[0]] = max(1, widths[shown[0]] + spare)
    return shown, widths
