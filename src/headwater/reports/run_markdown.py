"""A document as Markdown: for an issue, a pull request, or a program that reads text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from headwater.reports.document import (
    Block,
    Bullets,
    Callout,
    Cell,
    Code,
    Document,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
)
from headwater.reports.marks import Mark, split_marks

__all__ = ["render_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#])")


def render_markdown(document: Document) -> str:
    """A document as GitHub-flavoured Markdown.

    Names stay text: what Markdown or HTML would read as markup is escaped.

    Args:
        document: what to show; figures appear as the sentence that reads them.

    Returns:
        The text, with a line break at its end.
    """
    lines: list[str] = [f"# {_escape(document.title)}", ""]
    facts = [f"{label} {value}".strip() for label, value in document.facts]
    if facts:
        lines += [" · ".join(_escape(fact) for fact in facts), ""]
    if document.headline is not None:
        title = "".join(piece for _, piece in split_marks(document.headline.title))
        lines += [f"> **{_escape(title)}**"]
        lines += [f"> {_prose(document.headline.text)}"] if document.headline.text else []
        lines.append("")
    if document.summary:
        lines += [_prose(document.summary), ""]
    for block in document.blocks:
        lines += _block(block)
    return "\n".join(lines).rstrip("\n") + "\n"


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", _visible(text))


def _code(text: str) -> str:
    return f"`{_visible(text).replace('`', chr(39))}`"


def _prose(text: str) -> str:
    return "".join(_MARKED[mark](piece) for mark, piece in split_marks(text))


def _strong(text: str) -> str:
    return f"**{_escape(text)}**"


_MARKED: Mapping[Mark, Callable[[str], str]] = {"plain": _escape, "code": _code, "strong": _strong}


def _cell(cell: Cell) -> str:
    return _escape(cell.text)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {_prose(block.text)}"
    elif isinstance(block, Paragraph):
        yield _prose(block.text)
    elif isinstance(block, Bullets):
        yield from (f"- {_prose(item)}" for item in block.items)
    elif isinstance(block, Code):
        yield from (f"    {_visible(line)}" for line in block.text.splitlines())
    elif isinstance(block, Callout):
        title = f"**{_escape(block.title)}** " if block.title else ""
        yield f"> {title}{_prose(block.text)}"
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        if not block.reading:
            return
        yield f"**{_escape(block.title)}.** {_prose(block.reading)}"
    elif isinstance(block, Section):
        yield f"## {_escape(block.title)}"
        yield ""
        for inner in block.blocks:
            yield from _block(inner)
        return
    yield ""


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {_escape(table.title)}"
        yield ""
    if table.caption:
        yield _prose(table.caption)
        yield ""
    shown = [i for i in table.filled if table.columns[i].axis is None]  # bars repeat a number that stands beside them
    yield "| " + " | ".join(_escape(table.columns[i].title.replace("\n", " ")) for i in shown) + " |"
    yield "|" + "|".join("---:" if table.columns[i].align == "right" else "---" for i in shown) + "|"
    for row in table.rows:
        yield "| " + " | ".join(_cell(row[i]) for i in shown) + " |"
