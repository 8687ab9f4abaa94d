"""A document is data that any renderer can show."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from tests import profiles

from headwater import reports
from headwater.errors import InputError
from headwater.reports.document import (
    Bullets,
    Callout,
    Cell,
    Code,
    Column,
    Document,
    Heading,
    Paragraph,
    Section,
    Table,
)
from headwater.reports.marks import split_marks


def everything() -> Document:
    """A document with every kind of block but a figure."""
    return Document(
        "All blocks",
        (
            Heading("A heading"),
            Paragraph("Plain, `code` and **strong**."),
            Paragraph("A side note.", "muted"),
            Bullets(("first", "second")),
            Code("x = 1\n  y = <2>"),
            Callout("Look & see.", "critical", "Stop"),
            Table.of(["name", Column("value", align="right")], [["a", "1"], ["b", Cell("2", sort=2.0)]], title="Two"),
            Section("Inside", (Paragraph("folded up"),), collapsed=True),
        ),
        summary="In short: `fine`.",
        facts=(("loss", "0.5"), ("", "alone")),
    )


def test_a_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table.of(["a", "b"], [["1", "2"], ["3"]])


def test_a_column_that_holds_nothing_is_not_filled() -> None:
    assert Table.of(["a", "b"], [["1", ""], ["2", ""]]).filled == (0,)
    assert Table.of(["a", "b"], []).filled == (0, 1)


def test_marks_are_found_and_what_is_unclosed_is_left() -> None:
    assert list(split_marks("a `b` **c** `d")) == [
        ("plain", "a "),
        ("code", "b"),
        ("plain", " "),
        ("strong", "c"),
        ("plain", " `d"),
    ]


def test_a_document_is_its_own_report() -> None:
    document = everything()
    assert reports.document_of(document) is document
    assert "All blocks" in reports.to_text(document)
    assert "All blocks" in reports.to_html_fragment(document)
    assert "All blocks" in reports.to_html_page(document)


def test_an_unknown_record_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no report for a dict; headwater shows .*Profile"):
        reports.to_text({})
    with pytest.raises(InputError, match="no figure for a int"):
        reports.to_figure(3)


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(InputError, match="template is 'blue'; it can be 'dark' or 'light'"):
        reports.to_figure(profiles.deep_sigmoid(2), template="blue")


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        reports.to_html_page([])


def test_a_subclass_of_a_record_is_shown_like_it() -> None:
    class Special(type(profiles.deep_sigmoid(2))):
        pass

    base = profiles.deep_sigmoid(2)
    special = Special(**{name: getattr(base, name) for name in (f.name for f in dataclasses.fields(base))})
    assert reports.to_text(special, width=100) == reports.to_text(base, width=100)


def test_every_builder_that_is_listed_exists() -> None:
    for target in (*reports.DOCUMENTS.values(), *reports.FIGURES.values()):
        module, name = target.split(":")
        __import__(module)
        assert callable(getattr(sys.modules[module], name))


def test_the_record_s_own_methods_show_it() -> None:
    profile = profiles.deep_sigmoid(2)
    assert str(profile) == reports.to_text(profile)
    assert profile._repr_html_() == reports.to_html_fragment(profile)
    assert profile.plot().to_json() == reports.to_figure(profile).to_json()


def test_importing_the_reports_loads_neither_rich_nor_plotly_nor_jinja2() -> None:
    source = Path(reports.__file__).parents[1]  # headwater itself imports torch: its reports alone must not
    code = (
        "import sys, types; package = types.ModuleType('headwater'); "
        f"package.__path__ = [{str(source)!r}]; "
        "sys.modules['headwater'] = package; import headwater.reports, headwater.reports.document; "
        "print([m for m in ('rich', 'plotly', 'jinja2', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
