"""Reports in a terminal: nothing overflows, nothing is lost, every number is the record's."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from tests import profiles

from headwater import reports
from headwater.records import Profile
from headwater.reports.document import Bar, Callout, Cell, Column, Document, Figure, Paragraph, Section, Table
from headwater.reports.notation import ASCII
from headwater.reports.text import draw_bar

PROFILES = {
    "deep": profiles.deep_sigmoid(5),
    "thousand": profiles.deep_sigmoid(500, -0.01),
    "transformer": profiles.transformer(12),
    "recurrent": profiles.recurrent(),
    "troubled": profiles.troubled(),
    "hostile": profiles.hostile(),
    "draws": profiles.with_draws(),
}


def row_of(text: str, name: str) -> list[str]:
    """The cells of the first line that begins with a name."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    text = reports.to_text(PROFILES[name], width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("name", PROFILES)
def test_a_console_without_blocks_gets_plain_ascii(name: str) -> None:
    text = reports.to_text(PROFILES[name], width=100, ascii_only=True)
    assert text.isascii()
    # Same layout: as many lines as with blocks.
    assert len(text.splitlines()) == len(reports.to_text(PROFILES[name], width=100, ascii_only=False).splitlines())


def test_the_encoding_of_the_console_decides_by_itself() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=stream, width=100).print(reports.to_rich(PROFILES["deep"]))
    stream.flush()
    assert b"####" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_number_in_the_table_is_the_number_in_the_record() -> None:
    text = reports.to_text(profiles.deep_sigmoid(5), width=100)
    # 10**(-0.845 * 5) = 5.957e-05 and half of it; the shape is 1×100.
    assert row_of(text, "0")[:5] == ["0", "Linear", "1×100", "3.20e-01", "5.96e-05"]
    assert row_of(text, "0")[-1] == "2.98e-05"


def test_bars_share_one_axis_whose_ends_are_written_above_them() -> None:
    lines = reports.to_text(profiles.deep_sigmoid(5), width=100).splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("──"))
    # Smallest gradient 5.96e-05, largest 1: the axis runs over whole decades around them.
    assert re.search(r"1e-05 +1e\+00", lines[rule - 1])
    lengths = [line.count("█") for line in lines[rule + 1 : rule + 12]]
    # 24 characters for 5 decades: log10(5.96e-05) = -4.225 -> (5 - 4.225)/5*24 = 3.7, at the output 24.
    assert lengths[0] == 3
    assert lengths[-1] == 24


def test_an_exact_zero_a_missing_gradient_and_nan_are_told_apart() -> None:
    text = reports.to_text(profiles.troubled(), width=140)
    assert "0 (exact)" in next(line for line in text.splitlines() if " stem " in line)
    aside = next(line for line in text.splitlines() if " aside " in line)
    assert " - " in aside
    assert "the loss does not depend on it" in aside
    gone = next(line for line in text.splitlines() if " gone " in line)
    assert "grad.: 2 NaN of 2" in gone
    assert "3.16e-321" in text  # below the smallest double, still not zero


def test_coverage_and_warnings_are_in_the_text() -> None:
    text = " ".join(reports.to_text(profiles.troubled(), width=140).split())
    assert "observed 4 of 5 trainable parameters (80 %); the loss does not depend on it: aside.weight" in text
    assert "spare not seen: never called" in text
    assert "ReluBackward0" in text
    assert "different to the input size" in text


def test_the_answer_is_the_last_thing_printed() -> None:
    text = reports.to_text(profiles.deep_sigmoid(20), width=100)
    assert text.split("\n\n")[-1].startswith("Towards the input the gradient shrinks by 16.9 decades")


def test_a_layer_name_cannot_colour_or_break_the_terminal() -> None:
    text = reports.to_text(profiles.hostile(), width=140)
    assert "\x1b" not in text
    assert r"new\nline\x1b[31m" in text
    assert "[red]" not in text


def test_a_profile_without_any_gradient_is_still_shown() -> None:
    layers = [profiles.layer("fc", "Linear", 0, 1.0, None)]
    frozen = [profiles.parameter("fc.weight", None, state="frozen")]
    text = reports.to_text(profiles.profile(layers, frozen, trunk=()), width=100)
    assert "No gradient came back to any layer" in text
    assert "frozen: weight" in text
    assert "nothing" not in reports.to_text(profiles.profile([], [], trunk=()), width=100)


def test_square_brackets_in_a_name_are_no_markup() -> None:
    layers = [profiles.layer("out[1][0]", "[bold]Linear[/bold]", 0, 1.0, 1.0)]
    text = reports.to_text(profiles.profile(layers), width=120)
    assert "out[1][0]" in text
    assert "[bold]Linear[/bold]" in text


def test_branches_are_told_from_the_trunk() -> None:
    lines = reports.to_text(profiles.transformer(2), width=120).splitlines()
    assert next(line for line in lines if " transformer.h.0 " in line).startswith("┃")
    assert not next(line for line in lines if "h.0.ln_1" in line).startswith("┃")


def test_a_plain_chain_has_no_trunk_column() -> None:
    assert "┃" not in reports.to_text(profiles.deep_sigmoid(3), width=100)


