"""HTML: one offline file, a small fragment, and nothing in a name that could run."""

from __future__ import annotations

import html.parser
import re

import pytest
from tests import profiles

from headwater import reports
from headwater.reports.document import Callout, Code, Document, Figure, Paragraph, Section, Table


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see: elements, their attributes, and text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else self._raw

    def handle_endtag(self, tag: str) -> None:
        self._raw = "" if tag == self._raw else self._raw

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data

    @classmethod
    def of(cls, page: str) -> Reader:
        reader = cls()
        reader.feed(page)
        reader.close()
        return reader

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def page() -> str:
    return reports.to_html_page(profiles.transformer(3))


def test_the_page_begins_with_the_answer_then_the_figure_then_the_tables(page: str) -> None:
    body = page[page.index("<main>") :]
    assert body.index("about as strong as it started") < body.index('class="plot"') < body.index("<table>")
    assert body.index("<table>") < body.index("Coverage:") < body.index("How it was measured")


def test_plotly_is_in_the_page_once_and_nothing_is_fetched(page: str) -> None:
    assert page.count("plotly.js v") == 1
    for _, attributes in Reader.of(page).elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    assert "default-src 'none'" in page


def test_nothing_in_the_page_offers_to_upload_it(page: str) -> None:
    own = page[page.rindex("<script>") :]
    assert "showSendToCloud: false" in own
    assert "displaylogo: false" in own


def test_the_page_is_smaller_than_six_megabytes_beyond_its_data(page: str) -> None:
    assert len(page.encode()) < 6_000_000


def test_a_page_without_a_figure_carries_no_plotly() -> None:
    page = reports.to_html_page(Document("Note", (Paragraph("Only words."),)))
    assert len(page) < 20_000


def test_the_tables_hold_every_layer_and_every_parameter() -> None:
    profile = profiles.deep_sigmoid(500, -0.01)
    reader = Reader.of(reports.to_html_page(profile))
    # 1,001 layers and 1,002 parameters, and one header row for each of the two tables.
    assert reader.count("tr") == 1001 + 1002 + 2
    assert reader.count("details") == 2


def test_hostile_names_are_text_in_the_page_and_in_the_fragment() -> None:
    for text in (reports.to_html_page(profiles.hostile()), reports.to_html_fragment(profiles.hostile())):
        reader = Reader.of(text)
        assert reader.count("img") == 0
        assert reader.count("i") == 0
        assert not any(name.startswith("on") for _, attributes in reader.elements for name in attributes)
        assert "<script>alert(1)</script>" in reader.text
        assert "a&b<b>bold</b>" in reader.text
        assert r"new\nline\x1b[31m" in reader.text
    # plotly.js, the data, and the page's own script: no more.
    assert Reader.of(reports.to_html_page(profiles.hostile())).count("script") == 3


def test_data_cannot_end_the_script_element_it_stands_in() -> None:
    page = reports.to_html_page(profiles.hostile())
    data = page[page.index('id="figures"') :]
    assert "<" not in data[data.index(">") + 1 : data.index("</script>")]


def test_the_fragment_is_small_and_brings_no_script() -> None:
    for profile in (profiles.transformer(12), profiles.deep_sigmoid(500, -0.01), profiles.troubled()):
        fragment = reports.to_html_fragment(profile)
        assert len(fragment.encode()) < 100_000
        assert Reader.of(fragment).count("script") == 0


def test_the_fragment_holds_the_numbers() -> None:
    text = Reader.of(reports.to_html_fragment(profiles.deep_sigmoid(5))).text
    assert "5.96e-05" in text
    assert "shrinks by 4.22 decades" in text


def test_tones_hints_and_sort_keys_reach_the_table() -> None:
    page = reports.to_html_page(profiles.troubled())
    cell = re.search(r'<td class="num critical" data-sort="([^"]+)"[^>]*>0 \(exact\)</td>', page)
    assert cell is not None
    assert float(cell.group(1)) == -1e9  # below every log10 there is
    assert 'title="√mean((∂L/∂output)²)"' in page


def test_several_records_become_one_page_with_a_table_of_contents() -> None:
    page = reports.to_html_page(
        [profiles.deep_sigmoid(2), profiles.recurrent()], title="Two models", intro="See `both`."
    )
    reader = Reader.of(page)
    assert "<title>Two models</title>" in page
    assert [a["href"] for t, a in reader.elements if t == "a"] == ["#part-1", "#part-2"]
    assert sum(a.get("class") == "plot" for _, a in reader.elements) == 3
    assert len({a["id"] for _, a in reader.elements if a.get("class") == "plot"}) == 3
    assert page.count("plotly.js v") == 1


def test_every_block_of_a_document_is_in_the_page() -> None:
    document = Document(
        "Blocks",
        (
            Callout("Careful.", "critical", "Stop"),
            Code("a < b\n  c"),
            Section("Folded", (Paragraph("inside `x`", "muted"),), collapsed=True),
            Table.of(["a"], [["1"]], title="T", caption="How to read it.", collapsed=True),
        ),
        summary="In **short**.",
        facts=(("label", "value"), ("", "alone")),
    )
    text = reports.to_html_page(document)
    reader = Reader.of(text)
    assert "<pre>a &lt; b\n  c</pre>" in text
    assert "<strong>short</strong>" in text
    assert "<code>x</code>" in text
    assert reader.count("details") == 2
    for expected in ("Careful.", "Stop", "How to read it.", "label", "value", "alone"):
        assert expected in reader.text


def test_a_number_is_never_broken_at_its_hyphen() -> None:
    page = reports.to_html_page(Document("N", (Paragraph("from 1.00e-05 to 2e+03"),)))
    assert '<span class="number">1.00e-05</span> to <span class="number">2e+03</span>' in page


def test_a_figure_in_a_notebook_is_its_text() -> None:
    figure = Figure(lambda template: None, "Over time", "It falls.", ("t=0 ▁▃█",))
    fragment = reports.to_html_fragment(Document("F", (figure,)))
    assert "t=0 ▁▃█" in fragment
