"""A document as HTML: a fragment for a notebook, or one file that works offline."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
from markupsafe import Markup, escape

from headwater.reports.document import (
    Bar,
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
from headwater.reports.marks import split_marks

__all__ = ["render_fragment", "render_page"]

_NUMBER = re.compile(r"[\d.]+e[+-]\d+")
_TOP = 84  # pixels above a plot for its title and its legend
_FILTER_ROWS = 20  # tables longer than this get a box that filters their rows; chosen by us


def render_fragment(document: Document) -> str:
    """A small piece of HTML without script: for ``_repr_html_``.

    Args:
        document: what to show; its figures appear as their text.

    Returns:
        One ``<div>`` that brings its own style and follows the colours around it.
    """
    return _environment().get_template("fragment.html.j2").render(document=document)


def render_page(documents: Sequence[Document], *, title: str, intro: str = "") -> str:
    """One HTML file with everything inside; it makes no request.

    Args:
        documents: the parts of the page.
        title: of the page.
        intro: prose at the top, when there are several parts.

    Returns:
        The text of the file; plotly.js (4.8 MB) is in it once when there is a figure.
    """
    figures: list[dict[str, Any]] = []
    counter = itertools.count()

    def place(figure: Figure) -> str:
        name = f"figure-{next(counter)}"
        figures.append({"id": name, "figure": _figure_data(figure)})
        return name

    has_figures = any(isinstance(block, Figure) for d in documents for block in _all_blocks(d.blocks))
    template = _environment().get_template("page.html.j2")
    body = template.render(
        documents=documents, title=title, intro=intro, place=place, figures=figures, filter_rows=_FILTER_ROWS,
        has_figures=has_figures, templates=_templates(), plotly_js=Markup(_plotly_js()) if has_figures else "",
    )  # fmt: skip
    return body


def _all_blocks(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Section):
            yield from _all_blocks(block.blocks)


def _figure_data(figure: Figure) -> dict[str, Any]:
    """Traces and layout as plain values; the page sets the template and shows the reading under the picture."""
    drawn = figure.draw("light")
    # to_json knows numpy arrays and dates; its text is parsed again so that the page holds one JSON dialect.
    data: dict[str, Any] = json.loads(drawn.to_json())
    layout = data["layout"]
    layout.pop("template", None)
    title = layout.get("title")
    if isinstance(title, dict) and "subtitle" in title:
        title.pop("subtitle")
        margin = layout.setdefault("margin", {})
        if "height" in layout and margin.get("t", 0) > _TOP:
            layout["height"] -= margin["t"] - _TOP
            margin["t"] = _TOP
    return {"data": data["data"], "layout": layout}


def _templates() -> dict[str, Any]:
    from headwater.reports.figures import template_of

    return {"light": template_of("light").to_plotly_json(), "dark": template_of("dark").to_plotly_json()}


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _prose(text: str) -> Markup:
    """Escape a text, then turn its two marks into tags."""
    tags = {"code": "code", "strong": "strong"}
    pieces = [
        Markup("<{0}>{1}</{0}>").format(Markup(tags[mark]), _visible(piece)) if mark in tags else _plain(piece)
        for mark, piece in split_marks(text)
    ]
    return Markup("").join(pieces)


def _plain(text: str) -> Markup:
    # 1.00e-05 must not be broken at its hyphen.
    return Markup(_NUMBER.sub(r'<span class="number">\g<0></span>', str(escape(_visible(text)))))


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _json(value: object) -> Markup:
    """JSON that may stand inside a ``<script>`` element: no ``<`` is left that could end it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _sort_value(cell: Cell) -> str:
    return "" if cell.sort is None else repr(cell.sort)


def _bar_style(bar: Bar) -> str:
    solid, faint = 100 * bar.low, 100 * (bar.high if bar.high is not None else bar.low)
    return f"--solid:{max(solid, 0.8):.1f}%;--faint:{max(faint, 0.8):.1f}%"


def _kind(block: Block) -> str:
    """The name that the templates know a block by."""
    names: dict[type, str] = {
        Heading: "heading",
        Paragraph: "paragraph",
        Bullets: "bullets",
        Code: "code",
        Callout: "callout",
        Table: "table",
        Figure: "figure",
        Section: "section",
    }
    return names[type(block)]


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("headwater.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        prose=_prose, visible=_visible, safe_json=_json, sort_value=_sort_value, bar_style=_bar_style, kind=_kind
    )
    return environment