def test_deep_networks_fold_and_full_lists_every_layer() -> None:
    folded = reports.to_text(PROFILES["thousand"], width=100)
    assert len(folded.splitlines()) < 80
    assert "9 × Linear+Sigmoid" in folded
    full = reports.to_text(PROFILES["thousand"], width=100, full=True)
    assert len([line for line in full.splitlines() if " Sigmoid " in line]) == 500


def test_a_fold_shows_the_smallest_and_the_largest() -> None:
    # 60 rows less four at the ends and the output: 55 for 498 pairs, so nine in the first fold, rows 2 to 19:
    # from 10**-4.99 = 1.0e-05 at row 2 to 10**(-4.91 + 0.6) = 4.9e-05 at row 19.
    assert "1e-05..5e-05" in row_of(reports.to_text(PROFILES["thousand"], width=100), "2-19")


def test_a_model_whose_parameters_have_no_layer_still_shows_their_gradients() -> None:
    free = [profiles.parameter("w.0", 3.2e-4, layer=None), profiles.parameter("w.1", 5.6e-2, layer=None)]
    text = reports.to_text(profiles.profile([profiles.layer("(model)", "Net", 0, 1.0, 1.0)], free), width=100)
    assert "3.20e-04" in row_of(text, "w.0")
    assert "Parameters that belong to no layer above." in text


def test_shared_parameters_are_shown_with_their_other_names() -> None:
    layers = [profiles.layer("wte", "Embedding", 0, 1.0, 1.0), profiles.layer("head", "Linear", 1, 1.0, 1.0)]
    tied = profiles.parameter("wte.weight", 1e-3, "embedding", aliases=("head.weight",))
    assert "shared: weight = head.weight" in reports.to_text(profiles.profile(layers, [tied]), width=140)


def test_the_gradient_over_time_is_drawn_from_first_step_to_last() -> None:
    text = reports.to_text(profiles.recurrent(30), width=100)
    line = next(line for line in text.splitlines() if line.startswith("lstm hidden"))
    # 1e-2 at t = 29 and 0.2 decades less per step: 10**(-2 - 5.8) at t = 0.
    assert re.search(r"1\.58e-08 ▁.*█ 1\.00e-02  −5\.8 decades", line)


def test_the_spread_over_draws_has_a_column() -> None:
    text = reports.to_text(profiles.with_draws(10), width=100)
    assert "draws 10" in text
    assert "0.30" in row_of(text, "0")


def test_colour_is_added_only_on_request() -> None:
    assert "\x1b[" not in reports.to_text(profiles.troubled(), width=100)
    assert "\x1b[" in reports.to_text(profiles.troubled(), width=100, color=True)


def test_a_narrow_terminal_drops_the_least_important_column_and_says_so() -> None:
    text = " ".join(reports.to_text(profiles.transformer(2), width=80).split())
    assert re.search(r"Not shown at this width: .*output shape", text)


def test_width_defaults_to_the_terminal_s_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = reports.to_text(profiles.deep_sigmoid(3))
    assert max(map(len, wide.splitlines())) <= 140
    monkeypatch.setenv("COLUMNS", "20")
    narrow = reports.to_text(profiles.deep_sigmoid(3))
    assert 40 < max(map(len, narrow.splitlines())) <= 60


def test_every_block_of_a_document_is_printed() -> None:
    document = Document(
        "Page",
        (
            Callout("Careful.", "critical"),
            Section("Part", (Paragraph("inside"),)),
            Figure(lambda template: None, "A figure", "It rises.", ("▁▂▃",)),
            Table.of(["a", Column("b", align="right")], [["x", Cell("1", bar=None)], ["y", Cell("", bar=Bar(0.5))]]),
        ),
        summary="Done.",
    )
    text = reports.to_text(document, width=60)
    for expected in ("Page", "Careful.", "Part", "inside", "A figure", "▁▂▃", "It rises.", "Done."):
        assert expected in text


@pytest.mark.parametrize("value", [0.0, 0.001, 0.3, 0.999, 1.0])
def test_a_bar_is_never_invisible_and_never_longer_than_its_axis(value: float) -> None:
    for ascii_only in (False, True):
        bar = draw_bar(Bar(value), 10, ascii_only=ascii_only)
        assert 1 <= len(bar) <= 10
    assert len(draw_bar(Bar(value, 1.0), 10)) == 10


def test_ascii_bars_use_only_characters_that_survive_translation() -> None:
    assert draw_bar(Bar(0.4, 0.8), 10).translate(ASCII) == draw_bar(Bar(0.4, 0.8), 10, ascii_only=True) == "####...."


def test_a_profile_that_went_through_json_prints_the_same() -> None:
    for profile in PROFILES.values():
        again = Profile.from_json(profile.to_json())
        assert reports.to_text(again, width=100) == reports.to_text(profile, width=100)


def test_a_console_gets_no_trailing_blanks_from_wrapped_prose() -> None:
    stream = io.StringIO()
    Console(file=stream, width=80).print(reports.to_rich(PROFILES["transformer"]))
    prose = [line for line in stream.getvalue().splitlines() if line.startswith(("Layers in", "The gradient", "marks"))]
    assert prose
    assert all(line == line.rstrip() for line in prose)
