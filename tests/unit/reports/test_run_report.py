"""The report of a run: the first sentence, what a terminal lists, names that stay text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math

import pytest
from tests import runs

from headwater.records import RunEvent, Severity
from headwater.records.run_summary import summarize_run
from headwater.reports import to_html_page, to_text
from headwater.reports.document import Figure, Section, Table
from headwater.reports.run_markdown import render_markdown
from headwater.reports.run_report import build_run_document, duration, run_headline
from headwater.reports.run_rows import run_to_csv
from headwater.reports.run_view import RunView


def text(run: runs.FormulaRun, **options: object) -> str:
    return to_text(RunView(run), **{"width": 100, "ascii_only": False, **options})  # type: ignore[arg-type]


def test_the_first_sentence_says_whether_the_run_is_healthy_and_what_happened_first() -> None:
    unhealthy = run_headline(summarize_run(runs.vanishing()))
    assert unhealthy.tone == "critical"
    assert unhealthy.title == "unhealthy: first HW101 vanishing gradient at `layers.0` at step 4"
    assert unhealthy.text == "The gradient loses 0.8 decades per layer."
    warned = run_headline(summarize_run(runs.spiking()))
    assert warned.tone == "warning"
    assert warned.title == "healthy, with 1 warning: first HW703 gradient spike at `layers.3.weight` at step 100"
    fine = run_headline(summarize_run(runs.healthy()))
    assert (fine.tone, fine.title, fine.text) == ("good", "healthy", "25 steps recorded, nothing found.")
    assert run_headline(summarize_run(runs.nothing())).title == "nothing observed"


def test_a_terminal_sees_the_first_the_middle_and_the_last_weights() -> None:
    shown = text(runs.vanishing(100, 40, 0.1))
    for i in (0, 3, 48, 51, 96, 99):
        assert f"layers.{i}.weight" in shown
    for i in (4, 47, 52, 95):
        assert f"layers.{i}.weight" not in shown
    assert "… 44 weights …" in shown
    assert "12 of 100: the first, the middle and the last." in shown


def test_a_report_says_what_watching_cost_and_what_it_saw() -> None:
    shown = " ".join(text(runs.healthy()).split())
    assert "0.25 s of the training thread, 0.5% of the training time, 40 kB kept" in shown
    assert "10 of 10 trainable parameters observed" in shown


def test_a_run_that_never_ended_says_so() -> None:
    assert "no end was recorded" in " ".join(text(runs.healthy()).split())
    assert "no end was recorded" not in " ".join(text(runs.spiking()).split())


def test_the_norm_is_one_line_of_blocks_with_its_extremes() -> None:
    run = runs.spiking(at=100)
    line = next(line for line in text(run).splitlines() if line.startswith("Gradient norm"))
    blocks = line.split()[2]
    # 25 recorded steps; the spike is the fifteenth: 0, 1, 2, 4, 8, 10, 20 … 100.
    assert len(blocks) == 25
    assert blocks.index("█") == 14
    assert "largest" in text(run)
    assert "largest" not in text(runs.vanishing())  # it never changes


def test_many_findings_are_cut_to_the_most_serious_in_the_order_of_the_steps() -> None:
    run = runs.healthy()
    run.findings = (
        *(runs.finding("HW703", Severity.WARNING, step=i) for i in range(30)),
        runs.finding("HW101", step=150),
    )
    (table,) = [
        block for block in build_run_document(run).blocks if isinstance(block, Table) and "finding" in block.title
    ]
    assert len(table.rows) == 20
    assert table.rows[-1][0].text == "150"
    assert "20 most serious of 31" in table.caption
    full = build_run_document(run, full=True)
    assert any(isinstance(block, Table) and len(block.rows) == 31 for block in full.blocks)


def test_events_are_told_in_words() -> None:
    shown = text(runs.spiking())
    assert "step 50: skipped. The loss scaler found an infinity." in shown
    run = runs.healthy()
    run.events = tuple(
        RunEvent(kind="loss_scale", step=i, time=runs.START + i, message=f"scale {i}") for i in range(500)
    )
    shown = text(run)
    assert "the last 12, 488 before" in shown
    assert "499" not in shown  # the summary keeps the first 200
    assert "step 199: loss scale. scale 199" in shown


@pytest.mark.parametrize("run", [runs.hostile(), runs.spiking(), runs.vanishing(30), runs.nothing()])
@pytest.mark.parametrize("width", [20, 40, 80, 140])
def test_no_line_is_wider_than_the_terminal_and_ascii_stays_ascii(run: runs.FormulaRun, width: int) -> None:
    shown = to_text(RunView(run), width=width, ascii_only=True)
    shown.encode("ascii")
    assert max(map(len, shown.splitlines())) <= width
    assert "\x1b" not in shown


def test_a_hostile_name_is_shown_as_it_is_written_everywhere() -> None:
    run = runs.hostile()
    view = RunView(run)
    shown = text(run, width=140)
    assert "<script>alert(1)</script>" in shown
    assert "[bold red]x[/]" in shown
    page = to_html_page(view)
    body, _, rest = page.partition('<script type="application/json" id="figures">')
    for part in (body, rest.partition("</script>")[0]):
        assert runs.HOSTILE not in part
    assert "\x1b" not in page
    markdown = render_markdown(build_run_document(view, full=True))
    assert runs.HOSTILE not in markdown.replace(f"`{runs.HOSTILE}", "")  # inside code it is text
    assert "\x1b" not in markdown


def test_markdown_has_as_many_cells_in_every_row_of_a_table() -> None:
    lines = render_markdown(build_run_document(runs.hostile(), full=True)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| weight"))
    rows = [line for line in lines[start:] if line.startswith("|")]
    cells = {line.replace("\\|", "").count("|") for line in rows[:10]}
    assert len(cells) == 1


def test_markdown_begins_with_the_verdict() -> None:
    lines = render_markdown(build_run_document(runs.vanishing())).splitlines()
    assert lines[0] == "# Run vanishing"
    assert "> **unhealthy: first HW101 vanishing gradient at layers.0 at step 4**" in lines


def test_csv_has_one_row_per_recorded_step() -> None:
    run = runs.spiking()
    run.loss = lambda s: math.nan if s == 20 else None if s == 30 else 1.0
    rows = list(csv.DictReader(io.StringIO(run_to_csv(run))))
    assert [int(row["step"]) for row in rows] == list(run.steps)
    by_step = {int(row["step"]): row for row in rows}
    assert by_step[20]["loss"] == "nan"
    assert by_step[30]["loss"] == ""
    assert by_step[50]["skipped"] == "amp"
    assert run_to_csv(runs.nothing()).splitlines()[0].startswith("group,step,micro,time")


def test_a_page_has_every_picture_for_which_something_was_recorded() -> None:
    def titles(run: runs.FormulaRun) -> list[str]:
        blocks = build_run_document(run, full=True).blocks
        flat = [inner for b in blocks for inner in (b.blocks if isinstance(b, Section) else (b,))]
        return [block.title for block in flat if isinstance(block, Figure)]

    assert titles(runs.spiking()) == [
        "Map: layers over steps",
        "Profile along the depth, with a slider over the steps",
        "Loss, gradient norm, learning rate and loss scale",
        "Update ratios over the steps",
        "Shares of the gradient of step 100",
    ]
    assert titles(runs.vanishing(100, 20))[1] == "Map of every layer"
    bare = runs.healthy()
    bare.formulas = {}
    bare.loss = bare.learning_rate = lambda s: None
    assert titles(bare) == []
    assert titles(runs.nothing()) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 s"), (59.9, "59.9 s"), (60, "1 min"), (3599.6, "1 h"), (90_000, "1 d 1 h")]
)
def test_a_duration_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words
